"""The README's Python example runs, its flags are the real ones, and the tutorial's commands are."""
import glob
import os
import re
import shlex
import subprocess
import sys

import pytest
from agents import QUICK, subprocess_environment

from osrl_unlearn import resources
from osrl_unlearn.cli import main
from osrl_unlearn.commands.completion import make_parser

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


@pytest.fixture(scope="module")
def text():
    with open(README, encoding="utf-8") as file:
        return file.read()


def test_the_python_example_runs(text, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    done = subprocess.run([sys.executable, "-c", example], cwd=str(tmp_path), env=subprocess_environment(QUICK), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    accepted, verdict = done.stdout.splitlines()[-1].split()[:2]
    assert accepted in ("True", "False") and verdict in ("unlearned", "partly", "not")


def test_every_flag_of_the_help_is_in_the_readme_and_the_other_way_round(text, capsys):
    assert main(["--help"]) == 0
    ours = set(re.findall(r"--(?:poison|unlearn)\.(\w+)", capsys.readouterr().out))
    table = text[text.index("### Flags"):text.index("### Other commands")]
    documented = set(re.findall(r"(?:--(?:poison|unlearn)|`)\.(\w+)", table))
    assert ours == documented


def test_every_command_of_the_tutorial_is_one():
    with open(os.path.join(resources.folder("configs"), "tutorial.md"), encoding="utf-8") as file:
        lines = [shlex.split(line) for line in re.findall(r"^osrl-unlearn .*", file.read(), re.M)]
    assert [line[1] for line in lines] == ["manifest", "unlearn", "audit", "verify", "report"]
    given = [make_parser().parse_args(line[1:]) for line in lines]
    result = given[1].run_dir + "/unlearned/safe_rule"
    assert given[1].forget == given[0].out and given[0].run == given[1].run_dir == given[4].run_dirs[0]
    assert given[2].run_dir == result and given[3].manifest == result + "/osrl_unlearn/certificate.json"


def test_every_command_is_in_the_readme(text):
    from osrl_unlearn.cli import COMMANDS
    assert [name for name in COMMANDS if not re.search(r"osrl-unlearn ([a-z]+ \| )*{}\b".format(name), text)] == []


def test_every_table_of_results_is_one_that_a_bench_wrote(text):
    written = set()
    for path in glob.glob(os.path.join(os.path.dirname(README), "osrl_unlearn", "bench", "results", "*.md")):
        with open(path, encoding="utf-8") as file:
            written.update(line.strip() for line in file if line.startswith("|"))
    parts = [text[text.index("<!-- {} -->".format(part)):text.index("<!-- end of {} -->".format(part))]
             for part in ("headline", "results", "speed")]
    shown = [line.strip() for part in parts for line in part.splitlines() if line.startswith("|")]
    assert len(shown) > 100 and [line for line in shown if line not in written] == []
