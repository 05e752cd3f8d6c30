"""A batch of runs: each is the run alone, the sufficient statistics are the rows, and what it finds is the optimum."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import parse

import stackelberg_ppo_matrix as ppo
from ablations import vectorized_ppo_matrix as script
from benchmark import batch as batches

COLUMNS = "env_id leader_payoff follower_payoff seed leader_policy follower_policy leader_return leader_return_greedy"
COLUMNS += " leader_regret follower_regret follower_regret_all stackelberg_value stackelberg_value_pessimistic"
COLUMNS += " steps_to_converge steps_to_converge_exploring explore learning_rate adam_eps follower_gamma"
NUM_EPISODES = 20  # per leader batch; 7 per follower batch
LEADER = {"learning_rate": 0.05, "adam_eps": 1e-3, "clip_coef": 0.1, "ent_coef": 0.1, "risk_seeking": 2.0}
FOLLOWER = {"learning_rate": 0.1, "baseline_rate": 0.3, "gamma": 0.9, "ent_coef": 1.0}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def feed(monkeypatch):
    """Replaces what torch.rand draws by these numbers, one after the other."""

    def feed(numbers):
        numbers = iter(numbers)
        monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: next(numbers))

    return feed


class Batch:
    """Runs on random games with all that they draw; each has settings of its own, unless they are to be alike."""

    def __init__(self, num_runs, iterations, explore="action", alike=False):
        torch.manual_seed(num_runs)
        self.runs, self.iterations, self.explore = list(range(num_runs)), iterations, explore
        payoffs = np.stack(list(script.load_games(script.Args(random_games=num_runs)).values()))
        self.games = [ppo.MatrixGame(*game.reshape(2, 4)) for game in payoffs]
        rewards = np.stack([game.reward.reshape(2, 4) for game in self.games])
        self.rewards = torch.tensor(rewards, dtype=torch.get_default_dtype())
        self.dealt = torch.rand(num_runs, math.ceil(iterations * 7 / 32), 32)
        self.follower_uniforms = torch.rand(iterations, 10, num_runs, 7)
        self.follower_logits = 0.01 * torch.randn(num_runs, 160)
        self.uniforms = torch.rand(iterations, 15, num_runs, NUM_EPISODES)
        self.logits, self.values = 0.01 * torch.randn(2, num_runs, 5)
        self.replies = torch.randint(32, (num_runs, 32))
        scale = 1 if alike else 1 / (1 + torch.arange(num_runs)[:, None] / num_runs)
        ones = torch.ones(num_runs, 1)
        self.flags = {name: value * scale * ones for name, value in LEADER.items()}
        self.follower_flags = {name: value * scale * ones for name, value in FOLLOWER.items()}

    def follower(self, feed, runs):
        """Trains these runs' followers side by side; returns their logits."""
        feed([self.dealt[runs], *self.follower_uniforms[:, :, runs]])
        logits, flags = self.follower_logits[runs], {name: x[runs] for name, x in self.follower_flags.items()}
        script.train_follower(logits, self.rewards[runs, 1], self.iterations, 7, 10, flags)
        return logits

    def leader(self, feed, runs):
        """Trains these runs' leaders side by side; returns their logits and values."""
        feed(self.uniforms[:, : 5 if self.explore == "table" else 15, runs])
        logits, values = self.logits[runs], self.values[runs]
        returns = script.solve(self.rewards[runs].reshape(-1, 2, 2, 2).numpy(), 10)["returns"][:, 0]
        against = np.take_along_axis(returns, self.replies[runs].numpy()[..., None], axis=2)[..., 0]
        flags = {name: x[runs] for name, x in self.flags.items()}
        flags |= {"explore": self.explore, "num_episodes": NUM_EPISODES, "update_epochs": 10}
        inputs = logits, values, self.replies[runs], self.rewards[runs, 0], torch.tensor(against, dtype=logits.dtype)
        script.train_leader(*inputs, self.iterations, 10, flags)
        return logits, values


@pytest.mark.parametrize("explore", ["action", "table"])
def test_a_run_in_the_batch_is_the_run_alone(explore, feed, float64):
    batch = Batch(6, 10, explore)
    together = batch.follower(feed, batch.runs), *batch.leader(feed, batch.runs)
    assert together[0].std(dim=0).min() > 1e-4 and together[1].std(dim=0).min() > 1e-4  # runs do differ
    for run in batch.runs:
        alone = batch.follower(feed, [run]), *batch.leader(feed, [run])
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[run], y[0], atol=1e-5, rtol=0)


