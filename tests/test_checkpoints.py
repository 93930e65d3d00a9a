"""Run directories that an older and a newer torch have written are read by the one at hand."""
import json
import os
import shutil

import pytest

from osrl_unlearn import cli, resources, rundir
from osrl_unlearn.files import sha256_state

pytest.importorskip("osrl")
pytest.importorskip("bullet_safety_gym")

CHECKPOINTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints")
SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")
# Of the weights, by the torch that wrote them: COptiDICE, 40 updates of the script in checkout/ on the shipped dataset.
WRITTEN = {"torch-1.13": "1b6cb56d2473b73eafc641d2ce8baec7d5eb74ed1ec60b170726d38d31904b90",
           "torch-2.13": "df4a8fb093eabdbfa720b5e41911ff332a54365b14d5cd7544e7fc9a79fc6921"}


@pytest.mark.parametrize("torch_version", sorted(WRITTEN))
def test_a_run_of_another_torch_is_unlearned(torch_version, few_steps, tmp_path):
    folder = str(tmp_path / "run")
    shutil.copytree(os.path.join(CHECKPOINTS, torch_version), folder)
    run = rundir.load(folder)
    assert sha256_state(run.adapter.model.state_dict()) == WRITTEN[torch_version]
    assert run.notes == [] and run.state["updates"] == 40  # optimisers and hidden state were restored as well
    assert cli.main(["unlearn", folder, "--dataset", SHIPPED, "--steps", "5", "--eval-episodes", "0"]) == 0
    result = rundir.unlearned_dir(folder, "safe_rule")
    with open(os.path.join(result, "report.json")) as file:
        assert json.load(file)["updates"] == {"train": 40, "unlearn": 5, "ratio": 0.125}
    assert sha256_state(rundir.load(result).adapter.model.state_dict()) != WRITTEN[torch_version]
