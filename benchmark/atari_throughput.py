"""Environment steps per second of the Atari trade: bare emulators, environment, rollout and training loop.

python benchmark/atari_throughput.py [--threads 2] [--seconds 20]
"""

import argparse
import importlib.util
import os
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
        return self

    def update(self, steps):
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
    args = atari.Args(num_envs=options.envs, num_threads=options.threads)
    torch.set_num_threads(1)
    gameplay = atari.Gameplay().to(memory_format=torch.channels_last).requires_grad_(False)
    if Path(args.gameplay_checkpoint).is_file():
        weights = torch.load(args.gameplay_checkpoint, weights_only=True)["gameplay"]
        gameplay.load_state_dict({name: tensor.float() for name, tensor in weights.items()})

    def rate(step, steps_per_call: int) -> float:
        calls, start = 0, time.time()
        while time.time() - start < options.seconds:
            step()
            calls += 1
        return calls * steps_per_call / (time.time() - start)

    rng = np.random.default_rng(0)
    venv = atari.VectorTradeEnv(args, seed=(0, 0), leader=atari.SELLER)
    venv.reset()

    def bare_chunk(chunk):
        for i in chunk:
            ale = venv.envs[i].ale
            for _ in range(4):
                ale.act(buttons[i])
            if ale.game_over():
                ale.reset_game()

    buttons = rng.choice((0, 3, 4), (options.envs, 2)).astype(np.intc)
    bare = rate(lambda: list(venv.pool.map(bare_chunk, venv.chunks)), options.envs)
    venv.reset()

    def random_action():
        game, trade = rng.integers(0, 6, (options.envs, 2)), rng.integers(0, 5, (options.envs, 2))
        venv.step(np.stack([game, trade], -1))

    environment = rate(random_action, options.envs)
    trading = atari.Trading(args, gameplay, [atari.Trader(), atari.fixed(3)], atari.BUYER, (0, 0), learner=atari.SELLER)
    trading.venv.reset()
    rollout = rate(trading.step, options.envs)
    silent = Silent(2 * options.seconds)
    torch.set_num_threads(options.threads)
    try:
        atari.train_gameplay(args, silent, atari.Gameplay().to(memory_format=torch.channels_last))
    except TimeoutError:
        training = silent.global_step / (time.time() - silent.start)
    print(f"{options.envs} emulators, {options.threads} threads; environment steps (decisions of 4 frames) per second:")
    print(f"  emulators alone            {bare:8,.0f}")
    print(f"  environment, random play   {environment:8,.0f}  {environment / bare:.0%}")
    print(f"  rollout of the trades      {rollout:8,.0f}  {rollout / bare:.0%}")
    print(f"  gameplay training loop     {training:8,.0f}  {training / bare:.0%}")


if __name__ == "__main__":
    main()