def test_the_follower_is_the_main_scripts(feed):
    """One update on the same uniform numbers, and ten."""
    for batch in [Batch(3, iterations, alike=True) for iterations in (1, 10)]:
        trained, iterations = batch.follower(feed, batch.runs), batch.iterations
        for run, game in enumerate(batch.games):
            args = ppo.Args(**{f"follower_{name}": value for name, value in FOLLOWER.items()})
            args.game = game
            logits = torch.nn.Parameter(batch.follower_logits[run].view(32, 5, 1) * torch.tensor([-0.5, 0.5]))
            leaders = iter(batch.dealt[run].argsort(1).flatten().tolist())
            feed(batch.follower_uniforms[:, :, run])
            ppo.train_follower(logits, leaders, iterations, args, lambda *_: None, args.follower_ent_coef)
            difference = (logits[..., 1] - logits[..., 0]).detach().flatten()
            torch.testing.assert_close(trained[run], difference, atol=1e-5 if iterations == 1 else 1e-3, rtol=0)
            assert (trained[run] - batch.follower_logits[run]).abs().max() > 0.1


@pytest.mark.parametrize("explore", ["action", "table"])
def test_the_leader_is_the_main_scripts(explore, feed):
    """One update, all its epochs, on the same uniform numbers."""
    batch = Batch(3, 1, explore, alike=True)
    trained, values = batch.leader(feed, batch.runs)
    for run, game in enumerate(batch.games):
        args = ppo.Args(batch_size=15 * NUM_EPISODES, explore=explore, **LEADER)
        args.leader_iterations, leader = 1, ppo.Leader()
        leader.actor.weight.data = batch.logits[run] * torch.tensor([[-0.5], [0.5]])
        leader.critic.weight.data = batch.values[[run]].clone()
        envs = ppo.LeaderPOMDP(game, script.TABLES[batch.replies[run]], NUM_EPISODES)
        feed(batch.uniforms[0, : 5 if explore == "table" else 15, run])
        ppo.train_leader(leader, envs, args, lambda steps, scalars: None)
        difference = (leader.actor.weight[1] - leader.actor.weight[0]).detach()
        torch.testing.assert_close(trained[run], difference, atol=1e-5, rtol=0)
        if explore == "action":  # tables leave nothing to value
            torch.testing.assert_close(values[run], leader.critic.weight[0].detach(), atol=1e-5, rtol=0)
        assert (trained[run] - batch.logits[run]).abs().max() > 0.1


def test_sufficient_statistics_are_the_rows(float64):
    """Ten epochs by autograd on random rows, in which most ratios end up clipped, against ten on their sums."""
    torch.manual_seed(1)
    observations, actions = torch.randint(5, (300,)), torch.randint(2, (300,))
    advantages, returns = torch.randn(300) + actions, torch.randn(300)
    start, values = torch.randn(5), torch.randn(5)

    logits, critic = torch.nn.Parameter(start[:, None] * torch.tensor([0.0, 1.0])), torch.nn.Parameter(values.clone())
    optimizer = torch.optim.SGD([logits, critic], lr=1.0)
    sums = torch.zeros((2, 5, 2))
    sums[0].index_put_((observations, actions), advantages.clamp(min=0), accumulate=True)
    sums[1].index_put_((observations, actions), advantages.clamp(max=0), accumulate=True)
    visits, totals = torch.bincount(observations, minlength=5), torch.bincount(observations, returns, minlength=5)

    class Descent:  # plain gradient descent shows every gradient; as for Adam, the difference moves twice as far
        def __init__(self, parameters, rate):
            self.parameters, self.rate = parameters.clone()[None], rate

        def step(self, gradient):
            self.parameters -= self.rate * gradient

    actor, value = Descent(start, 2.0), Descent(values, 1.0)
    statistics = [*sums[:, None], visits[None].double(), totals[None]]
    script.ppo_epochs(
        actor, value, statistics, torch.tensor([[0.1]]), {"clip_coef": torch.tensor([[0.2]]), "update_epochs": 10}
    )

    old = torch.log_softmax(logits, -1).detach()[observations, actions]
    for _ in range(10):
        logprobs = torch.log_softmax(logits, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)[observations]
        ratio = (logprobs[observations, actions] - old).exp()
        objective = torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)) + 0.1 * entropy
        loss = -objective.mean() + (critic[observations] - returns).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((ratio < 0.8) | (ratio > 1.2)).double().mean() > 0.1  # clipped
    torch.testing.assert_close(actor.parameters[0], (logits[:, 1] - logits[:, 0]).detach(), atol=1e-8, rtol=0)
    torch.testing.assert_close(value.parameters[0], critic.detach(), atol=1e-8, rtol=0)


