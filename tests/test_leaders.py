"""What is particular to the policy-gradient and the DQN leader, and that the scripts' followers are interchangeable."""

import dataclasses
import importlib
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import MATRIX_SCRIPTS, SHORT, best_replies, exact_returns, parse

FOLLOWER_STEPS = 105  # of one batch; these tests train leaders, against the exact follower


def train(script, leader_timesteps, replies=None, record=lambda envs, actions: None, **flags):
    """Trains a leader against `replies`, by default the exact follower; returns its regret after each iteration, the
    logged scalars and the leader. `record` is told the environment and the actions before each step."""
    steps = {"follower_timesteps": FOLLOWER_STEPS, "total_timesteps": FOLLOWER_STEPS + leader_timesteps}
    args = script.Args(**steps, **flags)
    replies = best_replies(script, args.game) if replies is None else replies
    optimum = args.game.payoff(0, script.solve(args.game)[0])
    regrets_of = optimum - exact_returns(script, args.game, script.TABLES, replies)[0]
    envs = script.LeaderPOMDP(args.game, replies, args.num_envs)
    step = envs.step

    def recording_step(actions):
        record(envs, actions)
        return step(actions)

    envs.step = recording_step
    torch.manual_seed(args.seed)
    leader = script.Leader()
    layer, *_ = leader.parameters()
    regrets, logged = [], []

    def log(_, scalars):
        regrets.append(regrets_of[script.table_index(layer.argmax(0).numpy())])
        logged.append(scalars)

    script.train_leader(leader, envs, args, log)
    return regrets, logged, leader


@pytest.fixture
def pg():
    return importlib.import_module("stackelberg_pg_matrix")


@pytest.fixture
def dqn():
    return importlib.import_module("stackelberg_dqn_matrix")


@pytest.mark.parametrize("name", ["stag_hunt", "battle", "hero", "chicken"])
def test_pg_learns_the_optimum(pg, name):
    regrets, _, _ = train(pg, 50_000, env_id=name)
    assert abs(regrets[-1]) <= 0.05


def test_pg_without_its_baseline_and_epsilon_saturates(pg):
    """Table 4's learning rate with Adam's usual epsilon: after 100 batches most probabilities are 0 or 1."""
    entropy = {}
    for name, flags in {
        "ours": {"adam_eps": 0.5},
        "plain": {"adam_eps": 1e-8, "baseline": False, "norm_adv": False},
    }.items():
        _, logged, _ = train(pg, 10_500, env_id="chicken", explore="action", **flags)
        entropy[name] = logged[-1]["losses/entropy"]
    assert entropy["plain"] < entropy["ours"] / 2


def test_pg_learns_from_a_batch_of_one_episode(pg):
    """The batch's mean would leave nothing of a single episode's returns."""
    _, logged, leader = train(pg, 15, batch_size=15, explore="action")
    assert len(logged) == 1
    torch.manual_seed(1)
    assert (leader.actor.weight - pg.Leader().actor.weight).abs().max() > 0.01


@pytest.mark.parametrize("name", ["prisoners_dilemma", "chicken", "battle"])
@pytest.mark.parametrize("n_step", [5, 0])
def test_dqn_of_every_step_learns_within_a_tenth_of_the_optimum(dqn, name, n_step):
    regrets, _, _ = train(dqn, 48_000, env_id=name, answers_only=False, n_step=n_step)
    assert abs(regrets[-1]) <= 0.1 + 1e-9


@pytest.mark.parametrize(("risk_seeking", "most"), [(2, 0.05), (0, 0.1)])
@pytest.mark.parametrize("name", ["prisoners_dilemma", "chicken", "battle"])
def test_dqn_of_answers_learns_the_optimum(dqn, name, risk_seeking, most):
    """Plain returns leave the first action of the prisoner's dilemma, worth 0.1, to luck."""
    regrets, _, _ = train(dqn, 48_000, env_id=name, risk_seeking=risk_seeking)
    assert abs(regrets[-1]) <= most + 1e-9


def play_of(script, **flags):
    """Trains a leader for 30 iterations of 6 environments: returns in each game step of each the answers [300, 6, 5],
    the observation and the action [300, 6]."""
    contexts, observations, played = [], [], []

    def record(envs, actions):
        if envs.t >= script.NUM_OBSERVATIONS:
            contexts.append(envs.context.copy())
            observations.append(envs.observation.copy())
            played.append(actions.copy())

    replies = np.random.default_rng(1).integers(2, size=script.TABLES.shape)  # shows every observation
    train(script, 30 * 6 * 15, replies, record, **flags)
    contexts, observations, played = map(np.array, (contexts, observations, played))
    assert contexts.shape == (300, 6, 5) and set(observations.flat) == set(range(5))
    return contexts, observations, played


SLOW = {"batch_size": 90, "learning_rate": 0.001}  # keeps exploring
EXPLORERS = {
    "stackelberg_ppo_matrix": SLOW,
    "stackelberg_pg_matrix": SLOW,
    "stackelberg_dqn_matrix": {"num_envs": 6, "learning_starts": 300, "noise_share": 0.3},
}


