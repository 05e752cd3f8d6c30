"""Theorem 2: the exact game, the learners and the limits against plain Python, and what the runs end with."""

import importlib
import itertools
import json
import math

import numpy as np
import pytest

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


def settings(learning_rate, discount, exploration):
    names = ("learning_rate", "discount", "exploration")
    return {name: np.array(value) for name, value in zip(names, (learning_rate, discount, exploration), strict=True)}


def test_q_learning_is_equation_1():
    rng = np.random.default_rng(1)
    rates, discounts, values = [0.1, 0.5], [0.9, 1.0], rng.random((2, 3, 2))
    observations, actions, rewards = rng.integers(0, 3, (7, 2)), rng.integers(0, 2, (7, 2)), rng.random((7, 2))
    leaders = thm.QLearning(values.copy(), settings(rates, discounts, [0, 0]), parameter_noise=False)
    leaders.learn(observations, actions, rewards)
    for i in range(2):
        q = values[i].copy()
        for t in range(7):
            future = max(q[observations[t + 1, i]]) if t < 6 else 0
            s, a = observations[t, i], actions[t, i]
            q[s, a] = (1 - rates[i]) * q[s, a] + rates[i] * (rewards[t, i] + discounts[i] * future)
        assert leaders.values[i] == pytest.approx(q)


def mean_update(theta, follower, discount, discounted_gradient, num_steps=4):
    """What REINFORCE adds to theta on average, over every course of the game against a fixed follower."""
    courses = list(histories(theta, follower, num_steps))
    n = len(courses)
    start = np.tile(theta, (n, 1))
    leaders = thm.Reinforce(start.copy(), settings([1e-9] * n, [discount] * n, [0.0] * n), discounted_gradient)
    steps = np.array([steps for _, steps in courses])
    rewards = np.array([[LEADER[a, b] for _, a, b in steps] for _, steps in courses])
    leaders.learn(steps[:, :, 0].T, steps[:, :, 1].T, rewards.T)
    return np.array([p for p, _ in courses]) @ (leaders.values - start) / 1e-9


