"""Evolution strategies against followers that learn from scratch (ablations/es_md_matrix.py)."""

import itertools

import numpy as np
import pytest

from ablations import es_md_matrix as script

QUICK = ("--total-timesteps", 2_000_000, "--evaluation-followers", 2)


def run(tmp_path, *flags):
    return script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), *map(str, flags)]))


def expected_payoffs(game, leader, follower):
    """Both players' expected payoff per step, from all 4^T paths of the game, one by one."""
    payoffs = np.zeros(2)
    for path in itertools.product(itertools.product((0, 1), repeat=2), repeat=game.num_steps):
        probability, observation, total = 1.0, 0, np.zeros(2)
        for action, reply in path:
            probability *= leader[observation] if action else 1 - leader[observation]
            probability *= follower[observation] if reply else 1 - follower[observation]
            total += game.leader_payoff[action, reply], game.follower_payoff[action, reply]
            observation = 1 + 2 * action + reply
        payoffs += probability * total / game.num_steps
    return payoffs


def random_game(rng, num_steps):
    return script.MatrixGame(rng.normal(size=4), rng.normal(size=4), num_steps)


def test_sampled_episodes_have_the_expected_payoffs():
    rng = np.random.default_rng(1)
    game, num_pairs, num_episodes = random_game(rng, 4), 6, 40_000
    episodes = script.Episodes(game, num_pairs, num_episodes, seed=3)
    leaders, followers = (episodes.quantise(rng.random((5, num_pairs))) for _ in range(2))
    episodes.play(leaders, followers)
    sampled = np.stack([episodes.mean_payoff(payoff) for payoff in (game.leader_payoff, game.follower_payoff)])
    expected = [expected_payoffs(game, *pair) for pair in zip(leaders.T / 256, followers.T / 256, strict=True)]
    # a mean of 40,000 episodes; payoffs of a step spread over `scale` * 3
    error = 3 * max(game.leader_scale, game.follower_scale) / np.sqrt(num_episodes)
    assert np.abs(sampled.T - expected).max() <= 2 * error
    assert np.ptp(expected, axis=0).min() > 20 * error  # wrong lookups would show


def test_probabilities_are_never_0_or_1():
    assert script.Episodes.quantise(np.array([0, 0.25, 0.5, 1])).tolist() == [1, 64, 128, 255]


def test_follower_gradient_is_reinforce():
    """Sums over steps and episodes, one at a time, as the formula stands in the docstring."""
    rng = np.random.default_rng(2)
    game, num_pairs, num_episodes = random_game(rng, 7), 4, 3
    episodes = script.Episodes(game, num_pairs, num_episodes, seed=4)
    leaders, followers = (episodes.quantise(rng.random((5, num_pairs))) for _ in range(2))
    episodes.play(leaders, followers)
    leader_actions, follower_actions = episodes.features[:2].astype(int)
    assert 0.1 < leader_actions.mean() < 0.9 and 0.1 < follower_actions.mean() < 0.9
    rewards = game.follower_reward[leader_actions, follower_actions]
    expected = np.zeros((5, num_pairs))
    for pair, episode, t in np.ndindex(num_pairs, num_episodes, 7):
        last = leader_actions[t - 1, episode, pair], follower_actions[t - 1, episode, pair]
        observation = 1 + 2 * last[0] + last[1] if t else 0
        advantage = rewards[t:, episode, pair].sum() - rewards[t:, :, pair].sum() / num_episodes
        score = follower_actions[t, episode, pair] - followers[observation, pair] / 256
        expected[observation, pair] += score * advantage / num_episodes
    assert episodes.follower_gradient(followers) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", script.PAYOFFS)
def test_followers_learn_best_responses(name):
    """Against nearly all of the 32 leaders; without learning, against few."""

    def shares(**flags):
        args = script.Args(env_id=name, evaluation_followers=4, **flags)
        game = script.make_game(args)
        return (script.evaluate_pg_followers(game, args)[1] >= script.solve(game)[2] - 1e-9).mean()

    assert shares() >= 0.85
    assert shares(follower_updates=1) <= 0.6


