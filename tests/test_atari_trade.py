"""stackelberg_ppo_atari_trade.py: the trade on the real emulator, learning and resuming."""

import csv
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_matrix_cli import wandb_records
from test_shared_blocks import blocks_of

atari = importlib.import_module("stackelberg_ppo_atari_trade")

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "benchmark/checkpoints"
NAMES = ("seller", "buyer")
SELLER, BUYER, GAME, QUERY, TRADE = atari.SELLER, atari.BUYER, atari.GAME, atari.QUERY, atari.TRADE

# a run of seconds: short episodes, a few updates in every stage
TINY = "--num-envs 2 --max-steps 120 --bullet-interval 4 20 --gameplay-timesteps 400"
TINY += " --follower-timesteps 400 --total-timesteps 800 --verification-timesteps 200 --eval-episodes 2"
TINY = TINY.split()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


class Spy:
    """Stands between an environment and its emulator and keeps the books on its own."""

    def __init__(self, env):
        self.env, self.emulator, self.frame = env, env.emulator, env.emulator.frame
        self.forget()
        env.emulator.frame = self

    def forget(self):
        self.scores, self.armed, self.shots = [[], []], True, 0

    def __call__(self, buttons, screen=None):
        env = self.env
        if hasattr(env, "bullets") and any(buttons[p] in (1, 11, 12) and not env.bullets[p] for p in (0, 1)):
            self.armed = False
        self.frame(buttons, screen)
        # A missile is at y = 85 in the frame of its launch only.
        self.shots += sum(int(y) == 85 for y in self.emulator.missile_y)
        for p in (SELLER, BUYER):
            self.scores[p] += [int(self.emulator.scores[p])] if self.emulator.scores[p] else []


@pytest.fixture(scope="module")
def spied():
    """Environments and their spies."""
    envs = []
    for leader, max_start in ((SELLER, 60), (BUYER, 60), (SELLER, 400)):
        env = atari.TradeEnv(leader=leader, max_start=max_start)
        envs.append((env, Spy(env)))
    return envs


@settings(max_examples=240, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 2),
    st.integers(0, 2**31),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.integers(1, 8),
    st.sampled_from([(1, 1), (1, 10), (8, 40), (30, 50)]),
)
def test_invariants_of_random_episodes(spied, which, seed, weights, hold, bullet_interval):
    (env, spy), rng = spied[which], np.random.default_rng(seed)
    env.bullet_interval = bullet_interval
    observation, _ = env.reset(seed=seed)
    spy.forget()
    weights = np.array(weights) / sum(weights)
    received, returns, paid, steps, terminated, truncated = [0, 0], np.zeros(2), 0.0, 0, False, False
    held_before = list(env.bullets)
    while not (terminated or truncated):
        if steps % hold == 0:
            game = rng.choice(6, 2, p=weights)
        action = np.stack([game, rng.integers(0, 5, 2)], 1)
        phase, frames = env.phase, env.emulator.ale.getEpisodeFrameNumber()
        fired_before, hits_before, given_before = list(env.fired), list(env.hits), env.given
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation) and env.action_space.contains(action)
        if phase == QUERY:
            assert not reward.any() and env.phase == TRADE
            assert env.committed == action[env.leader, 1]
            context = observation["economy"][:, atari.PRICE :]
            assert context[1 - env.leader].argmax() == env.committed and not context[env.leader].any()
        if phase == TRADE:
            assert reward[SELLER] == -reward[BUYER]
            ask, limit = (atari.PRICES[a] for a in env.offered[-1])
            assert env.offered[-1][env.leader] == env.committed
            assert env.accepted[-1] == (ask <= limit) and reward[SELLER] == (ask if ask <= limit else 0.0)
            if ask <= limit:
                paid += ask
                received[SELLER] -= 1
                received[BUYER] += 1
        if phase != GAME:
            assert env.emulator.ale.getEpisodeFrameNumber() == frames and env.fired == fired_before
        if env.given > given_before:
            received[SELLER] += 1
            assert env.phase == QUERY and env.given == given_before + 1
        for p in (SELLER, BUYER):
            assert env.fired[p] + env.bullets[p] == received[p]
            assert env.bullets[p] - held_before[p] <= 1
            assert env.hits[p] <= env.fired[p]
            assert observation["economy"][p, atari.IN_FLIGHT] == env.flying[p] <= env.fired[p] - env.hits[p]
        held_before = list(env.bullets)
        assert env.given == sum(env.fired) + sum(env.bullets) == sum(received)
        for _, shot, landing in env.landed[sum(hits_before) :]:
            assert landing == env.steps - 1 and 0 < landing - shot < 24  # a missile flies for 84 frames at most
        returns += reward
        steps += 1
    assert spy.armed, "fire reached the emulator without a bullet"
    assert spy.shots == sum(env.fired), "a shot was not paid for with a bullet"
    for p in (SELLER, BUYER):
        # The emulator's scores, counted apart: aliens and the saucer are hits, 200 for the other's death is not.
        hits = [s % 200 for s in spy.scores[p] if s % 200]
        assert set(hits) <= {5, 10, 15, 20, 25, 30, 100}
        assert env.hits[p] == len(hits) == sum(player == p for player, _, _ in env.landed)
    expected = [env.hits[SELLER] * 0.1 + paid, env.hits[BUYER] * 1.0 - paid]
    np.testing.assert_allclose(returns, expected, atol=1e-5)
    assert info["episode"]["returns"] == pytest.approx(returns.tolist(), abs=1e-5)
    assert info["episode"]["bullets"] == env.bullets
    assert env.length == steps == env.steps + 2 * len(env.offered)
    assert env.steps <= env.max_steps and env.given <= atari.NUM_BULLETS


