# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""A follower that learns on instead of from scratch in every episode of the leader's (Figure 6).

Battle of the sexes, a game of one step: both players want to meet, the leader on action 0 (payoffs 2 and 1), the
follower on action 1 (1 and 2). In each of the leader's episodes the follower learns its reply by Q-learning for 10
steps, and then one step is played and rewarded. A policy-gradient leader learns from all 11 steps. At the start of an
episode the follower's Q-table is either reset, so that the episode holds all of its learning (Theorem 1), or kept, to
save time.

    python ablations/continuous_follower.py
    python ablations/continuous_follower.py --learning-rate 0.156

In half a minute you should see that with the table reset the leader gets 2, its largest payoff: no commitment gets
more. With the table kept it gets 1, the follower's choice: while the leader still acts at random, the follower comes to
prefer action 1, and no single episode changes its mind again, so that the leader best-responds to the follower.

The second command is the learning rate that the authors' code names (`bots_pg_tabularq` in mgerstgrasser/
oracles_and_followers, commit e98db77; its search begins at 0.004 to 0.03). The contrast largely goes: such a leader has
settled after 20 to 40 batches, in almost half of the seeds on action 0, because a kept follower stays for a while with
what it happened to try first. With the table reset, some leaders settle on 1 after a few unlucky batches.
"""

import json
import math
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import tyro
from torch.distributions.categorical import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """seed of every random number"""
    track: bool = False
    """track the run with Weights and Biases too"""
    wandb_project_name: str = "stackelberg"
    """project in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    num_seeds: int = 20
    """leaders trained in each arm, side by side; their seeds are seed, seed + 1, ..."""
    arm: Literal["both", "reset", "kept"] = "both"
    """whether the follower's Q-table is reset or kept when an episode of the leader's starts"""
    total_timesteps: int = 110_000
    """environment steps of each leader's training, the follower's learning included"""

    follower_episodes: int = 10
    """episodes (of one step) in which the follower learns, in each of the leader's episodes"""
    follower_step_size: float = 0.1
    """step size of the follower's Q-learning, which begins at 0"""
    follower_noise: float = 0.1
    """standard deviation of the noise on the follower's values while it learns"""

    learning_rate: float = 0.008
    """Adam learning rate of the leader"""
    adam_eps: float = 0.02
    """Adam's epsilon for the leader; equal steps (1e-8) saturate the policy where a weak gradient is mostly noise"""
    batch_size: int = 100
    """environment steps per leader batch, rounded up to complete episodes"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            may_be_zero = flag in ("seed", "adam_eps")
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")

        self.seeds = range(self.seed, self.seed + self.num_seeds)
        self.episode_length = self.follower_episodes + 1
        self.num_episodes = math.ceil(self.batch_size / self.episode_length)  # batches are complete episodes
        self.batch_steps = self.num_episodes * self.episode_length
        self.num_batches = self.total_timesteps // self.batch_steps
        if self.num_batches == 0:
            raise ValueError(f"--total-timesteps must hold a batch of {self.batch_steps} steps")


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix


@dataclass
class Game:
    """A game of one step; payoffs [leader's action, follower's action]."""

    leader_payoff: np.ndarray
    follower_payoff: np.ndarray

    def outcomes(self) -> np.ndarray:
        """Returns the leader's payoff for each of its actions if the follower best-responds, [2]; the best of them is
        the Stackelberg value of deterministic leaders."""
        return self.leader_payoff[np.arange(NUM_ACTIONS), self.follower_payoff.argmax(axis=1)]

    def scale(self) -> float:
        """Returns the payoff that a unit of the leader's reward stands for: a third of the range of its payoffs."""
        return np.ptp(self.leader_payoff).item() / 3 or 1.0


ENV_ID = "battle_of_the_sexes"  # Table 1
GAME = Game(np.array(((2.0, 0.0), (0.0, 1.0))), np.array(((1.0, 0.0), (0.0, 2.0))))


