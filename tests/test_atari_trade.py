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
from functools import partial
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
TINY = "--num-envs 2 --num-threads 1 --max-steps 120 --bullet-interval 4 20 --gameplay-timesteps 800"
TINY += " --follower-timesteps 800 --total-timesteps 1600 --verification-timesteps 500 --eval-episodes 2"
TINY = TINY.split()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


class Spy:
    """Stands between an environment and its emulator and keeps the books on its own."""

    def __init__(self, env):
        self.env, self.frame = env, env._frame
        self.forget()
        env._frame = self

    def forget(self):
        self.scores, self.armed, self.shots = [[], []], True, 0

    def __call__(self):
        env = self.env
        if hasattr(env, "bullets") and any(env.buttons[p] in (1, 11, 12) and not env.bullets[p] for p in (0, 1)):
            self.armed = False
        self.frame()
        # A missile is at y = 85 in the frame of its launch only.
        self.shots += sum(int(env.ram[atari.RAM_MISSILE_Y + slot]) == 85 for slot in (0, 1))
        for p in (SELLER, BUYER):
            self.scores[p] += [int(env.scores[p])] if env.scores[p] else []


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
        phase, frames = env.phase, env.ale.getEpisodeFrameNumber()
        fired_before, hits_before, given_before = list(env.fired), list(env.hits), env.given
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation) and env.action_space.contains(action)
        if phase == QUERY:
            assert not reward.any() and env.phase == TRADE
            assert env.committed == action[env.leader, 1]
            context = observation["economy"][:, 5:]
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
            assert env.ale.getEpisodeFrameNumber() == frames and env.fired == fired_before
        if env.given > given_before:
            received[SELLER] += 1
            assert env.phase == QUERY and env.given == given_before + 1
        for p in (SELLER, BUYER):
            assert env.fired[p] + env.bullets[p] == received[p]
            assert env.bullets[p] - held_before[p] <= 1
            assert env.hits[p] <= env.fired[p]
        held_before = list(env.bullets)
        assert env.given == sum(env.fired) + sum(env.bullets) == sum(received)
        for _, decision in env.landed[sum(hits_before) :]:
            assert 0 < env.steps - 1 - decision < 24  # a missile flies for 84 frames at most
        returns += reward
        steps += 1
    assert spy.armed, "fire reached the emulator without a bullet"
    assert spy.shots == sum(env.fired), "a shot was not paid for with a bullet"
    for p in (SELLER, BUYER):
        # The emulator's scores, counted apart: aliens and the saucer are hits, 200 for the other's death is not.
        hits = [s % 200 for s in spy.scores[p] if s % 200]
        assert set(hits) <= {5, 10, 15, 20, 25, 30, 100}
        assert env.hits[p] == len(hits) == sum(player == p for player, _ in env.landed)
    expected = [env.hits[SELLER] * 0.1 + paid, env.hits[BUYER] * 1.0 - paid]
    np.testing.assert_allclose(returns, expected, atol=1e-5)
    assert info["episode"]["returns"] == pytest.approx(returns.tolist(), abs=1e-5)
    assert info["episode"]["bullets"] == env.bullets
    assert env.length == steps == env.steps + 2 * len(env.offered)
    assert env.steps <= env.max_steps and env.given <= env.num_bullets


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


def by_observation(image, economy, phase, generators):
    """Actions that vary with what is seen, and rows that say what was."""
    seen = image.flatten(2).sum(2) + (100 * economy).sum(2).long()
    return torch.stack([seen % 6, seen % 5], 2), list(zip(seen.tolist(), phase.tolist(), strict=True))


def test_an_episode_depends_on_its_seed_alone():
    """Not on the threads, on what the emulator played before, or on the other episodes."""
    seeds = np.arange(100, 106)
    alone = atari.Emulators(atari.Args(num_envs=1, num_threads=1), leader=BUYER)
    expected = [episode for seed in seeds for episode in alone.play(by_observation, seeds[seeds == seed])]
    together = atari.Emulators(atari.Args(num_envs=6, num_threads=2), leader=BUYER)
    for _ in range(2):
        assert together.play(by_observation, seeds) == expected
    assert len({repr(episode) for episode in expected}) == 6


