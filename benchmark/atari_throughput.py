"""Where the time of the Atari trade goes, on one thread, and beside CleanRL's recipe on the same game.

    python benchmark/atari_throughput.py

Environment steps per second of emulators, environment, acting and training, and rows learned from per second. A row is
a decision of one player that its network learns from. The recipe is that of CleanRL's ppo_pettingzoo_ma_atari.py: both
players from one Nature CNN on 84 x 84 x 6, 16 rows a step, 128 steps an update, 4 passes over 4 minibatches; here on
our bare emulators, which are faster than PettingZoo's. All are taken in turns, so that another load on the machine
meets all alike; what is printed are medians. A step is a decision of both players, 4 frames.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import tyro
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))

import stackelberg_ppo_atari_trade as atari

FRAMES = 1000  # of each bare emulator per turn


@dataclass
class Args:
    envs: int = 16
    """emulators; the recipe has half as many, with two rows each"""
    seconds: float = 20.0
    """seconds for each of the measurements"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"--{flag} must be positive, got {value}")


class RandomPolicy:
    """Acts without a network."""

    def act(self, image, economy, noise) -> atari.Transition:
        is_trade = economy[:, atari.PENDING] > 0
        action = torch.where(is_trade, noise[:, 6:].argmax(1), noise[:, :6].argmax(1))
        return atari.Transition(image, economy, is_trade, action, noise[:, 0], noise[:, :2])


# A turn of each measurement returns environment steps and rows learned from.
Turn = Callable[[], tuple[float, float]]


