"""stackelberg_ppo_atari_trade.py: the trade on the real emulator, learning and resuming."""

import csv
import importlib
import importlib.util
import inspect
import json
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "stackelberg_ppo_atari_trade.py"
CHECKPOINTS = ROOT / "benchmark/checkpoints"
spec = importlib.util.spec_from_file_location("atari_trade", SCRIPT)
atari = importlib.util.module_from_spec(spec)
sys.modules["atari_trade"] = atari
spec.loader.exec_module(atari)
NAMES = ("seller", "buyer")
SELLER, BUYER, GAME, QUERY, TRADE = atari.SELLER, atari.BUYER, atari.GAME, atari.QUERY, atari.TRADE
TINY = (
    "--num-envs 4 --minibatch-size 128 --gameplay-timesteps 2000 --follower-timesteps 1600 --total-timesteps 3200 "
    "--verification-timesteps 800 --eval-episodes 4"
).split()


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
    """The first 18,000 decisions: from a bit more than half of the shots to three in four, in the mean of 3 updates."""
    args = atari.Args(num_threads=1, gameplay_timesteps=18_000)
    torch.manual_seed(1)
    agent, hits, done = atari.Gameplay(), [], 0
    emulators = atari.Emulators(args, **atari.GAMEPLAY_EPISODES)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.gameplay_learning_rate, eps=1e-5)
    while done < args.gameplay_timesteps:
        seeds = atari.episode_seeds(args, "gameplay", args.num_envs, done)
        steps, scalars = atari.update_gameplay(args, agent, emulators, optimizer, seeds, 1.0)
        done += steps
        hits.append(scalars["charts/hits_per_shot"])
    assert np.mean(hits[-3:]) > 0.72 > 0.65 > np.mean(hits[:2])


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


def run_main(monkeypatch, tmp_path, *flags):
    tmp_path.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the default of --run-dir is "runs"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
    atari.main(atari.parse_args())