def test_bonus_for_the_others_death_is_no_hit(spied):
    """Nobody ever shoots: every score is a bonus, and nothing is earned."""
    env, spy = spied[0]
    env.bullet_interval = (8, 40)
    spy.forget()
    for seed in range(12):
        env.reset(seed=seed)
        rewards, terminated, truncated = np.zeros(2), False, False
        while not (terminated or truncated):
            _, reward, terminated, truncated, _ = env.step(np.array([[0, 4], [0, 0]]))
            rewards += reward
        assert not rewards.any() and env.hits == [0, 0]
    assert 200 in spy.scores[0] + spy.scores[1], "no death in these episodes: the test has seen nothing"


class ByObservation:
    """A policy whose actions vary with what is seen, and with the noise; it keeps what it was asked."""

    def __init__(self, answer=None):
        self.answer, self.asked = answer, []

    def act(self, image, economy, noise):
        is_trade = economy[:, atari.PENDING] > 0
        seen = image.flatten(1).sum(1) + (100 * economy).sum(1).long() + (1000 * noise[:, 0]).long()
        action = torch.where(is_trade, seen % 5, seen % 6)
        self.asked += list(zip(economy.tolist(), action.tolist(), strict=True))
        return atari.Transition(image, economy, is_trade, action, noise[:, 0], noise[:, :2])


def test_an_episode_depends_on_its_seed_alone():
    """Not on what the emulator played before, or on the other episodes."""
    seeds, policy = np.arange(100, 106), ByObservation()
    alone = atari.Emulators(atari.Args(num_envs=1, leader="buyer"))
    expected = [alone.play(policy, policy, seeds[seeds == seed], (SELLER, BUYER))[0] for seed in seeds]
    together = atari.Emulators(atari.Args(num_envs=6, leader="buyer"))
    for _ in range(2):
        episodes = together.play(policy, policy, seeds, (SELLER, BUYER))
        for episode, same in zip(episodes, expected, strict=True):
            assert {**episode, "rows": 0} == {**same, "rows": 0}
            for player in (SELLER, BUYER):
                columns, others = (zip(*e["rows"][player], strict=True) for e in (episode, same))
                assert all(map(torch.equal, map(torch.stack, columns), map(torch.stack, others)))
    assert len({repr(episode["landed"]) for episode in expected}) == 6


def test_rows_are_a_players_decisions_and_its_answers(spied):
    """One row per decision, and one per trade: of the leader without a context, of the follower with its answer."""
    leader, follower = ByObservation(), ByObservation()
    emulators = atari.Emulators(atari.Args(num_envs=2, leader="buyer"))
    for episode in emulators.play(leader, follower, np.arange(2), (SELLER, BUYER)):
        assert episode["given"] == len(episode["offered"]) == 5
        for player in (SELLER, BUYER):
            rows = atari.Transition(*map(torch.stack, zip(*episode["rows"][player], strict=True)))
            assert (~rows.is_trade).sum() == episode["steps"] and rows.is_trade.sum() == 5
            answers = [offer[player] for offer in episode["offered"]]
            assert rows.action[rows.is_trade].tolist() == answers
            context = rows.economy[:, atari.PRICE :]
            committed = F.one_hot(torch.tensor([offer[BUYER] for offer in episode["offered"]]), 5).float()
            assert torch.equal(context[rows.is_trade], committed * (player == SELLER))
            assert not context[~rows.is_trade].any()
    pending = [sum(economy[atari.PENDING] for economy, _ in policy.asked) for policy in (leader, follower)]
    assert pending == [10, 10]


def episode_of(landed, offered, accepted, player, values, is_trade):
    """An episode as `play` returns it, with rows of which only value and is_trade matter."""
    n = len(is_trade)
    economy, zeros = torch.zeros(n, atari.ECONOMY_SIZE), torch.zeros(n)
    columns = torch.zeros(n, 1), economy, torch.tensor(is_trade), zeros, zeros, values
    rows = {player: list(zip(*columns, strict=True))}
    return {"landed": landed, "offered": offered, "accepted": accepted, "rows": rows}


