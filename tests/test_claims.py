"""benchmark/claims.py: what it computes, against enumeration."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import claims  # noqa: E402


def game(seed, num_steps=10):
    return claims.MatrixGame(*np.random.default_rng(seed).random((2, 2, 2)), num_steps)


def play(game, table, sequence):
    """Both players' mean rewards if the follower plays this sequence of actions against a leader's table."""
    observation, rewards = 0, []
    for reply in sequence:
        action = table[observation]
        rewards.append(game.reward[:, action, reply])
        observation = 1 + 2 * action + reply
    return np.mean(rewards, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_with_a_clock_is_the_best_of_all_sequences(seed):
    """Against a deterministic leader any policy of a follower that counts steps comes down to a sequence of actions."""
    small = game(seed, num_steps=5)
    leader_rewards, follower_rewards = claims.clock_values(small)
    for index, table in enumerate(claims.TABLES):
        outcomes = np.array([play(small, table, sequence) for sequence in itertools.product((0, 1), repeat=5)])
        best = outcomes[:, 1].max()
        assert follower_rewards[index] == pytest.approx(best)
        assert leader_rewards[index] == pytest.approx(outcomes[outcomes[:, 1] >= best - 1e-9, 0].max())


def test_expected_rewards_are_those_of_play():
    """Deterministic leaders exactly; a stochastic one as the mean of many episodes."""
    played = claims.play(game(1), claims.TABLES.repeat(32, axis=0), np.tile(claims.TABLES, (32, 1)))[2].mean(axis=1)
    expected = claims.expected_rewards(game(1), claims.TABLES.astype(float), claims.TABLES)
    assert expected == pytest.approx(played.reshape(2, 32, 32))

    rng, leader, follower, n = np.random.default_rng(1), np.array([0.3, 0.9, 0.5, 0.2, 0.7]), [0, 1, 0, 0, 1], 20_000
    observation, total, stage = np.zeros(n, dtype=int), 0, game(1)
    for _ in range(10):
        action, reply = (rng.random(n) < leader[observation]).astype(int), np.array(follower)[observation]
        total = total + stage.reward[:, action, reply] / 10
        observation = 1 + 2 * action + reply
    expected = claims.expected_rewards(stage, leader[None], np.array([follower]))[:, 0, 0]
    assert expected == pytest.approx(total.mean(axis=1), abs=4 * total.std() / n**0.5)


def test_deterministic_leaders_get_what_the_solver_says():
    """A deterministic leader's guaranteed reward is the pessimistic value, and in its POMDP it plays as it answers."""
    for seed in range(5):
        optimistic, pessimistic, _ = claims.solve(game(seed))
        assert claims.guaranteed_rewards(game(seed), claims.TABLES.astype(float)).max() == pytest.approx(pessimistic)
        best_replies = claims.best_replies(game(seed))
        values = claims.pomdp_rewards(game(seed), claims.TABLES.astype(float), best_replies)
        assert values.max() == pytest.approx(optimistic)


def test_the_stochastic_leader_of_the_prisoners_dilemma_is_worth_what_the_file_says():
    row = pd.read_csv(ROOT / "benchmark/results/commitments.csv").set_index("env_id").loc["prisoners_dilemma"]
    leader = np.array([[float(p) for p in row["stochastic_leader"].split()]])
    dilemma = claims.Args().game
    assert dilemma.payoff(0, claims.guaranteed_rewards(dilemma, leader))[0] == pytest.approx(
        row["stochastic_guaranteed"], abs=1e-3
    )
    # a supremum: on the hull of the payoffs that leaves the follower -2, what it has if it always defects
    assert row["stochastic_guaranteed"] <= -0.5