def wrong_gameplay(path):
    weights = atari.Gameplay().state_dict()
    weights["actor.weight"] = weights["actor.weight"][:, :7]
    torch.save({"gameplay": weights}, path)
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--leader", "nobody"], "nobody"),
        (["--no-such-flag"], "no-such-flag"),
        (["--exp-name", "a/b"], "--exp-name is part"),
        (["--stage", "evaluate", "--trade-checkpoint", "GAMEPLAY"], "--trade-checkpoint"),
        (["--trade-checkpoint", "MODEL", "--stage", "evaluate", "--gameplay-checkpoint", "UNTRAINED"], "with another"),
        (["--num-envs", "0"], "--num-envs must be"),
        (["--gamma", "1.5"], "--gamma must be"),
        (["--learning-rate", "nan"], "--learning-rate must be"),
        (["--total-timesteps", "10"], "--total-timesteps must exceed"),
        (["--max-steps", "50"], "--max-steps is too small"),
        (["--gameplay-checkpoint", "nowhere.pt"], "nowhere.pt: No such file"),
        (["--gameplay-checkpoint", str(SCRIPT)], "is not from this script"),
        (["--gameplay-checkpoint", "OTHER"], "other shapes"),
        (["--stage", "evaluate"], "needs --trade-checkpoint"),
        (["--resume", "nowhere"], "checkpoint.pt: No such file"),
        (["--resume", "nowhere", "--seed", "2"], "drop --seed"),
        (["NO EMULATOR"], "pip install multi-agent-ale-py"),
        (["--resume", "OTHER RUN"], "is not from this script"),
        (["NO ROM"], "pip install --force-reinstall ale-py"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(monkeypatch, capsys, tmp_path, flags, message):
    if flags == ["NO EMULATOR"]:
        monkeypatch.setattr(atari, "ALEInterface", None)
        flags = []
    elif flags == ["NO ROM"]:
        monkeypatch.setattr(atari, "get_rom_path", lambda name: None)
        flags = []
    torch.save({"gameplay": atari.Gameplay().state_dict()}, tmp_path / "untrained.pt")
    (tmp_path / "other").mkdir()
    torch.save({"weights": 1}, tmp_path / "other/checkpoint.pt")
    files = {"OTHER": wrong_gameplay(tmp_path / "other.pt"), "UNTRAINED": tmp_path / "untrained.pt"}
    files["OTHER RUN"] = tmp_path / "other"
    files |= {"GAMEPLAY": atari.Args.gameplay_checkpoint, "MODEL": CHECKPOINTS / "atari_trade_seller_1.pt"}
    flags = [files.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, tmp_path, *flags)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and err.count("\n") == 1 and message in err and not out
    assert not (tmp_path / "runs").exists()


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        atari.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{name.replace('_', '-')}" in shown for name in vars(atari.Args()))


def command(run_dir, *flags):
    return [sys.executable, str(SCRIPT), *map(str, flags), *(["--run-dir", str(run_dir)] if run_dir else [])]


def only(run_dir):
    (directory,) = Path(run_dir).iterdir()
    return directory


def test_killed_three_times_and_resumed_ends_with_the_same_bits(tmp_path):
    """All three stages and the verification, from nothing."""
    flags = ["--stage", "all", "--leader", "buyer", "--save-model", *TINY]
    start = time.time()
    subprocess.run(command(tmp_path / "whole", *flags), check=True, capture_output=True)
    duration = time.time() - start
    chance, kills = random.Random(0), 0
    process = subprocess.Popen(command(tmp_path / "killed", *flags), stderr=subprocess.DEVNULL)
    while kills < 3:
        # A process must live long enough to get past its imports, and to save something new.
        while not list((tmp_path / "killed").glob("*/checkpoint.pt")):
            time.sleep(0.05)
        before = (only(tmp_path / "killed") / "checkpoint.pt").stat().st_mtime_ns
        deadline = time.time() + duration
        while time.time() < deadline and process.poll() is None:
            path = only(tmp_path / "killed") / "checkpoint.pt"
            if not path.exists() or path.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.15 * duration))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        process = subprocess.Popen(command(None, "--resume", only(tmp_path / "killed")), stderr=subprocess.DEVNULL)
    assert process.wait() == 0 and kills == 3
    whole, killed = only(tmp_path / "whole"), only(tmp_path / "killed")
    a, b = (torch.load(d / "model.pt") for d in (whole, killed))
    assert a.keys() == b.keys() == {"gameplay", "follower", "leader", "verification", "who_leads", "gameplay_bias"}
    for stage in atari.STAGES[:4]:
        assert a[stage].keys() == b[stage].keys()
        assert all(torch.equal(a[stage][name], b[stage][name]) for name in a[stage])
    results = [json.loads((d / "result.json").read_text()) for d in (whole, killed)]
    for result in results:
        for name in ("args", "wall_seconds", "steps_per_second"):
            del result[name]
    assert results[0] == results[1]
    assert {p.name.split(".")[0] for p in killed.iterdir()} == {"events", "model", "result"}