@pytest.mark.parametrize("credit_shots", [False, True])
@pytest.mark.parametrize("player", [SELLER, BUYER])
def test_rewards_come_at_the_trade_and_when_the_shot_lands(player, credit_shots):
    """Decisions 0, 1, trade, 2, trade, 3: a shot of decision 1 lands in 3; the second trade is refused."""
    is_trade = torch.tensor([False, False, True, False, True, False])
    landed = [(player, 1, 3), (1 - player, 0, 2)]
    episode = {"landed": landed, "offered": [[3, 3], [3, 2]], "accepted": [True, False]}
    reward = atari.rewards(episode, player, is_trade, credit_shots)
    assert reward[:, 0].tolist() == ([0, 1, 0, 0, 0, 0] if credit_shots else [0, 0, 0, 0, 0, 1])
    assert reward[:, 1].tolist() == [0, 0, 0.75 if player == SELLER else -0.75, 0, 0, 0]


@pytest.mark.parametrize("leader", NAMES)
def test_rewards_add_up_to_the_returns(leader):
    """Of whole episodes on the emulator, for leader and follower, wherever hits are credited."""
    torch.manual_seed(0)
    args = atari.Args(num_envs=6, bullet_interval=(5, 10), leader=leader)
    player = atari.Policy(atari.Agent(), greedy=False, random_prices=True)
    episodes = atari.Emulators(args).play(player, player, np.arange(6), (SELLER, BUYER))
    assert sum(map(sum, (e["hits"] for e in episodes))) > 5 and {sold for e in episodes for sold in e["accepted"]} == {
        0,
        1,
    }
    for episode in episodes:
        for p in (SELLER, BUYER):
            is_trade = torch.stack([row[2] for row in episode["rows"][p]])
            for credit_shots in (False, True):
                hits, payments = atari.rewards(episode, p, is_trade, credit_shots).sum(0).tolist()
                assert hits == episode["hits"][p]
                assert atari.HIT_REWARD[p] * hits + payments == pytest.approx(episode["returns"][p], abs=1e-5)


def test_generalized_advantages_are_the_sum_of_discounted_errors():
    reward, value = torch.rand(6), torch.rand(6)
    error = reward + 0.9 * torch.cat([value[1:], torch.zeros(1)]) - value
    expected = torch.stack([sum((0.9 * 0.7) ** k * error[t + k] for k in range(6 - t)) for t in range(6)])
    torch.testing.assert_close(atari.generalized_advantages(reward, value, 0.9, 0.7), expected)


@pytest.mark.parametrize("player", [SELLER, BUYER])
def test_trades_answer_for_all_rewards_and_the_game_for_hits(player):
    values, is_trade = torch.rand(6, 2), torch.tensor([False, False, True, False, True, False])
    episode = episode_of([(player, 1, 3)], [[3, 3], [3, 2]], [True, False], player, values, is_trade.tolist())
    hits, payments = atari.rewards(episode, player, is_trade, False).unbind(1)
    game = atari.generalized_advantages(hits, values[:, 0], 0.98, 0.95)
    reward = hits * float(atari.HIT_REWARD[player]) + payments
    trade = atari.generalized_advantages(reward, values[:, 1], 0.998, 0.95)
    rows = atari.learning_rows(atari.Args(), "follower", episode, player)
    torch.testing.assert_close(rows.advantage, torch.where(is_trade, trade, game))
    torch.testing.assert_close(rows.return_, values + torch.stack([game, trade], 1))
    assert torch.equal(rows.matters, is_trade)  # nobody has a bullet here


def stage_of(args, name, agent, learners, emulators=None, opponent=None):
    """A stage in which one agent learns, in stage 1 as both players."""
    learner = atari.Policy(agent, greedy=False, random_prices=name == "gameplay")
    players = (learner, opponent or learner) if name == "leader" else (opponent or learner, learner)
    return atari.Stage(name, 1000, agent, learners, emulators or atari.Emulators(args), *players)


def optimizer_of(args, agent):
    return torch.optim.Adam([{"params": agent.parameters(), "kl_coef": 0.0}], lr=args.gameplay_learning_rate, eps=1e-5)


def test_gameplay_learns_to_aim():
    """The first 16,000 decisions: from a bit more than half of the shots to over 70 %, in the mean of 6 updates."""
    args = atari.Args(num_envs=8)
    torch.manual_seed(1)
    agent, hits, done = atari.Agent(), [], 0
    emulators = atari.Emulators(args, **atari.GAMEPLAY_EPISODES)
    stage, optimizer = stage_of(args, "gameplay", agent, (SELLER, BUYER), emulators), optimizer_of(args, agent)
    while done < 16_000:
        seeds = atari.episode_seeds(args, "gameplay", args.num_envs, done)
        steps, scalars = atari.update(args, stage, optimizer, seeds, 1.0)
        done += steps
        hits.append((scalars["charts/seller_hits_per_shot"] + scalars["charts/buyer_hits_per_shot"]) / 2)
    assert np.mean(hits[-6:]) > 0.7 > 0.63 > np.mean(hits[:2])


