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

In less than half a minute you should see that with the table reset the leader gets 2, the Stackelberg value. With the
table kept it gets 1, the follower's choice, in most or all seeds: while the leader still acts at random, the follower
comes to prefer action 1; no single episode changes its mind again, so that the leader best-responds to the follower.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment, part of the run's name"""
    seed: int = 1
    """seed of every random number in the run"""
    track: bool = False
    """track the run with Weights and Biases too (set WANDB_MODE=offline to work without the network)"""
    wandb_project_name: str = "stackelberg"
    """project name in Weights and Biases"""
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
    """Adam's epsilon for the leader, so large that steps stay roughly in proportion to the gradient;
    equal steps (1e-8) saturate the policy where a weak gradient is mostly noise, short of the optimum"""
    batch_size: int = 100
    """environment steps per leader batch, rounded up to complete episodes"""


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix


@dataclass
class Game:
    """A game of one step; payoffs [leader action, follower action]."""

    leader_payoff: np.ndarray
    follower_payoff: np.ndarray

    def outcomes(self) -> np.ndarray:
        """Returns the leader's payoff for each of its actions if the follower best-responds, [2]; the best of them is
        the Stackelberg value."""
        return self.leader_payoff[np.arange(NUM_ACTIONS), self.follower_payoff.argmax(axis=1)]


ENV_ID = "battle_of_the_sexes"  # Table 3
GAME = Game(np.array(((2.0, 0.0), (0.0, 1.0))), np.array(((1.0, 0.0), (0.0, 2.0))))


# ------------------------------------------------------------------------------------------------------- the follower
def follower_learns(
    q: np.ndarray, leader_action: np.ndarray, noise: np.ndarray, payoff: np.ndarray, step_size: float
) -> np.ndarray:
    """One learning episode of each seed's follower: tabular Q-learning with parameter noise. The game is one step.

    Updates the action values `q`, [seeds, 2], in place; returns the follower's actions, the best of the noisy values.
    """
    seeds, action = np.arange(len(q)), (q + noise).argmax(axis=1)
    q[seeds, action] += step_size * (payoff[leader_action, action] - q[seeds, action])
    return action


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
    return (
        float(while_learning),
        float(np.dot(played, game.leader_payoff[leader_action])),
        float(np.dot(played, payoff)),
    )


# ---------------------------------------------------------------------------------------------------------- the leader
class Adam:
    """Adam for arrays whose first axis is the seed: element by element, so that no seed depends on another."""

    def __init__(self, learning_rate: float, eps: float = 1e-8):
        self.learning_rate, self.eps = learning_rate, eps
        self.mean = self.square = self.updates = 0

    def step(self, parameters: np.ndarray, gradient: np.ndarray) -> None:
        """Moves the parameters down the gradient, in place."""
        self.updates += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean, square = self.mean / (1 - 0.9**self.updates), self.square / (1 - 0.999**self.updates)
        parameters -= self.learning_rate * mean / (np.sqrt(square) + self.eps)


def draw(rngs: list[np.random.Generator], method: str, *args) -> np.ndarray:
    """Draws from each seed's own generator, so that a seed's run is the same whichever seeds run beside it."""
    return np.stack([getattr(rng, method)(*args) for rng in rngs])


