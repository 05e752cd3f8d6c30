# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""A leader that is rewarded while its follower still learns (Figure 5).

A game of one step in which both players want to coordinate: on action 0, which the leader prefers (payoff a, against 1)
though it gives the follower next to nothing (0.001), or on action 1, which gives the follower 2. Where they do not, the
leader gets p. In each of the leader's episodes the follower learns its reply from scratch by Q-learning, for 10 steps,
and then one step is played. A DQN leader learns from all 11 steps, its reward either withheld until the follower has
learned (Lemma 1) or given throughout (as in the Good Shepherd).

    python ablations/leader_reward_during_learning.py

In a few seconds you should see that with reward withheld the leader learns action 0, the Stackelberg equilibrium. With
reward given, it pays for the time in which the follower has not found out about those 0.001. At p = -5 this makes
action 1 worth more, and that is what the leader learns. At p = 0 it depends: for a = 1.5 action 1 is worth more; for
a = 2, as an exact calculation shows, it is not, so that a leader that acts alike throughout each episode does find the
equilibrium. One that does not (`--epsilon 0.2`) mostly misses it, but at p = -5 then does so with reward withheld, too.
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

    num_seeds: int = 10
    """leaders trained in each arm, side by side; their seeds are seed, seed + 1, ..."""
    reward: Literal["both", "withheld", "given"] = "both"
    """whether the leader gets its reward while the follower learns (given) or only after it (withheld)"""
    preferred_payoff: tuple[float, ...] = (2.0, 1.5)
    """a, the leader's payoff if both choose action 0; each of these with each p makes one game"""
    mismatch_payoff: tuple[float, ...] = (0.0, -5.0)
    """p, the leader's payoff if the players choose different actions"""
    total_timesteps: int = 2_200
    """environment steps of each leader's training, the follower's learning included"""

    follower_episodes: int = 10
    """episodes (of one step) in which the follower learns, in each of the leader's episodes"""
    follower_step_size: float = 0.2
    """step size of the follower's Q-learning, which begins at 0"""
    follower_noise: float = 0.1
    """standard deviation of the noise on the follower's values while it learns"""

    learning_rate: float = 0.1
    """Adam learning rate of the leader"""
    batch_size: int = 1024
    """transitions per gradient step, drawn from all that the leader has seen so far; one step after each episode"""
    learning_starts: int = 100
    """leader steps before the first gradient step"""
    target_network_frequency: int = 33
    """gradient steps between updates of the target network"""
    n_step: int = 0
    """steps of reward in a target before it bootstraps; 0 = the whole episode. With 1, as in plain DQN, the values of
    the two actions differ by one step's share of the reward, and which is higher wavers as the target network moves"""
    noise_stddev: float = 1.0
    """standard deviation of the noise on the leader's values, drawn for each episode: it acts alike throughout"""
    epsilon: float = 0.0
    """probability of a random action in each of the leader's steps, in addition"""


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


ENV_ID = "slow_coordination"


def coordination_game(preferred_payoff: float, mismatch_payoff: float) -> Game:
    """Returns the modified battle of the sexes of Appendix C.3."""
    leader_payoff = ((preferred_payoff, mismatch_payoff), (mismatch_payoff, 1.0))
    return Game(np.array(leader_payoff), np.array(((0.001, 0.0), (0.0, 2.0))))


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