def test_the_frozen_player_and_in_trade_deviations_the_game_stay_as_they_are():
    """`learn` moves the learner alone; with a body learning rate of 0, its trades and values alone."""
    args = atari.Args(num_envs=2, max_steps=60, bullet_interval=(4, 8))
    emulators, names = atari.Emulators(args), ("cnn", "game_economy", "game_actor", "trade_actor", "hit_critic")
    for name, moved in (("deviation", set(names)), ("trade_deviation", {"trade_actor", "hit_critic"})):
        torch.manual_seed(0)
        agent, frozen = atari.Agent().half().float(), atari.Agent()
        before = {part: {k: x.clone() for k, x in getattr(agent, part).state_dict().items()} for part in names}
        stage = stage_of(args, name, agent, (BUYER,), emulators, atari.Policy(frozen))
        weights = [x.clone() for x in frozen.state_dict().values()]
        atari.learn(args, stage._replace(timesteps=100), {"stages": {}, "global_step": 0}, lambda scalars: None)
        changed = {
            p for p in names if any((getattr(agent, p).state_dict()[k] != x).any() for k, x in before[p].items())
        }
        assert changed == moved
        assert all(map(torch.equal, weights, frozen.state_dict().values()))


@given(st.integers(0, 20), st.integers(0, 110), st.sampled_from([SELLER, BUYER]))
def test_exact_optimum_is_that_of_enumeration(seller, buyer, leader):
    """All pairs of trade actions; the follower answers best, ties for the leader."""
    prices, seller, buyer = atari.PRICES, seller / 100, buyer / 100

    def gains(ask, limit):
        return (ask, buyer - ask) if ask <= limit else (seller, 0.0)

    best = -1.0
    for mine in prices:
        outcomes = [gains(*((mine, other) if leader == SELLER else (other, mine))) for other in prices]
        follower = max(o[1 - leader] for o in outcomes)
        best = max(best, max(o[leader] for o in outcomes if o[1 - leader] >= follower - 1e-12))
    action, gain = atari.solve((seller, buyer), leader)
    assert gain == pytest.approx(best)
    if (seller, buyer) == (0.0, 1.0):
        assert prices[action] == (1.0 if leader == SELLER else 0.0)


class Bandit:
    """Trades without an emulator: a random leader, a follower whose bullets hit 9 of 10 times.

    An episode is one trade and two decisions of the game, in the second of which a bullet that the follower holds may
    hit; each seed gives five.
    """

    def __init__(self, learner):
        self.leader, self.learner, self.value = 1 - learner, learner, 0.9

    @torch.no_grad()
    def play(self, leader, follower, seeds, learners):
        generator, episodes = torch.Generator().manual_seed(int(seeds[0])), []
        n = 15 * len(seeds)
        is_trade = torch.arange(n) % 3 == 0
        economy = torch.zeros(n, atari.ECONOMY_SIZE)
        economy[:, atari.PENDING], economy[:, atari.OWN_BULLETS] = is_trade.float(), 0.2
        committed = torch.randint(5, (n,), generator=generator)
        economy[is_trade, atari.PRICE :] = F.one_hot(committed, 5).float()[is_trade]
        image = torch.zeros(n, 1, 1, 1)
        rows = follower.act(image, economy, torch.rand(n, 11, generator=generator))
        hits = torch.rand(n, generator=generator) < self.value
        for k in range(0, n, 3):
            offer = [int(rows.action[k]), int(committed[k])]
            ask, limit = offer = offer if self.learner == SELLER else offer[::-1]
            landed = [(self.learner, 1, 1)] if (ask <= limit) == (self.learner == BUYER) and hits[k] else []
            mine = {self.learner: list(zip(*(column[k : k + 3] for column in rows[:6]), strict=True))}
            episode = {"offered": [offer], "accepted": [ask <= limit], "landed": landed, "rows": mine, "given": 1}
            counts = {name: [0, 0] for name in ("fired", "hits", "returns")} | {"steps": 2, "length": 30}
            episodes.append(episode | counts)
        return episodes


class BlindAgent(atari.Agent):
    """Sees the economy alone, and is fast."""

    def __init__(self):
        super().__init__()
        self.cnn = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 256))
        self.cnn[1].weight.data.zero_()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("learner", [SELLER, BUYER])
def test_meta_follower_learns_to_respond_to_every_price(learner, seed):
    """With the default settings, in a quarter of the updates that they buy on the emulator."""
    torch.manual_seed(seed)
    args, agent = atari.Args(seed=seed, minibatch_size=15), BlindAgent()
    follower = atari.Policy(agent, greedy=False)
    stage = atari.Stage("follower", 50_000, agent, (learner,), Bandit(learner), follower, follower)
    atari.learn(args, stage, {"stages": {}, "global_step": 0}, lambda scalars: None)
    economy = torch.zeros(5, atari.ECONOMY_SIZE)
    economy[:, atari.PENDING], economy[:, atari.OWN_BULLETS], economy[:, atari.PRICE :] = 1, 0.2, torch.eye(5)
    answer = atari.Policy(agent).act(torch.zeros(5, 1, 1, 1), economy, torch.rand(5, 11)).action.tolist()
    if learner == BUYER:
        assert [limit >= price for price, limit in enumerate(answer)] == [True] * 4 + [False]
    else:
        assert answer[0] > 0 and answer[1:] == [1, 2, 3, 4]


