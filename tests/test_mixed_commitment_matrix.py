"""Commitments that mix: every exact solver against another one, relabelling, and what leaders learn."""

import itertools
import re
import sys
from pathlib import Path

import mixed_commitment_matrix as script
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import parse
from scipy.optimize import linprog

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import claims  # noqa: E402

# leader's and follower's payoffs, what the best mixture is worth, and the mixture
TEXTBOOK = [
    ([[2, 4], [1, 3]], [[1, 0], [0, 1]], 3.5, [1 / 2, 1 / 2]),
    ([[2, 0, 0], [1, 0, 0]], [[0, 2, 5], [0, -1, -4]], 4 / 3, [1 / 3, 2 / 3]),
]


@pytest.fixture(name="script")
def the_script():
    """What `run` of conftest.py runs."""
    return script


def random_game(seed, shape=(2, 2), num_steps=10):
    return script.MatrixGame(np.random.default_rng(seed).random((2, *shape)), num_steps)


def named(env_id, num_steps=10):
    return script.MatrixGame(parse(script, "--env-id", env_id).payoffs, num_steps)


def flags_of(leader, follower):
    flags = ["--num-steps", 1, "--leader-actions", len(leader)]
    return [*flags, "--leader-payoff", *np.ravel(leader), "--follower-payoff", *np.ravel(follower)]


# --------------------------------------------------------------------------------------------------- exact evaluation
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_returns_are_those_of_claims_and_of_many_episodes(num_steps):
    game, rng = random_game(3, num_steps=num_steps), np.random.default_rng(0)
    model = script.complete_model(game)
    if num_steps > 1:
        p = rng.random((7, 5))
        other = claims.MatrixGame(*game.payoffs, num_steps)
        expected = claims.expected_rewards(other, p, model.tables)
        found = np.array(script.returns(model, np.stack([1 - p, p], -1)))
        for player in range(2):  # claims has them centred and stretched
            np.testing.assert_allclose(found[player], other.payoff(player, expected[player]), atol=1e-9)

    leaders = rng.dirichlet(np.ones(2), (1, game.num_observations))
    n, table = 20_000, model.tables[-2]
    observation, total = np.zeros(n, dtype=int), np.zeros((2, n))
    for _ in range(num_steps):
        a = (rng.random(n) < leaders[0, observation, 1]).astype(int)
        b = table[observation]
        total += game.payoffs[:, a, b] / num_steps
        observation = 1 + 2 * a + b if num_steps > 1 else observation
    for player, values in enumerate(script.returns(model, leaders)):
        assert values[0, -2] == pytest.approx(total[player].mean(), abs=4 * total[player].std() / n**0.5 + 1e-9)


def test_the_worst_reply_within_a_margin_and_the_best_at_a_price():
    leader, follower = np.array([[3.0, 1.0, 2.0]]), np.array([[0.5, 1.0, 0.95]])
    assert script.worst_reply(leader, follower, 1e-9)[0] == 1
    assert script.worst_reply(leader, follower, 0.06)[0] == 1 and script.worst_reply(-leader, follower, 0.06)[0] == -2
    assert script.worst_reply(leader, follower, 1e-9, 3.0)[0] == pytest.approx(2 - 3 * 0.05)
    assert script.worst_reply(leader, follower, 1e-9, np.array([0.0]))[0] == 3


def test_what_was_not_seen_is_taken_for_the_worst():
    game = random_game(1)
    experience = script.Experience(game)
    assert experience.step(0, 1, 0) == 3 and experience.step(3, 0, 1) == 2
    experience.step(3, 0, 1)
    model = script.make_model(experience)
    assert model.seen.sum() == 2 and experience.count[3, 0, 1] == 2
    np.testing.assert_allclose(model.rewards[:, 3, 0, 1], game.payoffs[:, 0, 1])
    least = np.minimum(game.payoffs[:, 1, 0], game.payoffs[:, 0, 1])
    np.testing.assert_allclose(model.rewards[:, 4, 1, 1], least)
    assert model.following[4, 1, 1].tolist() == [1, 0, 0, 0, 0] and model.following[0, 1, 0, 3] == 1


