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

In a few seconds you should see that with reward withheld the leader learns action 0, the Stackelberg equilibrium, and
gets a, its largest payoff: no commitment gets more. With reward given, it pays for the time in which the follower has
not found out about those 0.001. At p = -5 this makes action 1 worth more, and that is what the leader learns. At p = 0
it depends: for a = 1.5 action 1 is worth more; for a = 2, as an exact calculation shows, it is not, so that a leader
that acts alike throughout each episode does find the equilibrium. One that does not (`--epsilon 0.2`) mostly misses it,
but at p = -5 then does so with reward withheld, too.

Learning rates, batches and the follower are those of the authors' code (`bots_dqn_tabularq_out_of_eq` in
mgerstgrasser/oracles_and_followers, commit e98db77).
"""

import itertools
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

    def __post_init__(self):
        may_be_zero = {"seed", "learning_starts", "n_step", "epsilon"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.epsilon > 1:
            raise ValueError(f"--epsilon must be at most 1, got {self.epsilon}")
        if not all(math.isfinite(payoff) for payoff in (*self.preferred_payoff, *self.mismatch_payoff)):
            raise ValueError("--preferred-payoff and --mismatch-payoff must be finite numbers")

        self.seeds = range(self.seed, self.seed + self.num_seeds)
        self.episode_length = self.follower_episodes + 1
        self.num_episodes = self.total_timesteps // self.episode_length
        if self.num_episodes * self.episode_length < max(self.episode_length, self.learning_starts):
            raise ValueError(
                f"--total-timesteps must hold an episode of {self.episode_length} steps and --learning-starts"
            )


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


ENV_ID = "slow_coordination"  # Appendix C.3's modified battle of the sexes


def coordination_game(preferred_payoff: float, mismatch_payoff: float) -> Game:
    """Returns the modified battle of the sexes of Appendix C.3."""
    leader_payoff = ((preferred_payoff, mismatch_payoff), (mismatch_payoff, 1.0))
    return Game(np.array(leader_payoff), np.array(((0.001, 0.0), (0.0, 2.0))))


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


def play_episode(game: Game, actions: np.ndarray, noise: np.ndarray, args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Plays an episode of each seed: the leader's actions [seeds, 11], against a follower that learns from scratch in
    all steps but the last one, with `noise` [seeds, 10, 2] on its values. Returns both players' payoffs, [seeds, 11].
    """
    q, replies = np.zeros((len(actions), NUM_ACTIONS)), np.zeros_like(actions)
    for t in range(args.follower_episodes):
        replies[:, t] = follower_learns(q, actions[:, t], noise[:, t], game.follower_payoff, args.follower_step_size)
    replies[:, -1] = q.argmax(axis=1)
    return game.leader_payoff[actions, replies], game.follower_payoff[actions, replies]


def train_leaders(
    leaders: nn.Parameter, game: Game, given: bool, args: Args, rngs: list[np.random.Generator], log
) -> None:
    """DQN with parameter noise: one noisy policy acts throughout an episode, so that it plays as the follower learned.

    The game shows the leader nothing: it has two action values, [seeds, 2], trained in place. The replay buffer keeps
    every episode. Calls `log(steps, scalars)` after each, with scalars [seeds].
    """
    optimizer, target_q = torch.optim.Adam([leaders], lr=args.learning_rate), leaders.detach().clone()
    seeds, length, gradient_steps = np.arange(args.num_seeds)[:, None], args.episode_length, 0
    actions = np.zeros((args.num_seeds, args.num_episodes, length), dtype=np.int64)
    cumulative = np.zeros((args.num_seeds, args.num_episodes, length + 1))  # differences are n-step returns
    for episode in tqdm(range(args.num_episodes), desc="leaders", leave=False, disable=None):
        leader_noise = args.noise_stddev * draw(rngs, "standard_normal", NUM_ACTIONS)
        greedy_action = (leaders.detach().numpy() + leader_noise).argmax(axis=1)
        is_random = draw(rngs, "random", length) < args.epsilon
        random_actions = draw(rngs, "integers", 0, NUM_ACTIONS, length)
        actions[:, episode] = np.where(is_random, random_actions, greedy_action[:, None])
        follower_noise = args.follower_noise * draw(rngs, "standard_normal", (args.follower_episodes, NUM_ACTIONS))
        payoffs, follower_payoffs = play_episode(game, actions[:, episode], follower_noise, args)
        rewards = payoffs.copy()
        if not given:
            rewards[:, :-1] = 0
        cumulative[:, episode, 1:] = rewards.cumsum(axis=1)
        scalars = {"charts/leader_return": payoffs[:, -1], "charts/follower_return": follower_payoffs[:, -1]}

        step = (episode + 1) * length
        if step >= args.learning_starts:
            e = draw(rngs, "integers", 0, episode + 1, args.batch_size)
            t = draw(rngs, "integers", 0, length, args.batch_size)
            last = np.minimum(t + (args.n_step or length), length)
            td_target = torch.as_tensor(cumulative[seeds, e, last] - cumulative[seeds, e, t])
            td_target += target_q.amax(dim=1, keepdim=True) * torch.as_tensor(last < length)  # none after the end
            q_taken = leaders.gather(1, torch.as_tensor(actions[seeds, e, t]))
            losses = ((q_taken - td_target) ** 2).mean(dim=1)
            descend(losses, optimizer, "--learning-rate")
            gradient_steps += 1
            if gradient_steps % args.target_network_frequency == 0:
                target_q = leaders.detach().clone()
            q_values = leaders.detach().amax(dim=1).numpy()
            scalars |= {"losses/td_loss": losses.detach().numpy(), "losses/q_values": q_values}
        log(step, scalars)


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in rewards


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


