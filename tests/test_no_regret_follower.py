"""A follower that learns by multiplicative weights: its bound, its replies, the leaders, what the script reports."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import parse

import stackelberg_ppo_matrix as ppo
from ablations import no_regret_follower as script

ROUNDS = (1, 3, 10, 30, 100, 300, 1000)
GAMES = script.Args().games


def hedge_after(payoffs, step_factor=1.0):
    """Hedge after rounds with these payoffs of the tables, [rounds, episodes, 32]."""
    hedge = script.Hedge(torch.tensor([len(payoffs)]), payoffs.shape[1])
    hedge.step_size *= step_factor
    for payoff in payoffs:
        hedge.update(payoff[None])
    return hedge


# ----------------------------------------------------------------------------------------------------------- the bound
def test_hedge_is_multiplicative_weights_as_the_books_write_them():
    payoffs = np.random.default_rng(1).random((20, 2, 32))
    hedge, step_size = hedge_after(torch.as_tensor(payoffs, dtype=torch.float32)), math.sqrt(8 * math.log(32) / 20)
    for episode in range(2):
        weights, earned, mean = np.ones(32), 0.0, np.zeros(32)
        for payoff in payoffs[:, episode]:
            probabilities = weights / weights.sum()
            earned += probabilities @ payoff
            mean += probabilities / 20
            weights *= np.exp(step_size * payoff)
        assert hedge.reply("last")[0, episode].numpy() == pytest.approx(weights / weights.sum(), abs=1e-6)
        assert hedge.reply("average")[0, episode].numpy() == pytest.approx(mean, abs=1e-6)
        regret = payoffs[:, episode].sum(axis=0).max() - earned
        bound = math.sqrt(20 * math.log(32) / 2)
        assert hedge.share_of_bound()[0, episode].item() == pytest.approx(regret / bound, abs=1e-5)


def adversary(rounds, step_factor):
    """Regret in units of the bound against whoever gives 1 to the half of the tables with the smaller weights."""
    hedge = script.Hedge(torch.tensor([rounds]), 1)
    hedge.step_size *= step_factor
    for _ in range(rounds):
        weights = hedge.weights()
        hedge.update(
            (weights <= weights.median()).float()
            if weights.std() > 1e-9
            else (torch.arange(32) < 16).float()[None, None]
        )
    return hedge.share_of_bound().item()


@pytest.mark.parametrize("rounds", [1, 10, 100, 1000])
def test_nobody_drives_the_regret_beyond_its_bound(rounds):
    """Coins, and an adversary that sees the weights; with another step size the bound does break."""
    torch.manual_seed(rounds)
    coins = (torch.rand(rounds, 200, 32) < 0.5).float()
    assert 0 < hedge_after(coins).share_of_bound().max() <= 1
    assert adversary(rounds, 1.0) <= 1
    if rounds == 100:
        assert adversary(rounds, 50.0) > 1


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("explore", ["episode", "round"])
def test_the_regret_is_below_its_bound_in_every_game(game, explore):
    """Every episode of leaders of all kinds, whose answers change from round to round or do not."""
    torch.manual_seed(1)
    args = script.Args(explore=explore, batch_episodes=64)
    rounds = torch.tensor(4 * [100] + 4 * [7])
    returns = torch.as_tensor(script.returns_of_tables(GAMES[game]), dtype=torch.float32)
    returns = returns[:, None].expand(-1, len(rounds), -1, -1)
    counts, _, share = script.play_episodes(torch.rand(len(rounds), 5), returns, rounds, args)
    assert (counts.sum(-1) == rounds[:, None] + 1).all()
    assert (counts.count_nonzero(dim=-1) == 1).all() == (explore == "episode")
    assert share.shape == (8, 64) and share.min() > -1e-6 and share.max() <= 1


# ---------------------------------------------------------------------------------------------------------- the replies
def test_returns_and_best_responses_are_the_main_scripts():
    for name, game in GAMES.items():
        returns = script.returns_of_tables(game)
        optimum, _, best = ppo.solve(ppo.Args(env_id=name).game)
        leader, follower = script.best_response(returns, np.eye(32))
        assert leader.max() == pytest.approx(optimum) and follower == pytest.approx(best), name
        unit = script.unit_payoffs(returns)
        assert unit.min() >= -1e-9 and unit.max() <= 1 + 1e-9


def test_a_leader_redrawn_in_each_round_commits_to_a_mixture_that_is_worth_more_than_any_table():
    """In the prisoner's dilemma: to defect first and then after a defection, but to forgive one of five if both did."""
    torch.manual_seed(1)
    game, policy = GAMES["prisoners_dilemma"], np.array([1, 0, 1, 0.2, 1])
    returns = script.returns_of_tables(game)
    mixture = np.where(script.TABLES == 1, policy, 1 - policy).prod(axis=1)
    worth = game.payoff(0, script.best_response(returns, mixture[None])[0].item())
    assert game.payoff(0, script.best_response(returns, np.eye(32))[0].max()) == pytest.approx(-0.9) and worth > -0.75
    returns, policies = (torch.as_tensor(x, dtype=torch.float32) for x in (returns[:, None], policy[None]))
    for explore, reaches in (("round", True), ("episode", False)):
        args = script.Args(explore=explore, batch_episodes=400)
        _, rewards, _ = script.play_episodes(policies, returns, torch.tensor([1000]), args)
        assert (game.payoff(0, rewards[0].mean().item()) > -0.8) == reaches