def parse(*flags):
    """Returns the Args of a command line, as the script's last lines do."""
    flags = [*map(str, flags)]
    return tyro.cli(atari.Args, args=flags, description=atari.__doc__)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the script in this process: returns its result, its folder and what it printed."""

    def run(*flags):
        result = atari.main(parse("--run-dir", tmp_path / "runs", *flags))
        printed = capsys.readouterr().out
        return result, Path(printed.split("result  ")[1].strip()).parent, printed

    return run


def interrupted_run(folder, flags, **changes):
    """Writes what an interrupted run with these flags leaves, with some changes; returns its folder."""
    folder.mkdir()
    state = {"args": asdict(flags), "stages": {}, "global_step": 0, "seconds": 0.0, "curve": []}
    torch.save(state | changes, folder / "checkpoint.pt")
    return folder


def wrong_inputs(tmp_path):
    """name: flags, and words that the error must hold."""
    (tmp_path / "no_model.pt").write_text("no model")
    agent = atari.Agent().state_dict()
    nans = agent | {"game_actor.bias": torch.full((6,), np.nan)}
    model = {name: agent for name in atari.PLAYED} | {"who_leads": "seller"}
    models = {"model": model, "seven": {"gameplay": agent | {"game_actor.bias": torch.zeros(7)}}}
    models |= {"game": {"gameplay": agent}, "game_of_nans": {"gameplay": nans}, "nans": model | {"follower": nans}}
    models |= {"tampered": model | {"who_leads": "nobody"}}
    for missing in ("who_leads", "leader"):
        models[f"no_{missing}"] = {key: value for key, value in model.items() if key != missing}
    for name, weights in models.items():
        torch.save(weights, tmp_path / f"{name}.pt")

    def trades(name, *flags):
        return ["--stage", "evaluate", "--checkpoint", tmp_path / f"{name}.pt", *flags]

    buyer = parse("--leader", "buyer", "--num-envs", 4)
    older = {flag: value for flag, value in asdict(buyer).items() if flag != "clip_coef"}
    changes = {"buyer": {}, "odd": {"args": 5}, "other": {"args": older | {"gone": 1}}}
    runs = {name: interrupted_run(tmp_path / name, buyer, **changed) for name, changed in changes.items()}
    for name in ("corrupt", "foreign"):
        runs[name] = interrupted_run(tmp_path / name, buyer)
    (runs["corrupt"] / "checkpoint.pt").write_bytes((runs["buyer"] / "checkpoint.pt").read_bytes()[:300])
    torch.save({"weights": 1}, runs["foreign"] / "checkpoint.pt")
    return {
        "unknown leader": (["--leader", "nobody"], "nobody"),
        "unknown flag": (["--leaning-rate", 1], "Perhaps you meant"),
        "no emulators": (["--num-envs", 0], "--num-envs must be positive, got 0"),
        "NaN": (["--learning-rate", "nan"], "--learning-rate must be positive, got nan"),
        "negative seed": (["--seed", -1], "--seed must be positive"),
        "no leader's steps": (["--total-timesteps", 200_000], "--total-timesteps must exceed"),
        "intervals in disorder": (["--bullet-interval", 9, 8], "--bullet-interval must be"),
        "bullets too late": (["--max-steps", 200], "let all bullets come in time"),
        "no game": (["--checkpoint", "nowhere.pt"], "No such file"),
        "a game that is none": (["--checkpoint", tmp_path / "no_model.pt"], "does not fit"),
        "a game of other shapes": (["--checkpoint", tmp_path / "seven.pt"], "does not fit: Error(s)"),
        "a game of NaNs": (
            ["--checkpoint", tmp_path / "game_of_nans.pt"],
            "its gameplay has weights that are not finite",
        ),
        "missing trades": (trades("nowhere"), "No such file"),
        "corrupt trades": (trades("no_model"), "does not fit"),
        "a game for trades": (trades("game"), "does not fit: 'follower'"),
        "trades of NaNs": (trades("nans"), "its follower has weights that are not finite"),
        "tampered who_leads": (trades("tampered"), "in it the nobody leads"),
        "another role": (trades("model", "--leader", "buyer"), "in it the seller leads, and --leader is buyer"),
        "missing who_leads": (trades("no_who_leads"), "does not fit: 'who_leads'"),
        "missing leader": (trades("no_leader"), "does not fit: 'leader'"),
        "no run": (["--resume", "nowhere"], "No such file"),
        "no folder": (["--resume", ""], "cannot resume ''"),
        "no folder at all": (["--resume"], "--resume"),
        "corrupt run": (["--resume", runs["corrupt"]], "cannot resume"),
        "run of another script": (["--resume", runs["other"]], "it is of a script with other flags"),
        "odd run": (["--resume", runs["odd"]], "cannot resume"),
        "foreign run": (["--resume", runs["foreign"]], "cannot resume"),
    }


@pytest.mark.filterwarnings("ignore:The field `leader` is annotated")
def test_wrong_input_ends_in_tyros_box_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = wrong_inputs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, (flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            parse(*flags)
        printed = capsys.readouterr()
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.err).split())
        assert error.value.code == 2 and printed.out == "", name
        assert words in text and "Traceback" not in text, (name, text)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, name
    # those that were refused are in order but for what was said
    for flags in ([], ["--leader", "buyer"], ["--leader", "seller", "--num-envs", 8]):
        args = parse("--resume", "buyer", *flags)
        assert (args.leader, args.num_envs, args.resume) == ("buyer", 4, "buyer")
    assert parse("--stage", "evaluate", "--checkpoint", "model.pt").leader == "seller"


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    _, _, options = capsys.readouterr().out.partition("show this help")
    text = " ".join(re.sub(r"[^\w\s(){}\[\]:;,.'=/-]", " ", options).split())
    assert stop.value.code == 0
    for field in fields(atari.Args):
        start = re.search(rf"--{field.name.replace('_', '-')}[ ,]", text).start()
        assert re.search(r"[a-z]{3,} [a-z]{2,}.*\(default: ", text[start : start + 900]), field.name


@pytest.mark.parametrize("flag", ["--learning-rate", "--gameplay-learning-rate"])
def test_a_diverged_run_says_what_to_lower_and_leaves_no_result(flag, run, tmp_path):
    with pytest.raises(SystemExit, match=f"the training diverged: lower {flag}"):
        run(*TINY, "--stage", "trade" if flag == "--learning-rate" else "gameplay", flag, 1e30)
    assert list(tmp_path.glob("runs/*/events*")) and not list(tmp_path.glob("runs/*/result.json*"))


def command(*flags):
    return [sys.executable, atari.__file__, *map(str, flags)]


def test_killed_three_times_and_resumed_ends_with_the_same_bits(run, tmp_path):
    """All three stages and the verification, from nothing."""
    flags = [*TINY, "--stage", "all", "--leader", "buyer", "--save-model"]
    expected, whole, _ = run(*flags)
    chance = random.Random(0)
    process = subprocess.Popen(command(*flags, "--run-dir", tmp_path / "killed"), stderr=subprocess.DEVNULL)
    checkpoints, saved = [], None
    for _ in range(3):
        while not checkpoints or checkpoints[0].stat().st_mtime_ns == saved:  # until it has learned something new
            assert process.poll() is None
            time.sleep(0.01)
            checkpoints = list(tmp_path.glob("killed/*/checkpoint.pt"))
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        saved = checkpoints[0].stat().st_mtime_ns
        process = subprocess.Popen(command("--resume", checkpoints[0].parent), stderr=subprocess.DEVNULL)
    assert process.wait() == 0
    killed = checkpoints[0].parent
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed)]
    assert models[0].keys() == models[1].keys() == {*atari.PLAYED, "who_leads"}
    for stage in atari.PLAYED:
        assert models[0][stage].keys() == models[1][stage].keys()
        assert all(torch.equal(models[0][stage][name], models[1][stage][name]) for name in models[0][stage])
    result = json.loads((killed / "result.json").read_text())
    differ = {key for key in result if result[key] != expected[key]}
    assert result.keys() == expected.keys() and differ <= {"args", "wall_seconds", "steps_per_second"}
    assert {path.name.split(".")[0] for path in killed.iterdir()} == {"events", "model", "result"}
    curves = [scalars(folder) for folder in (whole, killed)]
    assert all(curves[0][tag] == curves[1][tag] for tag in curves[0] if tag != "charts/SPS")


def scalars(folder):
    """{tag: [(step, value), ...]} of a run's event files, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_of_the_trades_and_what_it_writes(run, tmp_path):
    torch.save({"gameplay": atari.Agent().state_dict()}, tmp_path / "gameplay.pt")
    flags = [*TINY, "--num-envs", 1, "--eval-episodes", 1, "--checkpoint", tmp_path / "gameplay.pt"]
    steps = ["--follower-timesteps", 100, "--total-timesteps", 1800, "--verification-timesteps", 100]
    result, folder, printed = run(*flags, *steps, "--save-model")
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert re.fullmatch(r"space_invaders_trade__stackelberg_ppo_atari_trade__1__\d+", folder.name)
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"events", "model", "result"}
    assert {path.name for path in tmp_path.iterdir()} == {"gameplay.pt", "runs"}
    assert result["args"] == asdict(parse("--run-dir", tmp_path / "runs", *flags, *steps, "--save-model"))

    # both measures of the leader: as it explores, in every update; greedy, after the training
    curve = result["curve"]
    exploring = [value for _, _, value in curve]
    assert len(curve) > 10 and {greedy for _, greedy, _ in curve} == {None}
    assert result["leader_return"] == pytest.approx(np.mean(exploring[-int(np.ceil(len(curve) / 10)) :]))
    assert result["leader_return"] != pytest.approx(result["leader_return_greedy"])
    assert result["leader_regret"] == result["stackelberg_value"] - result["leader_return_greedy"]
    assert all(len(result["best_responses"][how]) == 5 for how in ("greedy", "sampled"))
    assert result["deviation_gain_error"] >= 0 and result["trade_deviation_gain_error"] >= 0
    charts = scalars(folder)
    assert charts["charts/leader_return"] == [(step, pytest.approx(value)) for step, _, value in curve]
    for name in "leader_return_greedy follower_return_greedy stackelberg_value leader_regret follower_regret".split():
        assert charts[f"charts/{name}"] == [(result["global_step"], pytest.approx(result[name], abs=1e-6))]
    assert all(tag.startswith(("charts/", "losses/")) for tag in charts)
    assert result["steps_per_second"] == pytest.approx(result["global_step"] / result["wall_seconds"])
    assert re.search("^(a|NOT a) Stackelberg equilibrium with the seller as leader$", printed, re.MULTILINE)
    for name, words in (("leader_return_greedy", "per episode, greedy"), ("leader_return", "as it explores")):
        assert f"{result[name]:.2f} {words}" in printed

    # What it saved is evaluated to the same numbers, and filmed.
    saved = ["--stage", "evaluate", "--checkpoint", folder / "model.pt", "--capture-video"]
    again, folder, _ = run(*flags, *saved)
    trained = {"args", "curve", "leader_return", "global_step", "stage_steps", "wall_seconds", "steps_per_second"}
    assert again["leader_return"] is None and again["curve"] == [] and again["global_step"] == 0
    assert not {key for key in again if "deviation" in key}
    assert {key for key in again if again[key] != result[key]} <= trained
    with Image.open(folder / "episode.gif") as video:
        assert video.size == (320, 470) and video.n_frames > 30


