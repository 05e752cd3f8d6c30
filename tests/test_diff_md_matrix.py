"""Diff-MD: its returns and gradients are exact, its leaders mix, and what they are said to guarantee they do."""

import itertools

import diff_md_matrix as script
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import parse

import stackelberg_ppo_matrix as ppo

QUICK = ("--games", "prisoners_dilemma", "--num-seeds", 2, "--unroll", 10, "--iterations", 150)


def rewards_of(payoffs):
    return torch.tensor(np.reshape(payoffs, (2, 4, 1)), dtype=torch.float64)


def test_expected_returns_are_those_of_tables_and_of_sampled_play():
    rng = np.random.default_rng(0)
    payoffs = rng.random((2, 4))
    game = ppo.MatrixGame(*payoffs)
    tables = torch.tensor(script.TABLES, dtype=torch.float64)
    pairs = rng.integers(32, size=(2, 50))
    returns = script.expected_returns(rewards_of(payoffs), *(tables[i].T for i in pairs), 10)
    played = ppo.play(game, script.TABLES[pairs[0]], script.TABLES[pairs[1]])[2].mean(axis=1)
    np.testing.assert_allclose(returns, [game.payoff(player, played[player]) for player in range(2)])

    # probabilities: the mean over all 2^5 tables of either player, for a game so short that no observation comes twice
    leader, follower = torch.rand(2, 5, dtype=torch.float64)
    shares = [torch.where(tables == 1, p, 1 - p).prod(1) for p in (leader, follower)]
    policies = tables.T[:, :, None].expand(-1, -1, 32), tables.T[:, None].expand(-1, 32, -1)
    every = script.expected_returns(rewards_of(payoffs)[..., None], *policies, 2)
    mixed = torch.einsum("i,j,pij->p", *shares, every)
    short = script.expected_returns(rewards_of(payoffs)[..., 0], leader, follower, 2)
    np.testing.assert_allclose(short, mixed, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_the_followers_gradient_is_that_of_its_return(num_steps):
    """In games, policies and observations of all kinds; second derivatives too, which make the leader's gradient."""
    torch.manual_seed(num_steps)
    rewards = torch.rand(2, 4, 7, dtype=torch.float64)
    leader, logits = torch.randn(2, 5, 7, dtype=torch.float64)
    leader.requires_grad_()
    logits.requires_grad_()
    returns, gradient = script.returns_and_gradient(rewards, leader.sigmoid(), logits.sigmoid(), num_steps)
    expected = script.expected_returns(rewards, leader.sigmoid(), logits.sigmoid(), num_steps)
    (by_autograd,) = torch.autograd.grad(expected[1].sum(), logits, create_graph=True)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(gradient, by_autograd)
    weights = torch.randn(5, 7, dtype=torch.float64)
    second = [torch.autograd.grad((weights * g).sum(), (leader, logits)) for g in (gradient, by_autograd)]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("objective", ["last", "sum"])
def test_gradients_through_the_followers_steps_are_those_of_finite_differences(objective):
    args = parse(script, *QUICK)
    generator = torch.Generator().manual_seed(0)
    leader, start = torch.randn(2, 5, 1, generator=generator, dtype=torch.float64)
    rewards = rewards_of(args.payoffs)

    def value(logits):
        returns = script.unroll(rewards, logits, start, 5, 3.0, args.num_steps)
        return returns[-1, 0, 0] if objective == "last" else returns[1:, 0, 0].mean()

    leader.requires_grad_()
    (gradient,) = torch.autograd.grad(value(leader), leader)
    for i in range(5):
        step = torch.zeros(5, 1, dtype=torch.float64)
        step[i] = 1e-5
        difference = (value((leader + step).detach()) - value((leader - step).detach())) / 2e-5
        assert gradient[i].item() == pytest.approx(difference.item(), abs=1e-7)
    assert gradient.abs().max() > 1e-3


def test_every_step_of_the_followers_is_gradient_ascent_and_raises_its_return():
    leader, start = torch.zeros(2, 5, 1, dtype=torch.float64)
    returns = script.unroll(rewards_of(parse(script, *QUICK).payoffs), leader, start, 20, 1.0, 10)
    assert (returns[:, 1, 0].diff() > 0).all() and len(returns) == 21


def test_best_responses_and_optima_are_those_of_enumeration():
    """Also in games with ties: payoffs 0 to 3."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        payoffs = rng.integers(4, size=(2, 2, 2)).astype(float)
        if min(np.ptp(payoffs, axis=(1, 2))) < 3:
            continue
        optimistic, pessimistic, _ = ppo.solve(ppo.MatrixGame(*payoffs.reshape(2, 4)))
        own = script.solve(rewards_of(payoffs), 10)
        centre = payoffs[0].min() + 1.5
        np.testing.assert_allclose([own[0][0] - centre, own[1][0] - centre], [optimistic, pessimistic], atol=1e-9)
    # stochastic leaders: against each table by itself
    leader = torch.rand(5, 1, dtype=torch.float64)
    returns = [
        script.expected_returns(rewards_of(payoffs), leader, torch.tensor(table[:, None]).double(), 10)[:, 0]
        for table in script.TABLES
    ]
    best = max(returns, key=lambda pair: pair[1].item())
    _, guaranteed, follower = script.against_best_response(rewards_of(payoffs), leader, 10)
    assert follower.item() == pytest.approx(best[1].item()) and guaranteed.item() <= best[0].item() + 1e-9


def test_runs_do_not_see_each_other():
    rewards = rewards_of(parse(script, *QUICK).payoffs).repeat(1, 1, 3)
    leaders, start = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.zeros(5, 3, dtype=torch.float64)
    returns = script.unroll(rewards, leaders, start, 3, 10.0, 10)
    (gradient,) = torch.autograd.grad(returns[-1, 0, 1], leaders)
    assert (gradient[:, [0, 2]] == 0).all() and (gradient[:, 1] != 0).any()


def test_in_the_prisoners_dilemma_the_leader_mixes_and_guarantees_more_than_tables_can(tmp_path, capsys):
    runs = script.main(parse(script, *QUICK, "--run-dir", tmp_path))
    printed = capsys.readouterr().out
    assert (runs["leader_return_guaranteed"] > -0.9 + 0.1).all() and (runs["leader_return_guaranteed"] <= -0.5).all()
    np.testing.assert_allclose(runs["stackelberg_value"], -0.9)
    assert "guaranteed" in printed
    (path,) = tmp_path.glob("*/runs.csv")
    written = pd.read_csv(path)
    assert len(written) == 2 and {*written} == {*runs}
    # the policy in the file guarantees what the file says
    leader = torch.tensor([[float(p) for p in policy.split()] for policy in written["leader_policy"]])
    rewards = rewards_of(script.load_games(parse(script, *QUICK))["prisoners_dilemma"]).repeat(1, 1, 2)
    guaranteed = script.against_best_response(rewards, leader.double().T, 10)[1]
    np.testing.assert_allclose(guaranteed, written["leader_return_guaranteed"], atol=0.005)


def test_games_by_name_and_number():
    games = script.load_games(parse(script, "--games", "ordinal", "random_7", "chicken-battle"))
    assert len(games) == 145
    assert games["random_7"] == pytest.approx(3 * np.random.default_rng(7).random((2, 2, 2)) - 3)
    for a, b in itertools.product(("chicken", "battle"), repeat=2):
        name = a if a == b else f"{a}-{b}"
        assert games[name][0].tolist() == [[*row] for row in script.PAYOFFS[a]]
        assert games[name][1].T.tolist() == [[*row] for row in script.PAYOFFS[b]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--unroll", 0), "--unroll must be positive"),
        (("--unroll", 3, 3), "different numbers"),
        (("--games", "chess"), "no game 'chess'"),
        (("--leader-payoff", 1, 2, 3), "four numbers each"),
        (("--learning-rate", -1), "--learning-rate must be positive"),
        (("--follower-step-size", 1, 0, "--num-seeds", 2), "--follower-step-size must be positive"),
        (("--follower-step-size", 1, 2, 3, "--num-seeds", 2), "one for each of --num-seeds"),
    ],
)
def test_wrong_input_ends_with_a_message(flags, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--run-dir", tmp_path / "runs", *flags)
    assert stop.value.code == 2 and not (tmp_path / "runs").exists()
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
