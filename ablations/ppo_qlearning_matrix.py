# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of iterated 2x2 matrix games: a PPO leader, and a Q-learning follower in its every episode.

The baseline (Brero et al.) in "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL": the orange curves
of Figures 1 and 8. Authors' settings are those of mgerstgrasser/oracles_and_followers, commit e98db77.

    python ablations/ppo_qlearning_matrix.py --env-id stag_hunt

Theorem 1 with the oldest of oracles. Each leader episode opens with the whole learning of a tabular Q-learning
follower, 80 episodes of the game, in which the leader's actions are the answers to the follower's queries and earn it
nothing. Then follows one episode against what the follower has learned, and that is what the leader is paid for. Every
step counts: 810 buy one sample of the leader's reward, where the Meta-RL follower of stackelberg_ppo_matrix.py needs
15. In ten seconds or so you should see the greedy leader settle near 0.00 in the stag hunt, optimal for deterministic
memory-1 leaders against stationary followers, after 100,000 to 1,600,000 steps: it depends on the seed. As it
explores, the leader comes there later or not at all. In some games some seeds, in hero all, end short of the optimum.
"""

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass

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
    save_model: bool = False
    """save the leader as model.pt in the run's folder"""
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
    """game steps per episode of the game; a leader episode holds `follower_episodes` of them and one more"""
    total_timesteps: int = 2_000_000
    """environment steps in all, those in which the follower learns included (Figure 8)"""

    follower_episodes: int = 80
    """episodes of the game in which the follower learns, from scratch, in every leader episode (authors' setting)"""
    q_learning_rate: float = 0.1
    """step size of the follower's Q-learning (authors' setting)"""
    q_epsilon: float = 0.1
    """share of the follower's actions that are random while it learns (authors' setting)"""
    q_gamma: float = 0.9
    """discount factor of the follower's Q-learning (authors' setting)"""
    q_init: float = 1.5
    """the follower's first Q-values: the largest reward of a step (1.5 in every game) makes it try what it has not
    tried; from 0 it more often stays with what it happened to try first"""
    evaluation_followers: int = 100
    """followers that learn against each of the 32 leader tables, for what a greedy leader gets; not in the budget"""

    learning_rate: float = 0.03
    """Adam learning rate of the leader (authors' setting)"""
    adam_eps: float = 0.02
    """Adam's epsilon for the leader; equal steps (1e-8) saturate the policy where a weak gradient is mostly noise"""
    batch_size: int = 8000
    """environment steps per leader batch (authors' setting), rounded up to complete leader episodes"""
    update_epochs: int = 10
    """passes over a leader batch, which is one minibatch (Table 4); more of them fit its noise"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""
    ent_coef: float = 0.0
    """coefficient of the entropy bonus (Table 4: none)"""

    def __post_init__(self):
        may_be_zero = {"seed", "q_epsilon", "q_gamma", "q_init", "adam_eps", "ent_coef"}
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

        if max(self.q_learning_rate, self.q_epsilon, self.q_gamma) > 1:
            raise ValueError("--q-learning-rate, --q-epsilon and --q-gamma must be at most 1")
        self.leader_episode = (self.follower_episodes + 1) * self.num_steps
        self.num_episodes = math.ceil(self.batch_size / self.leader_episode)
        self.iterations = self.total_timesteps // (self.num_episodes * self.leader_episode)
        if self.num_episodes < 2 or self.iterations < 1:
            message = "--batch-size must be more than a leader episode, {} steps, and --total-timesteps hold a batch"
            raise ValueError(message.format(self.leader_episode))


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
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


class Leader(nn.Module):
    """Memory-less policy and value, both linear in the one-hot observation, no bias."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS, bias=False)
        self.critic = nn.Linear(NUM_OBSERVATIONS, 1, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.01)  # every policy starts near uniform

    def get_action_and_value(self, observation: torch.Tensor, action: torch.Tensor | None = None):
        """Returns action, its log-probability, the policy's entropy and the value, all [...], for [..., 5]."""
        probs = Categorical(logits=self.actor(observation), validate_args=False)
        if action is None:
            action = (torch.rand(observation.shape[:-1]) < probs.probs[..., 1]).long()
        return action, probs.log_prob(action), probs.entropy(), self.critic(observation).squeeze(-1)


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


