# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pandas==3.1.1", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#   "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""A leader that differentiates through the follower's learning: Diff-MD on all 144 ordinal 2x2 games.

The baseline Diff-MD ("The Good Shepherd", Balaguer et al. 2022) of Table 2 in "Oracles & Followers: Stackelberg
Equilibria in Deep Multi-Agent RL". The follower climbs its exact return by k steps of gradient ascent from scratch, and
the leader climbs what it gets after them, or summed over them, by the gradient through all k steps:

    python ablations/diff_md_matrix.py                                     # 144 games x 10 seeds, k = 30
    python ablations/diff_md_matrix.py --games prisoners_dilemma --unroll 1 10 100 --objective sum

It takes no environment steps, but a description of the game: both payoff matrices, and how observations come about. The
leader is stochastic, [0, 1]^5, so it may find commitments that mix. As k steps make no best response, what it has after
them is not what it is *guaranteed*: that comes from the best of the 32 stationary tables, ties broken against it.
"""

import itertools
import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """the first seed; all runs of a command draw from one stream of random numbers, which begins with it"""
    track: bool = False
    """track the run with Weights and Biases too"""
    wandb_project_name: str = "stackelberg"
    """project in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    games: tuple[str, ...] = ("ordinal",)
    """games by name; table3: the paper's 12; ordinal: all 144 strict ordinal 2x2 games, LEADER-FOLLOWER, the leader's
    payoffs of one of the 12 with the follower's of another, as prisoners_dilemma-stag_hunt; random_K: game number K of
    those with payoffs uniform in [-3, 0]"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
    num_steps: int = 10
    """game steps per episode of the game"""
    num_seeds: int = 10
    """leaders of each game, side by side"""

    unroll: tuple[int, ...] = (30,)
    """k, the follower's gradient steps; several values are trained one after the other"""
    objective: Literal["last", "sum"] = "last"
    """last: the leader's return after the k steps; sum: its mean return over them (Balaguer et al.)"""
    follower_step_size: tuple[float, ...] = (3.0,)
    """step size of the follower's gradient ascent on its logits, per unit of mean reward; one, or one for each seed"""
    follower_std: float = 0.1
    """standard deviation of the logits that a follower starts from; they are drawn anew in each iteration"""
    iterations: int = 200
    """gradient steps of the leader"""
    learning_rate: float = 0.1
    """Adam's learning rate of the leader's logits"""

    def __post_init__(self):
        for flag, values in asdict(self).items():
            for value in values if flag in ("unroll", "follower_step_size") else [values]:
                may_be_zero = flag in ("seed", "follower_std")
                if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and may_be_zero)):
                    raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if len(self.follower_step_size) not in (1, self.num_seeds):
            raise ValueError("--follower-step-size must be one number, or one for each of --num-seeds")
        if not self.unroll or len(set(self.unroll)) < len(self.unroll):
            raise ValueError("--unroll must be one or more different numbers")
        games = load_games(self)
        self.env_ids, self.payoffs = list(games), np.stack(list(games.values()))


# ---------------------------------------------------------------------------------------------------------- the games
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS**2  # the start, then 1 + 2 * leader's last action + follower's last action
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