def test_generalized_advantages_are_the_sum_of_discounted_errors():
    args, reward, value = atari.Args(gamma=0.9, gae_lambda=0.7), torch.rand(6, 2), torch.rand(6, 2)
    after = torch.cat([value[1:], torch.zeros(1, 2)])
    error = reward + 0.9 * after - value
    expected = torch.stack([sum((0.9 * 0.7) ** k * error[t + k] for k in range(6 - t)) for t in range(6)])
    torch.testing.assert_close(atari.generalized_advantages(args, reward, value), expected)


def test_gameplay_learns_to_aim():
    """The first 13,000 decisions: from a bit more than half of the shots to over 70 %, in the mean of 4 updates."""
    args = atari.Args(num_threads=1, num_envs=8, gameplay_timesteps=13_000)
    torch.manual_seed(1)
    agent, hits, done = atari.Gameplay(), [], 0
    emulators = atari.Emulators(args, **atari.GAMEPLAY_EPISODES)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.gameplay_learning_rate, eps=1e-5)
    while done < args.gameplay_timesteps:
        seeds = atari.episode_seeds(args, "gameplay", args.num_envs, done)
        steps, scalars = atari.update_gameplay(args, agent, emulators, optimizer, seeds, 1.0)
        done += steps
        hits.append(scalars["charts/hits_per_shot"])
    assert np.mean(hits[-4:]) > 0.7 > 0.63 > np.mean(hits[:2])


@pytest.mark.parametrize("leader", [SELLER, BUYER])
def test_trade_rewards_add_up_to_the_returns(leader):
    torch.manual_seed(0)
    args = atari.Args(num_envs=6, num_threads=1, bullet_interval=(5, 10))
    trading = atari.Trading(args, atari.Gameplay().eval(), leader)
    for learner in (leader, 1 - leader):
        trader = atari.Trader()
        policies = (trader, atari.random_leader) if learner == leader else (atari.random_leader, trader)
        episodes = trading.emulators.play(partial(trading.act, *policies, learner), np.arange(6))
        assert all(len(episode["rows"]) == episode["given"] == 5 for episode in episodes)
        reward = atari.trade_rewards(trader, episodes, learner)
        assert reward.sum().item() == pytest.approx(sum(e["returns"][learner] for e in episodes), abs=1e-4)
        assert trader.bullets == sum(e["fired"][learner] + e["bullets"][learner] for e in episodes)


def test_the_leader_is_asked_once_per_trade_and_the_follower_sees_its_answer():
    asked = {SELLER: [], BUYER: []}

    def recorder(player):
        def policy(features, economy):
            answer = torch.randint(5, (len(features),))
            asked[player] += list(zip(economy[:, 5:], answer.tolist(), strict=True))
            return atari.CERTAIN * F.one_hot(answer, 5).float()

        return policy

    trading = atari.Trading(atari.Args(num_envs=2, num_threads=1), atari.Gameplay().eval(), BUYER)
    episodes = trading.evaluate(recorder(BUYER), recorder(SELLER), 2)
    assert len(asked[BUYER]) == len(asked[SELLER]) == sum(e["given"] for e in episodes) == 10
    assert not any(context.any() for context, _ in asked[BUYER])
    assert sorted(int(c.argmax()) for c, _ in asked[SELLER]) == sorted(a for _, a in asked[BUYER])
    offered = [offer for e in episodes for offer in e["offered"]]
    assert sorted(offered) == sorted([a, int(c.argmax())] for c, a in asked[SELLER])


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


def test_advantages_are_normalised_within_each_price():
    context = torch.eye(5)[torch.tensor([0, 0, 0, 4, 4, 4, 4, 2])]
    reward = torch.tensor([0.97, 0.97, -1.0, -0.03, 0.0, -0.03, 0.0, 0.5])
    advantage = atari.standardise(reward, context)
    assert advantage[3:7].tolist() == pytest.approx([-1, 1, -1, 1], abs=0.02)
    assert advantage[:3].mean().item() == pytest.approx(0, abs=1e-6) and advantage[7] == 0
    assert (
        atari.standardise(torch.full((50,), 0.97), torch.zeros(50, 5)).abs().max() < 0.01
    )  # rounding is not amplified


