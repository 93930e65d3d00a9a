"""``osrl-unlearn plugins``: what can be named, and who offers it."""
import json

from osrl_unlearn.environments import stdout_to_stderr
from osrl_unlearn.registry import REGISTRIES


def add_arguments(parser):
    """Add the options of ``osrl-unlearn plugins``."""
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def main(args):
    """Import and list every plugin; return 1 if one of a third party cannot be used."""
    with stdout_to_stderr():
        found = [plugin for registry in REGISTRIES for plugin in registry.plugins()]
    if args.json:
        print(json.dumps([plugin._asdict() for plugin in found], indent=2))
    else:
        rows = [("kind", "name", "from", "version", "state")] + found
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("  ".join([text.ljust(width) for text, width in zip(row, widths)] + [row[4]]))
    return 0 if all(plugin.state == "ok" for plugin in found) else 1
