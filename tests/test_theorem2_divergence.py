"""Theorem 2: the exact game, the learners and the limits against plain Python, and what the runs end with."""

import importlib
import itertools
import json
import math
import re

import numpy as np
import pytest
from conftest import parse

thm = importlib.import_module("theorem2_divergence")

LEADER = {(0, 0): 0, (0, 1): -2, (1, 0): -1, (1, 1): -3}  # Appendix D: cooperate is 0, the leader chooses the row
FOLLOWER = {(0, 0): -1, (0, 1): 0, (1, 0): -3, (1, 1): -2}
ALL = list(itertools.product((0, 1), repeat=3))
TIT_FOR_TAT = [(0, 0, 1), (1, 0, 1)]
POLICIES = [tuple(p) for p in np.random.default_rng(0).random((6, 3))]


def game(num_steps=5):
    return thm.MemoryGame(thm.LEADER_PAYOFF, thm.FOLLOWER_PAYOFF, num_steps)


def histories(leader, follower, num_steps):
    """Yields each course of the game and its probability: [(leader's observation, leader's action, follower's)]."""
    for course in itertools.product(itertools.product((0, 1), repeat=2), repeat=num_steps):
        probability, steps, seen, follower_seen = 1.0, [], 0, 0
        for action, reply in course:
            probability *= leader[seen] if action else 1 - leader[seen]
            probability *= follower[follower_seen] if reply else 1 - follower[follower_seen]
            steps.append((seen, action, reply))
            seen, follower_seen = 1 + reply, 1 + action
        if probability:
            yield probability, steps


def expected(leader, follower, num_steps, payoff):
    """The mean payoff per step, from every course of the game."""
    courses = histories(leader, follower, num_steps)
    return math.fsum(p * sum(payoff[a, b] for _, a, b in steps) for p, steps in courses) / num_steps


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_returns_are_those_of_every_course_of_the_game(num_steps):
    for leader, follower in zip(POLICIES, POLICIES[1:] + ALL[3:4], strict=True):
        returns = game(num_steps).returns(np.array(leader), np.array(follower))
        assert returns[0] == pytest.approx(expected(leader, follower, num_steps, LEADER))
        assert returns[1] == pytest.approx(expected(leader, follower, num_steps, FOLLOWER))


@pytest.mark.parametrize("num_steps", [5, 10])
def test_replies_and_value_are_those_of_the_proof(num_steps):
    replies = {table: tuple(game(num_steps).best_reply(np.array(table))) for table in ALL}
    assert replies == {table: (0, 0, 0) if table in TIT_FOR_TAT else (1, 1, 1) for table in ALL}
    returns, _ = game(num_steps).returns(thm.TABLES, game(num_steps).best_reply(thm.TABLES))
    assert returns.max() == 0 and [tuple(t) for t in thm.TABLES[returns == 0]] == [(0, 0, 1)]


def test_no_reply_is_better_than_the_best():
    """Neither another table nor, against a deterministic leader, a stochastic one ("easy to check", says the proof)."""
    mixed = np.array(list(itertools.product((0, 0.25, 0.5, 0.75, 1), repeat=3)))
    for leader in [*ALL, *POLICIES]:
        best = game().returns(np.array(leader), game().best_reply(np.array(leader)))[1]
        assert best == pytest.approx(max(expected(leader, table, 5, FOLLOWER) for table in ALL))
        if leader in ALL:
            assert game().returns(np.array(leader), mixed)[1].max() <= best + 1e-12


@pytest.mark.parametrize("num_steps", [5, 10])
def test_ties_are_broken_as_if_the_leader_erred_now_and_then(num_steps):
    replies = game(num_steps).best_reply(thm.TABLES)
    for chance in (0.001, 0.01):
        assert (game(num_steps).best_reply((1 - chance) * thm.TABLES + chance / 2) == replies).all()