def test_short_run_of_the_trade_stages_with_a_video(monkeypatch, capsys, tmp_path):
    torch.save({"gameplay": atari.Gameplay().state_dict()}, tmp_path / "gameplay.pt")
    flags = [*TINY, "--leader", "seller", "--gameplay-checkpoint", tmp_path / "gameplay.pt", "--save-model"]
    run_main(monkeypatch, tmp_path, *flags, "--capture-video")
    directory = only(tmp_path / "runs")
    result = json.loads((directory / "result.json").read_text())
    assert result["stackelberg_value"] - result["leader_return"] == pytest.approx(result["leader_regret"])
    assert len(result["best_responses"]) == 5 and result["curve"] and "verification_gain" in result
    assert (directory / "episode.gif").read_bytes()[:3] == b"GIF"
    assert "seller as leader" in capsys.readouterr().out
    # What it saved is evaluated to the same numbers.
    saved = ["--trade-checkpoint", directory / "model.pt", "--gameplay-checkpoint", tmp_path / "gameplay.pt"]
    run_main(monkeypatch, tmp_path / "again", "--stage", "evaluate", *saved, *TINY)
    again = json.loads((only(tmp_path / "again/runs") / "result.json").read_text())
    assert {k: again[k] for k in ("leader_return", "best_responses", "verification_gain")} == {
        k: result[k] for k in ("leader_return", "best_responses", "verification_gain")
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("leader", ["seller", "buyer"])
def test_committed_models_are_equilibria(monkeypatch, tmp_path, leader, seed):
    model = CHECKPOINTS / f"atari_trade_{leader}_{seed}.pt"
    few = ["--eval-episodes", 4, "--num-envs", 4, "--num-threads", 1, "--seed", 1000 + seed]
    run_main(monkeypatch, tmp_path, "--stage", "evaluate", "--trade-checkpoint", model, *few)
    result = json.loads((only(tmp_path / "runs") / "result.json").read_text())
    assert result["args"]["leader"] == leader
    assert result["leader_prices"]["0.75" if leader == "seller" else "0.25"] >= 0.95
    assert result["acceptance_rate"] >= 0.95 and result["verification_gain"] <= 2 * result["verification_gain_error"]
    # 20 bullets tell a value of 0.97 from 0.75, but not from 1.
    assert 0.06 < result["bullet_values"][SELLER] <= 0.1 + 1e-6 and 0.8 < result["bullet_values"][BUYER] <= 1.0
    for row in result["best_responses"]:
        trades = row["leader_price"] < 1 if leader == "seller" else row["leader_price"] > 0
        assert row["acceptance_rate"] == trades


def test_wandb_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    few = ["--eval-episodes", 1, "--num-envs", 1, "--num-threads", 1]
    model = CHECKPOINTS / "atari_trade_seller_1.pt"
    run_main(monkeypatch, tmp_path, "--stage", "evaluate", "--trade-checkpoint", model, *few, "--track")
    assert list(only(tmp_path / "runs").glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_two_runs_of_one_second_have_two_folders(monkeypatch, tmp_path):
    monkeypatch.setattr(atari.time, "time", lambda: 1e9)
    args = atari.Args(run_dir=str(tmp_path))
    assert len({atari.make_folder(args) for _ in range(3)}) == 3


def test_what_every_script_has_is_written_in_the_same_words():
    matrix = importlib.import_module("stackelberg_ppo_matrix")
    for name in ("fail", "parse_args", "write_atomically"):
        assert inspect.getsource(getattr(atari, name)) == inspect.getsource(getattr(matrix, name))


def test_gameplay_stage_saves_weights_that_load(monkeypatch, tmp_path):
    run_main(monkeypatch, tmp_path, "--stage", "gameplay", *TINY)
    directory = only(tmp_path / "runs")
    weights = torch.load(directory / "model.pt")["gameplay"]
    atari.Gameplay().load_state_dict(weights)
    result = json.loads((directory / "result.json").read_text())
    assert 0 < result["bullet_values"][SELLER] <= 0.1 + 1e-6 and (directory / "model.pt").stat().st_size < 8_000_000


@pytest.fixture(scope="module")
def results():
    """One row per committed model, as `benchmark/run.py fig2` wrote it."""
    with open(ROOT / "benchmark/results/fig2_runs.csv") as file:
        return list(csv.DictReader(file))


def test_readme_has_the_table_of_the_results(results):
    readme = (ROOT / "README.md").read_text()
    for row in results:
        number = {name: f"{float(value):.3f}" for name, value in row.items() if name != "leader"}
        values = " / ".join(f"{number[f'{p}_bullet_value']} ± {number[f'{p}_bullet_value_error']}" for p in NAMES)
        cells = [row["leader"], row["seed"], f"{float(row['optimal_leader_price']):.2f}"]
        cells += [f"{float(row[rate]):.0%}" for rate in ("share_at_optimum", "acceptance_rate")]
        cells += [f"{float(row['leader_return']):.2f} ({float(row['stackelberg_value']):.2f})", values]
        cells += [f"{number['buyer_hits_per_shot']} / {number['buyer_hits_per_bullet']}"]
        cells += [f"{row['best_responses_at_5_prices']} of 5"]
        cells += [f"{number['verification_gain']} ± {number['verification_gain_error']}"]
        assert f"| {' | '.join(cells)} |" in readme


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
        assert row["leader_return"] >= (3.5 if name == "seller" else 0.9 * optimum)
        assert row["stackelberg_value"] == pytest.approx(optimum, abs=1e-4)