class BanditTrading:
    """Trades without an emulator, against a random leader. The buyer hits with 97 of 100 bullets."""

    def __init__(self, learner):
        self.learner, self.leader, self.emulators, self.act = learner, 1 - learner, self, lambda *policies: None

    @torch.no_grad()
    def play(self, act, seeds):
        trader, learner, n = act.args[1], self.learner, 5 * len(seeds)
        committed, features, economy = torch.randint(5, (n,)), torch.rand(n, 256), torch.rand(n, 10)
        economy[:, 5:] = F.one_hot(committed, 5)
        answer, logprob = atari.sample(trader(features, economy), [torch.Generator().manual_seed(int(seeds[0]))])
        offer = [answer, committed] if learner == SELLER else [committed, answer]
        sold = offer[SELLER] <= offer[BUYER]
        hits = (sold == (learner == BUYER)) & (torch.rand(n) < 0.97)
        rows = list(zip(features, economy, answer, logprob, strict=True))
        counts = {name: [0, 0] for name in ("fired", "bullets", "returns")} | {"steps": 100, "length": 110, "given": 5}
        offered, accepted = torch.stack(offer, 1).tolist(), sold.tolist()
        return [
            {"rows": rows[k : k + 5], "offered": offered[k : k + 5], "accepted": accepted[k : k + 5]}
            | {"hits": [int(hits[k : k + 5].sum())] * 2, **counts}
            for k in range(0, n, 5)
        ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learner", [SELLER, BUYER])
def test_meta_follower_learns_the_best_response_to_every_price(learner, seed):
    """Among them a refusal of 1.0 for a bullet worth 0.97, in as many updates as the default budget buys."""
    torch.manual_seed(seed)
    args, trader, done = atari.Args(), atari.Trader(), 0
    optimizer = torch.optim.Adam(trader.parameters(), lr=args.learning_rate, eps=1e-5)
    while done < args.follower_timesteps:
        left = max(1 - done / args.follower_timesteps, 0.05)
        optimizer.param_groups[0]["lr"] = args.learning_rate * left
        seeds = atari.episode_seeds(atari.Args(seed=seed), "follower", args.num_envs, done)
        atari.update_trader(args, trader, BanditTrading(learner), learner, atari.random_leader, optimizer, seeds, left)
        done += 150 * args.num_envs
    with torch.no_grad():
        for price in range(5):
            features, economy = torch.rand(200, 256), torch.rand(200, 10)
            economy[:, 5:] = torch.eye(5)[price]
            answer = atari.greedy(trader)(features, economy).argmax(1)
            if learner == BUYER:
                assert ((answer >= price) == (price < 4)).all(), price
            else:
                assert (answer == price).all() if price else (answer > 0).all(), price


def parse(*flags):
    """Returns the Args of a command line, as the script's last lines do."""
    flags = [*map(str, flags)]
    defaults, _ = tyro.cli(atari.stored_flags, args=flags, add_help=False, return_unknown_args=True)
    return tyro.cli(atari.Args, args=flags, default=defaults, description=atari.__doc__)


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
    (folder / "lock").touch()
    state = {"args": asdict(flags), "fingerprint": atari.fingerprint(flags), "stages": {}}
    torch.save({**state, "global_step": 0, "seconds": 0.0, "curve": [], **changes}, folder / "checkpoint.pt")
    return folder


def wrong_inputs(tmp_path):
    """name: flags, and words that the error must hold."""
    (tmp_path / "no_model.pt").write_text("no model")
    gameplay = atari.Gameplay().state_dict()
    torch.save({"gameplay": gameplay}, tmp_path / "untrained.pt")
    torch.save({"gameplay": gameplay | {"actor.bias": torch.full((6,), np.nan)}}, tmp_path / "game_of_nans.pt")
    torch.save({"gameplay": gameplay | {"actor.bias": torch.zeros(7)}}, tmp_path / "shape.pt")
    model = torch.load(CHECKPOINTS / "atari_trade_seller_1.pt", weights_only=True)
    torch.save(model, tmp_path / "model.pt")
    torch.save(model | {"who_leads": "nobody"}, tmp_path / "tampered.pt")
    nans = model["follower"] | {"actor.bias": torch.full((5,), np.nan)}
    torch.save(model | {"follower": nans}, tmp_path / "nans.pt")
    for missing in ("who_leads", "gameplay_bias", "leader"):
        torch.save({key: value for key, value in model.items() if key != missing}, tmp_path / f"no_{missing}.pt")

    def trades(name, *flags):
        return ["--stage", "evaluate", "--trade-checkpoint", tmp_path / f"{name}.pt", *flags]

    buyer = parse("--leader", "buyer", "--num-envs", 4)
    older = {flag: value for flag, value in asdict(buyer).items() if flag != "clip_coef"}
    changes = {"buyer": {}, "taken": {}, "odd": {"args": 5}}
    changes |= {"older": {"args": older, "fingerprint": "of the older script"}}
    changes |= {"other": {"args": {"leader": "nobody"}, "fingerprint": "of a script with other leaders"}}
    runs = {name: interrupted_run(tmp_path / name, buyer, **changed) for name, changed in changes.items()}
    for name in ("corrupt", "foreign", "unmarked"):
        runs[name] = interrupted_run(tmp_path / name, buyer)
    (runs["corrupt"] / "checkpoint.pt").write_bytes((runs["buyer"] / "checkpoint.pt").read_bytes()[:300])
    torch.save({"weights": 1}, runs["foreign"] / "checkpoint.pt")
    torch.save({"args": older, "stages": {}, "global_step": 0}, runs["unmarked"] / "checkpoint.pt")
    return {
        "unknown leader": (["--leader", "nobody"], "nobody"),
        "unknown flag": (["--leaning-rate", 1], "Perhaps you meant"),
        "no emulators": (["--num-envs", 0], "--num-envs must be positive, got 0"),
        "NaN": (["--learning-rate", "nan"], "--learning-rate must be positive, got nan"),
        "negative seed": (["--seed", -1], "--seed must be positive"),
        "no leader's steps": (["--total-timesteps", 120_000], "--total-timesteps must exceed"),
        "intervals in disorder": (["--bullet-interval", 9, 8], "--bullet-interval must be"),
        "bullets too late": (["--max-steps", 200], "let all bullets come in time"),
        "no game": (["--gameplay-checkpoint", "nowhere.pt"], "No such file"),
        "a game that is none": (["--gameplay-checkpoint", tmp_path / "no_model.pt"], "does not fit"),
        "a game of other shapes": (["--gameplay-checkpoint", tmp_path / "shape.pt"], "does not fit: Error(s)"),
        "a game of NaNs": (["--gameplay-checkpoint", tmp_path / "game_of_nans.pt"], "its gameplay has weights that"),
        "no trades": (["--stage", "evaluate"], "needs --trade-checkpoint"),
        "missing trades": (trades("nowhere"), "No such file"),
        "corrupt trades": (trades("no_model"), "does not fit"),
        "a game for trades": (trades("untrained"), "does not fit: 'follower'"),
        "trades of NaNs": (trades("nans"), "its follower has weights that are not finite"),
        "tampered who_leads": (trades("tampered"), "who leads: 'nobody'"),
        "missing who_leads": (trades("no_who_leads"), "does not fit: 'who_leads'"),
        "missing gameplay_bias": (trades("no_gameplay_bias"), "does not fit: 'gameplay_bias'"),
        "missing leader": (trades("no_leader"), "does not fit: 'leader'"),
        "another game": (trades("model", "--gameplay-checkpoint", tmp_path / "untrained.pt"), "another gameplay"),
        "no run": (["--resume", "nowhere"], "No such file"),
        "no folder": (["--resume", ""], "cannot resume ''"),
        "no folder at all": (["--resume"], "--resume"),
        "corrupt run": (["--resume", runs["corrupt"]], "cannot resume"),
        "run of another script": (["--resume", runs["other"]], "has changed"),
        "odd run": (["--resume", runs["odd"]], "cannot resume"),
        "foreign run": (["--resume", runs["foreign"]], "cannot resume"),
        "another leader": (["--resume", runs["buyer"], "--leader", "seller"], "--leader is 'buyer' in that run, not"),
        "another default": (["--num-envs", 16, "--resume", runs["buyer"]], "--num-envs is 4 in that run, not 16"),
        "run of an older script": (["--resume", runs["older"]], "the script or its gameplay checkpoint has changed"),
        "run without fingerprint": (["--resume", runs["unmarked"]], "has changed"),
        "run at work": (["--resume", runs["taken"]], "another process is at work on it"),
    }


@pytest.mark.filterwarnings("ignore:The field `leader` is annotated")
def test_wrong_input_ends_in_tyros_box_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = wrong_inputs(tmp_path)
    held = atari.lock(tmp_path / "taken")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, (flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            parse(*flags)
        printed = capsys.readouterr()
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.err).split())
        assert error.value.code == 2 and printed.out == "", name
        assert words in text and "Traceback" not in text, (name, text)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, name
    held.close()
    # those that were refused are in order but for what was said
    for flags in (["--resume", "taken"], ["--resume", "buyer"], ["--resume", "buyer", "--leader", "buyer"]):
        args = parse(*flags)
        assert (args.leader, args.num_envs, args.resume) == ("buyer", 4, flags[1])
        args.lock.close()
    assert parse("--stage", "evaluate", "--trade-checkpoint", "model.pt", "--leader", "buyer").leader == "seller"