@pytest.mark.parametrize("leader", NAMES)
def test_who_plays_whom_in_every_stage(leader, run, monkeypatch):
    """A learner samples from the network that it trains; whom it plays is another, greedy and in the right role."""
    stages, agents, make_agents = {}, {}, atari.make_agents
    monkeypatch.setattr(atari, "make_agents", lambda args: agents.update(make_agents(args)) or agents)
    monkeypatch.setattr(atari, "learn", lambda args, stage, state, log: stages.update({stage.name: stage}))
    monkeypatch.setattr(atari, "report", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(*TINY, "--stage", "all", "--leader", leader)
    assert [*stages] == ["gameplay", "follower", "leader", *atari.VERIFICATIONS]
    opponents = {"follower": "gameplay", "leader": "follower", "trade_deviation": "leader", "deviation": "leader"}
    for name, stage in stages.items():
        learner, opponent = (stage.leader, stage.follower) if name == "leader" else (stage.follower, stage.leader)
        assert stage.agent is agents[name] is learner.agent and not learner.greedy and learner.price is None
        if name == "gameplay":
            assert stage.leader == stage.follower and learner.random_prices and stage.learners == (SELLER, BUYER)
            continue
        assert opponent == atari.Policy(agents[opponents[name]], True, None, name == "follower")
        leads = NAMES.index(leader)
        assert stage.learners == ((leads,) if name == "leader" else (1 - leads,)) and not learner.random_prices


RIGHT = {"leader_price": 0.5, "acceptance_rate": 1.0, "best_response_rate": 0.95, "tie": False}
WRONG = RIGHT | {"best_response_rate": 0.94}
FOUND = {
    "args": {"leader": "seller"},
    "optimal_leader_price": 0.75,
    "leader_prices": {"0.75": 0.95},
    "acceptance_rate": 0.95,
    "best_responses": {"greedy": [RIGHT | {"leader_price": x / 4} for x in range(4)] + [WRONG | {"tie": True}]},
    "trade_deviation_gain": 0.02,
    "trade_deviation_gain_error": 0.01,
    "deviation_gain": 0.2,
    "deviation_gain_error": 0.01,
    "leader_return": 3.5,
    "leader_return_greedy": 3.7,
    "follower_return_greedy": 1.2,
    "stackelberg_value": 3.75,
    "stackelberg_value_error": 0.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "a Stackelberg equilibrium with the seller as leader"),
        ({"leader_prices": {"0.5": 0.06, "0.75": 0.94}}, "NOT a Stackelberg"),
        ({"acceptance_rate": 0.94}, "NOT a Stackelberg"),
        ({"best_responses": {"greedy": [RIGHT, WRONG]}}, "NOT a Stackelberg"),
        ({"best_responses": {"greedy": [RIGHT, WRONG | {"tie": True}]}}, "a Stackelberg equilibrium"),
        ({"trade_deviation_gain": 0.021}, "NOT a Stackelberg"),
        ({"leader_return": None}, "3.70 per episode, greedy\n"),
    ],
)
def test_what_is_called_an_equilibrium(change, words, capsys):
    atari.print_equilibrium({**FOUND, **change})
    printed = capsys.readouterr().out
    assert words in printed and ("\nNOT" in printed) == words.startswith("NOT")
    assert "the optimum of leaders with one price for all trades" in printed


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("atari_trade_*_*.pt")), ids=lambda path: path.stem)
def test_committed_models_are_equilibria(path):
    """In four episodes with starts of their own; benchmark/results/fig2_runs.csv has a hundred of each."""
    leader, seed = path.stem.split("_")[2:]
    flags = ["--num-envs", 4, "--seed", 1000 + int(seed), "--eval-episodes", 4]
    args = parse("--stage", "evaluate", "--leader", leader, "--checkpoint", path, *flags)
    agents, emulators = atari.make_agents(args), atari.Emulators(args)
    players = atari.Policy(agents["leader"]), atari.Policy(agents["follower"])
    episodes = atari.evaluate(args, emulators, *players, 4)
    offered = np.array([offer[NAMES.index(leader)] for e in episodes for offer in e["offered"]])
    assert (offered == (3 if leader == "seller" else 1)).mean() >= 0.95
    assert np.mean([sold for e in episodes for sold in e["accepted"]]) >= 0.95
    aim = atari.measure_aim(args, emulators, *players)
    # 20 bullets tell a value of 0.97 from 0.75, but not from 1.
    assert 0.06 < aim["bullet_values"][SELLER] <= 0.1 + 1e-6 and 0.8 < aim["bullet_values"][BUYER] <= 1.0
    for row in atari.best_response_table(args, emulators, *players, aim):
        trades = row["leader_price"] < 1 if leader == "seller" else row["leader_price"] > 0
        assert row["acceptance_rate"] == trades


