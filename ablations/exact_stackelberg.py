# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tyro==1.0.17"]
# ///
"""The proved Stackelberg optimum of an iterated m x n game, where enumeration ends at 3 x 3.

    python ablations/exact_stackelberg.py --env-id prisoners_dilemma
    python ablations/exact_stackelberg.py --random-game 4 7             # 4 x 4: default_rng(7).random((2, 4, 4))
    python ablations/exact_stackelberg.py --leader-payoff 2 4 1 3 --follower-payoff 1 0 0 1

The class: deterministic leaders with memory 1, which answer the start and each of the m n last pairs of actions, and
stationary followers that see the same and discount by gamma. Of the 17 billion leaders of a 4 x 4 game few need a look:

1. A leader is a table x. After the pair (a, b) only its answer x(a, b) matters to the follower, whose value W therefore
   depends on the leader's current action alone: W(a) = max_b F[a, b] + gamma W(x(a, b)). There are m nodes a, with n
   edges each, whose targets the leader sets.
2. Let the follower have one best reply in every node, or break ties for a leader that discounts as it does. Then play
   takes the same edge whenever it comes to a node: it is a path over distinct actions a_0 ... a_(k-1), replies b_i,
   that ends in a cycle. Answers off that path are never given. They are threats, best if they all lead to the node
   where the follower has least, m = min(min_i v(a_i), min_(a off the path) max_b F[a, b] / (1 - gamma)), where v is the
   follower's value along the path. A node off the path has at least the second term: W(a) = max_b F[a, b] + gamma
   W(x(a, b)) holds in the one of least W too, so W >= max_b F[a, b] + gamma W there; and it has no more if all its
   answers are a itself.
3. The follower keeps to the path iff v(a_i) >= F[a_i, b] + gamma m for each i and each b other than b_i, because one
   deviation that does not pay in any node rules out all others (strict: iff >, and then the reply is unique).

So the optimum is the best path that holds. The search extends paths action by action. With m replaced by its lower
bound, min_a max_b F[a, b] / (1 - gamma), step 3 says what the rest of a path must leave to the follower. At any price
of the follower's payoff, the rest is worth at most the sum, over its steps, of the best pair's worth to both, less the
price of what the follower must have; the least of this over some prices is a bound (for a discounted leader it is the
convex hull of the payoff pairs). A path whose bound is no better than the best one found is dropped.

With `--horizon 10` the leader's return is its mean over the first 10 steps instead, the follower is the same. Step 2
needs unique best replies then: in games with ties there may be better leaders, whose follower replies differently to
the same action.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tyro

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


@dataclass
class Args:
    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3, as they are named below (`PAYOFFS`), or two of them as A-B"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
    leader_actions: int | None = None
    """rows of the payoffs, if there are not as many as columns"""
    random_game: tuple[int, int] | None = None
    """instead: actions of both players, and the game's number"""
    gamma: float = 0.9
    """the follower's discount factor, and the leader's without `--horizon`"""
    horizon: int | None = None
    """the leader's return is its mean over so many steps, not discounted"""
    strict: bool = False
    """let the follower have one best reply only, so that no tie need be broken"""

    def __post_init__(self):
        if not 0 < self.gamma < 1 or (self.horizon is not None and self.horizon < 1):
            raise ValueError("--gamma must be between 0 and 1, and --horizon positive")
        self.payoffs = payoffs_of(self)


def payoffs_of(args) -> np.ndarray:
    """Returns payoffs [player, leader's action, follower's action], names their game, or raises ValueError."""
    names = args.env_id.split("-")
    is_known = len(names) <= 2 and {*names} <= {*PAYOFFS}
    if args.random_game is not None:
        actions, number = args.random_game
        if actions < 1 or number < 0 or args.leader_actions:
            raise ValueError("--random-game needs the number of actions of both players, and the game's; nothing else")
        args.env_id = f"random_{actions}x{actions}_{number}"
        return np.random.default_rng(number).random((2, actions, actions))
    if args.leader_payoff or args.follower_payoff:
        size, finite = len(args.leader_payoff), np.isfinite(args.leader_payoff + args.follower_payoff).all()
        rows = args.leader_actions or math.isqrt(size)
        if not (finite and 0 < size == len(args.follower_payoff) and rows > 0 and size % rows == 0):
            raise ValueError("--leader-payoff, --follower-payoff: as many, finite; a square or --leader-actions rows")
        args.env_id = "custom" if is_known else args.env_id
        return np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
    if not is_known:
        raise ValueError(f"no game {args.env_id!r}: {', '.join(PAYOFFS)}, two as A-B, or your own payoffs")
    return np.array([PAYOFFS[names[0]], np.transpose(PAYOFFS[names[-1]])], dtype=np.float64)


TIE = 1e-9  # what rounding leaves of a tie


class Solution(NamedTuple):
    """An optimum and the argument for it."""

    value: float  # the leader's mean payoff per step, discounted or over the horizon
    follower_value: float  # the follower's discounted mean
    leader_table: list[int]  # [1 + m n]: the action at the start, and after each pair of actions
    path: list[tuple[int, int]]  # pairs of actions as they are played, each leader action once
    cycle: int  # the path's place that play returns to after its end
    threat: int  # the leader's action after every other pair
    margins: list[float]  # [path]: what the best deviation in each place costs the follower, in discounted payoff