def test_adam_is_torchs(float64):
    gradients, parameters = torch.randn(20, 3, 4), torch.nn.Parameter(torch.zeros(3, 4))
    mine, theirs = script.Adam(torch.zeros(3, 4), 0.1, 1e-3), torch.optim.Adam([parameters], lr=0.1, eps=1e-3)
    for gradient in gradients:
        parameters.grad = gradient
        theirs.step()
        mine.step(gradient)
    torch.testing.assert_close(mine.parameters, parameters.detach())


def test_games():
    games = script.load_games(script.Args(games=("ordinal",)))
    # up to the order of rows and columns: every way to rank four outcomes for both players, 4! * 4! / 4
    flips = list(itertools.product((1, -1), (1, -1)))
    classes = {min(tuple(game[:, ::a, ::b].ravel()) for a, b in flips) for game in games.values()}
    assert len(games) == len(classes) == 144
    assert all(sorted(payoffs.ravel()) == [-3, -2, -1, 0] for game in games.values() for payoffs in game)
    for name, payoff in ppo.PAYOFFS.items():
        np.testing.assert_array_equal(games[name], [payoff, np.transpose(payoff)])
    mixed = games["chicken-battle"]
    np.testing.assert_array_equal(mixed, [games["chicken"][0], games["battle"][1]])

    random = script.load_games(script.Args(random_games=3, first_game=7))
    assert list(random) == ["random_7", "random_8", "random_9"]
    np.testing.assert_array_equal(random["random_8"], 3 * np.random.default_rng(8).random((2, 2, 2)) - 3)


