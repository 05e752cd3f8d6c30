"""Environment steps per second of the Atari trade: bare emulators, environment, rollout and training loops.

python benchmark/atari_throughput.py [--threads 2] [--seconds 20]
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "stackelberg_ppo_atari_trade.py"
FRAMES = 1000  # of each bare emulator per turn


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
    torch.set_num_threads(1)
    args = atari.Args(num_envs=options.envs, num_threads=options.threads)
    gameplay, agent, trader = atari.Gameplay(), atari.Gameplay(), atari.Trader()
    atari.load(args.gameplay_checkpoint, "--gameplay-checkpoint", {"gameplay": gameplay})
    agent.load_state_dict(gameplay.state_dict())
    trading = atari.Trading(args, gameplay.eval().requires_grad_(False), atari.SELLER)
    game = atari.Emulators(args, **atari.GAMEPLAY_EPISODES)
    rng, turn = np.random.default_rng(0), itertools.count()
    bare = [atari.TradeEnv() for _ in range(options.envs)]
    for env in bare:
        env.reset(seed=0)
        env.buttons[:] = rng.choice((0, 3, 4), 2)

    def run_frames(env):
        """Frames of an emulator, called as fast as Python can: no RAM is read, no image made."""
        for _ in range(FRAMES):
            atari.ale_lib.actMulti(env.ale.obj, *env.addresses[:2])
            if env.ale.game_over():
                env.ale.reset_game()

    def random_play(image, economy, phase, generators):
        actions = torch.stack([torch.randint(n, (len(phase), 2)) for n in (6, 5)], 2)
        return actions, [None] * len(phase)

    def emulators_alone():
        list(game.pool.map(run_frames, bare))
        return FRAMES / atari.FRAME_SKIP * options.envs

    def environment():
        return total_length(trading.emulators.play(random_play, seeds()))

    def rollout():
        act = partial(trading.act, atari.random_leader, trader, atari.BUYER)
        return total_length(trading.emulators.play(act, seeds()))

    def total_length(episodes):
        return sum(episode["length"] for episode in episodes)

    def seeds():
        return atari.episode_seeds(args, "evaluation", options.envs, next(turn))

    def training(module, update):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-5)
        return lambda: update(optimizer, seeds(), 1.0)[0]

    update_trader = partial(atari.update_trader, args, trader, trading, atari.BUYER, atari.random_leader)
    loops = {
        "emulators alone": emulators_alone,
        "environment, random play": environment,
        "rollout of the trades": rollout,
        "trade training loop": training(trader, update_trader),
        "gameplay training loop": training(agent, partial(atari.update_gameplay, args, agent, game)),
    }
    rates, start = {name: [] for name in loops}, time.time()
    # Taken in turns, so that another load on the machine meets all alike.
    while time.time() - start < options.seconds * len(loops):
        for name, loop in loops.items():
            begun = time.time()
            rates[name].append(loop() / (time.time() - begun))
    print(f"{options.envs} emulators, {options.threads} threads; environment steps (decisions of 4 frames) per second:")
    alone = statistics.median(rates["emulators alone"])
    for name, values in rates.items():
        value = statistics.median(values)
        print(f"  {name:<26} {value:8,.0f}  {value / alone:.0%}")


if __name__ == "__main__":
    main()
