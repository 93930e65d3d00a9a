"""``python -m osrl_unlearn [FLAGS] SCRIPT [ARGS]``."""
import sys

from osrl_unlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