def test_best_response_return_agrees_with_play():
    game = script.make_game(script.Args(env_id="chicken"))
    n = len(script.TABLES)
    leader, follower = script.play(game, script.TABLES.repeat(n, axis=0), np.tile(script.TABLES, (n, 1)))
    leader, follower = leader.reshape(n, n), follower.reshape(n, n)
    best = np.where(follower >= follower.max(axis=1, keepdims=True) - 1e-9, leader, -np.inf).max(axis=1)
    returns = [script.best_response_return(game, table) for table in script.TABLES]
    assert returns == pytest.approx(best) and max(returns) == pytest.approx(script.solve(game)[0])


def test_best_response_return_of_a_mixed_leader():
    rng = np.random.default_rng(6)
    for _ in range(3):
        game, leader = random_game(rng, 3), rng.random(5)
        payoffs = np.array([expected_payoffs(game, leader, table) for table in script.TABLES])
        best = payoffs[payoffs[:, 1] >= payoffs[:, 1].max() - 1e-9, 0].max()
        assert script.best_response_return(game, leader) == pytest.approx(best)


def test_a_mixed_leader_gets_more_in_the_prisoners_dilemma():
    """The exact optimum is that of deterministic leaders: to defect now and then on a follower that cooperates, as
    often as it bears, pays more; a little more often, and the follower defects."""
    game = script.make_game(script.Args())
    best_table = np.array([1, 0, 1, 0, 1])
    assert script.best_response_return(game, best_table) == pytest.approx(script.solve(game)[0]) == pytest.approx(-0.9)
    assert script.best_response_return(game, np.array([1, 0.2, 1, 0.2, 1])) > -0.8
    assert script.best_response_return(game, np.array([1, 0.21, 1, 0.66, 1])) > -0.52  # near the best there is
    assert script.best_response_return(game, np.array([1, 0.6, 1, 0.6, 1])) < -1.5


@pytest.mark.parametrize("paid", ["--reward-during-learning", "--no-reward-during-learning"])
def test_learns_the_optimum_of_the_prisoners_dilemma(tmp_path, capsys, paid):
    result = run(tmp_path, paid, "--total-timesteps", 60_000_000)
    assert result["leader_policy"] == [1, 0, 1, 0, 1]
    assert abs(result["leader_regret"]) <= 0.05 and result["follower_regret"] <= 0.05
    assert result["steps_to_converge"] <= 60_000_000
    when = "after" if paid.startswith("--no") else "while"
    assert f"leader paid {when} followers learn: a Stackelberg equilibrium" in capsys.readouterr().out
    # 128 leaders, 16 episodes, 10 steps, 50 updates and the episodes after the last
    assert [step for step, _ in result["curve"]] == [128 * 16 * 10 * 51 * i for i in range(1, 58)]


def test_same_seed_same_result(tmp_path):
    results = [run(tmp_path, *QUICK, "--env-id", "hero", "--seed", seed) for seed in (3, 3, 4)]
    for key in results[0].keys() - {"wall_seconds", "steps_per_second"}:
        assert results[0][key] == results[1][key], key
    assert results[0]["leader_probabilities"] != results[2]["leader_probabilities"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--population", "7"), "--population must be even, half of it mirrors the other half, got 7"),
        (("--follower-episodes", "1"), "--follower-episodes must be at least 2: their mean is the gradient's baseline"),
        (("--follower-updates", "0"), "--follower-updates must be positive, got 0"),
        (("--noise-std", "inf"), "--noise-std must be a finite number, got inf"),
        (("--total-timesteps", "1000"), "--total-timesteps 1000 is less than one generation of 1044480 steps"),
    ],
)
def test_wrong_flags_end_with_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *flags)
    assert error.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"es_md_matrix.py: error: {message}\n"