def test_a_few_episodes_try_everything():
    for seed in range(5):
        game = random_game(seed)
        experience, rng = script.Experience(game), np.random.default_rng(seed)
        for _ in range(20):
            experience.play(rng)
        assert (experience.count > 0).all() and experience.count.sum() == 200
        np.testing.assert_allclose(script.make_model(experience).rewards, script.complete_model(game).rewards)


# ------------------------------------------------------------------------------------------------------- exact optima
@pytest.mark.parametrize(("leader", "follower", "value", "mixture"), TEXTBOOK)
def test_the_textbook_games(run, leader, follower, value, mixture):
    found, x = script.commitment(np.array(leader, float), np.array(follower, float))
    assert found == pytest.approx(value) and x == pytest.approx(mixture)
    for seed in (1, 2):
        result, printed = run(*flags_of(leader, follower), "--seed", seed)
        assert result["leader_return_guaranteed"] == pytest.approx(value, abs=0.002)
        assert result["leader_policy"] == pytest.approx(mixture, abs=0.002)
        assert result["stackelberg_value_stochastic"] == result["stackelberg_value_mixture"] == pytest.approx(value)
        assert result["stackelberg_value_guaranteed"] == pytest.approx(value, abs=1e-4)
        assert f"optimum            {value:.3f} guaranteed" in printed and "probabilities of each action" in printed


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3, 2), (2, 4)])
def test_the_linear_programme_against_a_grid(shape):
    n = 60 if shape[0] == 3 else 4000
    grid = np.array([x for x in itertools.product(range(n + 1), repeat=shape[0] - 1) if sum(x) <= n]) / n
    grid = np.column_stack([grid, 1 - grid.sum(1)])
    for seed in range(6):
        leader, follower = np.random.default_rng(seed).random((2, *shape))
        value, x = script.commitment(leader, follower)
        assert x.sum() == pytest.approx(1) and x.min() >= -1e-9
        replies = (x @ follower) >= (x @ follower).max() - 1e-7
        assert (x @ leader)[replies].max() == pytest.approx(value)
        of_grid = np.take_along_axis(grid @ leader, (grid @ follower).argmax(1)[:, None], 1)
        assert of_grid.max() - 1e-9 <= value <= of_grid.max() + 4 / n * (1 + shape[0])