def solve(payoffs: np.ndarray, gamma: float = 0.9, horizon: int | None = None, strict: bool = False) -> Solution | None:
    """Returns the optimum for payoffs [2, m, n]: depth-first search with a bound over the paths of the proof
    (docstring of exact_stackelberg.py).

    `horizon`: the leader's mean over so many steps instead of the discounted one. `strict`: unique best replies only;
    None if no leader leaves the follower one.
    """
    leader, follower = payoffs
    stay = follower.max(axis=1) / (1 - gamma)  # the follower's value if the leader repeats an action
    # its best payoff in [m, n] but for that reply
    other = np.where(np.eye(follower.shape[1], dtype=bool), -math.inf, follower[:, None]).max(axis=2)
    gain, loss = np.subtract.outer(leader, leader), -np.subtract.outer(follower, follower)
    trades = (gain > 0) & (loss > 0)
    slopes = np.append(0, gain[trades] / loss[trades])  # prices of the follower's payoff in the leader's
    best = None

    def share(k: int) -> float:
        """What step k counts in the leader's return."""
        return (1 - gamma) * gamma**k if horizon is None else (k < horizon) / horizon

    @functools.cache
    def bound_after(k: int) -> tuple[np.ndarray, np.ndarray]:
        """Prices of the follower's payoff, and the most that the steps from k on are worth to both at each of them."""
        weight = share(0 if horizon else k)
        prices, later = weight * slopes, gamma ** np.arange(max(horizon - k, 0) if horizon else 1)[:, None, None]
        worth = (weight * leader.ravel() + later * prices[:, None] * follower.ravel()).max(axis=2).sum(axis=0)
        if horizon is None:
            return prices, worth / (1 - gamma)
        return prices, worth + prices * gamma ** len(later) * stay.max()

    @functools.cache
    def visits(length: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """How often play comes to each place of a path: discounted, from each place on, and for the leader's return."""
        step = np.eye(length)[[*range(1, length), cycle]]
        discounted = np.linalg.inv(np.eye(length) - gamma * step)
        if horizon is None:
            return discounted, (1 - gamma) * discounted[0]
        return discounted, sum(np.linalg.matrix_power(step, t)[0] for t in range(horizon)) / horizon

    def close(path: list[tuple[int, int]], cycle: int) -> Solution | None:
        """Returns the path that returns to its place `cycle`, if the follower keeps to it."""
        (discounted, shares), pairs, nodes = visits(len(path), cycle), tuple(np.transpose(path)), stay.copy()
        values = nodes[pairs[0]] = discounted @ follower[pairs]
        margins = values - other[pairs] - gamma * nodes.min()
        if margins.min() < (TIE if strict else -TIE):
            return None
        table = np.full(leader.shape, nodes.argmin())
        table[pairs] = pairs[0][[*range(1, len(path)), cycle]]
        value, table = float(shares @ leader[pairs]), [path[0][0], *table.ravel().tolist()]
        return Solution(value, (1 - gamma) * values[0], table, path, cycle, int(nodes.argmin()), margins.tolist())

    def extend(path: list[tuple[int, int]], needed: float, payoff: float):
        """Tries every next pair, the best bound first. `needed`: what the follower must have from here on, discounted
        to here; `payoff`: what the leader has had."""
        nonlocal best
        rest = (np.maximum(needed, other + gamma * stay.min()) - follower) / gamma
        so_far, (prices, worth) = payoff + share(len(path)) * leader, bound_after(len(path) + 1)
        bounds = so_far + (worth - prices * rest[..., None]).min(axis=-1)
        bounds[rest > stay.max() + TIE] = bounds[[a for a, _ in path]] = -math.inf
        for pair in zip(*np.unravel_index(np.argsort(-bounds, axis=None), bounds.shape), strict=True):
            if bounds[pair] <= (best.value + TIE if best else -math.inf):
                return
            longer = [*path, tuple(map(int, pair))]
            for cycle in range(len(longer)):
                solution = close(longer, cycle)
                if solution and (best is None or solution.value > best.value + TIE):
                    best = solution
            extend(longer, rest[pair], so_far[pair])

    extend([], follower.min() / (1 - gamma), 0.0)
    return best


def replies_to(solution: Solution, follower_payoff: np.ndarray) -> list[int]:
    """Returns the follower's table, [1 + m n]. Off the path every answer is the threat: it plays for the moment."""
    replies = follower_payoff.argmax(axis=1)
    for action, reply in solution.path:
        replies[action] = reply
    return replies[solution.leader_table].tolist()


def main(args: Args) -> Solution | None:
    """Solves the game and says what was found."""
    solution = solve(args.payoffs, args.gamma, args.horizon, args.strict)
    if solution is None:
        raise SystemExit("whatever the leader commits to, the follower has several best replies: try without --strict")
    kind = f"mean over {args.horizon} steps" if args.horizon else f"discounted by {args.gamma}"
    arrow = " -> ".join(f"({a}, {b})" for a, b in solution.path)
    print(f"""
  optimum            {solution.value:.6g} per step ({kind}), the follower's {solution.follower_value:.6g} (discounted)
  leader's policy    {solution.leader_table} at the start and after each pair of actions
  follower's reply   {replies_to(solution, args.payoffs[1])}
  play               {arrow}, then again from {solution.path[solution.cycle]}; after any other pair: {solution.threat}
  a deviation costs  {", ".join(f"{margin:.6g}" for margin in solution.margins)} (in the follower's discounted payoff)
  proved             for deterministic memory-1 leaders and stationary followers discounted by {args.gamma}""")
    return solution


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
