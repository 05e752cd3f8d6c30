# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of iterated 2x2 matrix games: evolution strategies, and followers that learn from scratch.

The baseline ES-MD ("The Good Shepherd", Balaguer et al.) in "Oracles & Followers: Stackelberg Equilibria in Deep
Multi-Agent RL", the dashed lines of Figure 1:

    python ablations/es_md_matrix.py --env-id prisoners_dilemma

Every candidate leader meets a follower that knows nothing and learns by policy gradient, and is scored by what it gets
while that follower learns (the original's aim) or only once it has learned (`--no-reward-during-learning`: Lemma 1).
Evolution strategies follow the scores. The original used 1.28 billion steps and no learning curve of it was published;
population, noise, rates and the follower's schedule are ours. In seconds the leader defects first, then reciprocates:
made greedy, it gets -0.90 per step, the optimum of deterministic memory-1 leaders against stationary followers. As it
is, it gets -0.85: it defects now and then on a follower that cooperates. Stochastic leaders can get up to -0.50.
"""

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import tyro
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

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3 (prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle, chicken), two of them as A-B, or a name for your own"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
    num_steps: int = 10
    """game steps per episode of the game"""
    total_timesteps: int = 100_000_000
    """environment steps in all, those in which followers learn included"""

    reward_during_learning: bool = True
    """score a leader by its mean payoff while the follower learns, as the original; off: by its payoff afterwards"""
    follower_updates: int = 50
    """policy-gradient updates of each follower, from scratch"""
    follower_episodes: int = 16
    """episodes of the game per update, and those that a follower plays greedily after the last one"""
    follower_step_size: float = 1.0
    """step size of the follower's gradient ascent (no Adam), in logits per unit of reward"""
    evaluation_followers: int = 16
    """followers that learn against each of the 32 leader tables, for what a greedy leader gets; not in the budget"""

    population: int = 128
    """leaders per generation, half of them mirror images of the other half; each meets a follower of its own"""
    noise_std: float = 2.0
    """standard deviation of the leaders around the mean, in logits; less of it leaves hero in a local optimum"""
    learning_rate: float = 0.1
    """Adam learning rate of the mean, in logits"""

    def __post_init__(self):
        may_be_zero = {"seed"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        payoffs, names = (self.leader_payoff, self.follower_payoff), self.env_id.split("-")
        is_known = len(names) <= 2 and {*names} <= {*PAYOFFS}
        if payoffs == ((), ()):
            if not is_known:
                raise ValueError(f"no game {self.env_id!r}: {', '.join(PAYOFFS)}, two as A-B, or your own payoffs")
            payoffs = np.ravel(PAYOFFS[names[0]]), np.transpose(PAYOFFS[names[-1]]).ravel()
        elif is_known:
            self.env_id = "custom"
        if not all(len(payoff) == 4 and np.abs(payoff).max() < 1e30 for payoff in payoffs):
            raise ValueError("--leader-payoff and --follower-payoff must be four numbers each, row by row")
        self.game = MatrixGame(*payoffs, self.num_steps)

        if self.population % 2 or self.follower_episodes < 2:
            raise ValueError("--population must be even (mirror images), --follower-episodes at least 2 (baseline)")
        self.generation_steps = self.population * (self.follower_updates + 1) * self.follower_episodes * self.num_steps
        self.generations = self.total_timesteps // self.generation_steps
        if self.generations < 1:
            raise ValueError(f"--total-timesteps must hold a generation, {self.generation_steps} steps")


# ---------------------------------------------------------------------------------------------------------- the game
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


class MatrixGame:
    """An iterated 2x2 game of `num_steps` steps; both players observe the last pair of actions.

    `reward`, [player, leader's action, follower's action], are the payoffs centred on 0 and stretched to +-1.5, as in
    the paper's training (Appendix F). This changes no equilibrium, and the learning rates fit payoffs of any scale.
    A unit of a player's reward is `scale[player]` units of payoff, 1 in the paper's games; player 0 is the leader.
    """

    def __init__(self, leader_payoff, follower_payoff, num_steps: int = 10):
        payoffs = np.array([leader_payoff, follower_payoff], dtype=np.float64).reshape(2, NUM_ACTIONS, NUM_ACTIONS)
        low, high = payoffs.min(axis=(1, 2), keepdims=True), payoffs.max(axis=(1, 2), keepdims=True)
        centre, scale = (low + high) / 2, np.where(high > low, (high - low) / 3, 1.0)
        self.reward, self.centre, self.scale = (payoffs - centre) / scale, centre.ravel(), scale.ravel()
        self.num_steps, self.episode_length = num_steps, NUM_OBSERVATIONS + num_steps

    def payoff(self, player: int, reward):
        """Returns the payoff that a player's reward, a number or an array, stands for."""
        return self.centre[player] + self.scale[player] * reward


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [5]: the action in each observation; TABLES[i] is the table with index i.
# Leader and followers learn logits, [5], of action 1 in each observation. Made greedy, their policies are tables.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


# ------------------------------------------------------------------------------------------------ the exact solution
def play(game: MatrixGame, leader_tables: np.ndarray, follower_policies: np.ndarray, uniforms=0.5):
    """Plays an episode for each leader table and follower's probabilities of action 1, both [n, 5].

    Uniform numbers, [num_steps, n], decide, and matter only where a probability is neither 0 nor 1. Returns
    observations and follower's actions, [num_steps, n], and both players' rewards, [2, num_steps, n].
    """
    rows = np.arange(len(leader_tables))
    uniforms = np.broadcast_to(uniforms, (game.num_steps, len(rows)))
    observations, leader_actions, follower_actions = np.full((3, *uniforms.shape), START)
    for t in range(game.num_steps):
        if t > 0:
            observations[t] = 1 + NUM_ACTIONS * leader_actions[t - 1] + follower_actions[t - 1]
        leader_actions[t] = leader_tables[rows, observations[t]]
        follower_actions[t] = uniforms[t] < follower_policies[rows, observations[t]]
    return observations, follower_actions, game.reward[:, leader_actions, follower_actions]


def solve(game: MatrixGame) -> tuple[float, float, np.ndarray]:
    """Returns the exact optimum of deterministic memory-1 leaders against stationary followers (32 x 32 tables), if the
    follower breaks ties in the leader's favour (Definition 2) and if it breaks them against it, and the follower's best
    against each leader, [32]; all as mean rewards per step.

    Both restrictions matter. In the prisoner's dilemma stochastic memory-1 leaders reach -0.50 instead of -0.90, and
    against a follower that knows how many steps are left the optimum is -1.10 (benchmark/results/commitments.csv).
    """
    n = len(TABLES)
    _, _, rewards = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    leader_rewards, follower_rewards = rewards.mean(axis=1).reshape(2, n, n)
    best = follower_rewards.max(axis=1)
    is_best = follower_rewards >= best[:, None] - 1e-6  # what rounding leaves of a tie
    optimistic, pessimistic = np.where(is_best, leader_rewards, -np.inf), np.where(is_best, leader_rewards, np.inf)
    return optimistic.max(), pessimistic.min(axis=1).max(), best


def best_response_reward(game: MatrixGame, leader: np.ndarray) -> float:
    """Returns the mean reward per step of a leader with these probabilities of action 1, [5], against the best of the
    32 follower tables, ties broken for the leader: exactly, by following the probability of each observation."""
    rows = np.arange(len(TABLES))[:, None]
    reached = np.tile(np.eye(NUM_OBSERVATIONS)[START], (len(TABLES), 1))
    rewards = np.zeros((2, len(TABLES)))
    for _ in range(game.num_steps):
        reached_next = np.zeros_like(reached)
        for action, probability in enumerate((1 - leader, leader)):
            weight = reached * probability
            rewards += (weight * game.reward[:, action, TABLES]).sum(axis=-1) / game.num_steps
            np.add.at(reached_next, (rows, 1 + NUM_ACTIONS * action + TABLES), weight)
        reached = reached_next
    return rewards[0, rewards[1] >= rewards[1].max() - 1e-6].max()


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


# -------------------------------------------------------------------------------------------- sampled episodes, fast
# B episodes for each of P pairs of a leader and a follower, T steps each, at about 15 ns per step. What makes it fast:
# arrays stay in the cache, and while playing, every number is a byte. A probability is a threshold, in 1/256: action 1
# is taken if a random byte is below it. An action is a mask, 0 or 255, so that a policy is looked up without an index.
# With last actions l and f, and ^ for exclusive or, the threshold is
#     t00 ^ (l & (t00 ^ t10)) ^ (f & (t00 ^ t01)) ^ (l & f & (t00 ^ t01 ^ t10 ^ t11)).
# Likewise, any reward is a constant and a weighted sum of three features: l, f and l * f, as 0 or 1.
def thresholds(probabilities: np.ndarray) -> np.ndarray:
    """Returns probabilities as bytes, multiples of 1/256, from 1/256 to 255/256: every action is tried."""
    return np.clip(np.rint(256 * probabilities), 1, 255).astype(np.uint8)


def sample_episodes(leaders: np.ndarray, followers: np.ndarray, args: Args, rng: np.random.Generator) -> np.ndarray:
    """Plays all episodes with the thresholds [5, P] of each pair's leader and follower; returns the features of every
    step, [3, T, B, P]: leader's action, follower's action, their product."""
    start, t00, t01, t10, t11 = np.stack((leaders, followers), axis=1)[:, :, None]  # [2, 1, P] each
    by_leader, by_follower, by_both = t00 ^ t10, t00 ^ t01, t00 ^ t01 ^ t10 ^ t11
    shape = args.num_steps, args.follower_episodes, leaders.shape[1]
    draws = np.frombuffer(rng.bytes(2 * math.prod(shape)), dtype=np.uint8).reshape(shape[0], 2, *shape[1:])
    masks = np.empty((3, *shape), dtype=np.uint8)
    threshold = start
    for t in range(args.num_steps):
        np.negative((draws[t] < threshold).view(np.uint8), out=masks[:2, t])  # 1 becomes 255
        masks[2, t] = masks[0, t] & masks[1, t]
        leader, follower, both = masks[:, t]
        threshold = t00 ^ (leader & by_leader) ^ (follower & by_follower) ^ (both & by_both)
    return (masks & 1).astype(np.float32)


def feature_weights(game: MatrixGame) -> np.ndarray:
    """Returns how much each feature adds to each player's reward for actions 0, 0: [2, 3]."""
    (r00, r01), (r10, r11) = game.reward.transpose(1, 2, 0)
    return np.stack((r10 - r00, r01 - r00, r11 - r10 - r01 + r00), axis=1).astype(np.float32)


def mean_rewards(game: MatrixGame, features: np.ndarray) -> np.ndarray:
    """Returns both players' mean rewards per step of each pair, [2, P]."""
    return game.reward[:, 0, 0, None] + feature_weights(game) @ features.mean(axis=(1, 2))


def summed_advantages(game: MatrixGame, features: np.ndarray) -> np.ndarray:
    """Returns the followers' advantages, summed over all steps with the same observation and follower's action,
    [2 actions, 5, P]. They are returns to go, less the mean over the pair's episodes at that step."""
    returns = np.tensordot(feature_weights(game)[1], features, axes=1)  # up to a constant, which the mean has too
    for t in range(game.num_steps - 2, -1, -1):
        returns[t] += returns[t + 1]
    advantages = returns - returns.mean(axis=1, keepdims=True)
    by_action = np.stack((advantages * (1 - features[1]), advantages * features[1]))  # [2, T, B, P]
    # by the last actions: the sums where the leader's was 1, where the follower's was 1, and where both were
    leader, follower, both = np.einsum("ktbp,atbp->kap", features[:, :-1], by_action[:, 1:])
    neither = by_action[:, 1:].sum(axis=(1, 2)) - leader - follower + both
    return np.stack((by_action[:, 0].sum(axis=1), neither, follower - both, leader - both, both), axis=1)


# ------------------------------------------------------------------------------------------------------- the learners
def train_followers(leaders: np.ndarray, args: Args, rng: np.random.Generator):
    """Lets a follower learn from scratch against each of the leaders, probabilities of action 1, [5, P].

    Returns the leaders' rewards while the followers learn, [P], both players' rewards in the episodes that the
    followers, greedy and frozen, play afterwards, [2, P], all means per step, and the followers' logits, [5, P].
    """
    leaders = thresholds(leaders)
    logits = torch.zeros(leaders.shape, requires_grad=True)
    signs = torch.tensor((-1.0, 1.0))[:, None, None]  # of actions 0 and 1
    during = np.zeros(leaders.shape[1])
    for _ in range(args.follower_updates):
        features = sample_episodes(leaders, thresholds(logits.detach().sigmoid().numpy()), args, rng)
        during += mean_rewards(args.game, features)[0] / args.follower_updates

        # REINFORCE. A step's log-probability depends on observation and action alone, so that the advantages of steps
        # alike in both can be summed first: autograd gets [2, 5, P] terms instead of [T, B, P].
        advantages = torch.as_tensor(summed_advantages(args.game, features)) / args.follower_episodes
        logprobs = torch.nn.functional.logsigmoid(signs * logits)
        (gradient,) = torch.autograd.grad(logprobs, logits, grad_outputs=advantages)
        logits.data += args.follower_step_size * gradient
        if not logits.isfinite().all():
            raise SystemExit("the followers' training diverged: lower --follower-step-size")
    logits = logits.detach().numpy()
    after = mean_rewards(args.game, sample_episodes(leaders, thresholds(logits > 0), args, rng))
    return during, after, logits


def train_leader(args: Args, log) -> np.ndarray:
    """Evolution strategies: Adam on the gradient of the ranks' expectation, estimated from mirrored Gaussian noise.

    The leader is their mean. Returns its probabilities of action 1, [5], and calls `log(steps, probabilities, scalars)`
    with them after each generation.
    """
    rng = np.random.default_rng(args.seed)
    logits = torch.zeros(NUM_OBSERVATIONS, dtype=torch.float64)
    optimizer = torch.optim.Adam([logits], lr=args.learning_rate)
    for generation in tqdm(range(1, args.generations + 1), desc="leader", leave=False, disable=None):
        noise = torch.as_tensor(rng.normal(size=(NUM_OBSERVATIONS, args.population // 2)))
        noise = torch.cat((noise, -noise), dim=1)
        leaders = (logits[:, None] + args.noise_std * noise).sigmoid().numpy()
        during, (after, follower_rewards), _ = train_followers(leaders, args, rng)
        score = during if args.reward_during_learning else after

        # ranks from -0.5 to 0.5, ties in random order: the scale of the payoffs does not matter
        order = np.lexsort((rng.random(args.population), score))
        ranks = torch.as_tensor(order.argsort() / (args.population - 1) - 0.5)
        logits.grad = -(noise * ranks).mean(dim=1) / args.noise_std  # Adam descends
        optimizer.step()
        if not logits.isfinite().all():
            raise SystemExit("the leader's training diverged: lower --learning-rate")

        scalars = {"charts/population_return": args.game.payoff(0, score.mean())}
        scalars["charts/follower_return"] = args.game.payoff(1, follower_rewards.mean())
        log(generation * args.generation_steps, logits.sigmoid().numpy(), scalars)
    return logits.sigmoid().numpy()


def evaluate_leaders(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Lets `evaluation_followers` learn against each of the 32 leader tables, as they do in training.

    Returns both players' mean rewards per step then, both greedy, [2, 32], and the followers' most common table,
    [32, 5]. A greedy leader is one of the 32: this evaluates every leader there can be.
    """
    leaders = TABLES.repeat(args.evaluation_followers, axis=0)
    *_, logits = train_followers(leaders.T, args, np.random.default_rng(args.seed))
    followers = (logits.T > 0).astype(np.int64)
    _, _, rewards = play(args.game, leaders, followers)
    most_common = [np.bincount(row).argmax() for row in table_index(followers).reshape(len(TABLES), -1)]
    return rewards.mean(axis=1).reshape(2, len(TABLES), -1).mean(axis=2), TABLES[most_common]


# ------------------------------------------------------------------------------------------------------------- the run
def start_run(args: Args) -> tuple[str, SummaryWriter]:
    """Makes the run's folder and the writer of its curves; starts Weights and Biases if asked for."""
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    writer = SummaryWriter(f"{args.run_dir}/{run_name}")
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return f"{args.run_dir}/{run_name}", writer


def finish(result: dict, game: MatrixGame, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    greedy, least = result["leader_return_greedy"], result["stackelberg_value_pessimistic"] - TOLERANCE * game.scale[0]
    found = greedy >= least and result["follower_regret"] <= TOLERANCE * game.scale[1]
    print(f"""
{result["env_id"]}: the greedy leader and its followers are {"a" if found else "NOT a"} Stackelberg equilibrium
  greedy leader      {greedy:.2f} per game step
  optimum            {result["stackelberg_value"]:.2f} for deterministic memory-1 leaders and stationary followers
  stochastic leader  {result["leader_return"]:.2f} from its exact best response; the optimum of its class may be higher
  probabilities      {np.round(result["leader_probabilities"], 2)} of action 1 at the start and after 00, 01, 10, 11
  made greedy        {result["leader_policy"]}; the followers' most common reply is {result["follower_policy"]}
  exact regrets      leader {result["leader_regret"]:.2f}, followers {result["follower_regret"]:.2f} on average
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


def main(args: Args) -> dict:
    """Evaluates all greedy leaders, then evolves one; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path, writer = start_run(args)
    game = args.game
    value, pessimistic, best_rewards = solve(game)
    stackelberg_value = game.payoff(0, value)

    # what each of the 32 greedy leaders gets from followers that learn against it
    (leader_rewards, follower_rewards), replies = evaluate_leaders(args)
    exact = {
        "leader_return_greedy": game.payoff(0, leader_rewards),
        "leader_regret": game.scale[0] * (value - leader_rewards),
        "follower_regret": game.scale[1] * (best_rewards - follower_rewards),
    }
    curve = []  # [environment step, return of the greedy leader, of the stochastic leader]

    def log(global_step: int, probabilities: np.ndarray, scalars: dict[str, float]):
        index = table_index(probabilities > 0.5)
        leader_return = game.payoff(0, best_response_reward(game, probabilities))
        curve.append([global_step, exact["leader_return_greedy"][index], leader_return])
        scalars |= {f"charts/{name}": values[index] for name, values in exact.items()}
        scalars |= {"charts/leader_return": leader_return, "charts/stackelberg_value": stackelberg_value}
        scalars["charts/SPS"] = int(global_step / (time.time() - start_time))
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, global_step)

    probabilities = train_leader(args, log)
    index = table_index(probabilities > 0.5)
    steps, greedy, stochastic = np.array(curve).T
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result["leader_return"] = stochastic[-math.ceil(len(curve) / 10) :].mean()
    result |= {name: values[index] for name, values in exact.items()}
    result |= {"stackelberg_value": stackelberg_value, "stackelberg_value_pessimistic": game.payoff(0, pessimistic)}
    result |= {"leader_policy": TABLES[index].tolist(), "leader_probabilities": probabilities.tolist()}
    result |= {"follower_policy": replies[index].tolist(), "leader_steps": curve[-1][0]}
    # a stochastic leader falls short of nothing above the optimum of deterministic ones
    for name, returns in (("", greedy), ("_exploring", np.minimum(stochastic, stackelberg_value))):
        result[f"steps_to_converge{name}"] = steps_to_converge(steps, (returns - stackelberg_value) / game.scale[0])
    wall_seconds = time.time() - start_time
    result |= {"curve": curve, "wall_seconds": wall_seconds, "steps_per_second": curve[-1][0] / wall_seconds}
    writer.close()
    finish(result, game, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
