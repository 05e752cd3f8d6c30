"""The recurrent follower: the exact replies, what it sees and remembers, that it learns, the leaders, the result."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from conftest import parse

import stackelberg_ppo_matrix as ppo
from ablations import recurrent_follower_matrix as script

GAMES = [*script.PAYOFFS]


def args_of(game, *flags):
    return parse(script, "--env-id", game, *flags)


# --------------------------------------------------------------------------------------------------- the exact solution
@pytest.mark.parametrize("game", GAMES)
def test_the_optimum_is_the_main_scripts(game):
    assert script.solve(args_of(game).game) == pytest.approx(ppo.solve(ppo.Args(env_id=game).game)[:2])


def test_best_replies_are_the_best_of_all_sequences_of_actions():
    """Leaders are deterministic, so a follower that knows one can do no better than to fix its ten actions."""
    rng = np.random.default_rng(1)
    for payoffs in (rng.random((2, 4)), rng.integers(3, size=(2, 4)).astype(float)):
        game = script.MatrixGame(*payoffs, 10)
        leader, follower = script.best_replies(game)
        sequences = np.array(list(itertools.product(range(2), repeat=10)))
        for index, table in enumerate(script.TABLES):
            observation, total = np.zeros(len(sequences), int), np.zeros((2, len(sequences)))
            for actions in sequences.T:
                total += game.reward[:, table[observation], actions] / 10
                observation = 1 + 2 * table[observation] + actions
            is_best = total[1] >= total[1].max() - 1e-6
            assert follower[index] == pytest.approx(total[1].max())
            assert leader[index] == pytest.approx(total[0][is_best].max())


def test_a_follower_that_counts_steps_costs_the_leader_something_in_the_prisoners_dilemma_alone():
    for game in GAMES:
        args = args_of(game)
        counting, follower = script.best_replies(args.game)
        assert (follower >= ppo.solve(ppo.Args(env_id=game).game)[2] - 1e-9).all()
        gap = script.solve(args.game)[0] - counting.max()
        assert gap == pytest.approx(0.2 if game == "prisoners_dilemma" else 0)


# -------------------------------------------------------------------------------------------- the follower, and a trial
class Recorder(script.Follower):
    """A follower that plays by a table, whatever it remembers, and keeps what it has been shown."""

    def __init__(self, table):
        super().__init__(3)
        self.table, self.seen = torch.as_tensor(table), []

    def forward(self, inputs, state):
        self.seen.append(inputs)
        return (2.0 * self.table - 1).expand(len(inputs), -1), state + 1


def test_a_trial_is_its_episodes_and_the_follower_sees_what_happened():
    rng, args = np.random.default_rng(2), args_of("chicken")
    leaders, reply = script.TABLES[rng.integers(32, size=(3, 6))], script.TABLES[21]
    follower = Recorder(reply)
    observations, actions, logits, rewards = script.play_trials(follower, args.game, torch.as_tensor(leaders))
    assert rewards.shape == (30, 2, 6) and (actions == (logits > 0)).all()
    for episode, tables in enumerate(leaders):
        here = slice(10 * episode, 10 * episode + 10)
        seen, taken, expected = ppo.play(ppo.Args(env_id="chicken").game, tables, np.tile(reply, (6, 1)))
        np.testing.assert_array_equal(observations[here], seen)
        np.testing.assert_array_equal(actions[here], taken)
        np.testing.assert_allclose(rewards[here].movedim(1, 0), expected)
    inputs = torch.stack(follower.seen)
    assert (inputs[0] == 0).all() and (inputs[1:, :, :-1].sum(-1) == 1).all()
    np.testing.assert_allclose(inputs[1:, :, -1], rewards[:-1, 1])
    for t, i in itertools.product((0, 8, 9, 17), range(6)):  # within episodes, and from one to the next
        observation, pair = divmod(inputs[t + 1, i, :-1].argmax().item(), 4)
        assert observation == observations[t, i] and pair % 2 == actions[t, i]
        assert pair // 2 == leaders[t // 10, i, observation]


def test_sampled_actions_have_the_followers_probabilities():
    torch.manual_seed(3)
    args, follower = args_of("hero"), script.Follower(8)
    leaders = torch.as_tensor(script.TABLES[7]).expand(1, 20_000, -1)
    observations, actions, logits, _ = script.play_trials(follower, args.game, leaders, torch.rand(10, 20_000))
    assert (observations[0] == 0).all()
    assert actions[0].float().mean().item() == pytest.approx(logits[0, 0].sigmoid().item(), abs=0.015)


def test_the_last_episode_alone_depends_on_the_leaders_last_table():
    torch.manual_seed(4)
    args = args_of("stag_hunt")
    follower = script.Follower(16)
    for parameter in follower.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # it must use its memory
    rewards = script.evaluate(follower, args)
    assert rewards.shape == (4, 2, 32, 32)
    assert (rewards[:3] == rewards[:3, :, :, :1]).all()
    table = torch.as_tensor(script.TABLES)[[5]]
    for adapting, last in ((5, 5), (5, 30)):
        leaders = torch.stack([table] * 3 + [torch.as_tensor(script.TABLES)[[last]]])
        with torch.no_grad():
            played = script.play_trials(follower, args.game, leaders)[3].double().view(4, 10, 2).mean(dim=1)
        torch.testing.assert_close(rewards[:, :, adapting, last], played)
    # from one episode to the next the follower changes, though the leader does not: it remembers
    assert (rewards[0] != rewards[1]).any()


# -------------------------------------------------------------------------------------------------------- the learning
class Scalars(dict):
    def add_scalar(self, tag, value, step):
        self.setdefault(tag, []).append((step, value))


def test_a_follower_learns_to_adapt():
    """A few seconds: the mean regret is much less than at first, and less after an episode than in it."""
    torch.manual_seed(1)
    args = args_of("battle", "--follower-timesteps", 100 * 32 * 4 * 40, "--trials-per-leader", 4, "--hidden-size", 32)
    scalars = Scalars()
    follower = script.train_follower(args, scalars)
    regrets = np.array([[value for _, value in scalars[f"charts/follower_regret_{i}"]] for i in range(1, 5)])
    assert regrets.shape == (4, 100) and (regrets > -1e-6).all()
    assert scalars["charts/follower_regret_4"][-1][0] == args.follower_steps == 512_000
    first, *later = regrets[:, -10:].mean(axis=1)
    assert max(later) < 0.6 * regrets[:, 0].mean() and max(later) < first
    final = script.best_replies(args.game)[1] - script.evaluate(follower, args)[:, 1].diagonal(dim1=1, dim2=2).numpy()
    np.testing.assert_allclose(final.mean(axis=1), regrets[:, -1], atol=1e-6)


@pytest.mark.parametrize("num_observations", [5, 10])
def test_leaders_find_the_best_of_their_tables(num_observations):
    torch.manual_seed(1)
    found = 0
    for _ in range(4):
        returns = torch.rand(2**num_observations).sort().values  # tables that share their first answers are alike
        indices, rewards = script.train_leader(returns, script.Args())
        assert len(indices) == len(rewards) == 100
        found += returns[indices[-1]] >= returns.max() - 0.05 and rewards[-10:].mean() >= returns.max() - 0.1
    assert found >= 3


# ------------------------------------------------------------------------------------------------------------- the run
@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        short = ("--follower-timesteps", 2560, "--trials-per-leader", 1, "--hidden-size", 8, "--num-trials", 640)
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *short, *flags))
        return result, capsys.readouterr().out

    return run


def test_result_and_words(run, tmp_path, monkeypatch):
    """In the units of a game of one's own; what is said of a leader follows from the follower that it met."""
    followers, train = [], script.train_follower
    monkeypatch.setattr(script, "train_follower", lambda *inputs: followers.append(train(*inputs)) or followers[0])
    result, printed = run("--leader-payoff", 10, 70, 0, 40, "--follower-payoff", 3, 1, 6, 0)
    args = parse(script, "--leader-payoff", 10, 70, 0, 40, "--follower-payoff", 3, 1, 6, 0)
    rewards, (counting, best) = script.evaluate(followers[0], args).numpy(), script.best_replies(args.game)
    assert result["env_id"] == "custom" and result["follower_steps"] == 2560
    for run_of, kind in zip(result["runs"], ("invariant", "clock"), strict=True):
        policy = np.array(run_of["leader_policy"]).reshape(-1, 5) @ [16, 8, 4, 2, 1]
        assert run_of["leader"] == kind and len(policy) == (2 if kind == "clock" else 1)
        leader, follower = rewards[-1, :, policy[0], policy[-1]]
        assert run_of["leader_return_greedy"] == pytest.approx(args.game.payoff(0, leader), abs=1e-4)
        assert run_of["follower_regret"] == pytest.approx((best[policy[-1]] - follower) * 2, abs=1e-4)
        tables = rewards[-1, 0] if kind == "clock" else rewards[-1, 0].diagonal()
        assert run_of["leader_return_best"] == pytest.approx(args.game.payoff(0, tables.max()), abs=1e-4)
        assert run_of["stackelberg_value_counting"] == pytest.approx(args.game.payoff(0, counting.max()))
        regrets = 2 * (best - rewards[1, 1].diagonal())
        assert run_of["follower_regret_2"] == pytest.approx(regrets.mean(), abs=1e-4)
        assert run_of["tables_answered_2"] == (regrets <= 0.1 + 1e-5).sum()
        assert [step for step, *_ in run_of["curve"]] == [2560 + 64 * 40 * batch for batch in range(1, 11)]
    assert re.search(r"optimum +\S+ for deterministic memory-1 leaders", printed) and "asks nothing" in printed
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"invariant", "clock", "result.json"}
    assert json.loads((path / "result.json").read_text()) == json.loads(json.dumps(result))


def test_a_diverged_follower_says_what_to_lower(run, tmp_path):
    with pytest.raises(SystemExit, match="lower --follower-learning-rate"):
        run("--follower-learning-rate", 1e30)
    assert not list(tmp_path.glob("runs/*/result.json*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--env-id", "poker"), "no game 'poker': prisoners_dilemma, stag_hunt"),
        (("--leader-payoff", 1, 2, 3), "four numbers each"),
        (("--trial-episodes", 0), "--trial-episodes must be positive"),
        (("--follower-first-weight", -1), "--follower-first-weight must be positive"),
        (("--follower-timesteps", 5119), "must hold a batch each"),
        (("--num-trials", 63), "must hold a batch each"),
    ],
)
def test_wrong_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
    assert not list(tmp_path.iterdir())
