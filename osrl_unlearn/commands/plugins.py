"""``osrl-unlearn plugins``: what can be named, and who offers it."""
import json

from osrl_unlearn.environments import stdout_to_stderr
from osrl_unlearn.registry import ATTACKS, REGISTRIES


def add_arguments(parser):
    """Add the options of ``osrl-unlearn plugins``."""
    parser.add_argument("--json", action="store_true",
                        help="print a JSON list, of attacks also attack_kind, columns and threat")


def main(args):
    """Import and list every plugin; return 1 if one of a third party cannot be used."""
    with stdout_to_stderr():
        found = [plugin for registry in REGISTRIES for plugin in registry.plugins()]
        more = [_threat(plugin) for plugin in found] if args.json else ()
    if args.json:
        print(json.dumps([dict(plugin._asdict(), **own) for plugin, own in zip(found, more)], indent=2))
    else:
        rows = [("kind", "name", "from", "version", "state")] + found
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("  ".join([text.ljust(width) for text, width in zip(row, widths)] + [row[4]]))
    return 0 if all(plugin.state == "ok" for plugin in found) else 1


def _threat(plugin):
    """What an attack that can be used declares: its sort, the columns it touches, what its attacker sees and may do."""
    if plugin.kind != ATTACKS.kind or plugin.state != "ok":
        return {}
    cls = ATTACKS.load(plugin.name)
    # A third party's need not declare all of it.
    return {"attack_kind": getattr(cls, "kind", None), "columns": sorted(getattr(cls, "columns", ())),
            "threat": getattr(cls, "threat", None)}