def test_a_margin_says_what_is_guaranteed_where_the_follower_cannot_tell():
    """Columns 0 and 1 are the same to the follower; with ties for it the leader would get 5."""
    leader, follower = np.array([[5.0, 0.0, 1.0]]), np.array([[1.0, 1.0, 0.0]])
    assert script.commitment(leader, follower)[0] == 5
    assert script.commitment(leader, follower, 1e-6)[0] == pytest.approx(0)
    # a column that is never better than another by any margin is guaranteed nothing
    leader, follower = np.array([[4.0, 0.0], [4.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])
    assert script.commitment(leader, follower)[0] == 4
    assert script.commitment(leader, follower, 1e-6)[0] == pytest.approx(1)


def test_deterministic_optima_and_mixtures_of_the_prisoners_dilemma():
    optima = script.solve(named("prisoners_dilemma"))
    assert optima.deterministic == optima.pessimistic == pytest.approx(-0.9)
    assert optima.mixture == pytest.approx(-0.675)
    assert optima.stochastic == pytest.approx(-0.5, abs=1e-4) and optima.bound == pytest.approx(-0.5, abs=1e-6)
    assert -0.501 <= optima.guaranteed <= -0.5
    # the leader that is returned is worth that
    values = script.returns(script.complete_model(named("prisoners_dilemma")), optima.leader[None])
    assert script.worst_reply(*values, 1e-6)[0] == optima.guaranteed


def test_mixtures_by_another_linear_programme():
    """As one programme over pairs of tables: correlated signals, in which the follower obeys (Conitzer and Korzhyk,
    2011): it has the value of the best of many."""
    game = random_game(8)
    tables = np.array(list(itertools.product(np.eye(2), repeat=5)))
    leader, follower = script.returns(script.complete_model(game), tables)
    n = 32
    obey = np.zeros((n * n, n, n))
    for told, other in itertools.product(range(n), repeat=2):
        obey[n * told + other, :, told] = follower[:, other] - follower[:, told]
    solved = linprog(-leader.ravel(), obey.reshape(n * n, -1), np.zeros(n * n), np.ones((1, n * n)), [1])
    assert -solved.fun == pytest.approx(script.commitment(leader, follower)[0], abs=1e-6)


def test_classes_are_in_order_and_below_the_bound():
    for seed in (1, 9, 11):
        game = random_game(seed)
        optima, rounding = script.solve(game), 1e-4 * game.scale[0]
        assert optima.pessimistic <= optima.deterministic <= min(optima.mixture, optima.stochastic) + rounding
        assert optima.pessimistic - rounding <= optima.guaranteed <= optima.stochastic + rounding
        assert max(optima.stochastic, optima.guaranteed) <= optima.bound + rounding
        other = claims.MatrixGame(*game.payoffs)
        optimistic, pessimistic, _ = claims.solve(other)
        assert optima.deterministic == pytest.approx(other.payoff(0, optimistic))
        assert optima.pessimistic == pytest.approx(other.payoff(0, pessimistic))


@pytest.mark.parametrize("env_id", ["prisoners_dilemma", "hero-coordination"])
def test_no_leader_on_a_grid_is_worth_more(env_id):
    """All of 6^5 leaders, edges included, and the search of commitments.csv on its own."""
    game = named(env_id)
    optima, model = script.solve(game), script.complete_model(game)
    axis = (0, 0.05, 0.25, 0.5, 0.8, 1)
    p = np.array(list(itertools.product(axis, repeat=5)))
    leader, follower = script.returns(model, np.stack([1 - p, p], -1))
    assert script.worst_reply(leader, follower, 1e-6).max() <= optima.guaranteed + 1e-4
    best = np.where(follower >= follower.max(1, keepdims=True) - 1e-6, leader, -np.inf)
    assert best.max() <= optima.stochastic + 1e-4
    bounds = script.upper_bounds(model)
    assert (best.max(0) <= bounds + 1e-6).all()  # table by table
    row = pd.read_csv(ROOT / "benchmark/results/commitments.csv").set_index("env_id")
    if env_id in row.index:
        assert optima.guaranteed >= row.loc[env_id, "stochastic_guaranteed"] - 1e-3


def test_climbing_stays_where_the_table_is_a_best_reply():
    game = named("hero-coordination")
    model, rng = script.complete_model(game), np.random.default_rng(0)
    improved = 0
    for _ in range(10):
        start = rng.dirichlet(np.ones(2), (1, 5))
        before, follower = script.returns(model, start)
        table = follower[0].argmax()
        after, follower = script.returns(model, script.climb(model, table, start[0], 1e-4)[None])
        if follower[0, table] - np.delete(follower[0], table).max() >= 0.9e-4:
            assert after[0, table] >= before[0, table] - 1e-6
            improved += after[0, table] > before[0, table] + 0.01
    assert improved >= 3


def discounted_values(game, model, leaders, gamma):
    """The follower's discounted mean reward of each table, [n, T], by a linear system."""
    tables, (num_observations, rows) = len(model.tables), game.shape[:2]
    following = model.table_following.reshape(tables, num_observations, rows, -1)
    rewards = model.table_rewards[..., 1].reshape(tables, num_observations, rows)
    chain = np.einsum("noa,toap->ntop", leaders, following)
    reward = np.einsum("noa,toa->nto", leaders, rewards)
    values = np.linalg.solve(np.eye(num_observations) - gamma * chain, reward[..., None])
    return (1 - gamma) * values[..., 0, 0]


def test_the_edge_of_a_discounted_follower_is_beyond_that_of_ten_steps():
    """The best commitment to a follower discounted by 0.9, a margin of 0.03 inside, is worth more than any to the
    game's follower, which does something else."""
    game, margin = named("prisoners_dilemma"), 0.03
    model = script.complete_model(game)

    def worth(leaders, price=np.inf):
        of_follower = discounted_values(game, model, leaders, 0.9)
        return script.worst_reply(script.returns(model, leaders)[0], of_follower, margin, price)

    logits, _ = script.search(worth, (5, 2), 40, np.random.default_rng(0), np.zeros((0, 5, 2)))
    leaders = script.softmax(logits, -1)
    leader = leaders[[worth(leaders).argmax()]]
    assert worth(leader)[0] >= -0.48  # more than the game's follower allows any leader
    assert script.worst_reply(*script.returns(model, leader), 1e-6)[0] <= -1.9


# ------------------------------------------------------------------------------------------------------- the follower
def network_follower(game, *flags):
    args = parse(script, "--follower", "network", *flags)
    follower = script.Follower(game, args)
    follower.model = script.complete_model(game)
    return follower


def test_relabelled_transitions_have_the_weights_of_the_leader_that_might_have_played():
    """What follows in the mean, by the weights, is what follows a leader's own actions, by many real steps."""
    game, rng = random_game(5), np.random.default_rng(1)
    follower = network_follower(game)
    leaders = torch.tensor(rng.dirichlet(np.ones(2), (6, 5)), dtype=torch.float32)
    observation, reply = torch.tensor([0, 1, 2, 3, 4, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    rewards, following, weights = follower.relabel(leaders, observation, reply)
    assert torch.allclose(weights, leaders[torch.arange(6), observation])
    n = 20_000
    for i in range(6):
        acts = rng.random(n) < float(leaders[i, observation[i], 1])
        received = (game.payoffs[1, acts.astype(int), reply[i]] - game.payoffs[1].mean()) / np.ptp(game.payoffs[1])
        expected = float((weights[i] * rewards[i]).sum())
        assert expected == pytest.approx(received.mean(), abs=4 * received.std() / n**0.5 + 1e-6)
        after = 1 + 2 * acts + int(reply[i])
        shares = np.bincount(after, minlength=5) / n
        assert (weights[i, :, None] * following[i]).sum(0).numpy() == pytest.approx(shares, abs=4 * 0.5 / n**0.5)


def test_what_was_not_seen_has_no_weight():
    game = random_game(5)
    follower = network_follower(game)
    experience = script.Experience(game)
    experience.step(0, 0, 0)
    experience.step(0, 0, 1)
    experience.step(0, 1, 1)
    follower.model = script.make_model(experience)
    leaders = torch.full((3, 5, 2), 0.5)
    _, _, weights = follower.relabel(leaders, torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]))
    assert weights.tolist() == [[1, 0], [0.5, 0.5], [0, 0]]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_network_learns_what_tables_are_worth(num_steps):
    torch.manual_seed(0)
    game = random_game(4, num_steps=num_steps)
    follower = network_follower(game, "--follower-updates", 300)
    near = np.zeros((1, game.num_observations, 2))
    for rate in (4e-3, 2e-3, 5e-4):
        follower.learn(follower.model, near, rate)
    leaders = script.softmax(np.random.default_rng(0).normal(0, 2, (50, game.num_observations, 2)), -1)
    _, exact = script.returns(follower.model, leaders)
    imagined, values = follower.values(leaders)
    np.testing.assert_allclose(imagined, script.returns(follower.model, leaders)[0])
    assert values.shape == exact.shape == (50, len(follower.model.tables))
    error = np.abs(values - exact).mean() / game.scale[1]
    assert error < 0.1 and error < 0.25 * np.abs(exact - exact.mean()).mean() / game.scale[1]


# --------------------------------------------------------------------------------------------------------- the leader
def test_the_prisoners_dilemma(run):
    result, printed = run("--seed", 3)
    assert result["leader_return_guaranteed"] >= -0.51 and result["leader_return_greedy"] >= -0.51
    assert result["combined_steps"] <= 300 and result["triples_tried"] == 20
    assert len(result["leader_policy"]) == 5 and result["leader_policy"][0] > 0.98  # it defects first
    assert result["stackelberg_value"] == pytest.approx(-0.9)
    assert result["stackelberg_value_mixture"] == pytest.approx(-0.675)
    assert "-0.900 deterministic, -0.675 mixtures" in printed


def test_a_mixed_ordinal_game(run):
    result, _ = run("--env-id", "hero-coordination")
    assert result["leader_return_guaranteed"] >= -0.77 and result["stackelberg_value"] == pytest.approx(-1.5)


def test_a_margin_costs_what_it_says(run):
    """In the prisoner's dilemma the leader gives up half of what it leaves the follower."""
    result, _ = run("--margin", 0.1)
    assert result["leader_return_guaranteed"] == pytest.approx(-0.55, abs=0.01)


def test_the_more_actions_answer_a_query_the_more_a_leader_can_commit_to(run):
    """One-shot: with P(action 0) = p, one action as the answer is worth 3 - p in the POMDP; many, up to 3.5."""
    one, many = (run("--queries", k, *flags_of(*TEXTBOOK[0][:2]))[0] for k in (1, 256))
    assert one["leader_return_greedy"] == pytest.approx(3, abs=0.1) and one["leader_policy"][0] < 0.1
    assert 3.3 <= many["leader_return_greedy"] <= many["leader_return_guaranteed"] <= 3.5
    assert many["combined_steps"] == 4 * 257 and one["combined_steps"] == 4 * 2


def test_one_answer_is_worth_what_the_pomdp_says():
    """K = 1: exactly, over all 32 answers."""
    game = named("prisoners_dilemma")
    args = parse(script, "--queries", 1)
    follower = script.Follower(game, args)
    follower.learn(script.complete_model(game), None, 0.0)
    leader = np.random.default_rng(2).dirichlet(np.ones(2), (1, 5))
    tables = np.array(list(itertools.product((0, 1), repeat=5)))
    chance = np.take_along_axis(leader.repeat(32, 0), tables[..., None], 2).prod((1, 2))
    replies = follower.values(np.eye(2)[tables])[1].argmax(1)
    expected = chance @ script.returns(follower.model, leader)[0][0, replies]
    sampled = script.make_worth(follower, args, np.random.default_rng(0), 4000)(leader)[0]
    assert sampled == pytest.approx(expected, abs=4 * 1.5 / 4000**0.5)


@pytest.mark.parametrize("follower", ["planning", "network"])
def test_random_one_shot_games(run, follower):
    for number in (1, 2):
        quick = ("--rounds", 4, "--follower-updates", 150) if follower == "network" else ()
        flags = ("--num-steps", 1, "--random-game", 3, 3, number, "--follower", follower)
        result, _ = run(*flags, *quick)
        lp = result["stackelberg_value_mixture"]
        scale = np.ptp(np.random.default_rng(number).random((2, 3, 3))[0])
        assert result["leader_return_guaranteed"] >= lp - (0.02 if follower == "planning" else 0.1) * scale
        assert len(result["leader_policy"]) == 3 and sum(result["leader_policy"]) == pytest.approx(1)


def test_several_random_games(run, tmp_path):
    result, printed = run("--random-games", 2, "--random-game", 2, 3, 7, "--num-steps", 1)
    assert result["env_id"] == "random_2x3_8" and "random_2x3_7" in printed
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--env-id", "go"), "no game 'go'"),
        (("--env-id", "hero-go"), "no game 'hero-go'"),
        (("--leader-payoff", 1, 2, 3), "as many"),
        (("--random-game", 3, 3, 1), "add --num-steps 1"),
        (("--random-game", 0, 3, 1), "--random-game needs"),
        (("--queries", 0), "--queries"),
        (("--queries", "maybe"), "--queries"),
        (("--margin", -1), "--margin"),
        (("--rounds", 0), "--rounds"),
    ],
)
def test_what_does_not_fit_ends_with_a_message(capsys, tmp_path, flags, message):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--run-dir", tmp_path / "runs", *flags)
    assert stop.value.code == 2 and not (tmp_path / "runs").exists()
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err.replace("│", ""))
