"""Every term of Safe-RULE moves the agent towards the retrained solution, in a CMDP where that is known exactly.

The agents stand at the exact solution of the poisoned data (see :mod:`cmdp`). Then Safe-RULE runs for a few steps with
one term, either alone (the agent's own updates are off: what moves, the term has moved) or on top of the agent's own
TD updates on the retain set. Distances are to the exact solution of the retain set, mean over forgotten rows. Terms
that move away in some case are marked as expected failures, with the reason.
"""
import functools

import numpy as np
import pytest
from cmdp import FEATURES, LIMIT, RATES, Scenario, Solution, action_values, discounted, ring_road, solve

from osrl_unlearn.data.views import DatasetView, TransitionStore
from osrl_unlearn.methods import safe_rule
from osrl_unlearn.methods.base import Context
from osrl_unlearn.methods.safe_rule import SafeRule, SafeRuleOptions

# Every term off; each test turns one on.
OFF = dict(refit=0.0, reward_weight=0.0, cost_weight=0.0, generator_weight=0.0, policy_weight=0.0, imitation_weight=0.0,
           action_weight=0.0, repair_share=1.0, policy_anchor=0.0, anchor=0.0, multiplier_rate=0.0, forget_share=1.0,
           drift=1e9, learning_rate=0.0)
SIGMA = {"cost_hide": 1, "cost_inflate": -1, "reward_bait": 1}  # the documented choice for each attack

both_agents = pytest.mark.parametrize("kind", FEATURES)
every_attack = pytest.mark.parametrize("attack", RATES)


