"""Gradient-boosted trees of scikit-learn, a fold each."""
import numpy as np
import torch

from osrl_unlearn.detectors.models import ROUNDS, some_of_each
from osrl_unlearn.errors import EnvironmentProblem

TREES = 60  # of each round and target


class Trees:
    """A learner for :func:`~osrl_unlearn.detectors.models.out_of_fold` with as many outputs as targets.

    Least squares; what is disputed is left to the weights of trajectories. Every round starts anew, on some rows of
    each trajectory; the last one sees all. Raises EnvironmentProblem without scikit-learn.
    """

    rounds = ROUNDS

    def start(self, inputs, targets, index, seed, rng):
        """Take the data. ``rng`` is not used: trees have the ``seed``."""
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError:
            raise EnvironmentProblem("scikit-learn is not installed, and fits the trees that \"model trees\" asks for: "
                                     "run python -m pip install scikit-learn, or leave the option out")
        self._new = lambda: HistGradientBoostingRegressor(max_iter=TREES, early_stopping=False, random_state=seed)
        self._inputs, self._targets, self._index, self._done = inputs, targets, index, 0

    def fit(self, weights):
        """Fit trees with these weights of trajectories: shape [trajectories] for each fold."""
        self._done += 1
        rows = np.arange(self._index.rows) if self._done == self.rounds else some_of_each(self._index)
        owner = np.searchsorted(self._index.stops, rows, side="right")
        self._fitted = []
        for each in weights:
            mine = each[owner] > 0
            values, labels = self._inputs(rows[mine]), self._targets(rows[mine])
            self._fitted.append([self._new().fit(values, column, each[owner[mine]]) for column in labels.T])

    def predict(self, number, values):
        """What the trees of fold ``number`` say of ``values`` [n, dim]. Shape [n, targets]."""
        found = np.stack([model.predict(values) for model in self._fitted[number]], 1)
        return torch.from_numpy(found.astype(np.float32))
