"""Least squares of output layers, against numpy's, and small networks."""
import numpy as np
import pytest
import torch

from osrl_unlearn.regression import Behaviour, RandomFeatures, ToGo, refit


def augmented(x, y, penalty):
    """Ridge regression as ordinary least squares with a row per weight."""
    x = np.concatenate([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    return np.linalg.lstsq(x, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_layers_get_the_weights_of_a_ridge_regression_on_their_inputs(bias):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1, bias=bias))
    x, y = torch.randn(50, 3), torch.randn(50) + 7
    refit([net[2]], [(lambda rows=rows: net(x[rows]), y[rows]) for rows in torch.arange(50).split(20)], 0.1)
    inputs, target = net[1](net[0](x)).detach().double().numpy(), y.double().numpy()
    mean, level = (inputs.mean(0), target.mean()) if bias else (0.0, 0.0)
    wanted = augmented(inputs - mean, target - level, 0.1 * ((inputs - mean) ** 2).sum(0).mean())
    assert net[2].weight.detach().numpy()[0] == pytest.approx(wanted, rel=1e-3)
    if bias:
        assert net[2].bias.item() == pytest.approx(level - mean @ wanted, rel=1e-4)


def test_a_script_that_asks_for_many_threads_has_them_afterwards():
    """Several threads on one core take 600 times as long for the products."""
    seen, before = [], torch.get_num_threads()
    layer = torch.nn.Linear(4, 1)
    torch.set_num_threads(before + 3)
    try:
        refit([layer], [(lambda: seen.append(torch.get_num_threads()) or layer(torch.ones(9, 4)), torch.zeros(9))], 1.0)
        assert (seen, torch.get_num_threads()) == ([1], before + 3)
    finally:
        torch.set_num_threads(before)


def test_dead_inputs_are_no_error():
    layer = torch.nn.Linear(4, 1)
    refit([layer], [(lambda: layer(torch.zeros(9, 4)), torch.full((9,), 3.0))], 1e-3)
    assert layer(torch.zeros(1, 4)).item() == pytest.approx(3.0)


def test_networks_fit_numbers_and_actions():
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    rows, wanted = torch.arange(1500), 5 * torch.tanh(x[:, :2])
    clones = Behaviour(x, wanted, rows, 400, 2, seed=0)(x[1500:])
    assert clones.shape == (2, 500, 2) and (clones - wanted[1500:]).abs().mean() < 0.5
    assert Behaviour(x, wanted[:, :1], rows, 1, 2, seed=0)(100 * x).abs().max() <= 5  # far off, too
    togo = ToGo(x, wanted[:, 0].abs(), rows, 400, 3, seed=0)(x[1500:])
    assert togo.shape == (3, 500) and (togo - wanted[1500:, 0].abs()).abs().mean() < 0.5


def test_random_features_fit_what_is_curved_and_do_the_same_twice():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    rows, wanted = torch.arange(3000), x[:, 0].abs() + x[:, 1] * x[:, 2] + 7
    before, model = torch.get_rng_state(), RandomFeatures(x, wanted, rows, seed=0)
    found = model(x[3000:])
    assert found.shape == (1000,) and (found - wanted[3000:]).pow(2).mean() < 0.05 * wanted.var()
    assert torch.equal(RandomFeatures(x, wanted, rows, seed=0)(x[3000:]), found)
    assert not torch.equal(RandomFeatures(x, wanted, rows, seed=1)(x[3000:]), found)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_features_of_hardly_any_rows_and_of_dead_inputs_are_finite():
    x = torch.zeros(5, 2)
    found = RandomFeatures(x, torch.full((5,), 3.0), torch.arange(5), seed=0)(x)
    assert found == pytest.approx(3.0, abs=1e-3)