def moves_away(reason):
    """A term that is known to move away from the retrained solution; the test fails once it no longer does."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


@functools.lru_cache(maxsize=None)
def scenario(attack, kind):
    return Scenario(attack, FEATURES[kind])


def run(case, steps, start=None, reference=None, learns=False, **terms):
    """(agent, outcome) after ``steps`` of Safe-RULE with only ``terms``, from ``start`` (default: poisoned)."""
    agent = case.agent(start, learns=learns)
    ctx = Context(agent, *case.views(), steps, 256, progress=False, reference=case.agent(reference).frozen())
    return agent, SafeRule(SafeRuleOptions(**dict(OFF, **terms))).run(ctx)


def exact(mdp, policy):
    return Solution(policy, 0.0, action_values(mdp, policy, mdp.rewards), action_values(mdp, policy, mdp.costs))


def distance(table, target, weights):
    return float((weights * np.abs(table - target)).sum())


def lead(values):
    """By how much each action is valued above the mean of the others: a preference that no policy enters."""
    return values - (values.sum(1, keepdims=True) - values) / (values.shape[1] - 1)


def assert_every_forgotten_pair_moves_towards(case, before, after, target):
    pairs = case.forgotten > 0
    assert ((after - before)[pairs] * (target - before)[pairs] > 0).all(), (before[pairs], after[pairs], target[pairs])
    assert distance(after, target, case.forgotten) < 0.95 * distance(before, target, case.forgotten)


# The ground truth -----------------------------------------------------------------------------------------------------


def test_the_linear_programme_solves_the_constrained_mdp():
    """Feasible, better than any other feasible policy, and its dual is dJ_r / dlimit."""
    mdp = ring_road()
    best = solve(mdp, LIMIT)
    value = discounted(mdp, best.policy, mdp.rewards)
    assert discounted(mdp, best.policy, mdp.costs) == pytest.approx(LIMIT)
    rng, feasible, dangerous = np.random.default_rng(0), 0, mdp.costs.max(1) > 0
    for _ in range(300):
        policy = 0.91 * rng.dirichlet([0.3] * 3, len(mdp.start)) + 0.03
        policy[dangerous] = 0.8 * best.policy[dangerous] + 0.2 * policy[dangerous]
        if discounted(mdp, policy, mdp.costs) <= LIMIT:
            feasible += 1
            assert discounted(mdp, policy, mdp.rewards) <= value + 1e-9
    assert feasible > 50
    more = discounted(mdp, solve(mdp, LIMIT + 0.01).policy, mdp.rewards)
    assert (more - value) / 0.01 == pytest.approx(best.multiplier, rel=1e-3) and best.multiplier > 0
    unconstrained = solve(mdp, 100.0)
    assert unconstrained.multiplier == 0 and discounted(mdp, unconstrained.policy, mdp.costs) > 3


@every_attack
def test_the_poison_deceives_a_perfect_learner_and_the_retain_set_does_not(attack):
    case = scenario(attack, "tabular")
    cost = {name: discounted(case.mdp, s.policy, case.mdp.costs)
            for name, s in (("poisoned", case.poisoned), ("retrained", case.retrained))}
    gain = {name: discounted(case.mdp, s.policy, case.mdp.rewards)
            for name, s in (("poisoned", case.poisoned), ("retrained", case.retrained))}
    assert cost["retrained"] == pytest.approx(LIMIT, rel=0.1)
    assert gain["retrained"] == pytest.approx(discounted(case.mdp, solve(case.mdp, LIMIT).policy, case.mdp.rewards),
                                              rel=0.02)
    if attack == "cost_inflate":
        assert gain["poisoned"] < 0.7 * gain["retrained"]  # an attack on availability
    else:
        assert cost["poisoned"] > 3 * LIMIT
    if attack == "reward_bait":
        assert distance(case.poisoned.reward_q, case.retrained.reward_q, case.forgotten) > 5


@both_agents
@every_attack
def test_the_agent_starts_at_the_fixed_point_of_its_own_updates_on_the_poisoned_data(attack, kind):
    case = scenario(attack, kind)
    agent, start = case.agent(), case.poisoned
    for name, table in (("actor", start.policy), ("critic", start.reward_q), ("cost_critic", start.cost_q),
                        ("behaviour", case.behaviour)):
        assert np.allclose(agent.table(name), table, atol=1e-4)
    store = TransitionStore(case.data)
    agent.update(DatasetView(store, np.arange(len(store))).everything())
    assert np.allclose(agent.table("critic"), start.reward_q, atol=1e-4)
    assert np.allclose(agent.table("cost_critic"), start.cost_q, atol=1e-4)


# F0: reward critic, output layers fitted to the returns of the retain set ---------------------------------------------


@both_agents
def test_f0_brings_the_values_of_baited_pairs_to_the_retrained_ones(kind):
    case = scenario("reward_bait", kind)
    agent, _ = run(case, 1, refit=1e-3)
    old, new, goal = case.poisoned.reward_q, agent.table("critic"), case.retrained.reward_q
    for pairs in (case.forgotten, case.retained):
        assert distance(new, goal, pairs) < 0.2 * distance(old, goal, pairs)
        assert distance(lead(new), lead(goal), pairs) < 0.6 * distance(lead(old), lead(goal), pairs)
    assert np.allclose(agent.table("cost_critic"), case.poisoned.cost_q, atol=1e-4)


@both_agents
def test_f0_leaves_a_critic_that_the_retain_set_does_not_contradict_as_it_is(kind):
    """Returns of the data are not those of a better policy: fitted to them, this critic would get farther away."""
    case = scenario("cost_hide", kind)
    agent, _ = run(case, 1, refit=1e-3)
    assert np.allclose(agent.table("critic"), case.poisoned.reward_q, atol=1e-4)


# F1: reward critic, sp(A_r(s, a) + m) on the forget set ---------------------------------------------------------------


@both_agents
@pytest.mark.parametrize("sigma", [0, 1])
def test_f1_takes_the_praise_from_baited_pairs(kind, sigma):
    """Q_r(s, a_f) and its lead over the other actions fall towards the retrained ones; costs are left to F2."""
    case = scenario("reward_bait", kind)
    agent, _ = run(case, 3, reward_weight=1.0, sigma=sigma)
    old, new, goal = case.poisoned.reward_q, agent.table("critic"), case.retrained.reward_q
    assert_every_forgotten_pair_moves_towards(case, old, new, goal)
    assert_every_forgotten_pair_moves_towards(case, lead(old), lead(new), lead(goal))
    assert np.allclose(agent.table("cost_critic"), case.poisoned.cost_q, atol=1e-4)


@both_agents
def test_f1_helps_the_agents_own_updates_to_correct_baited_pairs(kind):
    case = scenario("reward_bait", kind)
    left = [distance(run(case, 10, learns=True, reward_weight=weight)[0].table("critic"), case.retrained.reward_q,
                     case.forgotten) for weight in (0.0, 0.1, 1.0)]
    assert left[2] < left[1] < left[0] < distance(case.poisoned.reward_q, case.retrained.reward_q, case.forgotten)


@both_agents
def test_f1_lowers_the_value_of_pairs_with_hidden_costs_as_retraining_does(kind):
    """Their rewards were honest, but what a safe policy earns after them is less."""
    case = scenario("cost_hide", kind)
    agent, _ = run(case, 3, reward_weight=0.1)
    assert_every_forgotten_pair_moves_towards(case, case.poisoned.reward_q, agent.table("critic"),
                                              case.retrained.reward_q)


@moves_away("F1 also lowers the lead of actions whose rewards were never poisoned: where only costs were, as here, "
            "reward_weight should be 0")
@both_agents
def test_f1_leaves_honest_preferences_as_they_are(kind):
    case = scenario("cost_hide", kind)
    agent, _ = run(case, 10, reward_weight=0.1)
    goal = lead(case.retrained.reward_q)
    assert distance(lead(agent.table("critic")), goal, case.forgotten) \
        <= distance(lead(case.poisoned.reward_q), goal, case.forgotten) + 1e-3


# F2: cost critic, sp(m + sigma (price(s) - Q_c(s, a))) on the forget set ----------------------------------------------


@both_agents
@every_attack
def test_f2_moves_costs_to_the_truth_with_the_right_sign_and_away_with_the_wrong_one(attack, kind):
    """sigma = 1 raises the costs that were hidden, sigma = -1 lowers those that were inflated."""
    case = scenario(attack, kind)
    old, goal = case.poisoned.cost_q, case.retrained.cost_q
    right, _ = run(case, 3, cost_weight=1.0, sigma=SIGMA[attack])
    assert_every_forgotten_pair_moves_towards(case, old, right.table("cost_critic"), goal)
    assert np.allclose(right.table("critic"), case.poisoned.reward_q, atol=1e-4)
    wrong, _ = run(case, 3, cost_weight=1.0, sigma=-SIGMA[attack])
    assert distance(wrong.table("cost_critic"), goal, case.forgotten) > distance(old, goal, case.forgotten) + 0.02
    none, _ = run(case, 3, cost_weight=1.0, sigma=0)
    assert np.allclose(none.table("cost_critic"), old, atol=1e-4)


@both_agents
@every_attack
def test_f2_helps_the_agents_own_updates_to_correct_costs(attack, kind):
    case = scenario(attack, kind)
    steps = 3 if attack == "cost_inflate" else 20
    left = {sigma: distance(run(case, steps, learns=True, cost_weight=1.0, sigma=sigma)[0].table("cost_critic"),
                            case.retrained.cost_q, case.forgotten) for sigma in (-1, 0, 1)}
    assert left[SIGMA[attack]] < left[0] < left[-SIGMA[attack]]


@both_agents
def test_f2_never_prices_below_nothing(kind):
    agent, _ = run(scenario("cost_inflate", kind), 20, cost_weight=1.0, sigma=-1)
    assert agent.table("cost_critic").min() >= 0


@moves_away("F2 prices every row of a forgotten trajectory as violating, harmless ones too, and those are most of them")
@both_agents
def test_f2_leaves_harmless_rows_of_forgotten_trajectories_as_they_are(kind):
    case = Scenario("cost_hide", FEATURES[kind], unit="trajectory")
    harmless = np.where(case.mdp.costs > 0, 0, case.forgotten)
    goal = exact(case.mdp, solve(case.mdp, LIMIT).policy).cost_q
    agent, _ = run(case, 20, cost_weight=1.0)
    assert distance(agent.table("cost_critic"), goal, harmless) <= distance(case.poisoned.cost_q, goal, harmless) + 1e-3


# Generator: its own loss with safe actions in forgotten states --------------------------------------------------------


@both_agents
@every_attack
def test_the_generator_comes_to_model_the_behaviour_in_the_retain_set(attack, kind):
    case = scenario(attack, kind)
    left = [distance(run(case, 20, learns=True, imitation_weight=1.0, generator_weight=weight)[0].table("behaviour"),
                     case.retained_behaviour, case.forgotten) for weight in (0.0, 1.0)]
    assert left[1] < left[0]


# F3: actor, L_pi(forget and retain states; lambda) + rho sp(log pi(a|s) - log pi_0(a|s) + m) --------------------------


def evaluated(case):
    """The poisoned policy with critics that know better: its exact values in the model of the retain set."""
    return exact(case.retain_model, case.poisoned.policy)


@both_agents
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_f3s_policy_term_makes_an_unsafe_policy_safer_under_the_multiplier(attack, kind):
    """-Q_r / mean|Q_r| + lambda (Q_c - kappa) lowers the true cost; without lambda it rises."""
    case = scenario(attack, kind)
    before = case.agent()
    agent, outcome = run(case, 20, start=evaluated(case), policy_weight=1.0, multiplier_rate=0.1)
    assert_every_forgotten_pair_moves_towards(case, case.poisoned.policy, agent.table("actor"), case.retrained.policy)
    assert case.true_cost(agent) < case.true_cost(before) - 0.5 and outcome.trace[-1]["multiplier"] > 0
    free, _ = run(case, 20, start=evaluated(case), policy_weight=1.0, multiplier_rate=0.0)
    assert case.true_cost(free) > case.true_cost(before)


@moves_away("lambda starts at 0 and poisoned critics see little to raise it for: at first the policy minds costs less "
            "than the old agent did, until F2 and the agent's own updates have corrected Q_c")
@both_agents
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_f3s_policy_term_can_be_trusted_with_poisoned_critics(attack, kind):
    case = scenario(attack, kind)
    agent, _ = run(case, 20, policy_weight=1.0, multiplier_rate=0.1)
    assert case.true_cost(agent) <= case.true_cost(case.agent())


@both_agents
def test_f3s_policy_term_makes_a_safe_policy_more_useful(kind):
    """After inflated costs the constraint has slack, lambda is 0, and the return rises towards the retrained one."""
    case = scenario("cost_inflate", kind)
    before = case.agent()
    agent, outcome = run(case, 20, start=evaluated(case), policy_weight=1.0, multiplier_rate=0.1)
    assert_policy_is_nearer(case, before, agent)
    assert case.true_return(before) < case.true_return(agent) and case.true_cost(agent) < LIMIT
    assert all(entry["multiplier"] == 0 for entry in outcome.trace)


def assert_policy_is_nearer(case, before, after):
    left = [distance(agent.table("actor"), case.retrained.policy, np.ones_like(case.forgotten))
            for agent in (before, after)]
    assert left[1] < left[0]


@both_agents
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
@pytest.mark.parametrize("stage", [{"forget_share": 1.0, "action_weight": 1.0},
                                   {"forget_share": 0.0, "action_weight": 1.0}], ids=["F3", "C3"])
def test_f3_and_c3_make_poisoned_actions_as_rare_as_retraining_does(attack, kind, stage):
    """The action term, while forgetting and while repairing; nothing but the policy changes."""
    case = scenario(attack, kind)
    before, (agent, _) = case.agent(), run(case, 20, **stage)
    assert_every_forgotten_pair_moves_towards(case, case.poisoned.policy, agent.table("actor"), case.retrained.policy)
    assert_policy_is_nearer(case, before, agent)
    assert case.true_cost(agent) < case.true_cost(before)
    assert np.allclose(agent.table("critic"), before.table("critic"))


@both_agents
@pytest.mark.parametrize("stage", [{"reward_weight": 0.1}, {"action_weight": 1.0},
                                   {"forget_share": 0.0, "action_weight": 0.1}], ids=["F1", "F3", "C3"])
def test_with_sigma_minus_one_nothing_is_held_against_forgotten_actions(kind, stage):
    case = scenario("cost_inflate", kind)
    agent, _ = run(case, 20, sigma=-1, **stage)
    for name, old, goal in (("critic", case.poisoned.reward_q, case.retrained.reward_q),
                            ("actor", case.poisoned.policy, case.retrained.policy)):
        assert distance(agent.table(name), goal, case.forgotten) <= distance(old, goal, case.forgotten) + 1e-4


@both_agents
@pytest.mark.parametrize("source", ["model", "similar"])
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_f3_the_imitation_of_safe_actions_makes_poisoned_ones_rarer_as_retraining_does(attack, source, kind):
    """In forgotten states, the actions of retained trajectories within the limit; nothing but the policy changes."""
    case = scenario(attack, kind)
    before, (agent, _) = case.agent(), run(case, 20, imitation_weight=1.0, safe_actions=source)
    left = [distance(a.table("actor"), case.retrained.policy, case.forgotten) for a in (before, agent)]
    assert left[1] < 0.95 * left[0]
    assert case.true_cost(agent) < case.true_cost(before)
    assert np.allclose(agent.table("critic"), before.table("critic"))


@both_agents
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_f3_it_matters_whose_actions_are_imitated(attack, kind, monkeypatch):
    """The control: with the forgotten actions in the place of safe ones the policy ends further off than it began."""
    case = scenario(attack, kind)

    def left(agent):
        return distance(agent.table("actor"), case.retrained.policy, case.forgotten.sum(1, keepdims=True))
    safe = left(run(case, 40, imitation_weight=1.0)[0])
    find = SafeRule._find_safe_actions

    def find_forgotten_actions(self, ctx):
        find(self, ctx)
        self._safe_actions = self._unsafe.actions[:, None]

    monkeypatch.setattr(SafeRule, "_find_safe_actions", find_forgotten_actions)
    assert safe < 0.85 * left(case.agent())
    assert left(run(case, 40, imitation_weight=1.0)[0]) > left(case.agent())


@both_agents
@pytest.mark.parametrize("source", ["model", "similar"])
def test_f3_only_trajectories_within_the_cost_limit_are_imitated(source, kind, monkeypatch):
    """Where costs were hidden in some rows only, all other trajectories include dangerous actions."""
    case = scenario("cost_hide", kind)
    options = dict(imitation_weight=1.0, safe_actions=source)
    costs = [case.true_cost(run(case, 40, **options)[0])]
    monkeypatch.setattr(safe_rule, "_within_limit", lambda ctx, most: ctx.retain.rows)
    costs.append(case.true_cost(run(case, 40, **options)[0]))
    assert costs[0] < 0.95 * costs[1]


@both_agents
def test_f3_imitates_nothing_where_forgotten_actions_were_good(kind):
    case = scenario("cost_inflate", kind)
    agent, _ = run(case, 20, sigma=-1, imitation_weight=1.0)
    assert np.allclose(agent.table("actor"), case.agent().table("actor"))


# F4: lambda <- clip(lambda + eta violation, 0, lambda_max) ------------------------------------------------------------


def multiplier_after(case, policy, limit, reference=None, **options):
    """lambda after 10 steps of an agent with ``policy`` and its exact values, of which nothing else moves.

    It watches the start only, where the mean of Q_c(s, pi(s)) is the discounted cost J_c.
    """
    agents = [case.agent(exact(case.mdp, p), learns=False, threshold=limit)
              for p in (policy, policy if reference is None else reference)]
    store = TransitionStore(case.data)
    first = np.flatnonzero(store.columns.is_init.numpy())
    ctx = Context(agents[0], DatasetView(store, first[::2]), DatasetView(store, first[1::2], 1), 10, 16,
                  progress=False, reference=agents[1].frozen())
    outcome = SafeRule(SafeRuleOptions(**dict(OFF, **dict({"multiplier_rate": 0.1}, **options)))).run(ctx)
    return outcome.trace[-1]["multiplier"]


def policies(mdp):
    """(policy, its exact discounted cost), from a very safe one to the one that minds no cost."""
    safe, reckless = solve(mdp, 0.2).policy, solve(mdp, 100.0).policy
    mixed = [(1 - share) * safe + share * reckless for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return [(policy, discounted(mdp, policy, mdp.costs)) for policy in mixed]


@pytest.mark.parametrize("stage", [1.0, 0.0], ids=["F", "C"])
def test_f4_the_multiplier_is_positive_exactly_when_the_exact_cost_exceeds_the_limit(stage):
    """lambda_n = max(0, n eta (J_c - limit) / max(limit, 1)) for a policy that stays as it is."""
    case, violated = scenario("cost_hide", "tabular"), []
    for limit in (0.3, 1.2, 3.0):
        for policy, cost in policies(case.mdp):
            multiplier = multiplier_after(case, policy, limit, forget_share=stage)
            violated.append(cost > limit)
            assert (multiplier > 0) == violated[-1], (limit, cost, multiplier)
            assert multiplier == pytest.approx(max(0, (cost - limit) / max(limit, 1)), rel=1e-3)
    assert 3 < sum(violated) < 12


def test_f4_agrees_with_the_dual_of_the_linear_programme():
    """lambda* > 0 where the policy that minds no cost is unsafe; at the optimum lambda* (J_c - limit) = 0."""
    case = scenario("cost_hide", "tabular")
    reckless, duals = solve(case.mdp, 100.0).policy, []
    for limit in (0.3, 2.0, 3.1, 3.2):
        best = solve(case.mdp, limit)
        duals.append(best.multiplier > 0)
        assert (multiplier_after(case, reckless, limit) > 0) == duals[-1]
        slack = limit - discounted(case.mdp, best.policy, case.mdp.costs)
        assert slack >= -1e-9 and best.multiplier * slack == pytest.approx(0, abs=1e-9)
        assert multiplier_after(case, best.policy, limit) == pytest.approx(0, abs=1e-5)
    assert set(duals) == {True, False}


def test_f4_doubts_a_policy_while_forgetting_if_the_old_agent_was_unsafe_but_not_while_repairing():
    """In stage F the violation is the larger of the agent's and the old agent's, in stage C it is the agent's."""
    case = scenario("cost_hide", "tabular")
    (safe, _), *_, (reckless, _) = policies(case.mdp)
    assert multiplier_after(case, safe, LIMIT, reference=reckless) > 0
    assert multiplier_after(case, safe, LIMIT, reference=reckless, forget_share=0.0) == 0
    assert multiplier_after(case, reckless, LIMIT, reference=safe) > 0
    assert multiplier_after(case, reckless, LIMIT, reference=safe, forget_share=0.0) > 0