def test_wandb_records_every_point_once(tmp_path):
    """An offline run holds each point of the event file once; the run's own folder holds none of W&B's files."""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    flags = [*TINY, "--num-envs", 1, "--eval-episodes", 1, "--track"]
    flags += ["--follower-timesteps", 400, "--total-timesteps", 800, "--verification-timesteps", 100]
    subprocess.run(command(*flags), cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # the default of --run-dir
    (folder,) = [path for path in tmp_path.glob("runs/*") if path.name != "wandb"]
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"events", "result"}
    points = sum(map(len, scalars(folder).values()))
    names = []
    for record in wandb_records(next(tmp_path.glob("runs/wandb/offline-run-*/*.wandb"))):
        names += [item.key or "/".join(item.nested_key) for item in record.history.item]
    assert points > 60 and sum("charts/" in name or "losses/" in name for name in names) == points


def test_what_every_script_has_is_written_in_the_same_words():
    matrix, own = (blocks_of((ROOT / f"{name}.py").read_text()) for name in ("stackelberg_ppo_matrix", atari.__name__))
    for flag in ("exp_name", "seed", "track", "wandb_project_name", "wandb_entity", "run_dir"):
        assert own[f"Args.{flag}"].strip() == matrix[f"Args.{flag}"].strip(), flag
    # the check of all numbers, but for those that may be 0; the curves; the result
    shared = {
        "Args.__post_init__": ("for flag, value in asdict", "must be positive"),
        "start_run": ("writer.add_text", "writer.add_custom_scalars"),
        "finish": ("with open", "os.replace"),
    }
    for block, (first, last) in shared.items():
        texts = [re.search(rf"[^\n]*{first}.*{last}[^\n]*", blocks[block], re.DOTALL) for blocks in (matrix, own)]
        assert texts[0].group() == texts[1].group()