def test_a_run_is_not_resumed_with_another_gameplay_network(tmp_path, capsys):
    gameplay = tmp_path / "gameplay.pt"
    torch.save({"gameplay": atari.Gameplay().state_dict()}, gameplay)
    folder = interrupted_run(tmp_path / "run", parse("--gameplay-checkpoint", gameplay))
    parse("--resume", folder).lock.close()
    torch.save({"gameplay": atari.Gameplay().state_dict() | {"actor.bias": torch.ones(6)}}, gameplay)
    with pytest.raises(SystemExit):
        parse("--resume", folder)
    assert "checkpoint has changed" in " ".join(re.sub("│", " ", capsys.readouterr().err).split())


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


def test_killed_three_times_and_resumed_ends_with_the_same_bits(run, tmp_path, capsys):
    """All three stages and the verification, from nothing. While a process is at work, a second one is refused."""
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
        with pytest.raises(SystemExit):
            parse("--resume", checkpoints[0].parent)
        assert "another process is at work on it" in " ".join(re.sub("│", " ", capsys.readouterr().err).split())
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        saved = checkpoints[0].stat().st_mtime_ns
        process = subprocess.Popen(command("--resume", checkpoints[0].parent), stderr=subprocess.DEVNULL)
    assert process.wait() == 0
    killed = checkpoints[0].parent
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed)]
    stages = ("gameplay", "follower", "leader", "verification")
    assert models[0].keys() == models[1].keys() == {*stages, "who_leads", "gameplay_bias"}
    for stage in stages:
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
    torch.save({"gameplay": atari.Gameplay().state_dict()}, tmp_path / "gameplay.pt")
    flags = [*TINY, "--num-envs", 1, "--eval-episodes", 1, "--gameplay-checkpoint", tmp_path / "gameplay.pt"]
    steps = ["--follower-timesteps", 100, "--total-timesteps", 1600, "--verification-timesteps", 100]
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
    assert len(result["best_responses"]) == 5 and result["verification_gain_error"] >= 0
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
    saved = ["--stage", "evaluate", "--trade-checkpoint", folder / "model.pt", "--capture-video"]
    again, folder, _ = run(*flags, *saved)
    trained = {"args", "curve", "leader_return", "global_step", "wall_seconds", "steps_per_second"}
    assert again["leader_return"] is None and again["curve"] == [] and again["global_step"] == 0
    assert {key for key in result if again[key] != result[key]} <= trained
    with Image.open(folder / "episode.gif") as video:
        assert video.size == (520, 420) and video.n_frames > 30