# ------------------------------------------------------------------------------------------------------- the follower
def follower_learns(
    q: np.ndarray, leader_action: np.ndarray, noise: np.ndarray, payoff: np.ndarray, step_size: float
) -> np.ndarray:
    """One learning episode of each seed's follower: tabular Q-learning with parameter noise. The game is one step.

    Updates the action values `q`, [seeds, 2], in place, by the leader's actions [seeds] and the follower's payoffs;
    returns the follower's actions [seeds], the best of the values with `noise` [seeds, 2] on them.
    """
    seeds, action = np.arange(len(q)), (q + noise).argmax(axis=1)
    q[seeds, action] += step_size * (payoff[leader_action, action] - q[seeds, action])
    return action


# ------------------------------------------------------------------------------------------------ the exact solution
def expected_episode(game: Game, leader_action: int, q: np.ndarray, args: Args) -> tuple[float, float, float]:
    """Returns exactly what the leader can expect that plays `leader_action` throughout an episode: its payoff summed
    over the follower's learning, and then both players' payoff in play. The follower begins with the values `q`, [2].

    Against a constant leader each of the follower's actions has one payoff, so that its value depends on how often it
    was tried, and nothing else: a recursion over both counts.
    """
    payoff = game.follower_payoff[leader_action]

    def gap(counts: tuple[int, int]) -> float:
        """Returns by how much the follower prefers action 1 after that many tries of each action."""
        kept = (1 - args.follower_step_size) ** np.array(counts)
        values = kept * q + (1 - kept) * payoff
        return values[1] - values[0]

    reached, while_learning = {(0, 0): 1.0}, 0.0  # the probability of each pair of counts
    for _ in range(args.follower_episodes):
        now, reached = reached, defaultdict(float)
        for counts, probability in now.items():
            action_1 = probability * (1 + math.erf(gap(counts) / (2 * args.follower_noise))) / 2
            reached[counts[0] + 1, counts[1]] += probability - action_1
            reached[counts[0], counts[1] + 1] += action_1
            while_learning += np.dot((probability - action_1, action_1), game.leader_payoff[leader_action])

    played = [sum(p for counts, p in reached.items() if (gap(counts) > 0) == action) for action in (False, True)]
    leader_play, follower_play = np.dot(played, game.leader_payoff[leader_action]), np.dot(played, payoff)
    return float(while_learning), float(leader_play), float(follower_play)


