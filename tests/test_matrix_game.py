"""The games, the leader's POMDP and the exact solver, against tables and code written independently of the scripts."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
from conftest import best_replies, exact_returns
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Table 3 as printed: leader's rows, then follower's rows.
TABLE_3 = """
prisoners_dilemma  -1 -3  0 -2   -1  0 -3 -2
stag_hunt           0 -3 -1 -2    0 -1 -3 -2
assurance           0 -3 -2 -1    0 -2 -3 -1
coordination        0 -2 -3 -1    0 -3 -2 -1
mixedharmony        0 -1 -3 -2    0 -3 -1 -2
harmony             0 -1 -2 -3    0 -2 -1 -3
noconflict          0 -2 -1 -3    0 -1 -2 -3
deadlock           -2 -3  0 -1   -2  0 -3 -1
prisoners_delight  -3 -2  0 -1   -3  0 -2 -1
hero               -3 -1  0 -2   -3  0 -1 -2
battle             -2 -1  0 -3   -2  0 -1 -3
chicken            -1 -2  0 -3   -1  0 -2 -3
"""
GAMES = {name: tuple(map(int, numbers)) for name, *numbers in map(str.split, TABLE_3.strip().splitlines())}
OPTIMA = dict.fromkeys(GAMES, 0.0) | {"prisoners_dilemma": -0.9, "deadlock": -1.0, "prisoners_delight": -1.0}

any_settings = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
payoffs = st.lists(st.integers(-8, 8).map(lambda x: x / 2), min_size=4, max_size=4)
tables = st.lists(st.integers(0, 1), min_size=5, max_size=5)


def make_game(script, name):
    return script.Args(env_id=name).game


def brute_force(leader_payoff, follower_payoff, num_steps):
    """Optimistic and pessimistic Stackelberg value, and each leader's best-response value: plain Python, its own words.

    A policy is a function of the previous pair of actions, None before the first step.
    """
    histories = [None, (0, 0), (0, 1), (1, 0), (1, 1)]
    policies = [dict(zip(histories, acts, strict=True)) for acts in itertools.product((0, 1), repeat=5)]

    def episode(leader, follower):
        last, gains, replies = None, [], []
        for _ in range(num_steps):
            last = (leader[last], follower[last])
            gains.append(leader_payoff[2 * last[0] + last[1]])
            replies.append(follower_payoff[2 * last[0] + last[1]])
        return math.fsum(gains) / num_steps, math.fsum(replies) / num_steps

    values = []
    for leader in policies:
        outcomes = [episode(leader, follower) for follower in policies]
        top = max(reply for _, reply in outcomes)
        gains = [gain for gain, reply in outcomes if math.isclose(reply, top, rel_tol=0, abs_tol=1e-9)]
        values.append((max(gains), min(gains), top))
    return max(v[0] for v in values), max(v[1] for v in values), [v[2] for v in values]


@pytest.mark.parametrize("name", GAMES)
def test_payoffs_are_table_3(script, name):
    game = make_game(script, name)
    payoffs = np.stack([game.payoff(player, game.reward[player]) for player in (0, 1)])
    assert tuple(payoffs.flatten()) == GAMES[name]
    assert set(game.reward[0].flatten()) == set(game.reward[1].flatten()) == {-1.5, -0.5, 0.5, 1.5}
    assert game.scale.tolist() == [1, 1]


def test_there_are_12_games(script):
    assert list(script.PAYOFFS) == list(GAMES)


@pytest.mark.parametrize("leader_action", [0, 1])
@pytest.mark.parametrize("follower_action", [0, 1])
def test_transitions(script, leader_action, follower_action):
    """Observations: the start, then 00, 01, 10, 11 (leader's, follower's last action), whatever came before."""
    expected = {(0, 0): 1, (0, 1): 2, (1, 0): 3, (1, 1): 4}[leader_action, follower_action]
    tables = np.full((1, 5), leader_action), np.full((1, 5), follower_action)
    for name in GAMES:
        observations, _, _ = script.play(make_game(script, name), *tables)
        assert observations[:, 0].tolist() == [0] + [expected] * 9


@pytest.mark.parametrize("name", GAMES)
def test_solver_finds_the_known_optima(script, name):
    game = make_game(script, name)
    value, pessimistic_value, _ = script.solve(game)
    assert game.payoff(0, value) == pytest.approx(OPTIMA[name]) == pytest.approx(game.payoff(0, pessimistic_value))


@any_settings
@given(leader_payoff=payoffs, follower_payoff=payoffs, num_steps=st.integers(1, 7))
def test_solver_agrees_with_brute_force(script, leader_payoff, follower_payoff, num_steps):
    game = script.MatrixGame(leader_payoff, follower_payoff, num_steps)
    value, pessimistic_value, best = script.solve(game)
    expected = brute_force(leader_payoff, follower_payoff, num_steps)
    assert game.payoff(0, np.array([value, pessimistic_value])) == pytest.approx(expected[:2], abs=1e-9)
    assert game.payoff(1, best) == pytest.approx(expected[2], abs=1e-9)


@any_settings
@given(
    leader_payoff=payoffs,
    follower_payoff=payoffs,
    shift=st.sampled_from([-9, 1e6, -1e9]),
    scale=st.sampled_from([1e-12, 1e-8, 0.01, 3, 1e12]),
)
def test_scale_and_offset_of_payoffs_change_nothing(script, leader_payoff, follower_payoff, shift, scale):
    """Rewards are the same for every positive affine change of payoffs, and so are the optima, ties included."""
    game = script.MatrixGame(leader_payoff, follower_payoff)
    leader_payoff, follower_payoff = np.array(leader_payoff), np.array(follower_payoff)
    scaled = script.MatrixGame(leader_payoff * scale, follower_payoff * scale)
    shifted = script.MatrixGame(leader_payoff + shift, follower_payoff - shift)
    for changed in (scaled, shifted):
        assert changed.reward == pytest.approx(game.reward, abs=1e-9)
        assert script.solve(changed)[:2] == pytest.approx(script.solve(game)[:2], abs=1e-9)


@any_settings
@given(leader_payoff=payoffs, follower_payoff=payoffs)
def test_renaming_actions_changes_no_value(script, leader_payoff, follower_payoff):
    a, b = np.reshape(leader_payoff, (2, 2)), np.reshape(follower_payoff, (2, 2))
    value = script.solve(script.MatrixGame(a, b))[:2]
    assert script.solve(script.MatrixGame(a[::-1], b[::-1]))[:2] == pytest.approx(value)
    assert script.solve(script.MatrixGame(a[:, ::-1], b[:, ::-1]))[:2] == pytest.approx(value)


@any_settings
@given(leader_payoff=payoffs, follower_payoff=payoffs, leader=tables, num_steps=st.integers(1, 12))
def test_pomdp_episode(script, leader_payoff, follower_payoff, leader, num_steps):
    """Five queries in their order without reward, the answers as context, then the game: 5 + num_steps steps in all."""
    game = script.MatrixGame(leader_payoff, follower_payoff, num_steps)
    replies = best_replies(script, game)
    envs = script.LeaderPOMDP(game, replies, num_envs=3)
    observation, _ = envs.reset(seed=1)
    seen, rewards, infos, done = [], [], {}, False
    while not done:
        assert (observation.sum(axis=1) == 1).all()
        seen.append(observation.argmax(axis=1).tolist())
        observation, reward, terminations, truncations, infos = envs.step(np.array(leader)[seen[-1]])
        rewards.append(reward)
        done = terminations.all()
        assert terminations.any() == done and not truncations.any()
    assert len(rewards) == 5 + num_steps
    assert seen[:6] == [[0] * 3, [1] * 3, [2] * 3, [3] * 3, [4] * 3, [0] * 3]
    assert not np.array(rewards[:5]).any()
    # the game segment is the episode that the exact solver scores
    reply = replies[script.table_index(np.array(leader))]
    leader_return, follower_return = exact_returns(script, game, [leader], [reply])
    assert len(infos["final_info"]) == 3
    for info, total in zip(infos["final_info"], np.sum(rewards, axis=0), strict=True):
        assert info["episode"] == {"r": pytest.approx(total), "l": 5 + num_steps}
    assert infos["leader_return"] == pytest.approx(leader_return.repeat(3), abs=1e-9)
    assert infos["follower_return"] == pytest.approx(follower_return.repeat(3), abs=1e-9)
    assert game.payoff(0, np.sum(rewards, axis=0) / num_steps) == pytest.approx([leader_return[0]] * 3, abs=1e-9)


def test_the_context_is_what_was_answered(script):
    """The follower replies to the answers to the queries, whatever is played after them."""
    game = make_game(script, "prisoners_dilemma")
    envs = script.LeaderPOMDP(game, script.TABLES, num_envs=32)  # a follower that does what the leader said it would
    envs.reset()
    for t in range(5):
        envs.step(script.TABLES[:, t])
    for step in range(10):
        told = script.TABLES[np.arange(32), envs.observation]
        *_, infos = envs.step(1 - told)
        if step < 9:  # the next observation tells what both did
            assert (envs.observation == 1 + 2 * (1 - told) + told).all()
    assert len(infos["final_info"]) == 32


def test_pomdp_follows_the_gymnasium_vector_api(script):
    game = make_game(script, "chicken")
    envs = script.LeaderPOMDP(game, best_replies(script, game), num_envs=4)
    assert isinstance(envs, gym.vector.VectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.single_observation_space.shape == (5,) and envs.single_action_space == gym.spaces.Discrete(2)
    assert envs.observation_space.shape == (4, 5) and envs.action_space.shape == (4,)
    envs.action_space.seed(1)
    first, infos = envs.reset(seed=3)
    assert infos == {}
    for step in range(1, 46):
        observation, reward, terminations, truncations, infos = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(observation)
        assert reward.shape == terminations.shape == truncations.shape == (4,)
        assert reward.dtype == np.float64 and terminations.dtype == truncations.dtype == bool
        assert ("final_obs" in infos) == ("final_info" in infos) == terminations.all() == (step % 15 == 0)
        if terminations.all():  # the new episode's first query, the old one's last observation in the infos
            assert (observation == first).all()
            assert (infos["final_obs"].argmax(axis=1) > 0).all()
    envs.close()


def test_pomdp_under_gymnasiums_wrapper(script):
    """Gymnasium's own statistics and the episodes in `final_info`, as CleanRL reads them, are the same."""
    game = make_game(script, "stag_hunt")
    envs = script.LeaderPOMDP(game, best_replies(script, game), num_envs=2)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=1)
    for _ in range(30):
        *_, infos = envs.step(np.zeros(2, dtype=np.int64))
    # always 0 in stag hunt is met with 0: reward 1.5 in each of ten steps
    assert infos["episode"]["r"].tolist() == [info["episode"]["r"] for info in infos["final_info"]] == [15.0, 15.0]
    assert infos["episode"]["l"].tolist() == [info["episode"]["l"] for info in infos["final_info"]] == [15, 15]
    assert infos["leader_return"].tolist() == [0.0, 0.0]


@any_settings
@given(leader=tables, follower=tables)
def test_tables_and_their_indices(script, leader, follower):
    index = script.table_index(np.array([leader, follower]))
    assert (script.TABLES[index] == [leader, follower]).all()


def test_random_leaders_are_dealt_evenly_or_drawn_afresh(script):
    deck = list(itertools.islice(script.random_leaders(seed=1, shuffled=True), 64))
    assert sorted(deck[:32]) == sorted(deck[32:]) == list(range(32)) and deck[:32] != deck[32:]
    drawn = list(itertools.islice(script.random_leaders(seed=1, shuffled=False), 3200))
    counts = np.bincount(drawn, minlength=32)
    assert counts.min() > 50 and counts.max() < 160 and len(set(drawn[:32])) < 32
