"""``osrl-unlearn verify MANIFEST --dataset FILE``: does a forget manifest belong to a dataset?"""
import os

from osrl_unlearn import environments
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import repeat_attack
from osrl_unlearn.errors import ConfigError, ManifestMismatch
from osrl_unlearn.files import load_tensors


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("manifest", metavar="MANIFEST", help="the JSON file that --poison writes")
    parser.add_argument("--dataset", help="DSRL file (default: the one the manifest records)")


def main(args):
    """Raises ManifestMismatch (exit status 2) if it does not."""
    manifest = ForgetManifest.load(args.manifest)
    if not manifest.task:
        raise ConfigError("{} records no task, so its dataset cannot be checked here".format(args.manifest))
    env = environments.make(manifest.task, manifest.cost_limit or 0)
    data, ids = environments.load(env, {"task": manifest.task}, args.dataset or manifest.dataset)
    try:
        manifest.verify(data)  # what agents are trained on: a file that is poisoned already
    except ManifestMismatch:
        if manifest.attack is None:
            raise
        repeat_attack(data, manifest, ids, _attack_state(args.manifest))
    print("ok: {} rows in {} trajectories of {}; every column has the recorded hash".format(
        manifest.rows, manifest.trajectories, args.dataset or manifest.dataset))
    return 0


def _attack_state(manifest):
    """What the attack learned, from where --poison and ``osrl-unlearn poison`` put it; None if there is nothing."""
    for path in (os.path.splitext(manifest)[0] + ".attack.pt", os.path.join(os.path.dirname(manifest), "attack.pt")):
        if os.path.isfile(path):
            return load_tensors(path)
    return None
