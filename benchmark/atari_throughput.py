"""Environment steps per second of the Atari trade: bare emulators, environment, rollout and training loops.

python benchmark/atari_throughput.py [--threads 2] [--seconds 20]
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "stackelberg_ppo_atari_trade.py"


class Silent:
    """Stands in for a run's folder: counts steps, and stops the training loop when the time is over."""

    def __init__(self, seconds: float):
        self.global_step, self.start, self.seconds, self.device = 0, time.time(), seconds, torch.device("cpu")

    def restore(self, stage):
        return None

    def progress_bar(self, stage, total, done):
        self.start = time.time()  # the emulators have been made
        return self

    def update(self, steps):
        pass

    def save(self, stage, progress):
        pass

    def log(self, scalars):
        if time.time() - self.start > self.seconds:
            raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8), help="threads for the emulators")
    parser.add_argument("--envs", type=int, default=16, help="emulators")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per measurement")
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("atari_trade", SCRIPT)
    atari = importlib.util.module_from_spec(spec)
    sys.modules["atari_trade"] = atari
    spec.loader.exec_module(atari)
    args = atari.Args(num_envs=options.envs, num_threads=options.threads, checkpoint_interval=10**9)
    torch.set_num_threads(1)
    gameplay = atari.Gameplay().requires_grad_(False)
    weights = torch.load(args.gameplay_checkpoint, weights_only=True)["gameplay"]
    atari.load_weights(gameplay, weights, args.gameplay_checkpoint)

    rng = np.random.default_rng(0)
    bare_venv, venv = (atari.VectorTradeEnv(args, seed=(0, 0), leader=atari.SELLER) for _ in range(2))
    trading = atari.Trading(args, gameplay, [atari.Trader(), atari.fixed(3)], atari.BUYER, (0, 0), learner=atari.SELLER)
    for v in (bare_venv, venv, trading.venv):
        v.reset()

    for env in bare_venv.envs:
        env.buttons[:] = rng.choice((0, 3, 4), 2)

    def bare_chunk(chunk):
        """Four frames of each emulator, called as fast as Python can: no RAM is read, no image made."""
        for env in bare_venv.envs[chunk]:
            for _ in range(4):
                atari.ale_lib.actMulti(env.ale.obj, *env.addresses[:2])
            if env.ale.game_over():
                env.ale.reset_game()

    def bare():
        list(bare_venv.pool.map(bare_chunk, bare_venv.chunks))

    def environment():
        game, trade = rng.integers(0, 6, (options.envs, 2)), rng.integers(0, 5, (options.envs, 2))
        venv.step(np.stack([game, trade], -1))

    def rate(step) -> float:
        calls, start = 0, time.time()
        while time.time() - start < 1.0:
            step()
            calls += 1
        return calls * options.envs / (time.time() - start)

    # Taken in turns, a second each, so that another load on the machine meets all three alike.
    turns = [[rate(step) for step in (bare, environment, trading.step)] for _ in range(round(options.seconds))]
    bare_rate, environment_rate, rollout_rate = map(statistics.median, zip(*turns, strict=True))

    def training(train, *arguments) -> float:
        silent = Silent(options.seconds)
        with contextlib.suppress(TimeoutError):
            train(args, silent, *arguments)
        return silent.global_step / (time.time() - silent.start)

    trader, seller, buyer = atari.Trader(), atari.SELLER, atari.BUYER
    policy = atari.random_leader
    trades = training(atari.train_trader, "follower", gameplay, trader, buyer, policy, seller, 10**9, (0, 0))
    game = training(atari.train_gameplay, atari.Gameplay().to(memory_format=torch.channels_last))
    print(f"{options.envs} emulators, {options.threads} threads; environment steps (decisions of 4 frames) per second:")
    rates = {"emulators alone": bare_rate, "environment, random play": environment_rate}
    rates |= {"rollout of the trades": rollout_rate, "trade training loop": trades, "gameplay training loop": game}
    for name, value in rates.items():
        print(f"  {name:<26} {value:8,.0f}  {value / bare_rate:.0%}")


if __name__ == "__main__":
    main()