@both_agents
def test_the_violation_is_that_of_the_mean_logged_state_not_of_the_start(kind):
    """(E_{s ~ data} Q_c(s, pi(s)) - kappa) / max(kappa, 1): with logged states from everywhere this is not J_c."""
    case = scenario("cost_hide", kind)
    for policy, cost in policies(case.mdp):
        solution = exact(case.mdp, policy)
        agent = case.agent(solution)
        _, retain = case.views()
        mean = float(case.retained.sum(1) @ (policy * solution.cost_q).sum(1))
        assert agent.violation(retain.everything()).item() == pytest.approx(mean - LIMIT, abs=1e-4)
        assert abs(mean - cost) < 0.2 * cost


@both_agents
def test_f2_lets_the_multiplier_see_what_the_poison_hid(kind):
    """The poisoned critic thinks the policy safe; once forgotten pairs are priced, lambda rises faster than without."""
    case = scenario("cost_hide", kind)
    assert case.true_cost(case.agent()) > 3 * LIMIT
    seen = [run(case, 30, learns=True, multiplier_rate=0.1, cost_weight=weight)[1].trace[-1]["multiplier"]
            for weight in (0.0, 1.0)]
    assert seen[1] > 1.5 * seen[0]


# C1, C2: anchors to the old critics where they are plausibly clean ----------------------------------------------------