def test_an_episode_is_three_queries_and_then_the_game():
    """Stochastic leaders against every table: observations, replies and rewards, step by step."""
    rng = np.random.default_rng(0)
    policy, reply = rng.random((8, 3)), thm.TABLES
    answers, uniforms = rng.integers(0, 2, (3, 8)), rng.random((5, 8))
    observations, actions, rewards = thm.play(answers, policy, reply, uniforms)
    assert (observations[:3].T == [0, 1, 2]).all() and (actions[:3] == answers).all() and (rewards[:, :3] == 0).all()
    for i in range(8):
        seen, follower_seen = 0, 0
        for t in range(5):
            action, follower_action = int(uniforms[t, i] < policy[i, seen]), reply[i, follower_seen]
            assert (observations[3 + t, i], actions[3 + t, i]) == (seen, action)
            assert rewards[0, 3 + t, i] == LEADER[action, follower_action]
            assert rewards[1, 3 + t, i] == FOLLOWER[action, follower_action]
            seen, follower_seen = 1 + follower_action, 1 + action


def test_q_learning_is_equation_1():
    rng = np.random.default_rng(1)
    rates, discounts, values = np.array([0.1, 0.5]), np.array([0.9, 1.0]), rng.random((2, 3, 2))
    observations, actions, rewards = rng.integers(0, 3, (7, 2)), rng.integers(0, 2, (7, 2)), rng.random((7, 2))
    learned = values.copy()
    thm.q_learning(learned, observations, actions, rewards, rates, discounts)
    for i in range(2):
        q = values[i].copy()
        for t in range(7):
            future = max(q[observations[t + 1, i]]) if t < 6 else 0
            s, a = observations[t, i], actions[t, i]
            q[s, a] = (1 - rates[i]) * q[s, a] + rates[i] * (rewards[t, i] + discounts[i] * future)
        assert learned[i] == pytest.approx(q)


def mean_update(theta, follower, discount, discounted_gradient, num_steps=4):
    """What REINFORCE adds to theta on average, over every course of the game against a fixed follower."""
    courses = list(histories(theta, follower, num_steps))
    n = len(courses)
    steps = np.array([steps for _, steps in courses])
    rewards = np.array([[LEADER[a, b] for _, a, b in steps] for _, steps in courses])
    episode = steps[:, :, 0].T, steps[:, :, 1].T, rewards.T
    rates = np.ones(n), np.full(n, discount)
    updates = thm.reinforce(np.tile(theta, (n, 1)), *episode, *rates, discounted_gradient) - theta
    return np.array([p for p, _ in courses]) @ updates


