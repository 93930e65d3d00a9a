"""CDT: the constrained decision transformer, a policy that is asked for a return and a cost."""
import inspect
import math
import random
import warnings
from operator import attrgetter

import numpy as np
import torch

from osrl_unlearn import generators
from osrl_unlearn.adapters.base import Adapter, Part
from osrl_unlearn.data.sequences import SequenceBatch, SequenceStore
from osrl_unlearn.environments import OAPACKAGE, stdout_to_stderr
from osrl_unlearn.errors import ConfigError, EnvironmentProblem


class CDTAdapter(Adapter):
    """OSRL's CDT: one transformer, whose optimiser and learning-rate schedule are the trainer's. It has no critics.

    What is forgotten are trajectories, since every return and cost to go counts what comes later. Where the policy is
    asked how it acts, it is asked as in its evaluation: for the cost limit, and for the return of the run's
    ``target_returns`` whose cost is nearest to it. The logged returns and costs to go only stand where its likelihood
    of the logged actions is meant, or where no configuration is known.

    The temperature is there in stochastic models only; so is "log_prob".
    """

    name = "cdt"
    trainer_class = "osrl.algorithms.cdt:CDTTrainer"
    capabilities = frozenset()
    parts = {"actor": Part("", "optim")}
    attributes = ("episode_len", "seq_len", "stochastic", "max_action")
    trainer_attributes = ("scheduler", "cost_reverse")
    derived = Adapter.derived + ("target_entropy",)
    inputs = dict({name: attrgetter(name) for name in SequenceBatch._fields if name != "action_sequence"},
                  actions=attrgetter("action_sequence"))

    def __init__(self, trainer, config=None):
        super().__init__(trainer, config)
        if self.model.stochastic:
            self.capabilities = frozenset({"log_prob"})
            self.tensors = ("log_temperature",)

    @classmethod
    def parts_of(cls, trainer):
        """Stochastic models have a temperature."""
        if not getattr(trainer.model, "stochastic", False):
            return cls.parts
        return dict(cls.parts, temperature=Part("log_temperature", "log_temperature_optimizer"))

    @classmethod
    def has_networks(cls, names):
        """Which embeddings there are depends on the configuration."""
        return {"state_emb", "action_emb", "blocks", "action_head", "state_pred_head", "cost_pred_head"} <= names

    @classmethod
    def given(cls, config, env):
        """The target entropy as in OSRL's script."""
        return dict(super().given(config, env), target_entropy=-env.action_space.shape[0])

    # State ------------------------------------------------------------------------------------------------------------

    def initialise(self, module, covered):
        """OSRL's Gaussian head draws its weights twice."""
        super().initialise(module, covered)
        if type(module).__name__ == "DiagGaussianActor":
            for layer in (module.mu, module.log_std):
                torch.nn.init.orthogonal_(layer.weight.data)

    def reset_hidden(self):
        """Weights from CDT's own distribution, the first temperature, and the schedule from its start."""
        self.model.apply(self.model._init_weights)
        if self.model.stochastic:
            with torch.no_grad():
                self.model.log_temperature.fill_(math.log(self.config.get("init_temperature", 0.1)))
        for group in self.trainer.optim.param_groups:
            group["lr"] = group["initial_lr"]
        self.trainer.scheduler = type(self.trainer.scheduler)(self.trainer.optim, self.trainer.scheduler.lr_lambdas[0])

    def advance(self, updates):
        """The schedule's warm-up is over after training."""
        if updates:
            self.trainer.scheduler.last_epoch = updates - 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimiser has taken no step in this process
                self.trainer.scheduler.step()
        return ()

    # Data -------------------------------------------------------------------------------------------------------------

    def store(self, data, reward_scale=1.0, cost_scale=1.0):
        """Trajectories, drawn as the configuration has OSRL's SequenceDataset draw them."""
        return SequenceStore(data, reward_scale, cost_scale, self.device, self.model.seq_len, self.trainer.cost_reverse,
                             self._plan)

    def _plan(self, trajectories, seed, training):
        """Augmentation, weights and first steps by OSRL's own functions, see SequenceStore."""
        from osrl.common import dataset as osrl
        option = {name: self.config.get(name, parameter.default) for name, parameter in
                  inspect.signature(osrl.SequenceDataset.__init__).parameters.items()}
        if "linear" in self.config:  # the transformation of OSRL's script
            option["cost_transform"] = lambda x: 70 - x if self.config["linear"] else 1 / (x + 10)
        before = generators.all_states()
        np.random.seed(seed)
        random.seed(seed)
        try:
            with stdout_to_stderr():
                added, frontier = _augmented(osrl, trajectories, option) if training else ([], None)
                everything = trajectories + [trajectory for _, trajectory in added]
                weights = starts = None
                if option["cost_sample"]:
                    with np.errstate(invalid="ignore"):  # all may be too costly to be drawn
                        weights = osrl.compute_cost_sample_prob(everything, option["cost_transform"])
                elif option["pf_sample"] and frontier is not None:
                    weights = osrl.compute_sample_prob(everything, frontier, 1)
                if option["start_sampling"]:
                    starts = osrl.compute_start_index_sample_prob(everything, option["prob"])
        finally:
            generators.set_all_states(before)
        return added, weights, starts

    # What the agent says ----------------------------------------------------------------------------------------------

    @property
    def asked(self):
        """(return, cost) per episode that the policy is asked for, in the environment's units, or None if unknown."""
        if not self.config.get("target_returns") or self.config.get("cost_limit") is None:
            return None
        limit = self.config["cost_limit"]
        return min(self.config["target_returns"], key=lambda pair: abs(pair[1] - limit))[0], limit

    def notes(self):
        """What the policy is asked for."""
        if self.asked is None:
            return ["'cdt' is asked for the logged returns and costs, since its target returns are not known"]
        return ["'cdt' is asked for a return of {:g} at a cost of {:g} per episode".format(*self.asked)]

    def _to_go(self):
        target, cost = self.asked
        cost = self.model.episode_len - cost if self.trainer.cost_reverse else cost
        return target * self.reward_scale, cost * self.cost_scale

    def _predict(self, batch):
        # Without dropout, as in evaluation.
        training = self.model.training
        self.model.eval()
        try:
            return self.model(batch.states, batch.action_sequence, batch.returns, batch.costs_return, batch.time_steps,
                              ~batch.mask.bool(), batch.episode_cost)[0]
        finally:
            self.model.train(training)

    def actions(self, batch):
        """The mean action at the last step of each sequence, within max_action as in OSRL's rollout."""
        if self.asked is not None:
            target, cost = self._to_go()
            # What has been earned and spent on the logged way to each step is taken off what was asked for.
            batch = batch._replace(returns=batch.returns + (target - batch.episode_return)[:, None],
                                   costs_return=batch.costs_return + (cost - batch.episode_cost.float())[:, None],
                                   episode_cost=torch.full_like(batch.episode_cost, cost))
        predicted = self._predict(batch)
        predicted = predicted.mean if self.model.stochastic else predicted
        return batch.last(predicted).clamp(-self.model.max_action, self.model.max_action)

    def imitation_loss(self, batch, actions):
        """The distance: the likelihood is one of whole sequences."""
        return self.action_distance(batch, actions)

    def normal(self, batch):
        """The Gaussian at the last step of each sequence, given its labels; None if the model is not stochastic."""
        if not self.model.stochastic:
            return None
        density = self._predict(batch)
        return torch.distributions.Normal(batch.last(density.mean), batch.last(density.stddev))

    def log_prob(self, batch):
        """Mean log-density of the logged actions over the steps of each sequence, given its labels. Shape [n]."""
        density = self._predict(batch).log_prob(batch.action_sequence).sum(-1)
        return (density * batch.mask).sum(1) / batch.mask.sum(1)

    def rollout(self):
        """One episode in which the policy is asked for :attr:`asked`."""
        if self.asked is None:
            raise ConfigError("the return that CDT is to be asked for is not known: its configuration has no "
                              "target_returns; give them, or no evaluation episodes")
        reward, length, cost = self.trainer.rollout(self.model, self.trainer.env, *self._to_go())
        return float(reward) / self.reward_scale, float(cost), float(length)  # OSRL does not scale this cost


def _augmented(osrl, trajectories, option):
    """([(position of the source, trajectory with other labels)], Pareto frontier or None)."""
    pick = lambda function: {name: option[name] for name in inspect.signature(function).parameters  # noqa: E731
                             if name in option}
    if option["pf_only"]:
        return [], None  # SequenceDataset selects these and then takes all after all
    if option["random_aug"] > 0:
        source, added = osrl.random_augmentation(
            trajectories, **dict(pick(osrl.random_augmentation), augment_percent=option["random_aug"]))
        return list(zip(source, added)), None
    if option["augment_percent"] > 0:
        if not hasattr(osrl, "oapackage"):
            raise EnvironmentProblem(OAPACKAGE)
        try:
            source, added, frontier, kept = osrl.augmentation(trajectories, **pick(osrl.augmentation))
        except (TypeError, ValueError, ZeroDivisionError, np.linalg.LinAlgError) as error:
            raise ConfigError("OSRL cannot augment the {:,} trajectories that are to be retained, they are too few or "
                              "too much alike ({}): forget less, or train with --augment_percent 0".format(
                                  len(trajectories), error))
        return [(kept[i], trajectory) for i, trajectory in zip(source, added)], frontier
    return [], None
