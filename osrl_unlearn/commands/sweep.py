"""``osrl-unlearn sweep SWEEP.yaml``: agents x tasks x attacks x rates x methods x seeds, and one table over all."""
import sys

from osrl_unlearn import resources
from osrl_unlearn.bench import runner
from osrl_unlearn.commands import bench
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.registry import read_yaml


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("sweep", nargs="?", metavar="SWEEP.yaml", help="what to compute, see configs/sweep")
    parser.add_argument("--data", default=resources.folder("datasets"), metavar="DIR",
                        help="folder of the tasks' HDF5 files (default: what ships with this package)")
    parser.add_argument("--out", default="sweep", help="folder for the results (default: sweep)")
    parser.add_argument("--repeat", metavar="FILE", help="compute one cell that failed: OUT/failed/KEY.json")
    bench.add_common(parser)


def main(args):
    """Returns 1 if something could not be computed."""
    if (args.sweep is None) == (args.repeat is None):
        raise ConfigError("give SWEEP.yaml, or --repeat FILE")
    if args.repeat is not None:
        error = runner.repeat(args.repeat)
        print("osrl-unlearn: " + (error or "done; make the tables again with the command that you started with"),
              file=sys.stderr)
        return 1 if error else 0
    values = read_yaml(args.sweep)
    if "bench" not in values:
        from osrl_unlearn.bench import sweep
        bench.check_common(args)
        return sweep.run(values, args)
    name, suite = str(values.pop("bench")), values.pop("suite", None)
    if suite is not None and values:
        raise ConfigError("{}: give the suite, or what a suite holds ({}), not both".format(
            args.sweep, ", ".join(map(str, values))))
    return bench.run(name, suite or values or "small", args)