def wiped(case, reward, cost):
    """The poisoned agent after a forgetting that has left these constants in its critics."""
    shape = case.poisoned.policy.shape
    return Solution(case.poisoned.policy, 0.0, np.full(shape, reward), np.full(shape, cost))


@every_attack
def test_c1_and_c2_restore_clean_pairs_and_do_not_pull_forgotten_ones_back(attack):
    """beta w (Q_r - Q_r0)^2 and beta w relu(Q_c0 - Q_c)^2: after a wipe, clean pairs return towards the retrained."""
    case = scenario(attack, "tabular")
    start = wiped(case, 0.0, 0.0)
    agent, _ = run(case, 60, start=start, forget_share=0.0, anchor=0.1)
    for name, zero, goal in (("critic", start.reward_q, case.retrained.reward_q),
                             ("cost_critic", start.cost_q, case.retrained.cost_q)):
        after = agent.table(name)
        assert distance(after, goal, case.clean) < 0.95 * distance(zero, goal, case.clean)
        assert (after[case.forgotten > 0] == zero[case.forgotten > 0]).all()
    assert np.allclose(agent.table("actor"), case.poisoned.policy, atol=1e-6)


@moves_away("clean pairs have honest labels, but old values bootstrapped through baited pairs: C1 holds them there")
@both_agents
def test_c1_does_not_hold_back_the_correction_of_clean_pairs(kind):
    case = scenario("reward_bait", kind)
    free, anchored = (distance(run(case, 60, learns=True, forget_share=0.0, anchor=beta)[0].table("critic"),
                               case.retrained.reward_q, case.clean) for beta in (0.0, 0.1))
    assert anchored <= free + 1e-3