def load_games(args: Args) -> dict[str, np.ndarray]:
    """Returns the payoffs [player, leader's action, follower's action] of the games that the flags name, by name."""
    own = args.leader_payoff, args.follower_payoff
    if own != ((), ()):
        if not all(len(payoff) == 4 and np.abs(payoff).max() < 1e30 for payoff in own):
            raise ValueError("--leader-payoff and --follower-payoff must be four numbers each, row by row")
        return {"custom": np.array(own, dtype=np.float64).reshape(2, NUM_ACTIONS, NUM_ACTIONS)}
    ordinal, games = {}, {}
    for leader, follower in itertools.product(PAYOFFS, PAYOFFS):
        name = leader if leader == follower else f"{leader}-{follower}"
        ordinal[name] = np.array([PAYOFFS[leader], np.transpose(PAYOFFS[follower])], dtype=np.float64)
    for name in args.games:
        for member in {"table3": PAYOFFS, "ordinal": ordinal}.get(name, [name]):
            kind, _, number = member.partition("_")
            if kind == "random" and number.isdecimal():
                games[member] = 3 * np.random.default_rng(int(number)).random((2, NUM_ACTIONS, NUM_ACTIONS)) - 3
            elif member in ordinal:
                games[member] = ordinal[member]
            else:
                raise ValueError(f"no game {member!r}: give table3, ordinal, {', '.join(PAYOFFS)}, A-B or random_K")
    if not games:
        raise ValueError("--games must name at least one game")
    return games


def scales_of(payoffs: np.ndarray) -> np.ndarray:
    """Returns a third of the range of both players' payoffs in each game, [games, player, 1, 1]; 1 if it is none."""
    spread = np.ptp(payoffs, axis=(2, 3), keepdims=True)
    return np.where(spread > 0, spread / 3, 1.0)


# ----------------------------------------------------------------------------------------------- returns, exact
def pairs_of(leader: torch.Tensor, follower: torch.Tensor) -> torch.Tensor:
    """Returns how likely each pair of actions, 2 * leader's + follower's, is in each observation, [5, 4, ...], for
    probabilities of action 1, [5, ...] each. Runs stand last, side by side in memory, here and below."""
    a, b = (torch.stack([1 - p, p], 1) for p in (leader, follower))
    return (a[:, :, None] * b[:, None]).flatten(1, 2)


def expected_returns(rewards: torch.Tensor, leader: torch.Tensor, follower: torch.Tensor, num_steps: int):
    """Returns both players' expected reward per step, [2, ...], for probabilities of action 1, [5, ...] each; `rewards`
    are [2, 4, ...], for each pair of actions. The distribution of the pair is carried forward step by step."""
    pairs = pairs_of(leader, follower)
    now = visits = pairs[START]
    for _ in range(num_steps - 1):
        now = (now[:, None] * pairs[1:]).sum(0)
        visits = visits + now
    return (rewards * visits).sum(1) / num_steps


def returns_and_gradient(rewards: torch.Tensor, leader: torch.Tensor, follower: torch.Tensor, num_steps: int):
    """Returns the same, [2, n], and the gradient of the follower's return in its logits, [5, n]: in each observation
    what action 1 gains on action 0, times how often it is there (the policy gradient theorem, exact). All of it may be
    differentiated in the leader's policy."""
    pairs = pairs_of(leader, follower)
    # forward: the pair at step t; backward: the follower's expected reward t steps after a pair
    flows = torch.stack([pairs[1:].transpose(0, 1), pairs[1:]])
    states = [torch.stack([pairs[START], rewards[1]])]
    for _ in range(num_steps - 1):
        states.append((flows * states[-1][:, None]).sum(2))
    now, later = torch.stack(states).unbind(1)  # [steps, pair, n]
    values = later.cumsum(0)  # of a pair with t steps after it
    gains = (values[:, 1::2] - values[:, ::2]).flip(0)  # [steps, leader's action, n], first step first
    gains = torch.cat([gains[:1], (now[:-1, :, None] * gains[1:, None]).sum(0)])  # [observation, leader's action, n]
    gradient = (gains * torch.stack([1 - leader, leader], 1)).sum(1) * follower * (1 - follower)
    return (rewards * now.sum(0)).sum(1) / num_steps, gradient / num_steps


TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))  # stationary policies, [32, 5]
TIE = 1e-6  # of the scale: what is as good to the follower
TOLERANCE = 0.05 + 1e-6  # of the scale: what passes for equal in mean rewards