def evaluate(actions: np.ndarray, starts: np.ndarray, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Returns what greedy leaders expect in play, and by how much their followers, who learn a reply from the values
    `starts` [seeds, 2], miss the best one; [seeds] each."""
    expected = [expected_episode(GAME, action, q, args)[1:] for action, q in zip(actions, starts, strict=True)]
    leader_returns, follower_returns = np.array(expected).T
    return leader_returns, GAME.follower_payoff[actions].max(axis=1) - follower_returns


# ---------------------------------------------------------------------------------------------------------- the leader
def draw(rngs: list[np.random.Generator], method: str, *args) -> np.ndarray:
    """Draws from each seed's own generator, so that a seed's run is the same whichever seeds run beside it."""
    return np.stack([getattr(rng, method)(*args) for rng in rngs])


def descend(losses: torch.Tensor, optimizer: torch.optim.Adam, flag: str):
    """A step of Adam on each seed's loss, [seeds]: it works element by element, so no seed depends on another."""
    if not losses.isfinite().all():
        raise SystemExit(f"training diverged: lower {flag}")
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()


def train_leaders(
    leaders: nn.Parameter, follower_q: np.ndarray, reset: bool, args: Args, rngs: list[np.random.Generator], log
) -> None:
    """REINFORCE; the leader samples its action afresh in each step, whether the follower learns or play is rewarded.

    The game shows the leader nothing: it has two logits, [seeds, 2], and the follower two values, [seeds, 2]. Both are
    trained in place; `log(steps, scalars)` is called after each batch, with scalars [seeds].
    """
    optimizer = torch.optim.Adam([leaders], lr=args.learning_rate, eps=args.adam_eps)
    shape = args.num_episodes, args.episode_length
    for batch in tqdm(range(1, args.num_batches + 1), desc="leaders", leave=False, disable=None):
        probs = Categorical(logits=leaders[:, None, None], validate_args=False)
        actions = draw(rngs, "random", shape) < probs.probs[..., 1].detach().numpy()
        actions = actions.astype(np.int64)  # [seeds, episodes, steps]
        noise_shape = args.num_episodes, args.follower_episodes, NUM_ACTIONS
        noise = args.follower_noise * draw(rngs, "standard_normal", noise_shape)
        replies = np.zeros((len(rngs), args.num_episodes), dtype=np.int64)
        for episode in range(args.num_episodes):
            if reset:
                follower_q[:] = 0
            for t in range(args.follower_episodes):
                leader_action, step_noise = actions[:, episode, t], noise[:, episode, t]
                follower_learns(follower_q, leader_action, step_noise, GAME.follower_payoff, args.follower_step_size)
            replies[:, episode] = follower_q.argmax(axis=1)

        # only the last step of an episode has a reward, so it is the return of every step
        returns = GAME.leader_payoff[actions[..., -1], replies]
        log_probs = probs.log_prob(torch.as_tensor(actions))
        losses = -(log_probs * torch.as_tensor(returns).unsqueeze(-1)).mean(dim=(1, 2))
        descend(losses, optimizer, "--learning-rate")

        follower_return = GAME.follower_payoff[actions[..., -1], replies].mean(axis=1)
        scalars = {"charts/leader_return": returns.mean(axis=1), "charts/follower_return": follower_return}
        log(batch * args.batch_steps, scalars | {"losses/policy_loss": losses.detach().numpy()})


NUM_POINTS = 50  # of a curve
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in rewards; also how likely a settled leader's other action may be


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


# ------------------------------------------------------------------------------------------------------------- the run
def start_run(args: Args) -> str:
    """Makes the run's folder and returns it; starts Weights and Biases if asked for."""
    run_name = f"{ENV_ID}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    return f"{args.run_dir}/{run_name}"


def start_writer(path: str, args: Args) -> SummaryWriter:
    """Returns the writer of an arm's curves."""
    writer = SummaryWriter(path)
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return writer


def train_arm(arm: str, args: Args, run_path: str) -> list[dict]:
    """Trains the leaders of one arm and writes their mean curves; returns what result.json says about each."""
    start_time, writer = time.time(), start_writer(f"{run_path}/{arm}", args)
    rngs = [np.random.default_rng(seed) for seed in args.seeds]
    leaders = nn.Parameter(torch.as_tensor(0.01 * draw(rngs, "standard_normal", NUM_ACTIONS)))
    follower_q = np.zeros((args.num_seeds, NUM_ACTIONS))
    optimum = GAME.outcomes().max().item()
    history = []  # after each batch: exploring returns, the leaders' probability of action 1, the followers' values
    curve, recent = [], []  # [step, greedy returns, exploring returns since the last point, the followers' regret]
    points = {math.ceil(i * args.num_batches / NUM_POINTS) for i in range(1, NUM_POINTS + 1)}

    def log(step: int, scalars: dict[str, np.ndarray]):
        recent.append(scalars["charts/leader_return"])
        history.append((recent[-1], leaders.detach().softmax(-1)[:, 1].numpy(), follower_q.copy()))
        if len(history) not in points:
            return
        starts = np.zeros_like(follower_q) if arm == "reset" else follower_q
        greedy, regret = evaluate(leaders.argmax(-1).numpy(), starts, args)
        exploring = sum(recent) / len(recent)  # np.mean could round differently with other seeds beside this one
        curve.append((step, greedy, exploring, regret))
        recent.clear()
        scalars |= {"charts/leader_return": exploring, "charts/leader_return_greedy": greedy}
        scalars |= {"charts/leader_regret": optimum - greedy, "charts/follower_regret": regret}
        scalars |= {"charts/stackelberg_value": optimum}
        scalars |= {"charts/SPS": args.num_seeds * step / (time.time() - start_time)}
        for tag, values in scalars.items():
            writer.add_scalar(tag, np.mean(values), step)

    train_leaders(leaders, follower_q, arm == "reset", args, rngs, log)
    writer.close()

    batch_steps = args.batch_steps * np.arange(1, len(history) + 1)
    all_returns, probabilities, follower_values = (np.array(x) for x in zip(*history, strict=True))
    steps, greedy, exploring, regret = (np.array(x) for x in zip(*curve, strict=True))
    runs = []
    for i, action in enumerate(leaders.argmax(-1).tolist()):
        run = {"arm": arm, "seed": args.seeds[i]}
        run["leader_return"] = all_returns[-math.ceil(len(history) / 10) :, i].mean()
        run |= {"leader_return_greedy": greedy[-1, i], "stackelberg_value": optimum}
        run |= {"leader_regret": optimum - greedy[-1, i], "follower_regret": regret[-1, i]}
        run |= {"leader_policy": [action], "follower_policy": [follower_q[i].argmax().item()]}
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            run[name] = steps_to_converge(steps, (returns[:, i] - optimum) / GAME.scale())
        # from when on the leader plays its final action in 95 % of cases, and what the follower's table said
        run["steps_to_settle"] = settled = steps_to_converge(batch_steps, probabilities[:, i] - action)
        run["follower_values_after_first_batch"] = follower_values[0, i].tolist()
        run["follower_values_when_settled"] = None
        if settled is not None:
            run["follower_values_when_settled"] = follower_values[settled // args.batch_steps - 1, i].tolist()
        run["curve"] = [[*point] for point in zip(steps.tolist(), greedy[:, i], exploring[:, i], strict=True)]
        runs.append(run)
    return runs


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    optimum, choice, tolerance = result["stackelberg_value"], result["follower_choice"], TOLERANCE * GAME.scale()
    print(
        f"\nlearning rate {result['args']['learning_rate']:g}: the optimum is {optimum:g}, the leader's largest payoff"
    )
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["arm"] == arm]
        greedy, exploring = np.array([[run["leader_return_greedy"], run["leader_return"]] for run in runs]).T
        leads, follows = (greedy >= optimum - tolerance).sum(), (greedy <= choice + tolerance).sum()
        print(f"  Q-table {arm:<5}      {greedy.mean():.2f} greedy, {exploring.mean():.2f} as they explore: ", end="")
        print(
            f"{leads} of {len(runs)} leaders at {optimum:g}, {follows} at the follower's choice, {choice:g}, or below"
        )
        batches = [run["steps_to_settle"] or math.inf for run in runs]
        median = np.median(batches) / result["batch_steps"]
        first = [np.argmax(run["follower_values_after_first_batch"]) == run["leader_policy"][0] for run in runs]
        print(f"    settled on an action (95 %) after {median:g} batches (median); ", end="")
        print(f"{sum(first)} on what the follower preferred after the first batch")
    print(f"  curves             tensorboard --logdir {run_path}\n  result             {run_path}/result.json")


def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path = start_run(args)
    arms = ["reset", "kept"] if args.arm == "both" else [args.arm]
    runs = [run for arm in arms for run in train_arm(arm, args, run_path)]

    leader_steps, wall_seconds = args.num_batches * args.batch_steps, time.time() - start_time
    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    result |= {"stackelberg_value": GAME.outcomes().max().item()}
    result |= {"follower_choice": GAME.leader_payoff.ravel()[GAME.follower_payoff.argmax()].item()}
    result |= {"leader_steps": leader_steps, "batch_steps": args.batch_steps, "runs": runs}
    result |= {"wall_seconds": wall_seconds, "steps_per_second": leader_steps * len(runs) / wall_seconds}
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