def pg_leader(
    reset: bool, rngs: list[np.random.Generator], args: Args
) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """REINFORCE; the leader samples its action afresh in each step, whether the follower learns or play is rewarded.

    The game shows the leader nothing: it has two logits. Yields the environment steps so far, scalars to log, [seeds]
    each, the leaders' greedy actions, [seeds], and the followers' values, [seeds, 2], after each batch.
    """
    length, num_seeds = args.follower_episodes + 1, len(rngs)
    n = math.ceil(args.batch_size / length)
    logits, follower_q = 0.01 * draw(rngs, "standard_normal", NUM_ACTIONS), np.zeros((num_seeds, NUM_ACTIONS))
    optimizer = Adam(args.learning_rate, args.adam_eps)
    for step in range(n * length, args.total_timesteps + 1, n * length):
        probability = (1 + np.tanh((logits[:, 1] - logits[:, 0]) / 2)) / 2  # softmax: of action 1
        actions = (draw(rngs, "random", (n, length)) < probability[:, None, None]).astype(int)
        noise = args.follower_noise * draw(rngs, "standard_normal", (n, args.follower_episodes, NUM_ACTIONS))
        replies = np.zeros((num_seeds, n), dtype=np.int64)
        for episode in range(n):
            if reset:
                follower_q[:] = 0
            for t in range(args.follower_episodes):
                action = actions[:, episode, t]
                follower_learns(follower_q, action, noise[:, episode, t], GAME.follower_payoff, args.follower_step_size)
            replies[:, episode] = follower_q.argmax(axis=1)
        returns = GAME.leader_payoff[actions[..., -1], replies]  # of every step: only the last one has a reward
        # the gradient of an action's log-probability in the logits of a softmax is one_hot(action) - probabilities
        score = actions - probability[:, None, None]
        gradient = -(score * returns[..., None]).mean(axis=(1, 2))
        optimizer.step(logits, np.stack([-gradient, gradient], axis=-1))
        scalars = {"charts/leader_return": returns.mean(axis=1)}
        scalars["charts/follower_return"] = GAME.follower_payoff[actions[..., -1], replies].mean(axis=1)
        log_probs = np.log1p(-np.abs(score))  # 1 - |score| is the probability of the action taken
        scalars["losses/policy_loss"] = -(log_probs * returns[..., None]).mean(axis=(1, 2))
        yield step, scalars, logits.argmax(axis=1), follower_q


