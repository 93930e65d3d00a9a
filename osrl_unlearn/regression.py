"""A small regression of what follows a transition on the transition; shared by the safety gate and the screening."""
import torch
import torch.nn.functional as F

BATCH, HIDDEN = 512, 128


class ToGo:
    """Mean of ``target`` given ``x``, by a few small networks that start differently.

    Args:
        x: inputs, shape [rows, dim]; target: shape [rows]; rows: which of them to fit, int64 tensor.
        steps: minibatches; heads: networks; seed: of the private generator.
        device: of the networks and their inputs; default: that of ``x``.
    """

    def __init__(self, x, target, rows, steps, heads, seed, device=None):
        device = x.device if device is None else device
        self.mean, self.std = x[rows].mean(0).to(device), x[rows].std(0).clamp(min=1e-6).to(device)
        self._scale = target[rows].mean().clamp(min=1e-6).to(device)
        generator = torch.Generator().manual_seed(int(seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self._heads = torch.nn.ModuleList([torch.nn.Sequential(
                torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, HIDDEN),
                torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1)) for _ in range(heads)]).to(device)
            optimizer = torch.optim.Adam(self._heads.parameters(), lr=1e-3)
            for _ in range(steps):
                drawn = rows[torch.randint(len(rows), (BATCH,), generator=generator).to(x.device)]
                value, wanted = self.standardise(x[drawn].to(device)), target[drawn].to(device) / self._scale
                loss = sum(F.mse_loss(h(value).squeeze(-1), wanted) for h in self._heads)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def standardise(self, x):
        """``x`` in units of the spread of the fitted rows."""
        return (x - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, x):
        """Predictions of every head in units of the target. Shape [heads, n]."""
        x = self.standardise(x)
        return torch.stack([h(x).squeeze(-1) for h in self._heads]) * self._scale
