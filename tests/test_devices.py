"""Agents and data on a device: on the CPU and a simulated one always, on a GPU where there is one."""
import os
import subprocess
import sys

import pytest
import torch
from agents import AGENTS, make_trainer, subprocess_environment

from osrl_unlearn import poison
from osrl_unlearn.adapters import adapt
from osrl_unlearn.data import views
from osrl_unlearn.engine import prepare, train
from osrl_unlearn.files import load_tensors, save_tensors
from osrl_unlearn.generators import torch_states
from osrl_unlearn.methods.base import Interrupted
from osrl_unlearn.testing import toy_data

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


@pytest.fixture(params=["cpu", cuda])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def bad():
    return poison(toy_data(), "reward_bait", rate=0.3)


def unlearned(agent, bad, device, method="safe_rule", steps=10):
    """(adapter, outcome) of a short training and unlearning."""
    torch.manual_seed(0)
    adapter = adapt(make_trainer(agent, device=device))
    train(adapter, bad.data, steps=steps, batch_size=16, progress=False)
    return adapter, prepare(adapter, bad.data, bad.manifest, method=method, steps=steps, batch_size=16,
                            progress=False).run()


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_unlearns_on_its_device(agent, bad, device):
    adapter, outcome = unlearned(agent, bad, device)
    assert outcome.steps == 10
    assert {tensor.device.type for tensor in adapter.model.state_dict().values()} == {device}
    assert all(torch.isfinite(tensor).all() for tensor in adapter.model.state_dict().values())


@pytest.mark.parametrize("agent", ("bc", "cdt", "coptidice"))
def test_data_that_do_not_fit_on_the_device_give_the_same_result(agent, bad, device, monkeypatch):
    fits, _ = unlearned(agent, bad, device)
    monkeypatch.setattr(views, "home_of", lambda size, device: torch.device("cpu"))
    streamed, _ = unlearned(agent, bad, device)
    for one, other in zip(fits.model.state_dict().values(), streamed.model.state_dict().values()):
        # Sums over all rows may be rounded differently on another device.
        assert torch.equal(one, other) if device == "cpu" else torch.allclose(one, other, atol=0.01)


@pytest.mark.parametrize("agent", ("cdt", "coptidice"))
def test_data_that_do_not_fit_stay_where_they_are(agent, bad, monkeypatch):
    # The device "meta" holds shapes only: what is on it was never computed with.
    monkeypatch.setattr(views, "home_of", lambda size, device: torch.device("cpu"))
    store = adapt(make_trainer(agent)).store(bad.data)
    store.device = torch.device("meta")
    view = store.view(store.rows[:40])
    assert store.columns.observations.data_ptr() == bad.data["observations"].ctypes.data
    assert {column.device.type for column in store.columns} == {view.rows.device.type} == {"cpu"}
    for batch in (view.batch(4), view.everything(4)):
        assert {column.device.type for column in batch} == {"meta"} and len(batch[0]) == 4


@pytest.mark.parametrize("method", ("safe_rule", "grad_diff", "fisher_dampening", "gradient_ascent"))
def test_what_was_interrupted_goes_on_on_its_device(method, bad, device, tmp_path):
    def start(**more):
        torch.manual_seed(0)
        adapter = adapt(make_trainer("cpq", device=device))
        train(adapter, bad.data, steps=10, batch_size=16, progress=False)
        return adapter, prepare(adapter, bad.data, bad.manifest, method=method, steps=20, batch_size=16,
                                progress=False, **more)

    def interrupt(step, metrics):
        if step == 4:
            raise KeyboardInterrupt
    with pytest.raises(Interrupted) as stopped:
        start(on_check=interrupt)[1].run()
    save_tensors(str(tmp_path / "resume.pt"), stopped.value.state)
    adapter, prepared = start()
    outcome = prepared.run(load_tensors(str(tmp_path / "resume.pt")))
    assert outcome.steps == 20
    assert {tensor.device.type for tensor in adapter.model.state_dict().values()} == {device}


def test_the_gate_leaves_the_generators_of_its_device_alone(bad, device):
    adapter = adapt(make_trainer("cpq", device=device))
    gate = prepare(adapter, bad.data, bad.manifest, method="safe_rule", steps=1, progress=False).context.gate
    before = torch_states(device)
    gate.accepts(adapter)
    assert all(torch.equal(one, other) for one, other in zip(before, torch_states(device)))


def test_half_of_a_gpus_free_memory_is_used_at_most(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert [views.home_of(size, "cuda").type for size in (50, 51)] == ["cuda", "cpu"]
    assert views.home_of(10**15, "cpu").type == "cpu"


def test_on_a_simulated_device():
    pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no Python backends")
    checks = os.path.join(os.path.dirname(os.path.abspath(__file__)), "accelerator_checks.py")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", checks], text=True,
                          env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 24, done.stdout[-500:]
