# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Why leaders must be invariant: a leader that can tell queries from play feigns tit-for-tat, then defects.

Reproduces Figure 4 of "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" (Appendix C.2):

    python ablations/noninvariant_leader.py

A policy-gradient leader learns in the POMDP of Theorem 1: the follower's queries, then the iterated prisoner's dilemma
against the follower's exact best response to the answers. One arm's leader also observes a bit that is 1 in queries and
0 in play. In under a minute you should see that it answers tit-for-tat, plays defection, and ends above the Stackelberg
value: no equilibrium, since a best response to what it plays would give the follower much more. Without the bit the
leader ends at the Stackelberg value, and the follower has nothing to regret.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

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

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3: prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle or chicken"""
    arm: str = "both"
    """leaders to train: noninvariant (observes the bit), invariant (does not), or both"""
    num_seeds: int = 10
    """leaders in each arm, seeded with seed, seed + 1, ..."""
    num_steps: int = 5
    """game steps per episode; an episode is 3 queries and then these steps"""
    total_timesteps: int = 416_000
    """environment steps of each leader, queries included (4,000 batches: small learning rates are slow)"""
    learning_rates: tuple[float, ...] = (0.004, 0.008, 0.015, 0.03)
    """Adam learning rates of the leader; both arms are trained with each"""
    batch_size: int = 100
    """environment steps per batch, rounded up to complete episodes"""


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
START = 0

# Leader payoffs of Table 3; all games are symmetric, so the follower's payoffs are the transpose.
PAYOFFS = {
    "prisoners_dilemma": ((-1, -3), (0, -2)),
    "stag_hunt": ((0, -3), (-1, -2)),
    "assurance": ((0, -3), (-2, -1)),
    "coordination": ((0, -2), (-3, -1)),
    "mixedharmony": ((0, -1), (-3, -2)),
    "harmony": ((0, -1), (-2, -3)),
    "noconflict": ((0, -2), (-1, -3)),
    "deadlock": ((-2, -3), (0, -1)),
    "prisoners_delight": ((-3, -2), (0, -1)),
    "hero": ((-3, -1), (0, -2)),
    "battle": ((-2, -1), (0, -3)),
    "chicken": ((-1, -2), (0, -3)),
}


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [3]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 3] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


REPLIES = TABLES[[0, 7, 1, 2, 3, 4, 5, 6]]  # the follower's, in the order that breaks its last ties


# ------------------------------------------------------------------------------------------------ the exact solution
class MemoryGame:
    """An iterated 2x2 game of `num_steps` steps, in which each player observes only the other's last action.

    A policy, [..., 3], is the probability of action 1 in each observation; leading dimensions broadcast.
    """

    def __init__(self, leader_payoff, follower_payoff, num_steps: int):
        self.leader_payoff, self.follower_payoff = np.array(leader_payoff, float), np.array(follower_payoff, float)
        self.num_steps = num_steps

    def returns(self, leader: np.ndarray, follower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns both players' exact expected payoff per game step, [...]."""
        leader, follower = (np.moveaxis(policy, -1, 0) for policy in np.broadcast_arrays(leader, follower))
        leader, follower = (np.stack([1 - policy, policy], 1) for policy in (leader, follower))  # [3, action, ...]
        joint = leader[START][:, None] * follower[START]  # [leader's action, follower's action, ...]
        total = joint.copy()
        for _ in range(self.num_steps - 1):
            # each new action depends on the other's last one
            moved = (joint[:, :, None] * leader[1:]).sum(1)  # [leader's last action, leader's new one, ...]
            joint = (moved[:, :, None] * follower[1:, None]).sum(0)
            total += joint
        # summed one by one: a matrix product could round differently with other policies beside this one
        payoffs = (self.leader_payoff, self.follower_payoff)
        sums = (sum(payoff[pair] * total[pair] for pair in np.ndindex(2, 2)) for payoff in payoffs)
        return tuple(total / self.num_steps for total in sums)

    def best_reply(self, leader: np.ndarray) -> np.ndarray:
        """Returns the stationary deterministic policy with the follower's highest return, [..., 3].

        Ties go to the leader's favourite (Definition 2), and those that are left to always doing the same, as in the
        proof of Theorem 2: such replies differ only where this leader never takes the follower, and in the prisoner's
        dilemma (5 or 10 steps) these ones stay the best if the leader errs now and then.
        """
        leader_return, follower_return = self.returns(leader[..., None, :], REPLIES)
        is_best = follower_return >= follower_return.max(-1, keepdims=True) - 1e-9
        return REPLIES[np.where(is_best, leader_return, -np.inf).argmax(-1)]


