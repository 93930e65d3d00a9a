"""Who made a certificate: a detached signature by OpenSSH (``ssh-keygen -Y``), as git uses it for commits."""
import os
import shutil
import subprocess

from osrl_unlearn.errors import ConfigError, EnvironmentProblem, ManifestMismatch
from osrl_unlearn.files import write_text

NAMESPACE = "osrl-unlearn"  # a signature that was made for something else does not count


def signature_path(path):
    """Where the signature of the file ``path`` is."""
    return path + ".sig"


def check_key(key):
    """Raise ConfigError unless ``key`` can sign, for :func:`sign`."""
    _signature(b"", key)


def sign(path, key):
    """Sign the file ``path`` with the private key (or the public one, of which ssh-agent has the private) ``key``.

    Raises ConfigError; an earlier signature is then left as it is.
    """
    with open(path, "rb") as file:
        write_text(signature_path(path), _signature(file.read(), key))


def _signature(data, key):
    done = _keygen("sign", "-f", key, "-n", NAMESPACE, data=data)
    if done.returncode:
        raise ConfigError("--sign {}: ssh-keygen could not sign ({}): expected a private key of OpenSSH".format(
            key, _first_line(done)))
    return done.stdout.decode()


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
        done = _keygen("verify", "-f", allowed, "-I", names[0], "-n", NAMESPACE, "-s", signature, data=file.read())
    if done.returncode:
        raise ManifestMismatch("{} does not belong to {}: {}".format(signature, path, _first_line(done)))
    return names[0]


def _keygen(action, *arguments, data=b""):
    if shutil.which("ssh-keygen") is None:
        raise EnvironmentProblem("signatures need ssh-keygen of OpenSSH (8.1 or newer), which is not on the PATH")
    return subprocess.run(["ssh-keygen", "-Y", action, *arguments], input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def _first_line(done):
    return ((done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