@pytest.mark.parametrize("follower", [(1, 1, 1), (0, 1, 1), (1, 1, 0)])
def test_discounted_reinforce_follows_the_gradient_of_the_discounted_return(follower):
    theta, discount = (0.3, 0.6, 0.7), 0.6

    def value(theta):
        courses = histories(theta, follower, 4)
        return sum(p * sum(discount**t * LEADER[a, b] for t, (_, a, b) in enumerate(steps)) for p, steps in courses)

    slope = [(value(theta + h) - value(theta - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
    assert mean_update(theta, follower, discount, True) == pytest.approx(slope, abs=1e-4)
    assert mean_update(theta, follower, discount, False) != pytest.approx(slope, abs=0.1)  # equation 3


def train(arm, num_episodes, q_init=None, seeds=(1,), log=lambda steps, scalars: None, **flags):
    """Trains the leaders of an arm, all with the same settings; returns how they ended."""
    setting = {"learning_rate": 0.1, "discount": 0.9, "exploration": 0.2}
    setting |= {key: flags.pop(key) for key in list(flags) if key in setting}
    runs = [{"arm": arm, "q_init": q_init, **setting, "seed": seed} for seed in seeds]
    return thm.train_leaders(arm, runs, game(), thm.Args(num_episodes=num_episodes, **flags), log)


@pytest.mark.parametrize("floor", [0.01, 0.2])
def test_reinforce_keeps_exploring(floor):
    """However long the step, every action keeps its least probability."""
    (run,) = train("hidden_reinforce", 20, learning_rate=100.0, exploration=floor)
    assert set(np.round(run["values"], 9)) <= {floor, 0.5, 1 - floor}  # 0.5 where it never was
    assert run["values"][0] != 0.5


def test_policies_explore_as_they_should():
    values, none = np.array([[[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]]), np.ones((1, 3, 2))
    assert thm.greedy(values).tolist() == [[1, 0, 0]]  # a tie cooperates
    for learner in ("epsilon_greedy", "epsilon_soft"):
        assert thm.explore(learner, values, np.array([[0.2]]), none)[0] == pytest.approx([0.9, 0.1, 0.1])
    noise = np.array([[[0.6, 0.0], [0.0, 0.1], [0.0, 0.4]]])  # times 2, it turns o_0 and o_C, but not o_D
    assert thm.explore("parameter_noise", values, np.array([[2.0]]), noise).tolist() == [[0, 1, 0]]
    theta = np.array([[0.3, 0.6, 0.5]])
    assert thm.explore("reinforce", theta, np.array([[0.1]]), none) is theta
    assert thm.greedy(theta).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("num_steps", [5, 10])
def test_limits(num_steps):
    for discount in (0.5, 0.9, 1.0):
        cooperate, defect = thm.small_step_limits(discount, num_steps)
        g = (num_steps - 1) / (1 + (num_steps - 2) * (1 - discount))
        assert (cooperate, defect) == (pytest.approx(-2 * g), pytest.approx(-2 * g - 1))
        assert thm.exact_limits(0.01, discount, num_steps) == pytest.approx((cooperate, defect), rel=0.04)
        # learning rate 1 forgets all but the last step of an episode
        assert thm.exact_limits(1.0, discount, num_steps) == (-2, -3)
    assert thm.proof_limits(1.0, num_steps) == (-num_steps, -1.5 * num_steps)
    assert thm.proof_limits(0.9999, num_steps) == pytest.approx(thm.proof_limits(1.0, num_steps), abs=0.01)


@pytest.mark.parametrize(("epsilon", "cooperates"), [(0.26, True), (0.267, True), (0.268, False)])
def test_a_follower_that_knows_epsilon_cooperates_up_to_a_quarter(epsilon, cooperates):
    """With tit-for-tat that errs so often; above, the leader observes o_D and unlearns it."""
    leader = (epsilon / 2, epsilon / 2, 1 - epsilon / 2)
    best = max(ALL, key=lambda table: expected(leader, table, 5, FOLLOWER))
    assert (best == (0, 0, 0)) == cooperates
    assert tuple(game().best_reply(np.array(leader))) == best


def test_where_reinforce_would_leave_theta_D_and_where_it_would_raise_it():
    """Shares of all stochastic leaders, by the gradient of the return for a fixed reply. In a twentieth the follower
    always cooperates, and the leader learns nothing about o_D; in one of 500 it would learn to retaliate."""
    centres = (np.arange(40) + 0.5) / 40
    theta, step = np.array(list(itertools.product(centres, repeat=3))), np.array([0, 0, 1e-4])
    reply = game().best_reply(theta)
    gradient = game().returns(theta + step, reply)[0] - game().returns(theta - step, reply)[0]
    unmoved = abs(gradient) < 1e-9
    assert unmoved.mean() == pytest.approx(0.048, abs=0.001) and (reply[unmoved] == 0).all()
    assert (gradient >= 1e-9).mean() == pytest.approx(0.002, abs=0.0005)


def test_some_stochastic_leaders_would_learn_to_retaliate():
    """The proof says that in o_D the rest of the game is the same whatever the leader does. Here it is not: a follower
    that defects until the leader has defected rewards a defection in o_D with cooperation."""
    theta = (0.675, 0.275, 0.925)
    reply = tuple(game().best_reply(np.array(theta)))
    assert reply == (1, 1, 0)
    assert mean_update(theta, reply, 1.0, False, 5)[2] > 0
    assert mean_update((0.5, 0.5, 0.5), (1, 1, 1), 1.0, False, 5)[2] == pytest.approx(-4, abs=1e-3)  # -1 a visit


SMALL = "--num-episodes 1500 --num-seeds 4 --discounts 0.9 --q-learning-rates 0.1 --noise-stds 1 --epsilons 0.2 "
SMALL += "--reinforce-learning-rates 0.001 --probability-floors 0.01 --q-init 0 -20"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One run of all arms, 4 seeds, one setting of each learner."""
    folder = tmp_path_factory.mktemp("runs")
    return thm.main(parse(thm, *SMALL.split(), "--run-dir", folder)), folder


def test_hidden_queries_diverge_and_luck_decides(small):
    runs = small[0]["runs"]
    noise = thm.pick(runs, arm="hidden_parameter_noise", q_init=0.0)
    assert len(noise) == 4 and all(run["diverged"] and run["leader_policy"][2] == 0 for run in noise)
    limits = thm.exact_limits(0.1, 0.9, 5)
    assert all(run["values"][2] == pytest.approx(limits, abs=0.01) for run in noise)  # the closed form is learned
    assert all(run["diverged"] for run in thm.pick(runs, arm="hidden_reinforce"))
    greedy = thm.pick(runs, arm="hidden_epsilon_greedy") + thm.pick(runs, arm="hidden_epsilon_soft")
    caught = thm.pick(greedy, tit_for_tat=True)
    assert caught and all(run["first_in_o_C"] == "C" and run["o_D_visits"] == 0 for run in caught)
    others = thm.pick(greedy, tit_for_tat=False)
    assert others and all(run["leader_return_greedy"] < -1.9 for run in others)


def test_observed_queries_let_reinforce_learn_tit_for_tat(small):
    runs = thm.pick(small[0]["runs"], arm="observed_reinforce")
    assert [run["leader_policy"] for run in runs] == [[0, 0, 1]] * 4
    assert all(run["leader_return_greedy"] == 0 and run["return_0"] for run in runs)
    assert all(-1 < run["leader_return"] < 0 for run in runs)  # as they explore


def test_tit_for_tat_freezes_what_is_stored_about_o_D():
    """From tit-for-tat, with luck built in: however long it trains, q(o_D, .) does not change in the last digit."""
    flags = {"arm": "hidden_epsilon_greedy", "q_init": 0.0, "q_init_std": 0.0}
    (short,), (long,) = (train(num_episodes=num_episodes, **flags) for num_episodes in (100, 300))
    assert short["tit_for_tat"] and long["tit_for_tat"]
    assert short["values"][2] == long["values"][2]
    assert short["values"][1] != long["values"][1]  # it still explores and learns elsewhere


def test_visits_count_from_the_last_change():
    """Pessimistic leaders try o_D -> C first, observe it often, and some then fall into tit-for-tat."""
    policies, flags = [], {"learning_rate": 0.5, "discount": 0.5, "q_init": -20.0, "seeds": range(1, 21)}
    runs = train("hidden_epsilon_greedy", 600, log=lambda _, scalars: policies.append(scalars), **flags)
    assert len(policies) == 50
    early = policies[2]["charts/tit_for_tat"]  # after 36 episodes
    late = [run for run, was in zip(runs, early, strict=True) if run["tit_for_tat"] and not was]
    assert late and all(run["o_D_visits"] == 0 for run in late)
    assert max(run["o_D_visits"] for run in thm.pick(runs, tit_for_tat=False)) > 100


def test_a_run_does_not_depend_on_its_neighbours(small, tmp_path):
    """Another selection of seeds, settings and arms gives the same runs."""
    flags = [*SMALL.split(), "--num-seeds", 1, "--seed", 3, "--q-init", -20, "--run-dir", tmp_path]
    for arm in ("hidden_epsilon_soft", "observed_parameter_noise", "observed_reinforce"):
        alone = thm.main(parse(thm, *flags, "--arm", arm))["runs"]
        q_init = None if arm.endswith("reinforce") else -20.0
        assert alone == thm.pick(small[0]["runs"], arm=arm, seed=3, q_init=q_init)


def test_result_and_curves(small):
    result, folder = small
    (path,) = folder.glob("prisoners_dilemma_modified__theorem2_divergence__1__*/result.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(result)) and result["stackelberg_value"] == 0
    assert len(result["runs"]) == 4 * (5 * 2 + 2) and len(result["curves"]) == 12
    assert {curve["arm"] for curve in result["curves"]} == {p.name for p in path.parent.iterdir() if p.is_dir()}
    for row in result["table"]:
        some = thm.pick(result["runs"], arm=row["arm"], q_init=row["q_init"])
        assert row["runs"] == len(some) == 4 and (row["learning_rate"], row["discount"]) in ((0.1, 0.9), (0.001, 0.9))
        assert row["tit_for_tat"] == sum(r["leader_policy"][1:] == [0, 1] for r in some)
        assert row["o_D_cooperate"] == sum(r["leader_policy"][2] == 0 for r in some)
        assert row["first_C_in_o_C"] == sum(r["first_in_o_C"] == "C" for r in some)
        assert row["tit_for_tat_from_C"] == sum(r["first_in_o_C"] == "C" and r["tit_for_tat"] for r in some)
        assert row["leader_return"] == pytest.approx(np.mean([r["leader_return"] for r in some]))
    for run in result["runs"]:
        assert run["o_D_cooperate"] == (run["leader_policy"][2] == 0)
        assert run["diverged"] == (run["o_D_cooperate"] and run["tit_for_tat_share"] < 0.01)
    assert thm.pick(result["runs"], o_D_cooperate=True, diverged=False)  # some held tit-for-tat before
    for queries, steps in (("hidden", 1500 * 5), ("observed", 1500 * 8)):
        (curve,) = (curve["curve"] for curve in result["curves"] if curve["arm"] == f"{queries}_reinforce")
        runs = thm.pick(result["runs"], arm=f"{queries}_reinforce")
        assert curve[-1][0] == steps and len(curve) == 50
        assert curve[-1][1] == pytest.approx(np.mean([run["leader_return_greedy"] for run in runs]))
        last_tenth = np.mean([exploring for _, _, exploring in curve[-5:]])
        assert last_tenth == pytest.approx(np.mean([run["leader_return"] for run in runs]))


def test_counts_and_limits_are_printed(small, tmp_path, capsys):
    result = json.loads(json.dumps(small[0]))
    thm.finish(result, game(), parse(thm, *SMALL.split()), str(tmp_path))
    printed = capsys.readouterr().out
    row = thm.table(result["runs"], "arm", "q_init")[0]
    assert sum(row["runs"] for row in thm.table(result["runs"], "arm")) == len(result["runs"])
    assert (row["arm"], row["q_init"]) == ("hidden_parameter_noise", 0.0)
    ends = (row["runs"], row["o_D_cooperate"], row["diverged"], row["tit_for_tat"], row["return_0"])
    assert ends == (4, 4, 4, 0, 0) and re.search(r"hidden_parameter_noise +0.0 +4 +4 +4 +0 +0 +-2.00 ", printed)
    # discount, learning rate; -2g, -3g of the proof; small rates; exact; learned; furthest from exact
    limits = r"0.9 +0.1 +-4.63, -6.95 +-6.15, -7.15 +-5.80, -6.70 +-5.80, -6.70 +0.0\d, 0.0\d"
    assert re.search(limits, printed)
    thm.finish(result | {"runs": thm.pick(result["runs"], arm="observed_reinforce")}, game(), thm.Args(), str(tmp_path))
    printed = capsys.readouterr().out
    assert re.search(r"observed_reinforce +None +4 +0 +0 +4 +4 +0.00 ", printed) and "-4.63" not in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--discounts 0.9 1.1", "--discounts must be at most 1"),
        ("--epsilons 0", "--epsilons must be positive"),
        ("--q-learning-rates 2", "--q-learning-rates must be at most 1"),
        ("--probability-floors 0.5", "--probability-floors must be at most"),
        ("--q-init-std -1", "--q-init-std must be positive"),
        ("--num-steps 2", "--num-steps must be at least 3"),
        ("--arm hidden", "hidden_parameter_noise"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(thm, *flags.split())
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
