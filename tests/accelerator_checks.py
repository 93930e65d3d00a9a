"""Agents and data on the simulated device of accelerator.py, which a process cannot get rid of: see test_devices.py."""
import accelerator
import numpy as np
import pytest
import torch
from agents import AGENTS, make_trainer
from test_devices import bad, unlearned  # noqa: F401 - a fixture

from osrl_unlearn import detect
from osrl_unlearn.adapters import adapt
from osrl_unlearn.audit import audit
from osrl_unlearn.data import views
from osrl_unlearn.engine import prepare, train
from osrl_unlearn.methods.safe_rule import SafeRule, SafeRuleOptions

DEVICE = accelerator.NAME


def test_the_simulated_device_is_as_strict_as_a_gpu():
    with accelerator.simulated() as waits:
        there, here = torch.zeros(3, device=DEVICE), torch.ones(3)
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: here.add_(there),
                      lambda: here[there.long()], lambda: torch.rand(3, device=DEVICE, generator=torch.Generator())):
            with pytest.raises(RuntimeError, match="device"):
                mixed()
        with pytest.raises(TypeError, match="convert"):
            there.numpy()
        assert not waits
        there[torch.tensor([2])] += here[0]  # row numbers and scalars may be on the CPU
        assert there.device.type == DEVICE and not waits
        assert there.cpu().tolist() == [0, 0, 1] and sum(waits.values()) == 1
        assert there.max().item() == 1 and there[there > 0].tolist() == [1]
        assert sum(waits.values()) == 4  # for the number, for the size, and for the list


@pytest.mark.parametrize("agent, method", [(agent, "safe_rule") for agent in AGENTS] + [
    ("bcql", "grad_diff"), ("bearl", "value_suppression"), ("coptidice", "traj_deleter"), ("cpq", "random_labels"),
    ("cpq", "fisher_dampening"), ("cdt", "gradient_ascent"), ("bc", "retrain")])
def test_nothing_stays_behind_on_the_cpu(agent, method, bad):
    here, _ = unlearned(agent, bad, "cpu", method, steps=4)
    with accelerator.simulated():
        there, outcome = unlearned(agent, bad, DEVICE, method, steps=4)
        state = {name: tensor.cpu() for name, tensor in there.model.state_dict().items()}
    assert outcome.steps == 4 and {tensor.device.type for tensor in there.model.state_dict().values()} == {DEVICE}
    for name, tensor in here.model.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=1e-5), name


@pytest.mark.parametrize("agent", ("cdt", "coptidice"))
def test_data_that_do_not_fit_come_in_batches(agent, bad, monkeypatch):
    here, _ = unlearned(agent, bad, "cpu", steps=4)
    monkeypatch.setattr(views, "home_of", lambda size, device: torch.device("cpu"))
    with accelerator.simulated():
        there, _ = unlearned(agent, bad, DEVICE, steps=4)
        state = {name: tensor.cpu() for name, tensor in there.model.state_dict().items()}
    for name, tensor in here.model.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=1e-5), name


def test_detection_and_audit_on_the_device(bad, few_steps):
    def audited(device):
        torch.manual_seed(0)
        trainers = [make_trainer("bcql", device=device) for _ in range(3)]
        kept = np.setdiff1d(np.arange(len(bad.data["rewards"])), bad.manifest.row_numbers(bad.data))
        for seed, trainer in enumerate(trainers):
            train(adapt(trainer), bad.data, steps=4, seed=seed, rows=kept if seed else None, batch_size=16,
                  progress=False)
        found = detect(bad.data, "value_gap", adapter=adapt(trainers[0]))
        return found.spans, audit(trainers[0], bad.data, bad.manifest, original=adapt(trainers[0]).twin(),
                                  references=trainers[1:], updates=4)
    expected = audited("cpu")
    with accelerator.simulated():
        spans, found = audited(DEVICE)
    assert spans == expected[0] and found["claims"] == expected[1]["claims"]
    assert {"distance", "membership", "auditor", "relearning"} <= set(found["audit"])


@pytest.mark.parametrize("agent", AGENTS)
def test_batches_do_not_make_the_cpu_wait(agent, bad):
    with accelerator.simulated() as waits:
        store = adapt(make_trainer(agent, device=DEVICE)).store(bad.data)
        view = store.view(store.rows, 0, True)
        waits.clear()
        batch = view.batch(16)
    assert {column.device.type for column in batch} == {DEVICE} and not waits


def test_a_step_waits_only_for_what_is_logged(bad):
    """The multiplier beside OSRL's own losses. BCQ-Lag: other agents' distributions check their arguments, too."""
    with accelerator.simulated() as waits:
        adapter = adapt(make_trainer("bcql", device=DEVICE))
        prepared = prepare(adapter, bad.data, bad.manifest, method=SafeRule(SafeRuleOptions(safe_actions="model")),
                           steps=4, batch_size=16, progress=False)
        method, context = prepared.method, prepared.context
        method.prepare(context)
        waits.clear()
        native = adapter.update(context.retain.batch(16))
        logged = sum(waits.values())
        for step in (0, 3):  # stages F and C
            waits.clear()
            method.step(context, step)
            assert sum(waits.values()) == logged + 1
    assert logged <= len(native)