def test_the_exact_solution_is_the_main_scripts():
    games = script.load_games(script.Args(games=("ordinal",), random_games=5))
    payoffs = np.stack(list(games.values()))
    optima = script.solve(payoffs, 10)
    names = list(games)
    for i in range(0, len(names), 7):
        game = ppo.MatrixGame(*payoffs[i].reshape(2, 4))
        optimistic, pessimistic, best = ppo.solve(game)
        assert optima["stackelberg_value"][i] == pytest.approx(game.payoff(0, optimistic))
        assert optima["stackelberg_value_pessimistic"][i] == pytest.approx(game.payoff(0, pessimistic))
        assert optima["best"][i] == pytest.approx(game.payoff(1, best))
    ties = optima["stackelberg_value"][:144] - optima["stackelberg_value_pessimistic"][:144] > 1e-6
    assert ties.sum() == 10
    nash_values = batches.nash_values()
    assert nash_values.isna().sum() == 8  # no pure equilibrium
    assert nash_values["prisoners_dilemma"] == pytest.approx(-1.0)
    assert (optima["stackelberg_value"][:144] >= nash_values.fillna(-3) - 1e-9).all()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning-rate"], "--learning-rate must be one or more different values"),
        (["--learning-rate", "0.1", "0.1"], "--learning-rate must be one or more different values"),
        (["--learning-rate", "0.1", "-1"], "--learning-rate must be positive"),
        (["--batch-size", "many"], "batch-size"),
        (["--explore", "everything"], "explore"),
        (["--follower-gamma", "1.5"], "--follower-gamma must be at most 1"),
        (["--games", "chess"], "no game 'chess'"),
        (["--games", "chicken-chess"], "no game 'chicken-chess'"),
        (["--payoff-file", "no_such.csv"], "no_such.csv"),
        (["--payoff-file", "bad.csv"], "f11"),
        (["--payoff-file", "twice.csv"], "twice.csv must have"),
        (["--payoff-file", "empty.csv"], "empty.csv must have"),
        (["--follower-timesteps", "199900"], "must hold a batch each"),
        (["--follower-timesteps", "50", "1050"], "must hold a batch each"),
        (["--seeds", "100000000"], "GB of memory"),
        (["--random-games", "10", "--seeds", "100000000"], "runs need about"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_said_before_anything_runs(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    header = "name,l00,l01,l10,l11,f00,f01,f10,f11\n"
    (tmp_path / "bad.csv").write_text("name,l00,l01,l10,l11,f00,f01,f10\nmine,1,2,3,4,5,6,7\n")
    (tmp_path / "twice.csv").write_text(header + 2 * "mine,1,2,3,4,5,6,7,8\n")
    (tmp_path / "empty.csv").write_text(header)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).replace("│", " ").split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def table3(tmp_path_factory):
    """The 12 games, three seeds, both ways to explore and all files."""
    run_dir = tmp_path_factory.mktemp("runs")
    flags = ("--seeds", 3, "--total-timesteps", 75_000, "--explore", "action", "table", "--curves", "runs")
    return script.main(parse(script, *flags, "--run-dir", run_dir)), next(run_dir.iterdir())


def test_it_finds_the_optima_of_table_3(table3):
    runs, _ = table3
    runs = runs[runs["explore"] == "table"]
    assert len(runs) == 36
    assert runs["at_optimum"].all() and runs["at_optimum_exploring"].mean() >= 0.94
    assert runs["follower_is_right"].all() and runs["wrong_replies"].mean() < 0.04
    assert runs["steps_to_converge_exploring"].median() <= 65_000
    assert (runs.loc[runs["env_id"] == "prisoners_dilemma", "leader_policy"] == "10101").all()
    assert runs.loc[runs["env_id"] == "prisoners_dilemma", "stackelberg_value"].tolist() == pytest.approx([-0.9] * 3)


def test_tables_explore_better_than_actions(tmp_path):
    """Random games, of which drawing every action afresh misses one in six."""
    flags = ("--random-games", 200, "--seeds", 1, "--total-timesteps", 90_000, "--explore", "action", "table")
    runs = script.main(parse(script, *flags, "--run-dir", tmp_path)).groupby("explore")
    finds, allows = runs["leader_finds"].mean(), runs["follower_allows"].mean()
    assert finds["table"] >= 0.98 > 0.95 > finds["action"] > 0.6
    assert allows["table"] == allows["action"] >= 0.95  # the same followers
    assert runs["at_optimum"].mean()["table"] >= 0.95


def test_files(table3):
    runs, path = table3
    rows = pd.read_csv(path / "runs.csv", dtype={"leader_policy": str, "follower_policy": str})
    assert set(COLUMNS.split()) <= set(rows) and len(rows) == len(runs) == 72
    assert (
        rows["leader_policy"].str.fullmatch("[01]{5}").all() and rows["follower_policy"].str.fullmatch("[01]{5}").all()
    )
    assert (rows.loc[rows["env_id"] == "hero", "leader_payoff"] == "-3 -1 0 -2").all()
    assert (rows.loc[rows["env_id"] == "hero", "follower_payoff"] == "-3 0 -1 -2").all()
    assert sorted(x.name for x in path.iterdir()) == ["explore-action", "explore-table", "runs.csv"]
    assert len(list((path / "explore-table").glob("*__*"))) == 36
    for row in rows[:72:10].itertuples():  # what a row says, by the main script's words
        game = ppo.MatrixGame(*([float(x) for x in text.split()] for text in (row.leader_payoff, row.follower_payoff)))
        tables = [np.array([[int(x) for x in policy]]) for policy in (row.leader_policy, row.follower_policy)]
        rewards = ppo.play(game, *tables)[2].mean(axis=(1, 2))
        assert row.leader_return_greedy == pytest.approx(game.payoff(0, rewards[0]), abs=1e-5)
        best = ppo.solve(game)[2][ppo.table_index(tables[0][0])]
        assert row.follower_regret == pytest.approx(game.scale[1] * (best - rewards[1]), abs=1e-5)


def test_games_of_your_own(tmp_path, capsys):
    games = tmp_path / "games.csv"
    games.write_text("name,l00,l01,l10,l11,f00,f01,f10,f11\nmine,10,0,0,5,5,0,0,10\nflat,1,1,1,1,2,2,2,2\n")
    flags = ("--payoff-file", games, "--seeds", 2, "--follower-timesteps", 10_500, "--total-timesteps", 25_000)
    runs = script.main(parse(script, *flags, "--run-dir", tmp_path / "runs"))
    assert runs["env_id"].tolist() == ["mine", "mine", "flat", "flat"] and runs["at_optimum"].all()
    assert runs["leader_return_greedy"].tolist() == pytest.approx([10, 10, 1, 1])
    assert "mine" in capsys.readouterr().out


def test_one_seed_gives_one_result(tmp_path):
    flags = ("--seeds", 2, "--follower-timesteps", 5250, "--total-timesteps", 10_000, "--run-dir", tmp_path)
    first, second = (script.main(parse(script, *flags)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(script.main(parse(script, *flags, "--seed", 2)))


def test_a_diverged_run_says_what_to_lower(tmp_path):
    flags = ("--seeds", 1, "--follower-timesteps", 1050, "--total-timesteps", 5000, "--run-dir", tmp_path)
    with pytest.raises(SystemExit, match="lower --learning-rate"):
        script.main(parse(script, *flags, "--learning-rate", 1e38))
    assert not list(tmp_path.glob("*/runs.csv"))