def train_arm(env_id: str, game: Game, exact: np.ndarray, reward: str, args: Args, run_path: str) -> list[dict]:
    """Trains the leaders of one game and reward and writes their mean curves; returns what result.json says about each.
    `exact`, [2, 2], are both players' expected payoffs in play for each action of the leader's."""
    arm = f"{env_id.removeprefix(ENV_ID + '_')}_{reward}"
    start_time, writer = time.time(), start_writer(f"{run_path}/{arm}", args)
    rngs = [np.random.default_rng(seed) for seed in args.seeds]
    leaders = nn.Parameter(torch.as_tensor(0.01 * draw(rngs, "standard_normal", NUM_ACTIONS)))
    optimum, regrets = game.outcomes().max().item(), game.follower_payoff.max(axis=1) - exact[1]
    curve = []  # [step, greedy returns, exploring returns]

    def log(step: int, scalars: dict[str, np.ndarray]):
        actions = leaders.argmax(-1).numpy()
        greedy = exact[0][actions]
        curve.append((step, greedy, scalars["charts/leader_return"]))
        scalars |= {"charts/leader_return_greedy": greedy, "charts/leader_regret": optimum - greedy}
        scalars |= {"charts/follower_regret": regrets[actions], "charts/stackelberg_value": optimum}
        scalars |= {"charts/SPS": args.num_seeds * step / (time.time() - start_time)}
        for tag, values in scalars.items():
            writer.add_scalar(tag, np.mean(values), step)

    train_leaders(leaders, game, reward == "given", args, rngs, log)
    writer.close()

    steps, greedy, exploring = (np.array(x) for x in zip(*curve, strict=True))
    second_half = steps > steps[-1] / 2
    runs = []
    for i, action in enumerate(leaders.argmax(-1).tolist()):
        run = {"arm": arm, "env_id": env_id, "reward": reward, "seed": args.seeds[i]}
        run["leader_return"] = exploring[-math.ceil(len(steps) / 10) :, i].mean()
        run |= {"leader_return_greedy": greedy[-1, i], "stackelberg_value": optimum}
        run |= {"leader_regret": optimum - greedy[-1, i], "follower_regret": regrets[action]}
        run |= {"leader_policy": [action], "follower_policy": [game.follower_payoff[action].argmax().item()]}
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            run[name] = steps_to_converge(steps, (returns[:, i] - optimum) / game.scale())
        at_optimum = greedy[second_half, i] >= optimum - TOLERANCE * game.scale()
        run["share_at_value"] = at_optimum.mean()
        run["curve"] = [[*point] for point in zip(steps.tolist(), greedy[:, i], exploring[:, i], strict=True)]
        runs.append(run)
    return runs


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    for game in result["games"]:
        print(f"\n{game['env_id']}: the optimum of deterministic leaders is {game['stackelberg_value']:g}")
        for action, (learning, play) in enumerate(zip(game["while_learning"], game["play"], strict=True)):
            worth = f"{learning:.2f} while the follower learns and {play:.2f} in play, {learning + play:.2f} in all"
            print(f"  action {action}, played throughout an episode, is worth {worth}")
        for reward in ("withheld", "given"):
            of_game = [run for run in result["runs"] if (run["env_id"], run["reward"]) == (game["env_id"], reward)]
            if of_game:
                names = "leader_return_greedy", "leader_return", "share_at_value"
                greedy, exploring, share = np.mean([[run[name] for name in names] for run in of_game], axis=0)
                hits = sum(run["leader_regret"] <= TOLERANCE * game["scale"] for run in of_game)
                print(f"  reward {reward}: {greedy:.2f} in play, greedy, and {exploring:.2f} as they explore; ", end="")
                print(f"{hits} of {len(of_game)} leaders at the optimum, {share:.0%} of training's second half")
    print(f"  curves             tensorboard --logdir {run_path}\n  result             {run_path}/result.json")


def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path = start_run(args)

    games, runs = [], []
    for a, p in itertools.product(args.preferred_payoff, args.mismatch_payoff):
        env_id, game = f"{ENV_ID}_a{a:g}_p{p:g}", coordination_game(a, p)
        expected = [expected_episode(game, action, np.zeros(NUM_ACTIONS), args) for action in range(NUM_ACTIONS)]
        while_learning, *exact = np.array(expected).T
        games.append({"env_id": env_id, "preferred_payoff": a, "mismatch_payoff": p, "scale": game.scale()})
        games[-1] |= {"stackelberg_value": game.outcomes().max().item()}
        games[-1] |= {"while_learning": while_learning.tolist(), "play": exact[0].tolist()}
        for reward in ["withheld", "given"] if args.reward == "both" else [args.reward]:
            runs += train_arm(env_id, game, np.array(exact), reward, args, run_path)

    leader_steps, wall_seconds = args.num_episodes * args.episode_length, time.time() - start_time
    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    result |= {"games": games, "leader_steps": leader_steps, "runs": runs}
    result |= {"wall_seconds": wall_seconds, "steps_per_second": leader_steps * len(runs) / wall_seconds}
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
