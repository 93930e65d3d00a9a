"""``osrl-unlearn bench NAME``: compute the results of a bench that are not there yet, and make its tables."""
import importlib
import os

import yaml

from osrl_unlearn import resources
from osrl_unlearn.bench.cluster import CLUSTERS
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.options import assignments

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
QUEUE = 256  # jobs that a cluster is given at once


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
        add_common(bench)


def add_common(parser):
    """The arguments of benches and sweeps: what is computed, and where."""
    parser.add_argument("--jobs", type=int, help="how many at once (default: 1, on a SLURM cluster {})".format(QUEUE))
    parser.add_argument("--cluster", choices=CLUSTERS,
                        help="let submitit run every cell as a job: in local processes, on SLURM, or in this process")
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE",
                        help="with --cluster: a parameter of submitit, such as timeout_min=60 or slurm_partition=gpu")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="only these settings of the suite")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the suite's")
    parser.add_argument("--table", action="store_true", help="compute nothing: make the tables from what is there")


def main(args):
    """Returns 1 if something could not be computed."""
    args.out = args.out or "bench-" + args.bench
    return run(args.bench, args.suite, args)


def run(bench, suite, args):
    """Run the bench called ``bench``; ``suite`` is small, full, a file, or a mapping that stands for a file."""
    if bench not in BENCHES:
        raise ConfigError("unknown bench '{}': there are {}".format(bench, ", ".join(BENCHES)))
    check_common(args, queue=1 if bench == "speed" else QUEUE)
    if not isinstance(suite, dict) and suite in SHIPPED:
        suite = os.path.join(resources.folder("configs"), "bench", bench + SHIPPED[suite])
    return importlib.import_module(BENCHES[bench][0]).run(suite, args)


def check_common(args, queue=QUEUE):
    """Check what :func:`add_common` has added, and set ``jobs`` and ``parameters``. Raises ConfigError."""
    if args.jobs is None:
        args.jobs = queue if args.cluster == "slurm" else 1
    if args.jobs < 1:
        raise ConfigError("--jobs must be at least 1, got {}".format(args.jobs))
    if args.set and not args.cluster:
        raise ConfigError("--set needs --cluster: it is for the jobs of a cluster")
    try:
        args.parameters = {name: yaml.safe_load(value) for name, value in assignments(args.set).items()}
    except yaml.YAMLError:
        raise ConfigError("--set {}: cannot read the value".format(" ".join(args.set)))
