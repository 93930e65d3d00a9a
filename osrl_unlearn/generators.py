"""States of the global random generators: OSRL's agents, loaders and environments draw from them."""
import random
from contextlib import contextmanager

import numpy as np
import torch


def torch_states(device):
    """State of torch's global generators: of the CPU, and of the agent's GPU if it is on one."""
    states = [torch.get_rng_state()]
    if torch.device(device).type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_torch_states(states, device):
    """Set what :func:`torch_states` returned."""
    torch.set_rng_state(states[0].cpu())
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


@contextmanager
def private_torch(seed, device):
    """Seed torch's global generators (OSRL's agents draw from them) and put them back afterwards."""
    before = torch_states(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_torch_states(before, device)


def all_states(device="cpu"):
    """State of the global generators of Python, NumPy and torch, as primitives and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {"python": [version, list(internal), gauss],
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            "torch": torch_states(device)}


def set_all_states(state, device="cpu"):
    """Set what :func:`all_states` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    set_torch_states(state["torch"], device)