# ----------------------------------------------------------------------------------------------------- flags and files
def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print(f"{os.path.basename(__file__)}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_args(argv: list[str] | None = None) -> Args:
    """Parses the command line with tyro, cutting its box of several lines down to the error itself."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Args, args=argv, description=__doc__)
    except SystemExit as error:
        if error.code:
            plain = re.sub(r"\x1b\[[0-9;]*m", "", box.getvalue())  # a terminal gets colours
            lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
            fail(" ".join(itertools.takewhile(lambda line: line[:1] not in "─╰", lines)))
        raise


def check_flags(args: Args) -> None:
    """Checks every flag that can be checked alone. Exits with 2 if one is wrong."""
    may_be_zero = ["seed", "n_step", "learning_starts", "adam_eps", "epsilon"]
    for flag, value in asdict(args).items():
        name = f"--{flag.replace('_', '-')}"
        if flag == "exp_name" and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        if isinstance(value, tuple) and not (value and np.isfinite(value).all()):
            fail(f"{name} must be one or more finite numbers, got {' '.join(map(str, value)) or 'none'}")
        if isinstance(value, float) and not math.isfinite(value):
            fail(f"{name} must be a finite number, got {value}")
        if flag in may_be_zero:
            if not 0 <= value < 2**63:
                fail(f"{name} must not be negative, got {value}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            fail(f"{name} must be positive, got {value}")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights and Biases: pip install wandb")


def start_run(args: Args, env_id: str) -> str:
    """Makes the run's folder and starts tracking; returns the folder. Exits with 2, nothing written, if it cannot."""
    for second in itertools.count(int(time.time())):  # the same run, started twice in one second, needs two names
        run_name = f"{env_id}__{args.exp_name}__{args.seed}__{second}"
        run_path = os.path.join(args.run_dir, run_name)
        try:
            os.makedirs(run_path)
            break
        except FileExistsError:
            continue
        except OSError as error:
            fail(f"--run-dir {args.run_dir}: cannot make a folder in it: {error.strerror}")
    if args.track:
        import wandb

        names = {"name": run_name, "project": args.wandb_project_name, "entity": args.wandb_entity}
        try:
            wandb.init(**names, dir=run_path, config=asdict(args), sync_tensorboard=True, save_code=True)
        except wandb.Error as error:  # no key, no network
            shutil.rmtree(run_path)
            fail(f"--track: {' '.join(str(error).split())}")
    return run_path


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Lets `write` make the file under another name first, so that nobody ever meets half of it."""
    write(path + ".tmp")
    os.replace(path + ".tmp", path)


def summary(result: dict) -> str:
    """Says in words what the run found; 0.1 passes for equal."""
    value, choice, lines, leads, follows = result["stackelberg_value"], result["follower_choice"], [], {}, {}
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["arm"] == arm]
        greedy, training = ([run[key] for run in runs] for key in ("leader_return", "training_return"))
        leads[arm] = sum(return_ >= value - 0.1 for return_ in greedy)
        follows[arm] = sum(return_ <= choice + 0.1 for return_ in greedy)
        means = f"{np.mean(greedy):.2f} ({np.mean(training):.2f} with what exploration is left)"
        lines.append(
            f"  {arm:<5} {means}; {value:g} in {leads[arm]}, at most {choice:g} in {follows[arm]} of {len(runs)} seeds"
        )
    verdict = "no clear contrast in this run"
    if len(lines) == 1:
        verdict = "one arm alone shows no contrast"
    elif leads["reset"] == len(runs) and follows["kept"] >= 0.75 * len(runs):
        verdict = "the leader leads a follower that is reset, and follows one that is kept"
    head = f"leader's return with the follower's Q-table reset or kept (Stackelberg value {value:g})"
    return "\n".join([f"\n{result['env_id']}: {verdict}", f"  {head}", *lines])


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    check_flags(args)
    batch = math.ceil(args.batch_size / (args.follower_episodes + 1)) * (args.follower_episodes + 1)
    steps = args.total_timesteps // batch * batch
    if steps == 0:
        fail(f"--total-timesteps {args.total_timesteps} is less than one batch of {batch} steps")
    start_time = time.time()
    run_path = start_run(args, ENV_ID)

    seeds, runs = range(args.seed, args.seed + args.num_seeds), []
    stackelberg_value = GAME.outcomes().max().item()
    for arm in ["reset", "kept"] if args.arm == "both" else [args.arm]:
        writer = SummaryWriter(os.path.join(run_path, arm))
        rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        rngs = [np.random.default_rng(seed) for seed in seeds]
        arm_start, points, recent = time.time(), [], []
        with tqdm(total=steps, desc=arm, unit="step", leave=False, disable=None) as progress:
            for step, scalars, actions, follower_q in pg_leader(arm == "reset", rngs, args):
                progress.update(step - progress.n)
                recent.append(scalars["charts/leader_return"])
                if step * 50 // steps == (step - batch) * 50 // steps:
                    continue  # 50 points make a curve
                # the greedy leader against a follower that has learned its reply to it, from where it is now
                start = np.zeros_like(follower_q) if arm == "reset" else follower_q
                expected = [expected_episode(GAME, a, q, args)[1:] for a, q in zip(actions, start, strict=True)]
                leader_returns, follower_returns = np.array(expected).T
                follower_regrets = GAME.follower_payoff[actions].max(axis=1) - follower_returns
                points.append((step, np.mean(recent, axis=0), leader_returns))
                recent = []
                scalars = {tag: values.mean() for tag, values in scalars.items()}
                scalars["charts/leader_return"] = points[-1][1].mean()
                scalars["charts/leader_return_greedy"] = leader_returns.mean()
                scalars["charts/leader_regret"] = stackelberg_value - leader_returns.mean()
                scalars["charts/follower_regret"] = follower_regrets.mean()
                scalars["charts/stackelberg_value"] = stackelberg_value
                scalars["charts/SPS"] = int(step * len(seeds) / (time.time() - arm_start))
                for tag, scalar in scalars.items():
                    writer.add_scalar(tag, scalar, step)
        writer.close()
        for i, seed in enumerate(seeds):
            run = {"arm": arm, "seed": seed, "leader_return": leader_returns[i].item()}
            run["training_return"] = np.mean([training[i] for _, training, _ in points[-5:]]).item()
            run["stackelberg_value"] = stackelberg_value
            run["leader_regret"] = stackelberg_value - run["leader_return"]
            run["follower_regret"] = follower_regrets[i].item()
            run["leader_policy"] = [actions[i].item()]
            run["curve"] = [[step, training[i].item()] for step, training, _ in points]
            run["curve_greedy"] = [[step, greedy[i].item()] for step, _, greedy in points]
            runs.append(run)
    if args.track:
        import wandb

        wandb.finish()
    wall_seconds = time.time() - start_time
    result = {
        "script": os.path.basename(__file__),
        "env_id": ENV_ID,
        "seed": args.seed,
        "args": asdict(args),
        "stackelberg_value": stackelberg_value,
        "follower_choice": GAME.leader_payoff.ravel()[GAME.follower_payoff.argmax()].item(),
        "leader_steps": steps,
        "runs": runs,
        "wall_seconds": wall_seconds,
        "steps_per_second": steps * len(runs) / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(summary(result))
    print(f"  speed              {result['steps_per_second']:,.0f} steps per second, {wall_seconds:.1f} s in all")
    print(f"  curves             tensorboard --logdir {run_path}\n  result             {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