FOUND = {
    "args": {"leader": "seller"},
    "optimal_leader_price": 0.75,
    "leader_prices": {"0.75": 0.95},
    "acceptance_rate": 0.95,
    "best_responses": [{"leader_price": x / 4, "acceptance_rate": x < 4, "best_response_rate": 0.95} for x in range(5)],
    "verification_gain": 0.02,
    "verification_gain_error": 0.01,
    "leader_return": 3.5,
    "leader_return_greedy": 3.7,
    "follower_return_greedy": 1.2,
    "stackelberg_value": 3.75,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "a Stackelberg equilibrium with the seller as leader"),
        ({"leader_prices": {"0.5": 0.06, "0.75": 0.94}}, "NOT a Stackelberg"),
        ({"acceptance_rate": 0.94}, "NOT a Stackelberg"),
        ({"best_responses": [{**FOUND["best_responses"][0], "best_response_rate": 0.94}]}, "NOT a Stackelberg"),
        ({"verification_gain": 0.021}, "NOT a Stackelberg"),
        ({"leader_return": None}, "3.70 per episode, greedy\n"),
    ],
)
def test_what_is_called_an_equilibrium(change, words, capsys):
    atari.print_equilibrium({**FOUND, **change})
    printed = capsys.readouterr().out
    assert words in printed and ("\nNOT" in printed) == words.startswith("NOT")
    assert "the optimum of leaders with one price for all trades" in printed


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("leader", NAMES)
def test_committed_models_are_equilibria(run, leader, seed):
    model = CHECKPOINTS / f"atari_trade_{leader}_{seed}.pt"
    few = ["--eval-episodes", 4, "--num-envs", 4, "--num-threads", 1, "--seed", 1000 + seed]
    result, _, _ = run("--stage", "evaluate", "--trade-checkpoint", model, *few)
    assert result["args"]["leader"] == leader
    assert result["leader_prices"]["0.75" if leader == "seller" else "0.25"] >= 0.95
    assert result["acceptance_rate"] >= 0.95 and result["verification_gain"] <= 2 * result["verification_gain_error"]
    # 20 bullets tell a value of 0.97 from 0.75, but not from 1.
    assert 0.06 < result["bullet_values"][SELLER] <= 0.1 + 1e-6 and 0.8 < result["bullet_values"][BUYER] <= 1.0
    for row in result["best_responses"]:
        trades = row["leader_price"] < 1 if leader == "seller" else row["leader_price"] > 0
        assert row["acceptance_rate"] == trades