@pytest.mark.parametrize("name", MATRIX_SCRIPTS)
def test_leaders_play_as_they_answered_and_explore_by_whole_tables(name):
    """In every episode of every environment, each action of the game is the answer to its observation's query."""
    script = importlib.import_module(name)
    contexts, observations, played = play_of(script, **EXPLORERS[name])
    assert (played == np.take_along_axis(contexts, observations[..., None], axis=-1).squeeze(-1)).all()
    tables = script.table_index(contexts[::10])  # one per episode, [30, 6]
    assert all(len(set(row)) > 1 for row in tables[:10])  # the environments differ
    assert all(len(set(column)) > 3 for column in tables.T)  # and so do the episodes of one


@pytest.mark.parametrize("name", MATRIX_SCRIPTS[:2])
def test_leaders_may_draw_every_action_afresh(name):
    script = importlib.import_module(name)
    contexts, observations, played = play_of(script, explore="action", **EXPLORERS[name])
    kept = played == np.take_along_axis(contexts, observations[..., None], axis=-1).squeeze(-1)
    assert kept.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("noise_share", [0.01, 0.5])
def test_dqn_noise_adapts_to_its_share(dqn, noise_share):
    _, logged, _ = train(dqn, 12_000, env_id="deadlock", noise_share=noise_share)
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
        _, logged, _ = train(
            dqn, 12_000, n_step=n_step, answers_only=False, centre_rewards=False, learning_rate=0.05, **payoff
        )
        values[n_step] = logged[-1]["losses/q_values"]
    assert values[0] <= 15 + 1e-6  # rewards are stretched to 1.5
    assert values[1] > values[0]


def test_dqn_needs_a_gradient_step(dqn, capsys):
    with pytest.raises(SystemExit) as error:
        parse(dqn, "--total-timesteps", 57_000)
    assert error.value.code == 2 and "--learning-starts" in capsys.readouterr().err
    parse(dqn, "--total-timesteps", 58_000)


@pytest.mark.parametrize("name", MATRIX_SCRIPTS)
def test_flags_that_may_be_zero_and_flags_that_may_not(name):
    script = importlib.import_module(name)
    may_be_zero = {"n_step", "learning_starts", "adam_eps", "ent_coef", "follower_baseline_rate", "follower_ent_coef"}
    may_be_zero |= {"risk_seeking"}
    may_not = {"batch_size", "learning_rate", "num_envs", "buffer_size", "noise_stddev", "num_steps", "follower_gamma"}
    flags = {field.name for field in dataclasses.fields(script.Args)}
    script.Args(**dict.fromkeys(may_be_zero & flags, 0))
    for flag in may_not & flags:
        with pytest.raises(ValueError, match=flag.replace("_", "-")):
            script.Args(**{flag: 0})


def test_a_dqn_leader_that_diverges_ends_the_run_without_a_result(dqn, tmp_path):
    args = dqn.Args(follower_timesteps=FOLLOWER_STEPS, learning_rate=1e30, run_dir=str(tmp_path))
    with pytest.raises(SystemExit, match="leader's training diverged: lower --learning-rate"):
        dqn.main(args)
    assert list(tmp_path.glob("*/events*")) and not list(tmp_path.glob("*/result.json*"))


def test_pg_ends_at_once_when_its_loss_is_not_finite(pg):
    """However large its steps, a policy gradient saturates before it overflows: here the rewards are at fault."""
    steps = []

    def spoil(envs, actions):
        steps.append(envs.t)
        envs.game.reward[:] = np.nan

    with pytest.raises(SystemExit, match="leader's training diverged: lower --learning-rate"):
        train(pg, 50_000, record=spoil)
    assert len(steps) == 15  # one episode


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """The result and model.pt of a short run of each script with the paper's follower, with one seed."""
    runs = {}
    for name in MATRIX_SCRIPTS:
        folder = tmp_path_factory.mktemp(name)
        script = importlib.import_module(name)
        flags = ["--env-id", "hero", "--seed", 3, *SHORT, "--run-dir", folder, "--save-model"]
        result = script.main(parse(script, *flags))
        runs[name] = result, next(folder.glob("*/model.pt"))
    return runs


def test_one_seed_pretrains_one_follower_in_every_script(short_runs):
    followers = [torch.load(path, weights_only=True)["follower"] for _, path in short_runs.values()]
    assert all(torch.equal(follower, followers[0]) for follower in followers)
    regrets = {result["follower_regret_all"] for result, _ in short_runs.values()}
    assert len(regrets) == 1


@pytest.mark.parametrize(("saved_by", "used_by"), list(itertools.permutations(MATRIX_SCRIPTS, 2)))
def test_a_follower_of_one_script_serves_another(short_runs, saved_by, used_by, tmp_path):
    """Given another script's follower of the same seed, a run ends as it does with its own."""
    script = importlib.import_module(used_by)
    flags = ["--env-id", "hero", "--seed", 3, *SHORT, "--run-dir", tmp_path]
    flags += ["--follower-checkpoint", short_runs[saved_by][1]]
    result, own = script.main(parse(script, *flags)), short_runs[used_by][0]
    differ = {key for key in own if result[key] != own[key]}
    assert differ <= {"args", "wall_seconds", "steps_per_second"}
    assert result["script"] == f"{used_by}.py" and json.dumps(result)