def dqn_leader(
    given: bool, game: Game, rngs: list[np.random.Generator], args: Args
) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]:
    """DQN with parameter noise: one noisy policy acts throughout an episode, so that it plays as the follower learned.

    The game shows the leader nothing: it has two action values. Yields the environment steps so far, scalars to log,
    [seeds] each, and the leaders' greedy actions, [seeds], after each episode.
    """
    length, num_seeds = args.follower_episodes + 1, len(rngs)
    num_episodes = args.total_timesteps // length
    seed, seeds = np.arange(num_seeds)[:, None], np.arange(num_seeds)
    q = 0.01 * draw(rngs, "standard_normal", NUM_ACTIONS)
    optimizer, target_q, updates = Adam(args.learning_rate), q.copy(), 0
    # the replay buffer keeps every episode; differences of `cumulative` are n-step returns
    actions = np.zeros((num_seeds, num_episodes, length), dtype=np.int64)
    cumulative = np.zeros((num_seeds, num_episodes, length + 1))
    for episode in range(num_episodes):
        action = (q + args.noise_stddev * draw(rngs, "standard_normal", NUM_ACTIONS)).argmax(axis=1)
        random = draw(rngs, "random", length) < args.epsilon
        action = np.where(random, draw(rngs, "integers", 0, NUM_ACTIONS, length), action[:, None])
        follower_q = np.zeros((num_seeds, NUM_ACTIONS))
        noise = args.follower_noise * draw(rngs, "standard_normal", (args.follower_episodes, NUM_ACTIONS))
        rewards = np.zeros((num_seeds, length))
        for t in range(args.follower_episodes):
            reply = follower_learns(
                follower_q, action[:, t], noise[:, t], game.follower_payoff, args.follower_step_size
            )
            rewards[:, t] = game.leader_payoff[action[:, t], reply] if given else 0.0
        reply = follower_q.argmax(axis=1)
        rewards[:, -1] = game.leader_payoff[action[:, -1], reply]
        actions[:, episode], cumulative[:, episode, 1:] = action, rewards.cumsum(axis=1)
        step = (episode + 1) * length
        follower_payoff = game.follower_payoff[action[:, -1], reply]
        scalars = {"charts/leader_return": rewards[:, -1], "charts/follower_return": follower_payoff}
        if step >= args.learning_starts:
            e = draw(rngs, "integers", 0, episode + 1, args.batch_size)
            t = draw(rngs, "integers", 0, length, args.batch_size)
            last = np.minimum(t + (args.n_step or length), length)
            td_target = cumulative[seed, e, last] - cumulative[seed, e, t]
            td_target += target_q.max(axis=1, keepdims=True) * (last < length)  # no value after the end
            error = q[seed, actions[seed, e, t]] - td_target
            of_action = actions[seed, e, t][..., None] == np.arange(NUM_ACTIONS)
            optimizer.step(q, (of_action * error[..., None]).mean(axis=1))
            updates += 1
            if updates % args.target_network_frequency == 0:
                target_q = q.copy()
            scalars |= {"losses/td_loss": (error**2).mean(axis=1), "losses/q_values": q[seeds, q.argmax(axis=1)]}
        yield step, scalars, q.argmax(axis=1)


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
    """Says in words what the run found (0.05 passes for equal), and what an episode's reward makes a leader prefer."""
    lines, counts = [], {}
    for game in result["games"]:
        lines.append(f"  {game['env_id']}: Stackelberg value {game['stackelberg_value']:g}")
        totals = np.add(game["while_learning"], game["play"])
        for action, (learning, play) in enumerate(zip(game["while_learning"], game["play"], strict=True)):
            worth = f"{learning:.2f} while the follower learns and {play:.2f} in play, {totals[action]:.2f} in all"
            lines.append(f"    action {action}, played throughout an episode, is worth {worth}")
        misleading = totals.argmax() != np.argmax(game["play"])
        for reward in ("withheld", "given"):
            of_game = [r for r in result["runs"] if (r["env_id"], r["reward"]) == (game["env_id"], reward)]
            if of_game:
                hits = sum(r["leader_regret"] <= 0.05 for r in of_game)
                mean, share = (np.mean([r[key] for r in of_game]) for key in ("leader_return", "share_at_value"))
                outcome = f"the Stackelberg outcome in {hits}/{len(of_game)} seeds"
                lines.append(
                    f"    reward {reward}: {mean:.2f} in play, {outcome} ({share:.0%} of training's second half)"
                )
                counts.setdefault((reward, misleading and reward == "given"), []).append((hits, len(of_game)))
    cases = {
        ("withheld", False): "with their reward withheld until the follower has learned",
        ("given", True): "with their reward given throughout, in games where that makes the other action worth more",
        ("given", False): "with their reward given throughout, in games where it does not",
    }
    verdict = [
        f"{sum(hits for hits, _ in counts[case])} of {sum(n for _, n in counts[case])} {words}"
        for case, words in cases.items()
        if case in counts
    ]
    head = ["\nhow many leaders end at the Stackelberg outcome:", *(f"  {words}" for words in verdict), "by game:"]
    return "\n".join([*head, *lines])


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    check_flags(args)
    if args.epsilon > 1:
        fail(f"--epsilon must be at most 1, got {args.epsilon}")
    length = args.follower_episodes + 1
    steps = args.total_timesteps // length * length
    if steps == 0:
        fail(f"--total-timesteps {args.total_timesteps} is less than one episode of {length} steps")
    if steps < args.learning_starts:
        fail(f"--learning-starts {args.learning_starts} leaves the {steps} steps no gradient step")
    start_time = time.time()
    run_path = start_run(args, ENV_ID)

    seeds, games, runs = range(args.seed, args.seed + args.num_seeds), {}, []
    for a, p in itertools.product(args.preferred_payoff, args.mismatch_payoff):
        env_id, game = f"{ENV_ID}_a{a:g}_p{p:g}", coordination_game(a, p)
        expected = [expected_episode(game, action, np.zeros(NUM_ACTIONS), args) for action in range(NUM_ACTIONS)]
        while_learning, play, follower_play = np.array(expected).T
        stackelberg_value = game.outcomes().max().item()
        follower_regrets = game.follower_payoff.max(axis=1) - follower_play
        games[env_id] = {"env_id": env_id, "preferred_payoff": a, "mismatch_payoff": p}
        games[env_id] |= {"stackelberg_value": stackelberg_value}
        games[env_id] |= {"while_learning": while_learning.tolist(), "play": play.tolist()}
        for reward in ["withheld", "given"] if args.reward == "both" else [args.reward]:
            arm = f"a{a:g}_p{p:g}_{reward}"
            writer = SummaryWriter(os.path.join(run_path, arm))
            rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
            rngs = [np.random.default_rng(seed) for seed in seeds]
            arm_start, curves = time.time(), [[] for _ in seeds]
            episodes = dqn_leader(reward == "given", game, rngs, args)
            for step, scalars, actions in tqdm(
                episodes, arm, steps // length, leave=False, unit="episode", disable=None
            ):
                for i in range(len(seeds)):
                    curves[i].append([step, play[actions[i]].item()])
                scalars = {tag: values.mean() for tag, values in scalars.items()}
                scalars["charts/leader_return_greedy"] = play[actions].mean()
                scalars["charts/leader_regret"] = stackelberg_value - play[actions].mean()
                scalars["charts/follower_regret"] = follower_regrets[actions].mean()
                scalars["charts/stackelberg_value"] = stackelberg_value
                scalars["charts/SPS"] = int(step * len(seeds) / (time.time() - arm_start))
                for tag, scalar in scalars.items():
                    writer.add_scalar(tag, scalar, step)
            writer.close()
            for i, seed in enumerate(seeds):
                run = {"arm": arm, "env_id": env_id, "reward": reward, "seed": seed}
                run["leader_return"] = curves[i][-1][1]
                run["stackelberg_value"] = stackelberg_value
                run["leader_regret"] = stackelberg_value - run["leader_return"]
                run["follower_regret"] = follower_regrets[actions[i]].item()
                run["leader_policy"] = [actions[i].item()]
                later = [return_ for step, return_ in curves[i] if step > steps / 2]
                run["share_at_value"] = np.mean(np.greater_equal(later, stackelberg_value - 0.05)).item()
                run["curve"] = curves[i]
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
        "games": list(games.values()),
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
