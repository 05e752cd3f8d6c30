"""The proved optimum of iterated games against enumeration, and against a search that knows nothing of its proof."""

import itertools

import exact_stackelberg as exact
import numpy as np
import pytest
from conftest import parse

GAMMA = 0.9


def best_replies(payoffs, leaders):
    """Value iteration over observations, for leader tables [n, 1 + rows * columns]: the follower's Q-values, discounted
    payoffs [n, observations, columns], and where each reply leads."""
    columns = payoffs.shape[2]
    reward = payoffs[1][leaders]
    following = 1 + columns * leaders[..., None] + np.arange(columns)
    values = np.zeros(leaders.shape)
    q_values = reward
    for _ in range(220):  # 0.9 ** 220 = 1e-10
        q_values = reward + GAMMA * np.take_along_axis(values[..., None], following, axis=1)
        values = q_values.max(axis=-1)
    return q_values, following


def leader_values(payoffs, leaders, horizon, sign):
    """The leader's return against follower's best replies, ties broken for it (sign 1) or against it (-1): by dynamic
    programming over the steps left, so that the reply to an observation may change with them."""
    q_values, following = best_replies(payoffs, leaders)
    is_best = q_values >= q_values.max(axis=-1, keepdims=True) - 1e-7
    reward, steps = sign * payoffs[0][leaders], horizon or 220
    values = np.zeros(leaders.shape)
    for _ in range(steps):
        after = np.take_along_axis(values[..., None], following, axis=1)
        q = reward / horizon + after if horizon else (1 - GAMMA) * reward + GAMMA * after
        values = np.where(is_best, q, -np.inf).max(axis=-1)
    return sign * values[:, 0]


def all_leaders(rows, columns):
    return np.array(list(itertools.product(range(rows), repeat=1 + rows * columns)))


def random_payoffs(number, rows, columns, ties):
    rng = np.random.default_rng(number)
    return rng.integers(4, size=(2, rows, columns)).astype(float) if ties else rng.random((2, rows, columns))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("horizon", [None, 10])
def test_the_optimum_is_that_of_enumeration_in_2x2_games(ties, horizon):
    if ties and horizon:
        pytest.skip("step 2 of the proof needs unique best replies there")
    leaders, differ = all_leaders(2, 2), 0
    for number in range(100):
        payoffs = random_payoffs(number, 2, 2, ties)
        optimistic = leader_values(payoffs, leaders, horizon, 1).max()
        pessimistic = leader_values(payoffs, leaders, horizon, -1).max()
        assert exact.solve(payoffs, GAMMA, horizon).value == pytest.approx(optimistic, abs=1e-6)
        strict = exact.solve(payoffs, GAMMA, horizon, strict=True)
        assert strict is None or strict.value <= pessimistic + 1e-6
        if not ties:
            assert strict.value == pytest.approx(pessimistic, abs=1e-6)
        differ += optimistic > pessimistic + 1e-6
    assert (differ > 5) == ties


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (2, 4), (1, 3), (3, 1)])
def test_the_optimum_is_that_of_enumeration_in_uneven_games(rows, columns):
    leaders = all_leaders(rows, columns)
    for number in range(6):
        payoffs = random_payoffs(number, rows, columns, ties=number >= 3)
        expected = leader_values(payoffs, leaders, None, 1).max()
        assert exact.solve(payoffs, GAMMA).value == pytest.approx(expected, abs=1e-6)


def test_the_optimum_is_that_of_enumeration_in_3x3_games():
    leaders = all_leaders(3, 3)
    rows = np.arange(len(leaders))[:, None]

    def discounted(reward, following):
        """The value of following for 2 ** 8 steps, by doubling the steps."""
        values, discount = reward, GAMMA
        for _ in range(8):
            values = values + discount * values[rows, following]
            following, discount = following[rows, following], discount**2
        return values

    for number in range(20):
        payoffs = random_payoffs(number, 3, 3, ties=False)
        replies = payoffs[1].argmax(axis=1)[leaders]
        for _ in range(20):  # policy iteration
            values = discounted(payoffs[1][leaders, replies], 1 + 3 * leaders + replies)
            reached = values[rows[..., None], 1 + 3 * leaders[..., None] + np.arange(3)]
            better = (payoffs[1][leaders] + GAMMA * reached).argmax(axis=-1)
            if (better == replies).all():
                break
            replies = better
        expected = (1 - GAMMA) * discounted(payoffs[0][leaders, replies], 1 + 3 * leaders + replies)[:, 0].max()
        assert exact.solve(payoffs, GAMMA).value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("horizon", [None, 10])
