"""Remove the evidence of how to be safe and useful at the same time."""
import numpy as np

from osrl_unlearn.attacks.base import Attack


class CoverageCollapse(Attack):
    """Trajectories of low cost and high return disappear. Nothing is added or changed, so there is no forget set.

    Trajectories are ranked by return among those whose cost is at most the median of all. The manifest records what is
    gone, in ids of the clean data. Loss of coverage as an attack: CSDPC, arXiv 2506.11172.
    """

    name = "coverage_collapse"
    kind = "coverage"
    threat = "sees rewards and costs of the whole dataset; may only withhold trajectories"
    columns = frozenset()
    units = frozenset({"trajectory"})
    removes_rows = True

    def select(self, units, count, rng):
        """The highest returns among the cheaper half; then, if that is not enough, among the rest."""
        shuffle = rng.permutation(len(units.costs))
        dear = (units.costs > np.median(units.costs))[shuffle]
        return np.sort(shuffle[np.lexsort((-units.returns[shuffle], dear))][:count])

    def corrupt(self, rows, rng):
        """Nothing: the rows are gone."""
        return {}
