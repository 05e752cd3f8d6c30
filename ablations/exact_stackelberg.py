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
bound, min_a max_b F[a, b] / (1 - gamma), step 3 says what the rest of a path must leave to the follower, and a pair of
discounted means lies in the convex hull of the payoff pairs: the rest is worth at most the hull's frontier there to the
leader. A path whose bound is no better than the best one found is dropped.

With `--horizon 10` the leader's return is its mean over the first 10 steps instead, the follower is the same. The hull
is no bound then (the leader's largest payoff in all steps left is), and step 2 needs unique best replies: in games with
ties there may be better leaders, whose follower replies differently to the same action.
"""

import itertools
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
    """a game of the paper's Table 3, as they are named below (`PAYOFFS`)"""
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
    """Returns the game's payoffs, [player, leader's action, follower's action]; player 0 is the leader.
    Raises ValueError if the flags give none."""
    if args.random_game is not None:
        actions, number = args.random_game
        if actions < 1 or number < 0:
            raise ValueError(f"--random-game needs the number of actions and the game's, got {actions} and {number}")
        return np.random.default_rng(number).random((2, actions, actions))
    if args.leader_payoff or args.follower_payoff:
        size = len(args.leader_payoff)
        rows = args.leader_actions or math.isqrt(size)
        if not (0 < size == len(args.follower_payoff) and rows > 0 and size % rows == 0):
            raise ValueError("--leader-payoff, --follower-payoff: as many of each, a square or --leader-actions rows")
        return np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
    if args.env_id not in PAYOFFS:
        raise ValueError(f"no game {args.env_id!r}: choose from {', '.join(PAYOFFS)}, or give your own payoffs")
    return np.array([PAYOFFS[args.env_id], np.transpose(PAYOFFS[args.env_id])], dtype=np.float64)


TIE = 1e-9  # what rounding leaves of a tie


class Solution(NamedTuple):
    """An optimum and the argument for it."""

    value: float  # the leader's mean payoff per step, discounted or over the horizon
    follower_value: float  # the follower's discounted mean
    leader_table: list[int]  # [1 + m n]: the action at the start, and after each pair of actions
    follower_table: list[int]  # [1 + m n]: the reply in the same observations
    path: list[tuple[int, int]]  # pairs of actions as they are played, each leader action once
    cycle: int  # the path's place that play returns to after its end
    threat: int  # the leader's action after every other pair
    margins: list[float]  # [path]: what the best deviation in each place costs the follower, in discounted payoff


def frontier(payoffs: np.ndarray):
    """Returns the function from a follower's mean to the most that the leader can have with at least that: the upper
    right edge of the convex hull of the payoff pairs; minus infinity beyond the follower's largest payoff."""
    corners = []  # from the follower's best to the leader's best
    for follower, leader in sorted(zip(*payoffs[::-1].reshape(2, -1).tolist(), strict=True), reverse=True):
        if corners and leader <= corners[-1][1]:
            continue
        while len(corners) > 1:
            (f0, l0), (f1, l1) = corners[-2:]
            if (l1 - l0) * (f0 - follower) > (leader - l0) * (f0 - f1):
                break
            corners.pop()  # it lies below the line between its neighbours
        corners.append((follower, leader))
    means, values = zip(*reversed(corners), strict=True)
    return lambda mean: np.interp(mean, means, values) if mean <= means[-1] + TIE else -math.inf


def discounted(payoff: list[list[float]], path: list[tuple[int, int]], cycle: int, gamma: float) -> list[float]:
    """Returns a player's discounted payoff from each place of a path on."""
    value = sum(gamma**t * payoff[a][b] for t, (a, b) in enumerate(path[cycle:])) / (1 - gamma ** (len(path) - cycle))
    values = []
    for a, b in reversed(path):
        value = payoff[a][b] + gamma * value
        values.append(value)
    return values[::-1]


def solve(payoffs: np.ndarray, gamma: float = 0.9, horizon: int | None = None, strict: bool = False) -> Solution | None:
    """Returns the optimum for payoffs [2, m, n]: depth-first search with a bound over the paths of the docstring.

    `horizon`: the leader's mean over so many steps instead of the discounted one. `strict`: unique best replies only;
    None if no leader leaves the follower one.
    """
    leader, follower = payoffs.tolist()
    rows, columns = range(payoffs.shape[1]), range(payoffs.shape[2])
    stay = [max(follower[a]) / (1 - gamma) for a in rows]  # the follower's value if the leader repeats an action
    other = [[max((follower[a][c] for c in columns if c != b), default=-math.inf) for b in columns] for a in rows]
    most, largest, margin = frontier(payoffs), payoffs[0].max(), TIE if strict else -TIE
    best = None

    def close(path: list[tuple[int, int]], cycle: int) -> Solution | None:
        """Returns the path that returns to its place `cycle`, if the follower keeps to it."""
        values = discounted(follower, path, cycle, gamma)
        nodes = dict(enumerate(stay)) | {a: value for (a, _), value in zip(path, values, strict=True)}
        threat = min(nodes, key=nodes.get)
        margins = [v - other[a][b] - gamma * nodes[threat] for v, (a, b) in zip(values, path, strict=True)]
        if min(margins) < margin:
            return None
        if horizon is None:
            mean = (1 - gamma) * discounted(leader, path, cycle, gamma)[0]
        else:
            played = itertools.islice(itertools.chain(path, itertools.cycle(path[cycle:])), horizon)
            mean = sum(leader[a][b] for a, b in played) / horizon
        return Solution(mean, (1 - gamma) * values[0], [], [], path, cycle, threat, margins)

    def extend(path: list[tuple[int, int]], needed: float, payoff: float):
        """Tries every next pair, the best bound first. `needed`: what the follower must have from here on, discounted
        to here; `payoff`: what the leader has had."""
        nonlocal best
        k, extensions = len(path), []
        for a in set(rows) - {a for a, _ in path}:
            for b in columns:
                rest = (max(needed, other[a][b] + gamma * min(stay)) - follower[a][b]) / gamma
                bound = most((1 - gamma) * rest)
                if horizon is None:
                    so_far = payoff + (1 - gamma) * gamma**k * leader[a][b]
                    bound = so_far + gamma ** (k + 1) * bound
                else:
                    so_far = payoff + (leader[a][b] / horizon if k < horizon else 0.0)
                    bound = -math.inf if bound == -math.inf else so_far + max(1 - (k + 1) / horizon, 0.0) * largest
                extensions.append((bound, a, b, rest, so_far))
        for bound, a, b, rest, so_far in sorted(extensions, reverse=True):
            if best is not None and bound <= best.value + TIE:
                return
            longer = [*path, (a, b)]
            for cycle in range(k + 1):
                solution = close(longer, cycle)
                if solution and (best is None or solution.value > best.value + TIE):
                    best = solution
            extend(longer, rest, so_far)

    extend([], -math.inf, 0.0)
    return best and best._replace(**tables(best, payoffs[1]))


def tables(solution: Solution, follower_payoff: np.ndarray) -> dict[str, list[int]]:
    """Writes a path and its threat out as both players' tables, in the order start, (0, 0), (0, 1), ..."""
    path, (rows, columns) = solution.path, follower_payoff.shape
    leader = np.full((rows, columns), solution.threat)
    for pair, (action, _) in zip(path, [*path[1:], path[solution.cycle]], strict=True):
        leader[pair] = action
    # Off the path every answer is the threat, so the follower plays for the moment.
    replies = follower_payoff.argmax(axis=1)
    for action, reply in path:
        replies[action] = reply
    leader = [path[0][0], *leader.ravel().tolist()]
    return {"leader_table": leader, "follower_table": replies[leader].tolist()}


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
  follower's reply   {solution.follower_table}
  play               {arrow}, then again from {solution.path[solution.cycle]}; after any other pair: {solution.threat}
  a deviation costs  {", ".join(f"{margin:.6g}" for margin in solution.margins)} (in the follower's discounted payoff)
  proved             for deterministic memory-1 leaders and stationary followers discounted by {args.gamma}""")
    return solution


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