@pytest.mark.parametrize("follower", [(1, 1, 1), (0, 1, 1), (1, 1, 0)])
def test_discounted_reinforce_follows_the_gradient_of_the_discounted_return(follower):
    theta, discount = (0.3, 0.6, 0.7), 0.6

    def value(theta):
        courses = histories(theta, follower, 4)
        return sum(p * sum(discount**t * LEADER[a, b] for t, (_, a, b) in enumerate(steps)) for p, steps in courses)

    slope = [(value(theta + h) - value(theta - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
    assert mean_update(theta, follower, discount, True) == pytest.approx(slope, abs=1e-4)
    assert mean_update(theta, follower, discount, False) != pytest.approx(slope, abs=0.1)  # equation 3


def test_reinforce_keeps_exploring():
    """However long the step, every action keeps its least probability."""
    leaders = thm.Reinforce(np.full((2, 3), 0.5), settings([100, 100], [1, 1], [0.01, 0.2]), False)
    leaders.learn(np.array([[0, 0], [2, 2]]), np.array([[0, 0], [1, 1]]), np.full((2, 2), -1.0))
    assert leaders.values.tolist() == [[0.99, 0.5, 0.01], [0.8, 0.5, 0.2]]


def test_policies_explore_as_they_should():
    values = np.array([[[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]])
    soft = thm.QLearning(values, settings([0.1], [0.9], [0.2]), parameter_noise=False)
    assert soft.greedy().tolist() == [[1, 0, 0]]  # a tie cooperates
    assert soft.policy(np.ones((1, 3, 2)))[0] == pytest.approx([0.9, 0.1, 0.1])
    noisy = thm.QLearning(values, settings([0.1], [0.9], [2.0]), parameter_noise=True)
    noise = np.array([[[0.6, 0.0], [0.0, 0.1], [0.0, 0.4]]])  # times 2, it turns o_0 and o_C, but not o_D
    assert noisy.policy(noise).tolist() == [[0, 1, 0]]


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


def test_tolerated_epsilon_is_where_the_reply_changes():
    tolerated = thm.tolerated_epsilon(game())
    for epsilon, cooperates in ((tolerated, True), (tolerated + 0.001, False)):
        leader = (epsilon / 2, epsilon / 2, 1 - epsilon / 2)
        best = max(ALL, key=lambda table: expected(leader, table, 5, FOLLOWER))
        assert (best == (0, 0, 0)) == cooperates


def test_landscape_matches_mean_updates_on_a_coarse_grid():
    slopes = []
    for theta in itertools.product((0.125, 0.375, 0.625, 0.875), repeat=3):
        slopes.append(mean_update(theta, tuple(game().best_reply(np.array(theta))), 1.0, False, 5)[2])
    unmoved, raised = np.mean(np.abs(slopes) < 1e-5), np.mean(np.array(slopes) >= 1e-5)
    assert thm.landscape(game(), resolution=4) == (pytest.approx(unmoved), pytest.approx(raised))
    assert 0 < unmoved < 0.5


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
    return thm.main(thm.parse_args([*SMALL.split(), "--run-dir", str(folder)])), folder


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
    assert others and all(run["leader_return"] < -1.9 for run in others)


def test_observed_queries_let_reinforce_learn_tit_for_tat(small):
    runs = thm.pick(small[0]["runs"], arm="observed_reinforce")
    assert [run["leader_policy"] for run in runs] == [[0, 0, 1]] * 4
    assert all(run["leader_return"] == 0 and run["return_0"] for run in runs)


def test_tit_for_tat_freezes_what_is_stored_about_o_D():
    """From tit-for-tat, with luck built in: however long it trains, q(o_D, .) does not change in the last digit."""
    args = thm.Args(num_episodes=300, q_init_std=0.0)
    tables = {}
    for arm, q_init in (("hidden_epsilon_greedy", 0.0), ("hidden_epsilon_greedy", -1.0)):
        for num_episodes in (100, 300):
            args.num_episodes = num_episodes
            run = dict(arm=arm, q_init=q_init, learning_rate=0.1, discount=0.9, exploration=0.2, seed=1)
            for _ in thm.train_arm(arm, [run], game(), args):
                pass
            tables[q_init, num_episodes] = run
    caught = [run for run in tables.values() if run["tit_for_tat"]]
    assert tables[0.0, 100] in caught and tables[0.0, 300] in caught
    assert tables[0.0, 100]["values"][2] == tables[0.0, 300]["values"][2]
    assert tables[0.0, 100]["values"][1] != tables[0.0, 300]["values"][1]  # it still explores and learns elsewhere


def test_visits_count_from_the_last_change():
    """Pessimistic leaders try o_D -> C first, observe it often, and some then fall into tit-for-tat."""
    arm, args = "hidden_epsilon_greedy", thm.Args(num_episodes=600)
    setting = {"arm": arm, "q_init": -20.0, "learning_rate": 0.5, "discount": 0.5, "exploration": 0.2}
    runs = [setting | {"seed": seed} for seed in range(1, 21)]
    policies = [scalars["charts/tit_for_tat"] for _, scalars in thm.train_arm(arm, runs, game(), args)]
    late = [i for i, run in enumerate(runs) if run["tit_for_tat"] and not policies[2][i]]  # not after 36 episodes
    assert late and all(runs[i]["o_D_visits"] == 0 for i in late)
    assert max(run["o_D_visits"] for run in thm.pick(runs, tit_for_tat=False)) > 100


def test_a_run_does_not_depend_on_its_neighbours(small, tmp_path):
    """Another selection of seeds, settings and arms gives the same runs."""
    flags = [*SMALL.split(), "--num-seeds", "1", "--seed", "3", "--q-init", "-20", "--run-dir", str(tmp_path)]
    for arm in ("hidden_epsilon_soft", "observed_parameter_noise", "observed_reinforce"):
        alone = thm.main(thm.parse_args([*flags, "--arm", arm]))["runs"]
        q_init = None if arm.endswith("reinforce") else -20.0
        assert alone == thm.pick(small[0]["runs"], arm=arm, seed=3, q_init=q_init)


def test_result_and_curves(small):
    result, folder = small
    (path,) = folder.glob("prisoners_dilemma_modified__theorem2_divergence__1__*/result.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert len(result["runs"]) == 4 * (5 * 2 + 2) and len(result["curves"]) == 12
    assert {curve["arm"] for curve in result["curves"]} == {p.name for p in path.parent.iterdir() if p.is_dir()}
    for row in result["table"]:
        some = [r for r in result["runs"] if (r["arm"], r["q_init"]) == (row["arm"], row["q_init"])]
        assert row["runs"] == len(some) == 4
        assert row["tit_for_tat"] == sum(r["leader_policy"][1:] == [0, 1] for r in some)
        assert row["o_D_cooperate"] == sum(r["leader_policy"][2] == 0 for r in some)
    for run in result["runs"]:
        assert run["o_D_cooperate"] == (run["leader_policy"][2] == 0)
        assert run["diverged"] == (run["o_D_cooperate"] and run["tit_for_tat_share"] < 0.01)
    assert thm.pick(result["runs"], o_D_cooperate=True, diverged=False)  # some held tit-for-tat before
    hidden, observed = (
        next(c for c in result["curves"] if c["arm"] == f"{q}_reinforce") for q in ("hidden", "observed")
    )
    assert hidden["curve"][-1][0] == 1500 * 5 and observed["curve"][-1][0] == 1500 * 8
    assert observed["curve"][-1][1] == 0 and hidden["curve"][-1][1] == pytest.approx(
        np.mean([run["leader_return"] for run in thm.pick(result["runs"], arm="hidden_reinforce")])
    )


def test_words_follow_the_runs(small):
    """The same words say yes of runs that show the theorem, and NO of runs that do not."""
    args, runs = thm.parse_args(SMALL.split()), [dict(run) for run in small[0]["runs"]]
    claims = (
        "TFT was not held?",
        "not observed again?",
        "never at TFT?",
        "best learning rate 0.001: return 0 in 9 of 10?",
    )
    words = thm.report(runs, game(), args)
    assert all(f"{claim} yes, " in words for claim in claims)
    for run in runs:
        run |= {"diverged": False, "return_0": False, "o_D_visits": 1, "tit_for_tat": True}
    words = thm.report(runs, game(), args)
    assert all(f"{claim} NO, 0 of " in words for claim in claims)
    words = thm.report(thm.pick(runs, arm="hidden_reinforce"), game(), args)
    assert all(f"{claim} not trained" in words for claim in claims[:3])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--discounts 0.9 1.1", "--discounts must be at most 1"),
        ("--epsilons 0", "--epsilons must be positive"),
        ("--q-learning-rates 2", "--q-learning-rates must be at most 1"),
        ("--probability-floors 0.5", "--probability-floors must be at most"),
        ("--q-init 0 0", "--q-init must be one or more different numbers"),
        ("--q-init nan", "--q-init must be a finite number"),
        ("--q-init-std -1", "--q-init-std must not be negative"),
        ("--num-steps 2", "--num-steps must be at least 3"),
        ("--arm hidden", "no arm 'hidden'"),
    ],
)
def test_wrong_flags_end_with_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        thm.main(thm.parse_args([*flags.split(), "--run-dir", str(tmp_path / "runs")]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "runs").exists()
