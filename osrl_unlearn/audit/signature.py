"""Who made a certificate: a detached signature by OpenSSH (``ssh-keygen -Y``), as git uses it for commits."""
import os
import shutil
import subprocess

from osrl_unlearn.errors import ConfigError, EnvironmentProblem, ManifestMismatch

NAMESPACE = "osrl-unlearn"  # a signature that was made for something else does not count


def signature_path(path):
    """Where the signature of the file ``path`` is."""
    return path + ".sig"


def sign(path, key):
    """Sign the file ``path`` with the private key (or the public one, of which ssh-agent has the private) ``key``.

    Raises ConfigError.
    """
    if os.path.exists(signature_path(path)):
        os.unlink(signature_path(path))
    done = _keygen("sign", "-f", key, "-n", NAMESPACE, path)
    if done.returncode:
        raise ConfigError("--sign {}: ssh-keygen could not sign ({}): expected a private key of OpenSSH".format(
            key, _first_line(done)))


def signer(path, allowed):
    """Which of the signers in the file ``allowed`` signed ``path``; see ALLOWED SIGNERS in ssh-keygen's manual.

    Raises ManifestMismatch if none of them did.
    """
    signature = signature_path(path)
    for name in (signature, allowed):
        if not os.path.isfile(name):
            raise ManifestMismatch("--signers: there is no file {}".format(name))
    found = _keygen("find-principals", "-s", signature, "-f", allowed)
    names = found.stdout.decode(errors="replace").split()
    if found.returncode or not names:
        raise ManifestMismatch("{} was not made by anybody who is named in {}".format(signature, allowed))
    with open(path, "rb") as file:
        done = _keygen("verify", "-f", allowed, "-I", names[0], "-n", NAMESPACE, "-s", signature, stdin=file)
    if done.returncode:
        raise ManifestMismatch("{} does not belong to {}: {}".format(signature, path, _first_line(done)))
    return names[0]


def _keygen(action, *arguments, stdin=subprocess.DEVNULL):
    if shutil.which("ssh-keygen") is None:
        raise EnvironmentProblem("signatures need ssh-keygen of OpenSSH (8.1 or newer), which is not on the PATH")
    return subprocess.run(["ssh-keygen", "-Y", action, *arguments], stdin=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def _first_line(done):
    return ((done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