LEADERS = ("invariant", "noninvariant")
NUM_EVALUATIONS = 50  # points of a curve


def features_of(arm: str) -> np.ndarray:
    """Returns what the leader observes, [6, k]: a row for each observation in a query, then one for each in play.

    Observations are one-hot; "noninvariant" appends the bit. The policy is linear in this, without a bias.
    """
    observations = np.tile(np.eye(NUM_OBSERVATIONS), (2, 1))
    bit = np.repeat([[1.0], [0.0]], NUM_OBSERVATIONS, axis=0)
    return np.hstack([observations, bit]) if arm == "noninvariant" else observations


# ------------------------------------------------------------------------------------- the leader's POMDP (Theorem 1)
def play_with_queries(
    game: MemoryGame, policy: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plays n episodes of each leader: 3 queries, then the game against the best response to the answers.

    `policy`, [seeds, 6], is the probability of action 1 in each row of the features; `uniforms`, [seeds, steps, n],
    decide the actions. Returns the rows that the leader observed and its actions, [seeds, steps, n], and both players'
    payoffs (0 in queries), [2, seeds, steps, n].
    """
    seeds, replies = np.arange(len(policy))[:, None], game.best_reply(TABLES)
    rows, actions = np.zeros((2, *uniforms.shape), dtype=int)
    payoffs = np.zeros((2, *uniforms.shape))
    rows[:, :NUM_OBSERVATIONS] = np.arange(NUM_OBSERVATIONS)[:, None]
    actions[:, :NUM_OBSERVATIONS] = uniforms[:, :NUM_OBSERVATIONS] < policy[:, :NUM_OBSERVATIONS, None]
    reply = replies[table_index(actions[:, :NUM_OBSERVATIONS].swapaxes(1, 2))]  # [seeds, n, 3]
    leader_observation = follower_observation = np.full_like(actions[:, 0], START)
    for t in range(NUM_OBSERVATIONS, uniforms.shape[1]):
        rows[:, t] = NUM_OBSERVATIONS + leader_observation
        actions[:, t] = uniforms[:, t] < policy[seeds, rows[:, t]]
        joint = actions[:, t], np.take_along_axis(reply, follower_observation[..., None], 2)[..., 0]
        payoffs[:, :, t] = game.leader_payoff[joint], game.follower_payoff[joint]
        follower_observation, leader_observation = 1 + joint[0], 1 + joint[1]
    return rows, actions, payoffs


def exact_returns(game: MemoryGame, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the leader's return, the follower's, and the follower's regret, exact per game step, for [seeds, 6].

    The follower replies to the answers, any of the 8 tables; its regret is what the best response to the play that
    follows would give it beyond that.
    """
    answers, plays = policy[:, None, :NUM_OBSERVATIONS], policy[:, None, NUM_OBSERVATIONS:]
    chance = np.where(TABLES == 1, answers, 1 - answers).prod(axis=2)  # [seeds, 8]
    leader_return, follower_return = ((chance * r).sum(1) for r in game.returns(plays, game.best_reply(TABLES)))
    return leader_return, follower_return, game.returns(plays, TABLES)[1].max(1) - follower_return


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


# ---------------------------------------------------------------------------------------------------- leader training
def train_leaders(
    arm: str, learning_rate: float, game: MemoryGame, args: Args
) -> Iterator[tuple[int, np.ndarray, dict]]:
    """REINFORCE on the leader's POMDP, all seeds side by side.

    Yields each leader's environment steps so far, the policies, [seeds, 6], and scalars to log, [seeds], per batch.
    """
    features, length = features_of(arm), NUM_OBSERVATIONS + args.num_steps
    num_episodes = math.ceil(args.batch_size / length)
    rngs = [np.random.default_rng(seed) for seed in range(args.seed, args.seed + args.num_seeds)]
    weights = 0.01 * draw(rngs, "standard_normal", (features.shape[1], NUM_ACTIONS))
    optimizer = Adam(learning_rate)
    centre = (game.leader_payoff.max() + game.leader_payoff.min()) / 2  # rewards are trained centred (Appendix F)
    seeds, steps = np.arange(args.num_seeds)[:, None, None], num_episodes * length
    batches = range(1, args.total_timesteps // steps + 1)
    for batch in tqdm(batches, desc=f"{arm} {learning_rate}", unit="batch", leave=False, disable=None):
        # sums, not matrix products, which could round differently with other seeds beside this one
        logits = (features[..., None] * weights[:, None]).sum(axis=2)  # [seeds, 6, 2]
        policy = (1 + np.tanh((logits[..., 1] - logits[..., 0]) / 2)) / 2  # their softmax
        rows, actions, payoffs = play_with_queries(game, policy, draw(rngs, "random", (length, num_episodes)))
        rewards = payoffs[0]
        rewards[:, NUM_OBSERVATIONS:] -= centre
        returns = rewards[:, ::-1].cumsum(axis=1)[:, ::-1]  # to go, undiscounted: a query's is that of the whole game
        # the gradient of the log-probability in the difference of the logits is the action minus its probability
        score = actions - policy[seeds, rows]
        in_row = rows[..., None] == np.arange(len(features))
        gradient = ((score * returns)[..., None] * in_row).mean(axis=(1, 2))
        gradient = (gradient[..., None] * features).sum(axis=1)
        optimizer.step(weights, np.stack([gradient, -gradient], axis=-1))
        loss = -(np.log1p(-np.abs(score)) * returns).mean(axis=(1, 2))  # 1 - |score| is the action's probability
        yield batch * steps, policy, {"losses/policy_loss": loss}


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


def check_leader_flags(args: Args) -> None:
    """Checks every flag that can be checked alone. Exits with 2 if one is wrong."""
    for flag, value in asdict(args).items():
        name = f"--{flag.replace('_', '-')}"
        if flag == "exp_name" and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        numbers = value if isinstance(value, tuple) else [value]
        if len(set(numbers)) < max(1, len(numbers)):
            fail(f"{name} must be one or more different numbers, got {' '.join(map(str, numbers)) or 'none'}")
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                fail(f"{name} must be a finite number, got {number}")
            if flag == "seed" and not 0 <= number < 2**63:
                fail(f"{name} must not be negative, got {number}")
            if flag != "seed" and isinstance(number, int | float) and not isinstance(number, bool) and number <= 0:
                fail(f"{name} must be positive, got {number}")
    if args.env_id not in PAYOFFS:
        fail(f"no game {args.env_id!r}: choose one of {', '.join(PAYOFFS)}")
    if args.arm not in ("both", *LEADERS):
        fail(f"no arm {args.arm!r}: choose both, {' or '.join(LEADERS)}")
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


def contrast(result: dict) -> str:
    """Says in words what the run found: which leaders end above the Stackelberg value, and what followers regret."""
    value, holds, counts, table = result["stackelberg_value"], {}, "", ""
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["arm"] == arm]
        above = sum(run["leader_return"] >= value + 0.3 - 1e-9 for run in runs)
        large, small = (
            sum(low <= run["follower_regret"] <= high for run in runs)
            for low, high in ((0.3, math.inf), (-math.inf, 0.05))
        )
        holds[arm] = min(above, large) if arm == "noninvariant" else small
        counts += f"""
  {arm}, {len(runs)} leaders: {above} end at least 0.3 above the Stackelberg value of {value:.2f} per game step;
    the follower's exact regret is at least 0.3 in {large}, at most 0.05 in {small}"""
        for rate in result["args"]["learning_rates"]:
            some = [run for run in runs if run["learning_rate"] == rate]
            keys = ("leader_return", "follower_regret", "exploring_return", "exploring_regret")
            means = "".join(f"{np.mean([run[key] for run in some]).round(2) + 0.0:>12.2f}" for key in keys)
            policies = [(run["leader_answers"], run["leader_policy"]) for run in some]
            policy = max(policies, key=policies.count)
            table += (
                f"\n  {arm:14}{rate:>13}{means}     {policy[0]}, {policy[1]} in {policies.count(policy)} of {len(some)}"
            )
    verdict = "one arm alone shows no contrast"
    if len(holds) == 2:
        verdict = "in some leaders of this run it is otherwise (see the counts)"
        if sum(holds.values()) == len(result["runs"]):
            verdict = "a leader that can tell queries from play tricks the follower; this is no equilibrium"
    return f"""
{result["env_id"]}: {verdict}{counts}

  {"arm":14}learning rate      return      regret   ...and while exploring     answers, plays (most common)
{table[1:]}
"""


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    check_leader_flags(args)
    length = NUM_OBSERVATIONS + args.num_steps
    batch = math.ceil(args.batch_size / length) * length
    if args.total_timesteps < batch:
        fail(f"--total-timesteps {args.total_timesteps} is less than one batch of {batch} steps")
    num_batches = args.total_timesteps // batch
    start_time = time.time()
    run_path = start_run(args, args.env_id)
    payoff = np.array(PAYOFFS[args.env_id])
    game = MemoryGame(payoff, payoff.T, args.num_steps)
    stackelberg_value = game.returns(TABLES, game.best_reply(TABLES))[0].max().item()
    runs = []
    for arm, rate in itertools.product(LEADERS if args.arm == "both" else [args.arm], args.learning_rates):
        writer = SummaryWriter(os.path.join(run_path, f"{arm}_{rate:g}"))
        rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        arm_start, curve, arm_runs = time.time(), [], range(args.seed, args.seed + args.num_seeds)
        for step, policy, scalars in train_leaders(arm, rate, game, args):
            if step < num_batches * batch and step // batch % max(1, num_batches // NUM_EVALUATIONS):
                continue
            greedy_policy = (policy > 0.5).astype(int)
            exploring, greedy = exact_returns(game, policy), exact_returns(game, greedy_policy)
            curve.append([step, exploring, greedy])
            tags = ("leader_return", "follower_return", "leader_return_greedy", "leader_regret", "follower_regret")
            values = (*exploring[:2], greedy[0], stackelberg_value - greedy[0], greedy[2])
            scalars |= {f"charts/{tag}": value for tag, value in zip(tags, values, strict=True)}
            scalars |= {"charts/stackelberg_value": np.array(stackelberg_value)}
            scalars |= {"charts/SPS": np.array(step * args.num_seeds // (time.time() - arm_start))}
            for tag, value in scalars.items():
                writer.add_scalar(tag, value.mean(), step)
        writer.close()
        for i, seed in enumerate(arm_runs):
            runs.append(
                {
                    "arm": arm,
                    "learning_rate": rate,
                    "seed": seed,
                    "leader_return": greedy[0][i].item(),
                    "stackelberg_value": stackelberg_value,
                    "leader_regret": stackelberg_value - greedy[0][i].item(),
                    "follower_regret": greedy[2][i].item(),
                    "exploring_return": exploring[0][i].item(),
                    "exploring_regret": exploring[2][i].item(),
                    "leader_answers": greedy_policy[i, :NUM_OBSERVATIONS].tolist(),
                    "leader_policy": greedy_policy[i, NUM_OBSERVATIONS:].tolist(),
                    "curve": [[step, returns[0][i].item()] for step, returns, _ in curve],
                    "curve_regret": [[step, returns[2][i].item()] for step, returns, _ in curve],
                }
            )
    if args.track:
        import wandb

        wandb.finish()
    wall_seconds = time.time() - start_time
    result = {
        "script": os.path.basename(__file__),
        "env_id": args.env_id,
        "seed": args.seed,
        "args": asdict(args),
        "stackelberg_value": stackelberg_value,
        "leader_steps": num_batches * batch,
        "runs": runs,
        "wall_seconds": wall_seconds,
        "steps_per_second": num_batches * batch * len(runs) / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(contrast(result))
    print(f"  curves   tensorboard --logdir {args.run_dir}\n  result   {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
