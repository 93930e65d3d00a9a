"""``osrl-unlearn manifest LIST --out MANIFEST``: a forget manifest from a list of trajectories."""
import os

from osrl_unlearn.commands.detect import load
from osrl_unlearn.commands.unlearn import numbers_in
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import check_new


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("list", metavar="LIST", help="text file of trajectory numbers, counted from 0 in file order; "
                                                     "a JSON list is one too")
    parser.add_argument("--run", metavar="RUN_DIR", help="the trajectories are of what this agent was trained on")
    parser.add_argument("--task", help="the trajectories are of the task's dataset, found as in training")
    parser.add_argument("--dataset", help="the trajectories are of this DSRL file")
    parser.add_argument("--withdrawn", action="store_true",
                        help="nothing is wrong with the trajectories: they are not to be treated as unsafe")
    parser.add_argument("--out", required=True, metavar="MANIFEST", help="where the forget manifest goes")


def main(args):
    """Write the manifest; say what it names."""
    if not (args.task or args.dataset or args.run):
        raise ConfigError("trajectories of what? give --run RUN_DIR, --task T or --dataset FILE")
    if os.path.isdir(args.out):
        raise ConfigError("--out {} is a folder: give the file that the forget manifest goes to".format(args.out))
    check_new(args.out)
    wanted = read_numbers(args.list)
    data, ids, about = load(args)
    about.pop("adapter", None)
    manifest = ForgetManifest.of_trajectories(data, wanted, ids, withdrawn=args.withdrawn, **about)
    manifest.save(args.out)
    print("{} names {:,} trajectories, {:,} of {:,} rows; to forget them: osrl-unlearn unlearn {} --forget {}".format(
        args.out, manifest.trajectories, manifest.rows, len(data["rewards"]), args.run or "RUN_DIR", args.out))
    return 0


def read_numbers(path):
    """The numbers in a text file. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            return numbers_in(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("{} cannot be read ({}): expected a text file of trajectory numbers".format(
            path, getattr(error, "strerror", None) or "it is no text"))