def test_gameplay_stage_saves_weights_that_load(run):
    result, folder, printed = run("--stage", "gameplay", *TINY)
    parse("--checkpoint", folder / "model.pt")
    assert 0 <= result["aim"]["greedy"]["bullet_values"][SELLER] <= 0.1 + 1e-6
    assert (folder / "model.pt").stat().st_size < 1_500_000
    assert f"{result['aim']['sampled']['hits_per_shot'][SELLER]:.3f} hits per shot of the seller" in printed


@pytest.fixture(scope="module")
def results():
    """(who leads, the numbers) of each run, as `benchmark/run.py fig2` wrote them."""
    with open(ROOT / "benchmark/results/fig2_runs.csv") as file:
        rows = list(csv.DictReader(file))
    return [(row.pop("leader"), {column: float(value) for column, value in row.items() if value}) for row in rows]


def test_the_results_are_the_papers_equilibria(results):
    """0.75 if the seller leads and 0.25 if the buyer does; the follower does not gain by trading otherwise."""
    for name in NAMES:
        assert {row["seed"] for who, row in results if who == name} >= {1, 2, 3}
    for name, row in results:
        assert row["episodes"] >= 100 and row["optimal_leader_price"] == (0.75 if name == "seller" else 0.25)
        assert min(row["share_at_optimum"], row["acceptance_rate"]) >= 0.95
        optimum = 3.75 if name == "seller" else 5 * (row["buyer_bullet_values_greedy"] - 0.25)
        assert row["stackelberg_value"] == pytest.approx(optimum, abs=1e-4)
        assert row["leader_return_greedy"] >= 0.95 * optimum
        assert row["trade_deviation_gain"] <= 2 * row["trade_deviation_gain_error"]


def test_replies_are_best_and_aim_does_not_drift_in_the_results(results):
    """Greedy: in at least 97 % of the cells of run and price, at least 97 % of replies are best."""
    cells = [row[f"best_response_at_{price}_greedy"] for _, row in results for price in atari.PRICES]
    assert np.mean([best >= 0.97 for best in cells]) >= 0.97
    for name in NAMES:
        drops = [row[f"{name}_hits_per_shot_before_greedy"] - row[f"{name}_hits_per_shot_greedy"] for _, row in results]
        assert np.mean(drops) <= 0.02