@pytest.mark.parametrize("kind", ["last", "average"])
def test_evaluation_is_the_mean_of_many_games(kind):
    """A leader that keeps to its table, against followers that draw theirs from the weights they learned."""
    torch.manual_seed(1)
    game, rounds = GAMES["chicken"], 10
    args = script.Args(explore="episode", reply=kind, batch_episodes=20_000, num_episodes=20_000)
    exact = script.evaluate(game, script.returns_of_tables(game), rounds, kind)
    returns = torch.as_tensor(script.returns_of_tables(game), dtype=torch.float32)[:, None]
    for index in (0, 13, 31):
        policy = torch.as_tensor(script.TABLES[[index]], dtype=torch.float32)
        _, rewards, _ = script.play_episodes(policy, returns, torch.tensor([rounds]), args)
        error = 4 * rewards[0].std().item() / math.sqrt(20_000) + 1e-6
        expected = exact["leader_return_greedy"][index]
        assert game.payoff(0, rewards[0].mean().item()) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("kind", ["last", "average"])
def test_the_reply_becomes_a_best_response_and_its_regret_stays_below_the_bound(kind):
    """A leader that keeps to its table: the mean reply's regret per round is at most the bound divided by T."""
    largest = []
    for rounds in ROUNDS:
        regrets = [
            script.evaluate(game, script.returns_of_tables(game), rounds, kind)["follower_regret"].max()
            for game in GAMES.values()
        ]
        largest.append(max(regrets))
        assert min(regrets) >= -1e-6
        # three units of payoff between the worst and the best outcome
        assert largest[-1] <= 3 * math.sqrt(math.log(32) / (2 * rounds)) + 1e-6
    assert (np.diff(largest) < 0).all() and largest[-1] < (0.02 if kind == "last" else 0.09)


def test_an_unconverged_follower_is_exploited_and_a_converged_one_is_not():
    """Lemma 1's first condition, exactly: the best table against the reply after T rounds, and its optimum."""
    gaps = {}
    for name, game in GAMES.items():
        for rounds in ROUNDS:
            exact = script.evaluate(game, script.returns_of_tables(game), rounds, "last")
            gaps[name, rounds] = exact["leader_return_greedy"].max() - exact["leader_return_exact"].max()
    assert gaps["prisoners_delight", 1] == pytest.approx(0.24, abs=0.01)
    assert gaps["chicken", 1] == pytest.approx(-0.73, abs=0.01)
    assert all(abs(gap) < 0.03 for (_, rounds), gap in gaps.items() if rounds >= 100)
    # the table that is best against a follower of one round is no commitment worth making
    exact = script.evaluate(GAMES["prisoners_dilemma"], script.returns_of_tables(GAMES["prisoners_dilemma"]), 1, "last")
    assert exact["leader_return_exact"][exact["leader_return_greedy"].argmax()] == pytest.approx(-1.0)


