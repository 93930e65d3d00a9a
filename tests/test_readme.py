"""The README's Python example runs, and its flags are the real ones."""
import os
import re
import subprocess
import sys

import pytest
from agents import subprocess_environment

from osrl_unlearn.cli import main

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


@pytest.fixture(scope="module")
def text():
    with open(README, encoding="utf-8") as file:
        return file.read()


def test_the_python_example_runs(text, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    done = subprocess.run([sys.executable, "-c", example], cwd=str(tmp_path), env=subprocess_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[0] in ("True", "False")


def test_every_flag_of_the_help_is_in_the_readme_and_the_other_way_round(text, capsys):
    assert main(["--help"]) == 0
    ours = set(re.findall(r"--(?:poison|unlearn)\.(\w+)", capsys.readouterr().out))
    table = text[text.index("### Flags"):text.index("### Other commands")]
    documented = set(re.findall(r"(?:--(?:poison|unlearn)|`)\.(\w+)", table))
    assert ours == documented
