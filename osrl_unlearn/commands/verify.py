"""``osrl-unlearn verify MANIFEST|CERTIFICATE``: does it belong to its dataset, or to its files?"""
import os

from osrl_unlearn import environments, rundir
from osrl_unlearn.audit.certificate import code, is_certificate, verify
from osrl_unlearn.audit.signature import signature_path, signer
from osrl_unlearn.commands.audit import repeat
from osrl_unlearn.commands.unlearn import load_data
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import repeat_attack
from osrl_unlearn.errors import ConfigError, ManifestMismatch
from osrl_unlearn.files import load_tensors


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("manifest", metavar="MANIFEST", help="a forget manifest, or a certificate of "
                                                                  "'osrl-unlearn audit'")
    parser.add_argument("--dataset", help="DSRL file (default: the one the manifest records)")
    parser.add_argument("--task", help="of a manifest: DSRL task (default: the one the manifest records)")
    parser.add_argument("--run", metavar="RUN_DIR",
                        help="of a manifest: the run whose data it names, if the run poisons them as it loads them")
    parser.add_argument("--signers", metavar="FILE",
                        help="of a certificate: one of OpenSSH's allowed signers in FILE must have signed it")
    parser.add_argument("--recompute", action="store_true", help="of a certificate: compute every figure again")


def main(args):
    """Raises ManifestMismatch (exit status 2) if it does not."""
    if not os.path.isfile(args.manifest):
        raise ConfigError("{} is {}: expected a forget manifest (forget.json) or a certificate (certificate.json), "
                          "which are in RUN_DIR/osrl_unlearn".format(args.manifest, "a folder" if os.path.isdir(
                              args.manifest) else "not there"))
    if is_certificate(args.manifest):
        for option, own in (("task", "task"), ("run", "run")):
            if getattr(args, option):
                raise ConfigError("--{}: {} is a certificate, which names its {} itself".format(
                    option, args.manifest, own))
        return _certificate(args)
    for option in ("recompute", "signers"):
        if getattr(args, option):
            raise ConfigError("--{}: {} is no certificate".format(option, args.manifest))
    manifest = ForgetManifest.load(args.manifest)
    if args.run:
        if args.task:
            raise ConfigError("--task: {} names its task itself".format(args.run))
        run = rundir.load(args.run)
        data, ids = load_data(run, manifest, args.dataset)
        return _ok(manifest, data, ids, "the data that {} was trained on".format(args.run))
    if args.task and manifest.task not in (args.task, None):
        raise ConfigError("--task {}: {} is for {}".format(args.task, args.manifest, manifest.task))
    task = args.task or manifest.task
    if not task:
        raise ConfigError("{} records no task, so its dataset cannot be read: give --task TASK".format(args.manifest))
    env = environments.make(task, manifest.cost_limit or 0)
    data, ids = environments.load(env, {"task": task}, args.dataset or manifest.dataset)
    where = args.dataset or manifest.dataset
    try:
        manifest.verify(data)  # what agents are trained on: a file that is poisoned already
    except ManifestMismatch as error:
        if manifest.attack is None:
            raise ManifestMismatch("{}; or, if it is about a run that poisons its data as it loads them, give --run "
                                   "RUN_DIR".format(error))
        again = repeat_attack(data, manifest, ids, _attack_state(args.manifest))
        data, ids, where = again.data, again.ids, "{}, once that is poisoned again".format(where)
    return _ok(manifest, data, ids, where)


def _ok(manifest, data, ids, where):
    manifest.row_numbers(data, ids)  # spans may be edited by hand
    absent = len(manifest.absent_rows(data, ids))
    print("ok: {} rows in {} trajectories of {}{}; every column has the recorded hash".format(
        manifest.rows, manifest.trajectories, where,
        ", and {} rows that are absent by earlier requests".format(absent) if absent else ""))
    return 0


def _certificate(args):
    certificate, run_dir = verify(args.manifest, args.dataset)
    signed = ", signed by {}".format(signer(args.manifest, args.signers)) if args.signers else ""
    if args.recompute:
        repeat(certificate, run_dir, args.dataset)
    print("ok: the certificate{} and {} files have the recorded hashes{}; it says: {} ({})".format(
        signed, len(certificate["files"]), ", and every figure is found again" if args.recompute else "",
        certificate["verdict"], certificate["reason"]))
    if not args.signers and os.path.isfile(signature_path(args.manifest)):
        print("note: there is a signature, which was not checked: name who may sign with --signers FILE")
    if certificate["versions"]["code"] != code():
        print("note: the certificate was made by other code of osrl-unlearn than is installed (version {})".format(
            certificate["versions"].get("osrl-unlearn")))
    return 0


def _attack_state(manifest):
    """What the attack learned, from where --poison and ``osrl-unlearn poison`` put it; None if there is nothing."""
    folder = os.path.dirname(os.path.abspath(manifest))
    for path in (os.path.splitext(manifest)[0] + ".attack.pt", os.path.join(folder, "attack.pt"),
                 rundir.attack_file(os.path.dirname(folder))):
        if path and os.path.isfile(path):
            return load_tensors(path)
    return None
