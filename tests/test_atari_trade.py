"""stackelberg_ppo_atari_trade.py: the trade on the real emulator, learning and resuming."""

import copy
import importlib
import importlib.util
import inspect
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

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
SELLER, BUYER, GAME, QUERY, TRADE = atari.SELLER, atari.BUYER, atari.GAME, atari.QUERY, atari.TRADE
TINY = (
    "--num-envs 4 --num-steps 32 --minibatch-size 128 --gameplay-timesteps 1000 --follower-timesteps 1600 "
    "--total-timesteps 3200 --verification-timesteps 800 --batch-episodes 2 --eval-episodes 4 --checkpoint-interval 1"
).split()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


class Spy:
    """Stands between an environment and its emulator and keeps the books on its own."""

    def __init__(self, env):
        self.env, self.frame, self.scores, self.armed = env, env._frame, [[], []], True
        env._frame = self

    def __call__(self):
        env = self.env
        if hasattr(env, "bullets") and any(env.buttons[p] in (1, 11, 12) and not env.bullets[p] for p in (0, 1)):
            self.armed = False
        self.frame()
        for p in (SELLER, BUYER):
            self.scores[p] += [int(env.scores[p])] if env.scores[p] else []


@pytest.fixture(scope="module")
def spied():
    """Environments and their spies."""
    envs = []
    for trades, leader in ((True, SELLER), (True, BUYER), (False, SELLER)):
        env = atari.TradeEnv(leader=leader, trades=trades, max_start=60 if trades else 400)
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
    spy.scores, spy.armed = [[], []], True
    observation, _ = env.reset(seed=seed)
    spy.scores = [[], []]
    weights = np.array(weights) / sum(weights)
    received, returns, landed, terminated, steps = [0, 0], np.zeros(2), [0, 0], False, 0
    held_before = [list(b) for b in env.bullets]
    while not terminated:
        if steps % hold == 0:
            game = rng.choice(6, 2, p=weights)
        action = np.stack([game, rng.integers(0, 5, 2)], 1)
        phase, frames = env.phase, env.ale.getEpisodeFrameNumber()
        fired_before, given_before = list(env.fired), env.given
        observation, reward, terminated, _, info = env.step(action)
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
                received[SELLER] -= 1
                received[BUYER] += 1
        if phase != GAME:
            assert env.ale.getEpisodeFrameNumber() == frames and env.fired == fired_before
        if env.given > given_before:
            for number in range(given_before, env.given):
                received[SELLER if env.trades else [number in b for b in env.bullets].index(True)] += 1
            assert not env.trades or env.phase == QUERY
        for p in (SELLER, BUYER):
            assert env.fired[p] + len(env.bullets[p]) == received[p]
            assert len(env.bullets[p]) - len(held_before[p]) <= 1 or not env.trades
            assert env.hits[p] <= env.fired[p]
        held_before = [list(b) for b in env.bullets]
        assert env.given == sum(env.fired) + sum(map(len, env.bullets))
        for p, bullet, age in info["hits"]:
            landed[p] += 1
            assert 0 < age < atari.FLIGHT and 0 <= bullet < env.given
        returns += reward
        steps += 1
    assert spy.armed, "fire reached the emulator without a bullet"
    assert env.unknown == 0
    for p in (SELLER, BUYER):
        # The emulator's scores, counted apart: aliens and the saucer are hits, 200 for the other's death is not.
        hits = [s % 200 for s in spy.scores[p] if s % 200]
        assert set(hits) <= {5, 10, 15, 20, 25, 30, 100}
        assert env.hits[p] == len(hits) == landed[p]
    assert env.bonus == sum(s >= 200 for p in (0, 1) for s in spy.scores[p])
    worth = atari.HIT_REWARD if env.trades else (1.0, 1.0)
    expected = [env.hits[SELLER] * worth[0] + env.paid, env.hits[BUYER] * worth[1] - env.paid]
    np.testing.assert_allclose(returns, expected, atol=1e-5)
    assert env.steps <= env.max_steps and (env.given <= env.num_bullets or not env.trades)


def test_bonus_for_the_others_death_is_no_hit(spied):
    """Nobody ever shoots: every score is a bonus, and nothing is earned."""
    env, spy = spied[0]
    env.bullet_interval = (8, 40)
    spy.scores = [[], []]
    for seed in range(12):
        env.reset(seed=seed)
        rewards, terminated = np.zeros(2), False
        while not terminated:
            _, reward, terminated, _, _ = env.step(np.array([[0, 4], [0, 0]]))
            rewards += reward
        assert not rewards.any() and env.hits == [0, 0]
    assert 200 in spy.scores[0] + spy.scores[1], "no death in these episodes: the test has seen nothing"