def bare_emulators(num_envs: int) -> Turn:
    """Runs emulators as fast as Python can call them: no observation is made."""
    emulators = [atari.Emulator() for _ in range(num_envs)]

    def turn():
        for emulator in emulators:
            for frame in range(FRAMES):
                emulator.frame((3, 4) if frame // 16 % 2 else (4, 3))
                if emulator.game_over():
                    emulator.reset()
        return FRAMES / atari.FRAME_SKIP * num_envs, 0

    return turn


def count_rows(args: atari.Args) -> Callable[[], float]:
    """Lets `ppo_loss` count rows that actions are learned from; returns a function that returns and resets the count.

    All trades of an update are in each of its minibatches, and count once a pass.
    """
    counted, ppo_loss = [], atari.ppo_loss

    def counting_loss(args, stage, rows, *rest):
        counted.append((int((~rows.is_trade).sum()), int(rows.is_trade.sum())))
        return ppo_loss(args, stage, rows, *rest)

    def take():
        game, trades = sum(game for game, _ in counted), max((trades for _, trades in counted), default=0)
        counted.clear()
        return game / args.update_epochs + trades

    atari.ppo_loss = counting_loss
    return take


def our_loops(num_envs: int) -> dict[str, Turn]:
    """Environment, acting and training, in stages 1 and 2."""
    args = atari.Args(num_envs=num_envs)
    agents, emulators, turns = atari.make_agents(args), atari.Emulators(args), itertools.count()
    rows_learned = count_rows(args)

    def rollout(leader, follower) -> Turn:
        def turn():
            seeds = atari.episode_seeds(args, "evaluation", num_envs, next(turns))
            return sum(episode["length"] for episode in emulators.play(leader, follower, seeds)), 0

        return turn

    def training(stage: atari.Stage) -> Turn:
        groups = [{"params": [*stage.agent.parameters()], "kl_coef": 0.0}]
        optimizer = torch.optim.Adam(groups, lr=1e-5)

        def turn():
            seeds = atari.episode_seeds(args, "evaluation", num_envs, next(turns))
            steps, _ = atari.update(args, stage, optimizer, seeds, 1.0)
            return steps, rows_learned()

        return turn

    gameplay, learner = (atari.Policy(agents["gameplay"], greedy=False, random_prices=x) for x in (True, False))
    frozen, more_bullets = gameplay._replace(greedy=True), atari.Emulators(args, **atari.GAMEPLAY_EPISODES)
    both, buyer = (atari.SELLER, atari.BUYER), (atari.BUYER,)
    aiming = atari.Stage("gameplay", 0, agents["gameplay"], both, more_bullets, gameplay, gameplay)
    following = atari.Stage("follower", 0, agents["gameplay"], buyer, emulators, frozen, learner)
    return {
        "emulators alone": bare_emulators(num_envs),
        "environment, random play": rollout(RandomPolicy(), RandomPolicy()),
        "rollout": rollout(frozen, learner),
        "stage 2 or 3": training(following),
        "stage 1": training(aiming),
    }


def cleanrl_recipe(num_envs: int) -> Turn:
    """Rollouts and updates as in CleanRL's ppo_pettingzoo_ma_atari.py, with its settings; no bullets, no trades."""
    num_steps, num_minibatches, update_epochs, gamma, gae_lambda = 128, 4, 4, 0.99, 0.95
    emulators = [atari.Emulator() for _ in range(num_envs)]
    convolutions = (
        nn.Conv2d(6, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
    )
    body = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU())
    actor, critic = nn.Linear(512, len(atari.GAME_ACTIONS)), nn.Linear(512, 1)
    parameters = [*body.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2.5e-4, eps=1e-5)
    frames = np.zeros((num_envs, 4, 84, 84), np.uint8)

    def observe() -> torch.Tensor:
        """Adds the flicker-free, resized screens; returns [2 x envs, 6, 84, 84]: 4 frames, and who is looking."""
        frames[:, :-1] = frames[:, 1:]
        for k, emulator in enumerate(emulators):
            screen = Image.fromarray(np.maximum(*emulator.screens))
            frames[k, -1] = np.asarray(screen.resize((84, 84), Image.Resampling.BILINEAR))
        observation = torch.zeros((num_envs, 2, 6, 84, 84))
        observation[:, :, :4] = torch.from_numpy(frames)[:, None]
        for player in (atari.SELLER, atari.BUYER):
            observation[:, player, 4 + player] = 255.0
        return observation.flatten(0, 1)

    def act(observation: torch.Tensor):
        hidden = body(observation / 255.0)
        return torch.distributions.Categorical(logits=actor(hidden)), critic(hidden).squeeze(1)

    def turn():
        shape = (num_steps, 2 * num_envs)
        observations = torch.zeros((*shape, 6, 84, 84))
        actions = torch.zeros(shape, dtype=torch.int64)
        logprobs, rewards, dones, values = torch.zeros((4, *shape))
        for step in range(num_steps):
            observations[step] = observe()
            with torch.no_grad():
                distribution, values[step] = act(observations[step])
                actions[step] = distribution.sample()
                logprobs[step] = distribution.log_prob(actions[step])
            for k, emulator in enumerate(emulators):
                buttons = [atari.GAME_ACTIONS[a] for a in actions[step, 2 * k : 2 * k + 2]]
                for frame in range(atari.FRAME_SKIP):
                    emulator.frame(buttons, screen=frame % 2 if frame >= atari.FRAME_SKIP - 2 else None)
                    rewards[step, 2 * k : 2 * k + 2] += torch.from_numpy(np.sign(emulator.scores))
                if emulator.game_over():
                    dones[step, 2 * k : 2 * k + 2] = 1.0
                    emulator.reset()

        with torch.no_grad():
            _, next_value = act(observe())
        advantages, last = torch.zeros(shape), torch.zeros(2 * num_envs)
        for step in reversed(range(num_steps)):
            delta = rewards[step] + gamma * (1 - dones[step]) * next_value - values[step]
            last = delta + gamma * gae_lambda * (1 - dones[step]) * last
            advantages[step], next_value = last, values[step]
        returns = advantages + values
        b_obs, *batch = (x.flatten(0, 1) for x in (observations, actions, logprobs, advantages, returns, values))
        for _ in range(update_epochs):
            for index in torch.randperm(len(b_obs)).chunk(num_minibatches):
                action, old_logprob, advantage, return_, old_value = (x[index] for x in batch)
                distribution, value = act(b_obs[index])
                ratio = (distribution.log_prob(action) - old_logprob).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.9, 1.1)).mean()
                clipped_value = old_value + (value - old_value).clamp(-0.1, 0.1)
                value_loss = 0.5 * torch.max((value - return_) ** 2, (clipped_value - return_) ** 2).mean()
                loss = policy_loss - 0.01 * distribution.entropy().mean() + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        return num_steps * num_envs, num_steps * 2 * num_envs

    return turn


def main(args: Args) -> None:
    """Measures all in turns, and prints what they do per second."""
    torch.set_num_threads(1)
    loops = our_loops(args.envs) | {"CleanRL's recipe": cleanrl_recipe(max(args.envs // 2, 1))}
    rates, spent = {name: [] for name in loops}, dict.fromkeys(loops, 0.0)
    while min(spent.values()) < args.seconds:
        for name, turn in loops.items():
            if spent[name] < args.seconds:
                start = time.perf_counter()
                steps, rows = turn()
                seconds = time.perf_counter() - start
                spent[name] += seconds
                rates[name].append((steps / seconds, rows / seconds))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in rates.items()
    }
    reference = medians["CleanRL's recipe"][1]
    print(f"{args.envs} emulators, one thread, per second:{'environment steps':>20}{'rows learned from':>20}")
    for name, (steps, rows) in medians.items():
        times = f"{rows:20,.0f}   {rows / reference:.1f} times CleanRL's recipe" if rows else ""
        print(f"  {name:<36}{steps:>20,.0f}{times}")
    environment, rollout, training = (
        1 / medians[name][0] for name in ("environment, random play", "rollout", "stage 2 or 3")
    )
    shares = environment / training, (rollout - environment) / training, 1 - rollout / training
    print("  time of stages 2 and 3: environment {:.0%}, acting {:.0%}, update {:.0%}".format(*shares))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
