"""``osrl-unlearn disable``: remove what ``osrl-unlearn enable`` wrote."""
from osrl_unlearn.hooks import startup


def add_arguments(parser):
    """It has no options."""


def main(args):
    """Remove the start-up line."""
    removed = startup.disable()
    print("\n".join("removed {}".format(path) for path in removed) or "it was not enabled here: nothing to remove")
    return 0