def random_actions(rng, n):
    return np.stack([rng.integers(0, 6, (n, 2)), rng.integers(0, 5, (n, 2))], -1)


def test_state_is_exact_and_threads_do_not_matter():
    runs = []
    for threads in (1, 2):
        venv = atari.VectorTradeEnv(atari.Args(num_envs=3, num_threads=threads), seed=(5, 5), leader=BUYER)
        venv.reset()
        rng, history = np.random.default_rng(3), []
        for t in range(260):
            if t == 130:
                middle, middle_rng = venv.get_state(), copy.deepcopy(rng)
            venv.step(random_actions(rng, 3))
            history.append((venv.image.copy(), venv.economy.copy(), venv.reward.copy(), venv.done.copy()))
        runs.append(history)
    again = atari.VectorTradeEnv(atari.Args(num_envs=3, num_threads=2), seed=(9, 9), leader=BUYER)
    again.reset()
    again.set_state(middle)
    for t in range(130, 260):
        again.step(random_actions(middle_rng, 3))
        for x, y in zip(runs[0][t], (again.image, again.economy, again.reward, again.done), strict=True):
            assert (x == y).all()
    for a, b in zip(*runs, strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("leader", [SELLER, BUYER])
def test_credit_moves_rewards_within_the_episode_only(leader):
    torch.manual_seed(0)
    args = atari.Args(num_envs=4, num_threads=1, bullet_interval=(5, 10))
    for learner in (leader, 1 - leader):
        policies = atari.ordered(learner, atari.Trader(), atari.random_leader)
        trading = atari.Trading(args, atari.Gameplay(), policies, leader, (1, 2), learner)
        trading.venv.reset()
        finished = []
        while len(finished) < 6:
            finished += trading.step()
        for episode in finished:
            assert len(episode["rows"]) == episode["given"]
            assert sum(row[-3] + row[-1] for row in episode["rows"]) == pytest.approx(
                episode["returns"][learner], abs=1e-5
            )


def test_the_leader_is_asked_once_per_trade_and_the_follower_sees_its_answer():
    asked = {SELLER: [], BUYER: []}

    class Recorder:
        def __init__(self, player):
            self.player = player

        def __call__(self, features, economy):
            answer = atari.random_leader(features, economy)
            asked[self.player] += list(zip(economy[:, 5:], answer, strict=True))
            return answer

    args = atari.Args(num_envs=2, num_threads=1)
    trading = atari.Trading(args, atari.Gameplay(), [Recorder(SELLER), Recorder(BUYER)], BUYER, (1, 3))
    trading.venv.reset()
    episodes = []
    while len(episodes) < 2:
        episodes += trading.step()
    assert not any(context.any() for context, _ in asked[BUYER])
    assert [int(c.argmax()) for c, _ in asked[SELLER]] == [int(a) for _, a in asked[BUYER]][: len(asked[SELLER])]


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
    """Trades without an emulator, one episode of every emulator per step. The buyer hits with 97 of 100 bullets."""

    def __init__(self, args, gameplay, policies, leader, seed, learner):
        self.trader, self.learner, self.n = policies[learner], learner, args.num_envs
        self.venv = SimpleNamespace(reset=lambda: None)

    @torch.no_grad()
    def step(self):
        committed = torch.randint(5, (5 * self.n,))
        features, economy = torch.rand(5 * self.n, 256), torch.rand(5 * self.n, 10)
        economy[:, 5:] = F.one_hot(committed, 5)
        answer, logprob = atari.sample(self.trader(features, economy))
        offer = [answer, committed] if self.learner == SELLER else [committed, answer]
        sold = offer[SELLER] <= offer[BUYER]
        payment = torch.tensor(atari.PRICES)[offer[SELLER]] * sold * (1 if self.learner == SELLER else -1)
        held = sold if self.learner == BUYER else ~sold
        hits = held * (torch.rand(len(held)) < 0.97) * float(atari.HIT_REWARD[self.learner])
        columns = features, economy, answer, logprob, payment.tolist(), held.tolist(), hits.tolist()
        rows = list(zip(*columns, strict=True))
        others = {"offered": [[0, 0]], "accepted": [True], "returns": [0, 0], "fired": [1, 1], "hits": [1, 1]}
        return [{"rows": rows[5 * i : 5 * i + 5], **others} for i in range(self.n)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learner", [SELLER, BUYER])
def test_meta_follower_learns_the_best_response_to_every_price(monkeypatch, learner, seed):
    """Among them a refusal of 1.0 for a bullet worth 0.97, in as many updates as the default budget buys."""
    monkeypatch.setattr(atari, "Trading", BanditTrading)
    torch.manual_seed(seed)
    bar = SimpleNamespace(update=lambda steps: None, close=lambda: None)
    run = SimpleNamespace(restore=lambda stage: None, progress_bar=lambda *args: bar, device="cpu", global_step=0)
    run.log, run.save = lambda scalars: None, lambda stage, progress: None
    args, trader = atari.Args(checkpoint_interval=10**9), atari.Trader()
    updates, leader = 45, 1 - learner
    steps = updates * args.num_envs  # here every step ends a batch of episodes
    atari.train_trader(args, run, "follower", None, trader, learner, None, leader, steps, seed)
    with torch.no_grad():
        for price in range(5):
            features, economy = torch.rand(200, 256), torch.rand(200, 10)
            economy[:, 5:] = torch.eye(5)[price]
            answer = atari.greedy(trader)(features, economy)
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
    weights = atari.half(atari.Gameplay())
    weights["actor.weight"] = weights["actor.weight"][:, :7]
    torch.save({"gameplay": weights}, path)
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--leader", "nobody"], "nobody"),
        (["--no-such-flag"], "no-such-flag"),
        (["--exp-name", "a/b"], "--exp-name is part"),
        (["--stage", "evaluate", "--trade-checkpoint", "GAMEPLAY"], "is not a model.pt of this script's trade stages"),
        (["--trade-checkpoint", "MODEL", "--stage", "evaluate", "--gameplay-checkpoint", "UNTRAINED"], "with another"),
        (["--num-envs", "0"], "--num-envs must be"),
        (["--gamma", "1.5"], "--gamma must be"),
        (["--learning-rate", "nan"], "--learning-rate must be"),
        (["--total-timesteps", "10"], "--total-timesteps must exceed"),
        (["--max-steps", "50"], "--max-steps is too small"),
        (["--gameplay-checkpoint", "nowhere.pt"], "nowhere.pt: No such file"),
        (["--gameplay-checkpoint", str(SCRIPT)], "cannot be read"),
        (["--gameplay-checkpoint", "OTHER"], "other shapes"),
        (["--stage", "evaluate"], "needs --trade-checkpoint"),
        (["--resume", "nowhere"], "checkpoint.pt: No such file"),
        (["--resume", "nowhere", "--seed", "2"], "drop --seed"),
        (["NO EMULATOR"], "pip install multi-agent-ale-py"),
        (["NO ROM"], "pip install ale-py"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(monkeypatch, capsys, tmp_path, flags, message):
    if flags == ["NO EMULATOR"]:
        monkeypatch.setattr(atari, "ALEInterface", None)
        flags = []
    elif flags == ["NO ROM"]:
        monkeypatch.setattr(atari, "rom_path", lambda: None)
        flags = []
    torch.save({"gameplay": atari.half(atari.Gameplay())}, tmp_path / "untrained.pt")
    files = {"OTHER": wrong_gameplay(tmp_path / "other.pt"), "UNTRAINED": tmp_path / "untrained.pt"}
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
    assert a["traders"].keys() == b["traders"].keys() == {"follower", "leader", "verification"}
    for x, y in ((a["gameplay"], b["gameplay"]), *((a["traders"][k], b["traders"][k]) for k in a["traders"])):
        assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    results = [json.loads((d / "result.json").read_text()) for d in (whole, killed)]
    for result in results:
        for name in ("args", "wall_seconds", "steps_per_second"):
            del result[name]
    assert results[0] == results[1]
    assert {p.name.split(".")[0] for p in killed.iterdir()} == {"events", "model", "result"}


def test_short_run_of_the_trade_stages_with_a_video(monkeypatch, capsys, tmp_path):
    torch.save({"gameplay": atari.half(atari.Gameplay())}, tmp_path / "gameplay.pt")
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
    assert len({atari.Run(args).path for _ in range(3)}) == 3


def test_what_every_script_has_is_written_in_the_same_words():
    matrix = importlib.import_module("stackelberg_ppo_matrix")
    for name in ("fail", "parse_args", "write_atomically"):
        assert inspect.getsource(getattr(atari, name)) == inspect.getsource(getattr(matrix, name))


def test_gameplay_stage_saves_weights_that_load(monkeypatch, tmp_path):
    run_main(monkeypatch, tmp_path, "--stage", "gameplay", *TINY)
    directory = only(tmp_path / "runs")
    weights = torch.load(directory / "model.pt")["gameplay"]
    atari.load_weights(atari.Gameplay(), weights, "model.pt")
    assert (directory / "model.pt").stat().st_size < 2_000_000