def best_response_rewards(game: MatrixGame) -> np.ndarray:
    """Returns the mean reward per step of each leader table against its exact best response, ties broken for it, [32].

    A leader that is optimal here, but not against Q-learners, is not what falls short: they are.
    """
    n = len(TABLES)
    _, _, rewards = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    leader_rewards, follower_rewards = rewards.mean(axis=1).reshape(2, n, n)
    is_best = follower_rewards >= follower_rewards.max(axis=1, keepdims=True) - 1e-6
    return np.where(is_best, leader_rewards, -np.inf).max(axis=1)


# --------------------------------------------------------- the leader's POMDP, with a follower that learns (Theorem 1)
def leader_episodes(leaders: np.ndarray, args: Args, rng: np.random.Generator):
    """Plays one leader episode for each of n leaders, [n, 5]: their probabilities of action 1 in each observation.

    First the follower learns: Q-learning with an epsilon-greedy policy and a new table, `follower_episodes` times
    through the game. What it observes is what the leader observes. Then both play the game once more, the follower
    greedily and as it is, and only this is rewarded. Returns observations and leader's actions, [L, n], both players'
    rewards, [2, L, n], where L = (follower_episodes + 1) * num_steps, and the followers' final tables, [n, 5].
    """
    game, n, rows = args.game, len(leaders), np.arange(len(leaders))
    observations, actions = np.full((2, args.leader_episode, n), START)
    rewards = np.zeros((2, args.leader_episode, n))
    q = rng.normal(args.q_init, 1e-6, (n, NUM_OBSERVATIONS, NUM_ACTIONS))  # the noise breaks ties
    for step in range(args.leader_episode):
        t, learning = step % game.num_steps, step < args.follower_episodes * game.num_steps
        observation = observations[step]  # START, unless the step before has set it
        leader_draw, exploration_draw, coin = rng.random((3, n))
        action = (leader_draw < leaders[rows, observation]).astype(np.int64)
        values = q[rows, observation]
        reply = values.argmax(axis=1)
        if learning:
            reply = np.where(exploration_draw < args.q_epsilon, coin < 0.5, reply).astype(np.int64)
        next_observation = 1 + NUM_ACTIONS * action + reply
        is_last = t == game.num_steps - 1
        if learning:
            future = 0.0 if is_last else q[rows, next_observation].max(axis=1)
            target = game.reward[1, action, reply] + args.q_gamma * future
            q[rows, observation, reply] += args.q_learning_rate * (target - values[rows, reply])
        else:
            rewards[:, step] = game.reward[:, action, reply]
        actions[step] = action
        if not is_last:
            observations[step + 1] = next_observation
    return observations, actions, rewards, q.argmax(axis=2)


