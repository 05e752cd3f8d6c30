"""Environment steps per second of the Atari trade: bare emulators, environment, rollout and training loops.

    python benchmark/atari_throughput.py --threads 2

They are taken in turns, so that another load on the machine meets all alike; what is printed are medians. A step of the
environment is a decision of both players, 4 frames.
"""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.append(str(Path(__file__).resolve().parent.parent))

import stackelberg_ppo_atari_trade as atari

FRAMES = 1000  # of each bare emulator per turn


@dataclass
class Args:
    threads: int = min(os.cpu_count() or 1, 8)
    """threads that step the emulators"""
    envs: int = 16
    """emulators"""
    seconds: float = 20.0
    """seconds for each of the five measurements"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"--{flag} must be positive, got {value}")


def bare_emulators(num_envs: int, pool) -> Callable[[], float]:
    """Returns a function that runs emulators as fast as Python can call them, and returns their steps: no RAM is read,
    no image made."""
    envs = [atari.TradeEnv() for _ in range(num_envs)]
    rng = np.random.default_rng(0)
    for env in envs:
        env.reset(seed=0)
        env.buttons[:] = rng.choice((0, 3, 4), 2)

    def run_frames(env):
        for _ in range(FRAMES):
            atari.ale_lib.actMulti(env.ale.obj, *env.addresses[:2])
            if env.ale.game_over():
                env.ale.reset_game()

    def run_all():
        list(pool.map(run_frames, envs))
        return FRAMES / atari.FRAME_SKIP * num_envs

    return run_all


def random_play(image, economy, phase, generators) -> tuple[torch.Tensor, list]:
    """Returns random actions [envs, 2, 2], and no rows to keep."""
    actions = torch.stack([torch.randint(n, (len(phase), 2)) for n in (6, 5)], 2)
    return actions, [None] * len(phase)


def make_loops(args: Args) -> dict[str, Callable[[], float]]:
    """Returns what is measured: functions that do a turn's work and return its steps."""
    flags = atari.Args(num_envs=args.envs, num_threads=args.threads)
    gameplay, agent, trader = atari.Gameplay(), atari.Gameplay(), atari.Trader()
    atari.load(flags.gameplay_checkpoint, {"gameplay": gameplay})
    agent.load_state_dict(gameplay.state_dict())
    trading = atari.Trading(flags, gameplay.eval().requires_grad_(False), atari.SELLER)
    game = atari.Emulators(flags, **atari.GAMEPLAY_EPISODES)
    turn = itertools.count()

    def seeds():
        return atari.episode_seeds(flags, "evaluation", args.envs, next(turn))

    def rollout(act):
        return sum(episode["length"] for episode in trading.emulators.play(act, seeds()))

    def training(module, update):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-5)
        return lambda: update(optimizer, seeds(), 1.0)[0]

    update_trader = partial(atari.update_trader, flags, trader, trading, atari.BUYER, atari.random_leader)
    return {
        "emulators alone": bare_emulators(args.envs, game.pool),
        "environment, random play": lambda: rollout(random_play),
        "rollout of the trades": lambda: rollout(partial(trading.act, atari.random_leader, trader, atari.BUYER)),
        "trade training loop": training(trader, update_trader),
        "gameplay training loop": training(agent, partial(atari.update_gameplay, flags, agent, game)),
    }


def main(args: Args) -> None:
    """Measures all loops in turns, and prints what they do per second."""
    torch.set_num_threads(1)
    loops = make_loops(args)
    rates, start = {name: [] for name in loops}, time.time()
    while time.time() - start < args.seconds * len(loops):
        for name, loop in loops.items():
            begun = time.time()
            rates[name].append(loop() / (time.time() - begun))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{args.envs} emulators, {args.threads} threads: environment steps per second, share of the emulators' own")
    for name, rate in medians.items():
        print(f"  {name:<26} {rate:8,.0f}  {rate / medians['emulators alone']:.0%}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