@pytest.mark.parametrize("strict", [False, True])
def test_the_tables_are_worth_what_is_claimed(strict, horizon):
    for number, size in itertools.product(range(10), (2, 3, 4, 5)):
        payoffs = random_payoffs(number, size, size, ties=False)
        solution = exact.solve(payoffs, GAMMA, None if size == 5 else horizon, strict)
        leader = np.array([solution.leader_table])
        q_values, _ = best_replies(payoffs, leader)
        assert q_values[0].argmax(axis=-1)[0] == exact.replies_to(solution, payoffs[1])[0]
        value = leader_values(payoffs, leader, None if size == 5 else horizon, -1)
        assert solution.value == pytest.approx(value[0], abs=1e-6)
        assert solution.follower_value == pytest.approx((1 - GAMMA) * q_values[0, 0].max(), abs=1e-6)


def search_over_observations(payoffs):
    """The discounted optimum, to 1e-3, by a search that does not know that observations with one answer are alike.

    The leader's answers are set one by one as play comes to their observations; all others are set to punish: against
    them the follower has the value of the zero-sum game in which the leader answers before it replies.
    """
    _, rows, columns = payoffs.shape
    (leader, follower), pairs = payoffs, list(itertools.product(range(rows), range(columns)))
    following = 1 + columns * np.arange(rows)[:, None] + np.arange(columns)
    best, least = -np.inf, follower.max(axis=1).min() / (1 - GAMMA)
    points = [(follower[pair], leader[pair]) for pair in pairs]

    def most(mean):
        """The most that the leader can have in a mix of payoff pairs in which the follower has at least `mean`."""
        values = [value for given, value in points if given >= mean - 1e-9]
        for (f0, l0), (f1, l1) in itertools.combinations(points, 2):
            if min(f0, f1) < mean < max(f0, f1):
                values.append(l0 + (mean - f0) / (f1 - f0) * (l1 - l0))
        return max(values, default=-np.inf)

    def punished(answers):
        values = np.zeros(1 + rows * columns)
        for _ in range(150):
            nodes = (follower + GAMMA * values[following]).max(axis=-1)
            values = np.full(len(values), nodes.min())
            for observation, action in answers.items():
                values[observation] = nodes[action]
        return values

    def extend(observation, answers, path, needed, so_far):
        nonlocal best
        if observation in answers:  # the lasso is closed: is it a best reply to the leader with all its threats?
            start = [o for o, _, _ in path].index(observation)
            played = (path + path[start:] * 220)[:220]
            value = sum((1 - GAMMA) * GAMMA**t * leader[a, b] for t, (_, a, b) in enumerate(played))
            follows = sum(GAMMA**t * follower[a, b] for t, (_, a, b) in enumerate(played))
            if value > best and follows >= punished(answers)[0] - 1e-6:
                best = value
            return
        k, extensions = len(path), []
        for a, b in pairs:
            others = max(follower[a, c] for c in range(columns) if c != b)
            rest = (max(needed, others + GAMMA * least) - follower[a, b]) / GAMMA
            gain = so_far + (1 - GAMMA) * GAMMA**k * leader[a, b]
            extensions.append((gain + GAMMA ** (k + 1) * most((1 - GAMMA) * rest), a, b, rest, gain))
        for bound, a, b, rest, gain in sorted(extensions, reverse=True):
            if bound > best + 1e-3:
                extend(following[a, b], answers | {observation: a}, [*path, (observation, a, b)], rest, gain)

    extend(0, {}, [], -np.inf, 0.0)
    return best


@pytest.mark.parametrize(("number", "size"), [(4, 3), (8, 3), (18, 3), (0, 4), (4, 4), (5, 4), (7, 4)])
def test_the_optimum_is_that_of_a_search_over_observations(number, size):
    payoffs = random_payoffs(number, size, size, ties=False)
    assert exact.solve(payoffs, GAMMA).value == pytest.approx(search_over_observations(payoffs), abs=1.1e-3)


def test_the_games_of_table_3():
    values = {name: exact.solve(exact.Args(env_id=name).payoffs, horizon=10).value for name in exact.PAYOFFS}
    assert values["prisoners_dilemma"] == pytest.approx(-0.9)
    assert values["chicken"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    "flags", [["--random-game", 0, 1], ["--gamma", 1], ["--leader-payoff", 1, 2, 3], ["--env-id", "go"]]
)
def test_wrong_input_ends_with_a_message(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(exact, *flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err or flags[0] == "--env-id"


def test_a_follower_that_never_minds_has_no_unique_reply(capsys):
    flags = ["--leader-payoff", *range(4), "--follower-payoff", *[1] * 4]
    assert exact.main(parse(exact, *flags)).value == 3
    assert "optimum            3 per step" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="several best replies"):
        exact.main(parse(exact, *flags, "--strict"))