# ----------------------------------------------------------------------------------------------------------- the leader
def test_sums_of_advantages_are_ppos_rows(monkeypatch):
    """A batch's update on the summed advantages against autograd on one row for each answer."""
    args = script.Args(env_id="hero", explore="round", batch_episodes=16, num_episodes=16, learning_rate=1.0)
    counts, rewards = torch.zeros(1, 16, 32), torch.randn(2, 1, 16)
    drawn = torch.randint(32, (16, 4))
    counts[0].scatter_add_(1, drawn, torch.ones(16, 4))
    monkeypatch.setattr(script, "play_episodes", lambda *inputs: (counts, rewards, torch.zeros(1, 16)))
    start = torch.randn(1, 5)
    leaders = torch.nn.Parameter(start.clone())
    script.train_leaders(leaders, None, None, args)

    logits = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([logits], lr=1.0, eps=args.adam_eps)
    answers = torch.as_tensor(script.TABLES)[drawn].float()  # [episodes, tables, 5]
    advantages = (rewards[0, 0] - rewards[0, 0].mean()) / (rewards[0, 0].std() + 1e-8)
    for _ in range(args.update_epochs):
        new, old = (
            -torch.nn.functional.binary_cross_entropy_with_logits(x.expand_as(answers), answers, reduction="none")
            for x in (logits, start)
        )
        ratio, advantage = (new - old).exp(), advantages[:, None, None]
        objective = torch.min(advantage * ratio, advantage * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef))
        optimizer.zero_grad()
        (-objective.sum() / drawn.numel()).backward()
        optimizer.step()
    assert ((ratio < 0.7) | (ratio > 1.3)).float().mean() > 0.1  # clipped
    torch.testing.assert_close(leaders.detach(), logits.detach(), atol=1e-4, rtol=0)


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


def test_leaders_find_the_optimum_of_their_follower(run):
    """All games: the optimum after 100 rounds; after 3 the best table against an unconverged follower."""
    result, printed = run("--rounds", 3, 100, "--num-seeds", 1, "--num-episodes", 2560)
    runs = result["runs"]
    assert len(runs) == 24 and {run["rounds"] for run in runs} == {3, 100}
    many = [run for run in runs if run["rounds"] == 100]
    assert all(abs(run["leader_regret"]) < 0.05 and run["follower_regret"] < 0.03 for run in many)
    assert sum(run["steps_to_converge"] is not None for run in many) == 12
    few = [run for run in runs if run["rounds"] == 3]
    found = [run["leader_return_greedy"] > run["leader_return_best"] - 0.05 for run in few]
    assert np.mean(found) >= 0.8 and np.mean([run["follower_regret"] for run in few]) > 0.05
    assert max(run["regret_share_of_bound"] for run in runs) <= 1
    lines = [line.split() for line in printed.splitlines() if re.match(r"  (3|100) ", line)]
    assert [line[:2] for line in lines][1] == ["100", "12/12"]


def test_result_and_own_game(run, tmp_path):
    payoffs = ("--leader-payoff", 20, 40, 10, 30, "--follower-payoff", 1.2, 0, 0.1, 2.1)
    result, _ = run("--env-id", "mine", *payoffs, "--rounds", 2, 40, "--num-seeds", 2, "--num-episodes", 640)
    game = ppo.Args(env_id="mine", leader_payoff=payoffs[1:5], follower_payoff=payoffs[6:]).game
    optimum = game.payoff(0, ppo.solve(game)[0])
    for one in result["runs"]:
        assert one["env_id"] == "mine" and one["stackelberg_value"] == pytest.approx(optimum)
        index = script.table_index(np.array(one["leader_policy"]))
        exact = script.evaluate(game, script.returns_of_tables(game), one["rounds"], "last")
        assert one["leader_return_greedy"] == pytest.approx(exact["leader_return_greedy"][index])
        assert one["follower_regret"] == pytest.approx(exact["follower_regret"][index])
        steps = [step for step, _, _ in one["curve"]]
        assert steps == [32 * (15 * one["rounds"] + 10) * batch for batch in range(1, 21)]
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"mine__rounds-2", "mine__rounds-40", "result.json"}
    assert json.loads((path / "result.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rounds", 0), "--rounds must be positive, got 0"),
        (("--rounds", 3, 3), "--rounds must be one or more different numbers"),
        (("--rounds",), "--rounds must be one or more different numbers"),
        (("--batch-episodes", 1), "--batch-episodes must be at least 2"),
        (("--num-episodes", 31), "--num-episodes hold a batch"),
        (("--env-id", "poker"), "no game 'poker': table3, ordinal, prisoners_dilemma"),
        (("--leader-payoff", 1, 2, 3, 4), "must be four numbers each"),
        (("--reply", "best"), "--reply"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
