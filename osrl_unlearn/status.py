"""Lines on stderr that say what is going on; ``--quiet`` silences them. Warnings and errors are not of this kind."""
import sys

quiet = False


def say(message):
    """Print a line, unless --quiet was given."""
    if not quiet:
        print("osrl-unlearn: " + message, file=sys.stderr, flush=True)


def warn(message):
    """Print a line that --quiet does not silence."""
    print("osrl-unlearn: warning: " + message, file=sys.stderr, flush=True)