def test_wandb_records_every_point_once(tmp_path):
    """An offline run holds each point of the event file once; the run's own folder holds none of W&B's files."""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    flags = [*TINY, "--num-envs", 1, "--eval-episodes", 1, "--track"]
    flags += ["--follower-timesteps", 500, "--total-timesteps", 900, "--verification-timesteps", 100]
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
    weights = torch.load(folder / "model.pt", weights_only=True)["gameplay"]
    atari.Gameplay().load_state_dict(weights)
    parse("--gameplay-checkpoint", folder / "model.pt")
    assert 0 <= result["bullet_values"][SELLER] <= 0.1 + 1e-6 and (folder / "model.pt").stat().st_size < 8_000_000
    assert f"value of a bullet  {result['bullet_values'][SELLER]:.3f} to the seller" in printed


@pytest.fixture(scope="module")
def results():
    """One row per committed model, as `benchmark/run.py fig2` wrote it."""
    with open(ROOT / "benchmark/results/fig2_runs.csv") as file:
        return list(csv.DictReader(file))


def test_the_results_are_the_papers_equilibria(results):
    """0.75 if the seller leads and 0.25 if the buyer does, with a buyer that seldom misses."""
    assert sorted((row["leader"], row["seed"]) for row in results) == [(p, s) for p in sorted(NAMES) for s in "123"]
    for row in results:
        name, row = row.pop("leader"), {column: float(value) for column, value in row.items()}
        assert row["episodes"] >= 100 and row["optimal_leader_price"] == (0.75 if name == "seller" else 0.25)
        assert min(row["share_at_optimum"], row["acceptance_rate"], row["buyer_hits_per_shot"]) >= 0.95
        assert row["buyer_hits_per_bullet"] >= 0.9 and row["best_responses_at_5_prices"] == 5
        assert row["verification_gain"] <= 2 * row["verification_gain_error"]
        optimum = 3.75 if name == "seller" else 5 * (row["buyer_bullet_value"] - 0.25)
        assert row["leader_return_greedy"] >= (3.5 if name == "seller" else 0.9 * optimum)
        assert row["stackelberg_value"] == pytest.approx(optimum, abs=1e-4)
