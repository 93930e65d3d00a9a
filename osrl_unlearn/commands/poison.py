"""``osrl-unlearn poison --attack A --out FILE.hdf5``: a poisoned dataset as a file, and what to forget of it."""
import contextlib
import os

from osrl_unlearn import status
from osrl_unlearn.cli import make_poison
from osrl_unlearn.data.dataset import check_file, task_of
from osrl_unlearn.data.stream import poison_file
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import atomic_path, check_new, check_writable, save_tensors
from osrl_unlearn.options import assignments


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("--task", help="DSRL task whose dataset is poisoned, such as OfflineBallCircle-v0")
    parser.add_argument("--dataset", help="DSRL file to poison; without --task no environment is needed")
    parser.add_argument("--attack", required=True, help="NAME or FILE.yaml")
    parser.add_argument("--rate", help="share of the units that is poisoned, 0 to 1 (default 0.1)")
    parser.add_argument("--unit", help="trajectory, segment or transition (default trajectory)")
    parser.add_argument("--seed", help="seed of the attack's own generator (default 0)")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of the attack")
    parser.add_argument("--out", required=True, metavar="FILE.hdf5",
                        help="file to write; the forget manifest becomes FILE.json")


def main(args):
    """Write the files; print what they are and how to use them."""
    given = {name: getattr(args, name) for name in ("rate", "unit", "seed") if getattr(args, name) is not None}
    given.update(assignments(args.set))
    attack, settings = make_poison(args.attack, given, "")
    data, manifest_json, camouflage_json, attack_pt = _paths(args.out)
    source, task = _source(args.task, args.dataset)
    try:
        with contextlib.ExitStack() as stack:
            def temporary(path):
                # The files get their names when all of them are complete.
                return stack.enter_context(atomic_path(path))

            manifest, rows = poison_file(source, temporary(data), attack, task=task, dataset=os.path.abspath(data),
                                         progress=not status.quiet, **settings)
            manifest.save(temporary(manifest_json))
            if "camouflage" in (manifest.parts or ()):
                manifest.part("camouflage").save(temporary(camouflage_json))
            if attack.state():
                save_tensors(temporary(attack_pt), attack.state())
    except OSError as error:
        raise ConfigError("{} could not be made from {}: {}".format(data, source, str(error).splitlines()[0]))
    if manifest.removed is not None:
        print("{} removed {:,} trajectories, {:,} rows are left: the dataset is {}, the record of what is gone {}; "
              "nothing of the attack is in the data, so there is nothing to forget".format(
                  attack.name, len(manifest.removed), rows, data, manifest_json))
        return 0
    request = camouflage_json if os.path.exists(camouflage_json) else None
    print("{} poisoned {:,} of {:,} rows in {:,} trajectories: the dataset is {}, the forget manifest {}{}; use them "
          "with --dataset {} --unlearn safe_rule --unlearn.forget {}".format(
              attack.name, manifest.rows, rows, manifest.trajectories, data, manifest_json,
              ", the request to delete the camouflage {}".format(request) if request else "", data, manifest_json))
    return 0


def _paths(out):
    """FILE.hdf5, FILE.json, FILE.camouflage.json and FILE.attack.pt. Raises ConfigError if they cannot be written."""
    base, ending = os.path.splitext(out)
    folder = os.path.dirname(os.path.abspath(out))
    if ending not in (".hdf5", ".h5"):
        raise ConfigError("--out {}: expected a name that ends with .hdf5".format(out))
    if not os.path.isdir(folder):
        raise ConfigError("--out {}: there is no folder {}; make it first".format(out, folder))
    check_writable(folder)
    paths = [out] + [base + ending for ending in (".json", ".camouflage.json", ".attack.pt")]
    for path in paths:
        check_new(path)
    return paths


def _source(task, dataset):
    """(path of the dataset, its task if that is known)."""
    if task:
        from osrl_unlearn import environments
        return environments.find_dataset(environments.make(task, 0), dataset), task
    if not dataset:
        raise ConfigError("there is nothing to poison: give --task TASK or --dataset FILE")
    check_file(dataset)
    return dataset, task_of(dataset)