def against_best_response(rewards: torch.Tensor, leaders: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Returns what leaders, [5, n], get if the follower's best of the 32 stationary tables breaks ties for them and if
    it breaks them against them, and what it gets itself, [3, n]; `rewards` are [2, 4, n] with a scale of 1."""
    tables = torch.as_tensor(TABLES.T, dtype=leaders.dtype)[..., None].expand(-1, -1, leaders.shape[1])
    leader, follower = expected_returns(rewards[:, :, None], leaders[:, None].expand_as(tables), tables, num_steps)
    best = follower.amax(0)
    is_best = follower >= best - TIE
    optimistic, pessimistic = torch.where(is_best, leader, -torch.inf), torch.where(is_best, leader, torch.inf)
    return torch.stack([optimistic.amax(0), pessimistic.amin(0), best])


def solve(rewards: torch.Tensor, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact optimum of deterministic memory-1 leaders in each game, ties broken for and against them."""
    n = rewards.shape[-1]
    leaders = torch.as_tensor(TABLES.T, dtype=rewards.dtype).repeat(1, n)
    values = against_best_response(rewards.repeat_interleave(len(TABLES), -1), leaders, num_steps)
    return tuple(values[:2].view(2, n, len(TABLES)).amax(2).numpy())


# ------------------------------------------------------------------------------------------------------- the learning
def unroll(rewards, leader: torch.Tensor, logits: torch.Tensor, k: int, step_size, num_steps: int) -> torch.Tensor:
    """Lets followers with these logits, [5, n], climb their returns by k steps against leaders with logits [5, n].
    Returns both players' returns before the first step and after each, [k + 1, 2, n], a differentiable function of the
    leader's logits: every step of the follower's is part of the graph. `step_size` is one number or [n]."""
    leader, returns = leader.sigmoid(), []
    for _ in range(k):
        now, gradient = returns_and_gradient(rewards, leader, logits.sigmoid(), num_steps)
        returns.append(now)
        logits = logits + step_size * gradient
    return torch.stack([*returns, expected_returns(rewards, leader, logits.sigmoid(), num_steps)])


def train(rewards: torch.Tensor, k: int, step_size, args: Args) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Trains a leader for each run of `rewards`, [2, 4, n]; returns their logits, [5, n], and after each iteration the
    returns [2, n] that both players had after the follower's k steps. Runs share no parameter: none sees another."""
    shape = NUM_OBSERVATIONS, rewards.shape[-1]
    leader = torch.nn.Parameter(torch.randn(shape, dtype=rewards.dtype))
    optimizer, curve = torch.optim.Adam([leader], lr=args.learning_rate), []
    for _ in tqdm(range(args.iterations), desc=f"k = {k}", leave=False, disable=None):
        start = args.follower_std * torch.randn(shape, dtype=rewards.dtype)
        returns = unroll(rewards, leader, start, k, step_size, args.num_steps)
        objective = returns[-1, 0] if args.objective == "last" else returns[1:, 0].mean(0)
        if not objective.isfinite().all():
            raise SystemExit("the training diverged: lower --follower-step-size or --learning-rate")
        optimizer.zero_grad()
        (-objective.sum()).backward()
        optimizer.step()
        curve.append(returns[-1].detach())
    return leader.detach(), curve


# ------------------------------------------------------------------------------------------------------------- the run
def results_of(args: Args, k: int, leader: torch.Tensor, curve: list, rewards: torch.Tensor) -> pd.DataFrame:
    """Returns a row for each run, payoffs per game step. What the leader had after the k steps is a mean of the last
    tenth of the iterations."""
    game = np.arange(len(args.env_ids)).repeat(args.num_seeds)
    low, scale = args.payoffs.min(axis=(2, 3))[game, 0], scales_of(args.payoffs)[game, :, 0, 0]
    optima = solve(rewards[..., :: args.num_seeds], args.num_steps)
    unrolled = torch.stack(curve[-math.ceil(len(curve) / 10) :]).mean(0).numpy()
    policies = leader.double().sigmoid()
    _, guaranteed, follower_best = against_best_response(rewards, policies, args.num_steps).numpy()
    values = {"leader_return": unrolled[0], "leader_return_guaranteed": guaranteed}
    values |= {"stackelberg_value": optima[0][game], "stackelberg_value_pessimistic": optima[1][game]}
    seeds = args.seed + np.tile(np.arange(args.num_seeds), len(args.env_ids))
    rows = pd.DataFrame({"env_id": np.array(args.env_ids)[game], "unroll": k, "seed": seeds})
    rows = rows.assign(**{name: low + scale[:, 0] * value for name, value in values.items()})
    rows["follower_regret"] = scale[:, 1] * (follower_best - unrolled[1])
    rows["leader_policy"] = [" ".join(f"{p:.3f}" for p in policy) for policy in policies.T.tolist()]
    return rows.assign(scale=scale[:, 0])


def finish(runs: pd.DataFrame, run_path: str) -> None:
    """Writes runs.csv, of which nobody ever meets half, and says what was found, for each number of steps."""
    runs.to_csv(f"{run_path}/runs.csv.tmp", index=False, float_format="%.6g")
    os.replace(f"{run_path}/runs.csv.tmp", f"{run_path}/runs.csv")
    tolerance, shares = TOLERANCE * runs["scale"], {"unroll": runs["unroll"]}
    for name, column in (("unrolled", "leader_return"), ("guaranteed", "leader_return_guaranteed")):
        shares[f"{name}_below"] = runs[column] < runs["stackelberg_value_pessimistic"] - tolerance
        shares[f"{name}_above"] = runs[column] > runs["stackelberg_value"] + tolerance
    table = pd.DataFrame(shares).groupby("unroll").mean()
    means = runs.groupby("unroll")[["leader_return", "leader_return_guaranteed", "stackelberg_value"]].mean()
    print(f"""
{table.join(means).round(3).to_string()}

  unrolled    the leader's return after the follower's steps; guaranteed: from an exact best response, ties against it
  below       share of runs more than 0.05 of the scale below the optimum of deterministic memory-1 leaders (the
              pessimistic one, where ties matter); above: more than 0.05 above the optimistic one, by mixing
  curves      tensorboard --logdir {run_path}
  every run   {run_path}/runs.csv""")


def main(args: Args) -> pd.DataFrame:
    """Trains all leaders, one number of steps after the other; returns what it writes to runs.csv."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with tensors of this size
    run_name = f"{len(args.env_ids)}_games__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(run_path := f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    # rewards: payoffs from 0 to 3, so that step sizes fit payoffs of any scale
    rewards = (args.payoffs - args.payoffs.min(axis=(2, 3), keepdims=True)) / scales_of(args.payoffs)
    rewards = torch.tensor(rewards.reshape(-1, 2, NUM_ACTIONS**2)).movedim(0, -1)
    rewards, results = rewards.repeat_interleave(args.num_seeds, -1), []
    for k in args.unroll:
        torch.manual_seed(args.seed)
        start_time = time.process_time()
        step_sizes = np.resize(args.follower_step_size, rewards.shape[-1])
        leader, curve = train(rewards.float(), k, torch.tensor(step_sizes, dtype=torch.float32), args)
        seconds = (time.process_time() - start_time) / len(step_sizes)
        results.append(results_of(args, k, leader, curve, rewards).assign(step_size=step_sizes, seconds=seconds))
        with SummaryWriter(f"{run_path}/unroll-{k}") as writer:
            flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
            for iteration, returns in enumerate(curve, start=1):
                for player, mean in zip(("leader", "follower"), returns.mean(1).tolist(), strict=True):
                    writer.add_scalar(f"charts/{player}_return_of_scale", mean, iteration)
    runs = pd.concat(results, ignore_index=True)
    finish(runs, run_path)
    return runs


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
