"""``osrl-unlearn enable``: plain ``python SCRIPT --poison ... --unlearn ...`` in this environment, OSRL untouched."""
from osrl_unlearn.hooks import startup


def add_arguments(parser):
    """It has no options."""


def main(args):
    """Write the start-up line."""
    print("enabled: {}\nplain python now takes --poison and --unlearn in scripts that import osrl; "
          "'osrl-unlearn disable' removes this file".format(startup.enable()))
    return 0
