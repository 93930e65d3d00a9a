"""What docstrings show is what happens."""
import doctest

import osrl.algorithms  # says on stdout what it misses

import osrl_unlearn


def test_the_package_does_what_its_docstring_shows():
    found = doctest.testmod(osrl_unlearn)
    assert osrl.algorithms.BC and found.attempted > 10 and not found.failed