def evaluate_leaders(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Lets `evaluation_followers` learn against each of the 32 leader tables, as they do in training.

    Returns both players' mean rewards per step then, [2, 32], and the followers' most common table, [32, 5]. A greedy
    leader is one of the 32: this evaluates every leader there can be.
    """
    leaders = TABLES.repeat(args.evaluation_followers, axis=0)
    _, _, rewards, followers = leader_episodes(leaders, args, np.random.default_rng(args.seed))
    mean_rewards = rewards.sum(axis=1).reshape(2, len(TABLES), -1).mean(axis=2) / args.num_steps
    most_common = [np.bincount(row).argmax() for row in table_index(followers).reshape(len(TABLES), -1)]
    return mean_rewards, TABLES[most_common]


# ----------------------------------------------------------------------------------------------------- leader training
def train_leader(leader: Leader, args: Args, log):
    """PPO on the leader's POMDP, a batch of complete leader episodes per iteration; calls `log(steps, scalars)`."""
    optimizer = torch.optim.Adam(leader.parameters(), lr=args.learning_rate, eps=args.adam_eps)
    rng = np.random.default_rng(args.seed)
    one_hot = torch.eye(NUM_OBSERVATIONS)
    for iteration in tqdm(range(1, args.iterations + 1), desc="leader", leave=False, disable=None):
        policy = leader.actor(one_hot).softmax(dim=1)[:, 1].detach().numpy()
        leaders = np.tile(policy, (args.num_episodes, 1))
        observations, actions, all_rewards, _ = leader_episodes(leaders, args, rng)
        obs, actions = one_hot[torch.as_tensor(observations)], torch.as_tensor(actions)
        rewards = torch.as_tensor(all_rewards[0], dtype=torch.float32)
        with torch.no_grad():
            _, logprobs, _, values = leader.get_action_and_value(obs, actions)

        # Undiscounted returns of complete episodes: every answer to the follower is credited with what it led to. The
        # value sees no clock, so advantages are centred at each step of the episode.
        returns = rewards.flip(0).cumsum(0).flip(0)
        advantages = returns - values
        advantages -= advantages.mean(dim=1, keepdim=True)
        advantages /= advantages.std() + 1e-8

        for _ in range(args.update_epochs):
            _, newlogprob, entropy, newvalue = leader.get_action_and_value(obs, actions)
            ratio = (newlogprob - logprobs).exp()
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
            v_loss = ((newvalue - returns) ** 2).mean()
            loss = pg_loss - args.ent_coef * entropy.mean() + v_loss
            if not loss.isfinite():
                raise SystemExit("the leader's training diverged: lower --learning-rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        scalars = {"losses/policy_loss": pg_loss, "losses/value_loss": v_loss, "losses/entropy": entropy.mean()}
        for player, name in enumerate(("leader_return", "follower_return")):
            mean_reward = all_rewards[player].sum(axis=0).mean() / args.num_steps
            scalars[f"charts/{name}"] = args.game.payoff(player, mean_reward)
        log(iteration * args.num_episodes * args.leader_episode, scalars)


# -------------------------------------------------------------------------------------------------------- convergence
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


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
{result["env_id"]}: {"a" if found else "NOT a"} Stackelberg equilibrium
  leader's return    {greedy:.2f} per game step, greedy; {result["leader_return"]:.2f} as it explores
  optimum            {result["stackelberg_value"]:.2f} for deterministic memory-1 leaders and stationary followers
  leader's policy    {result["leader_policy"]} at the start and after 00, 01, 10, 11 (leader's, follower's action)
  followers' reply   {result["follower_policy"]}, the most common
  from exact replies {result["leader_return_exact"]:.2f} per game step for the greedy leader
  exact regrets      leader {result["leader_regret"]:.2f}, followers {result["follower_regret"]:.2f} on average
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


def main(args: Args) -> dict:
    """Evaluates all greedy leaders, then trains one; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path, writer = start_run(args)
    game = args.game
    value, pessimistic, best_rewards = solve(game)
    stackelberg_value = game.payoff(0, value)

    # what each of the 32 greedy leaders gets from followers that learn against it, and from exact best responses
    (leader_rewards, follower_rewards), replies = evaluate_leaders(args)
    exact = {
        "leader_return_greedy": game.payoff(0, leader_rewards),
        "leader_return_exact": game.payoff(0, best_response_rewards(game)),
        "leader_regret": game.scale[0] * (value - leader_rewards),
        "follower_regret": game.scale[1] * (best_rewards - follower_rewards),
    }
    torch.manual_seed(args.seed)
    leader = Leader()
    curve = []  # [environment step, greedy return, exploring return: the mean of this batch]

    def log(global_step: int, scalars: dict[str, float]):
        index = table_index(leader.actor.weight.argmax(0).numpy())
        curve.append([global_step, exact["leader_return_greedy"][index], scalars["charts/leader_return"]])
        scalars |= {f"charts/{name}": values[index] for name, values in exact.items()}
        scalars |= {"charts/stackelberg_value": stackelberg_value}
        scalars["charts/SPS"] = int(global_step / (time.time() - start_time))
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, global_step)

    train_leader(leader, args, log)
    index = table_index(leader.actor.weight.argmax(0).numpy())
    if args.save_model:
        model = {"game": [game.reward.tolist(), game.num_steps], "leader": leader.state_dict()}
        torch.save(model, f"{run_path}/model.pt")

    steps, greedy, exploring = np.array(curve).T
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result["leader_return"] = exploring[-math.ceil(len(curve) / 10) :].mean()
    result |= {name: values[index] for name, values in exact.items()}
    result |= {"stackelberg_value": stackelberg_value, "stackelberg_value_pessimistic": game.payoff(0, pessimistic)}
    result |= {"leader_policy": TABLES[index].tolist(), "follower_policy": replies[index].tolist()}
    result["leader_steps"] = curve[-1][0]
    for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
        result[name] = steps_to_converge(steps, (returns - stackelberg_value) / game.scale[0])
    wall_seconds = time.time() - start_time
    result |= {"curve": curve, "wall_seconds": wall_seconds, "steps_per_second": curve[-1][0] / wall_seconds}
    writer.close()
    finish(result, game, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