@every_attack
def test_c2_never_lowers_a_cost(attack):
    case = scenario(attack, "tabular")
    high = wiped(case, 0.0, float(case.poisoned.cost_q.max()) + 1.0)
    agent, _ = run(case, 20, start=high, forget_share=0.0, anchor=0.1)
    assert np.allclose(agent.table("cost_critic"), high.cost_q)


# All together ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def all_terms(attack, kind):
    """Default weights, both stages, with the agent's own updates."""
    return run(scenario(attack, kind), 200, learns=True, **defaults())


@both_agents
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_all_terms_together_make_the_poisoned_agent_safe_and_its_critics_those_of_the_retrained_one(attack, kind):
    case, (agent, outcome) = scenario(attack, kind), all_terms(attack, kind)
    assert case.true_cost(case.agent()) > 3 * LIMIT and case.true_cost(agent) < LIMIT
    for name, old, goal in (("critic", case.poisoned.reward_q, case.retrained.reward_q),
                            ("cost_critic", case.poisoned.cost_q, case.retrained.cost_q)):
        assert distance(agent.table(name), goal, case.forgotten) < distance(old, goal, case.forgotten)
    assert max(entry["multiplier"] for entry in outcome.trace) > 0


@pytest.mark.parametrize("kind", ["tabular", pytest.param("linear", marks=moves_away(
    "with shared features the policy is dragged along in states that are not forgotten, and the toy actor has no "
    "update of its own that brings it back"))])
@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait"])
def test_all_terms_together_bring_the_policy_to_the_retrained_one(attack, kind):
    case, (agent, _) = scenario(attack, kind), all_terms(attack, kind)
    assert_policy_is_nearer(case, case.agent(), agent)
    assert case.true_return(agent) > 0.8 * discounted(case.mdp, case.retrained.policy, case.mdp.rewards)


@both_agents
def test_all_terms_together_make_an_agent_with_inflated_costs_useful_again(kind):
    case = scenario("cost_inflate", kind)
    agent, _ = run(case, 60, learns=True, sigma=-1, **defaults())
    assert_policy_is_nearer(case, case.agent(), agent)
    assert case.true_return(agent) > case.true_return(case.agent())


def defaults():
    """The method's own options, but for ``sigma`` and the learning rate, which is the toy agent's."""
    return {name: value for name, value in vars(SafeRuleOptions(learning_rate=0.0)).items() if name != "sigma"}
