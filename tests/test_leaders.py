"""What is particular to the policy-gradient and the DQN leader, and that the scripts' followers are interchangeable."""

import importlib
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import MATRIX_SCRIPTS, PAPER_SCRIPTS, SHORT, best_response_follower


def train(script, name, total_timesteps, **flags):
    """Trains a leader against the exact follower; returns its regret after each iteration and the logged scalars."""
    args = script.Args(env_id=name, seed=1, **flags)
    game = script.make_game(args)
    follower = best_response_follower(script, game)
    length = script.NUM_OBSERVATIONS + game.num_steps
    num_envs = getattr(args, "num_envs", -(-args.batch_size // length))
    envs = script.LeaderPOMDP(game, follower, num_envs)
    torch.manual_seed(args.seed)
    leader = script.Leader()
    rows = np.arange(script.NUM_OBSERVATIONS)
    replies = np.array([follower(rows, np.tile(table, (len(rows), 1))) for table in script.TABLES])
    regret_of = script.solve(game)[0] - script.play(game, script.TABLES, replies)[0]
    regrets, logged = [], []
    for _, scalars in script.train_leader(leader, envs, total_timesteps // (num_envs * length), args):
        regrets.append(regret_of[script.table_index(leader.greedy_table())])
        logged.append(scalars)
    return regrets, logged


@pytest.fixture
def pg():
    return importlib.import_module("stackelberg_pg_matrix")


@pytest.fixture
def dqn():
    return importlib.import_module("stackelberg_dqn_matrix")


@pytest.mark.parametrize("name", ["stag_hunt", "battle", "hero", "chicken"])
def test_pg_learns_the_optimum(pg, name):
    regrets, _ = train(pg, name, 50_000)
    assert abs(regrets[-1]) <= 0.05


def test_pg_without_its_baseline_and_epsilon_saturates(pg):
    """Table 4's learning rate with Adam's usual epsilon: after 100 batches most probabilities are 0 or 1."""
    entropy = {}
    for name, flags in {"default": {}, "plain": {"adam_eps": 1e-8, "baseline": False, "norm_adv": False}}.items():
        _, logged = train(pg, "chicken", 10_500, **flags)
        entropy[name] = logged[-1]["losses/entropy"]
    assert entropy["plain"] < entropy["default"] / 2


def test_pg_learns_from_a_batch_of_one_episode(pg):
    """The batch's mean would leave nothing of a single episode's returns."""
    args = pg.Args(batch_size=15)
    game = pg.make_game(args)
    leader = pg.Leader()
    before = leader.actor.weight.detach().clone()
    envs = pg.LeaderPOMDP(game, best_response_follower(pg, game), num_envs=1)
    next(pg.train_leader(leader, envs, 1, args))
    assert (leader.actor.weight - before).abs().max() > 0.01


@pytest.mark.parametrize("name", ["prisoners_dilemma", "chicken", "battle"])
@pytest.mark.parametrize("n_step", [5, 0])
def test_dqn_learns_within_a_tenth_of_the_optimum(dqn, name, n_step):
    regrets, _ = train(dqn, name, 48_000, n_step=n_step)
    assert abs(regrets[-1]) <= 0.1 + 1e-9


def test_dqn_plays_as_it_answered_and_explores_by_whole_policies(dqn):
    """In every episode of every environment, each action of the game is the answer to its observation's query."""
    args = dqn.Args(num_envs=6, learning_starts=300, noise_share=0.3)
    game = dqn.make_game(args)
    contexts, observations = [], []

    def follower(observation, context):
        contexts.append(context.copy())
        observations.append(observation.copy())
        return np.random.default_rng(len(contexts)).integers(2, size=len(observation))  # shows every observation

    envs = dqn.LeaderPOMDP(game, follower, args.num_envs)
    step, played = envs.step, []

    def recording_step(actions):
        if envs.t >= dqn.NUM_OBSERVATIONS:
            played.append(actions.copy())
        return step(actions)

    envs.step = recording_step
    torch.manual_seed(1)
    for _ in dqn.train_leader(dqn.Leader(), envs, 30, args):
        pass
    contexts, observations, played = map(np.array, (contexts, observations, played))
    assert contexts.shape == (300, 6, 5) and set(observations.flat) == set(range(5))
    assert (played == np.take_along_axis(contexts, observations[..., None], axis=-1).squeeze(-1)).all()
    tables = dqn.table_index(contexts[::10])  # one per episode, [30, 6]
    assert all(len(set(row)) > 1 for row in tables[:10])  # the environments' noise differs
    assert all(len(set(column)) > 3 for column in tables.T)  # and so does the noise of one environment's episodes


@pytest.mark.parametrize("noise_share", [0.01, 0.5])
def test_dqn_noise_adapts_to_its_share(dqn, noise_share):
    _, logged = train(dqn, "deadlock", 12_000, noise_share=noise_share)
    share, stddev = ([scalars[f"charts/noise_{name}"] for scalars in logged] for name in ("share", "stddev"))
    starts = 5000 // (16 * 15)  # iterations before the first gradient step
    assert np.mean(share[:starts]) == pytest.approx(0.5, abs=0.1)  # values near 0: the noise decides
    assert set(stddev[:starts]) == {1.0}
    for t in range(starts + 1, len(logged)):
        assert stddev[t] / stddev[t - 1] == pytest.approx(1.01 if share[t] < noise_share else 1 / 1.01)


def test_dqn_bootstraps_n_steps_ahead(dqn):
    """Reward 1 in each of 10 game steps and no centring: a whole-episode target is at most 10, while one-step targets
    build on each other in an observation that follows itself (no clock is observed) and exceed it."""
    payoff = {"leader_payoff": (1.0, 0.0, 0.0, 0.0), "follower_payoff": (1.0, 0.0, 1.0, 0.0)}
    values = {}
    for n_step in (1, 0):
        _, logged = train(dqn, "one", 12_000, n_step=n_step, centre_rewards=False, learning_rate=0.05, **payoff)
        values[n_step] = logged[-1]["losses/q_values"]
    assert values[0] <= 15 + 1e-6  # rewards are stretched to 1.5
    assert values[1] > values[0]


def test_dqn_needs_a_gradient_step(dqn, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        dqn.main(dqn.parse_args(["--total-timesteps", "57000", "--run-dir", str(tmp_path / "runs")]))
    assert error.value.code == 2 and "--learning-starts 5000" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", [name for name in MATRIX_SCRIPTS if name != "stackelberg_ppo_matrix"])
def test_flags_that_may_be_zero_and_flags_that_may_not(name):
    script = importlib.import_module(name)
    if name == "stackelberg_dqn_matrix":
        script.make_game(script.Args(n_step=0, learning_starts=0))
    for flag in {"batch_size", "learning_rate", "num_envs", "buffer_size", "noise_stddev"} & set(vars(script.Args())):
        with pytest.raises(SystemExit):
            script.make_game(script.Args(**{flag: 0}))


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """The result and model.pt of a short run of each script with the paper's follower, with one seed."""
    runs = {}
    for name in PAPER_SCRIPTS:
        folder = tmp_path_factory.mktemp(name)
        script = importlib.import_module(name)
        flags = ["--env-id", "hero", "--seed", 3, *SHORT, "--run-dir", folder, "--save-model"]
        result = script.main(script.parse_args([*map(str, flags)]))
        runs[name] = result, next(folder.glob("*/model.pt"))
    return runs


def test_one_seed_pretrains_one_follower_in_every_script(short_runs):
    followers = [torch.load(path, weights_only=True)["follower"]["actor.weight"] for _, path in short_runs.values()]
    assert all(torch.equal(follower, followers[0]) for follower in followers)
    regrets = {result["follower_regret_all"] for result, _ in short_runs.values()}
    assert len(regrets) == 1


@pytest.mark.parametrize(("saved_by", "used_by"), list(itertools.permutations(PAPER_SCRIPTS, 2)))
def test_a_follower_of_one_script_serves_another(short_runs, saved_by, used_by, tmp_path):
    """Given another script's follower of the same seed, a run ends as it does with its own."""
    script = importlib.import_module(used_by)
    flags = ["--env-id", "hero", "--seed", 3, *SHORT, "--run-dir", tmp_path]
    flags += ["--follower-checkpoint", short_runs[saved_by][1]]
    result, own = script.main(script.parse_args([*map(str, flags)])), short_runs[used_by][0]
    differ = {key for key in own if result[key] != own[key]}
    assert differ <= {"args", "wall_seconds", "steps_per_second"}
    assert result["script"] == f"{used_by}.py" and json.dumps(result)
