"""``osrl-unlearn bench NAME``: compute the results of a bench that are not there yet, and make its tables."""
import importlib
import os

from osrl_unlearn import resources
from osrl_unlearn.errors import ConfigError

BENCHES = {  # name: (module with run(suite, args), help)
    "attacks": ("osrl_unlearn.bench.attacks", "which attack harms which agent"),
    "unlearning": ("osrl_unlearn.bench.comparison", "which method makes agents forget, against retraining"),
    "partial": ("osrl_unlearn.bench.partial", "what becomes of an agent if the list of what to forget is not right"),
    "detection": ("osrl_unlearn.bench.detection", "which attack is found in the data when nobody names it"),
    "audit": ("osrl_unlearn.bench.audit", "what an audit says of agents of which the truth is known"),
    "requests": ("osrl_unlearn.bench.requests", "which requests to forget are warned of, and what they do"),
    "speed": ("osrl_unlearn.bench.speed", "how fast training, unlearning and work on large files are; runs alone"),
}
SHIPPED = {"small": ".yaml", "full": "_full.yaml"}


def add_arguments(parser):
    """The command's arguments; every bench has the same."""
    benches = parser.add_subparsers(dest="bench", metavar="BENCH")
    benches.required = True
    for name, (_, text) in BENCHES.items():
        bench = benches.add_parser(name, help=text, description=text + ".", allow_abbrev=False)
        bench.add_argument("--suite", default="small", metavar="small|full|FILE.yaml",
                           help="what to compute: configs/bench/{0}.yaml (small, the default), {0}_full.yaml (full, "
                                "where there is one), or another file".format(name))
        bench.add_argument("--data", required=True, metavar="DIR", help="folder of the tasks' HDF5 files")
        bench.add_argument("--out", help="folder for the results (default: bench-{})".format(name))
        bench.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
        bench.add_argument("--only", nargs="+", metavar="SETTING", help="only these settings of the suite")
        bench.add_argument("--seeds", nargs="+", type=int, help="instead of the suite's")
        bench.add_argument("--table", action="store_true", help="compute nothing: make the tables from what is there")


def main(args):
    """Returns 1 if something could not be computed."""
    if args.jobs < 1:
        raise ConfigError("--jobs must be at least 1, got {}".format(args.jobs))
    args.out = args.out or "bench-" + args.bench
    suite = args.suite
    if suite in SHIPPED:
        suite = os.path.join(resources.folder("configs"), "bench", args.bench + SHIPPED[suite])
    return importlib.import_module(BENCHES[args.bench][0]).run(suite, args)
