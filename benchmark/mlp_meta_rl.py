"""Meta-RL as the paper has it, with a network where it has a table: a line of the figure that `hindsight.py` draws.

    python benchmark/mlp_meta_rl.py --random-game 3 5000

A table of contexts ends at 3 x 3 actions, where there are 59,049 of them. Here an MLP follower, whose input is the
leader's answers and its own observation, is trained by PPO against random leaders, and then a leader by PPO against the
frozen follower, its episode being the queries and the game. Both learners are Stable-Baselines3's.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "ablations"))

import hindsight_follower as hindsight  # noqa: E402

NUM_STEPS = 10  # game steps of an episode


@dataclass
class Args:
    seed: int = 1
    """seed of every random number"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""
    random_game: tuple[int, int] = (2, 5000)
    """actions of both players, and the game's number"""
    follower_timesteps: int = 1_000_000
    """environment steps of pre-training"""
    total_timesteps: int = 1_500_000
    """combined environment steps, those of pre-training and queries included"""
    num_envs: int = 64
    """episodes side by side"""
    learning_rate: float = 1e-3
    """Adam's learning rate of both players, decaying linearly to 0"""
    ent_coef: float = 0.003
    """coefficient of both players' entropy bonus"""

    def __post_init__(self):
        if not 0 < self.follower_timesteps < self.total_timesteps:
            raise ValueError("--follower-timesteps must be positive and leave some of --total-timesteps")


class MatrixEnvs(VecEnv):
    """Episodes of an n x n game side by side, for one of its players. Both observe the last pair of actions."""

    def __init__(self, payoffs: np.ndarray, num_envs: int, num_inputs: int):
        self.payoffs, self.n, self.num_observations = payoffs, payoffs.shape[1], 1 + payoffs.shape[1] ** 2
        self.env = np.arange(num_envs)
        super().__init__(num_envs, gym.spaces.Box(0, 1, (num_inputs,), np.float32), gym.spaces.Discrete(self.n))

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def close(self) -> None:
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs  # of the attributes that Stable-Baselines3 asks for there are none

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def follower_inputs(tables: np.ndarray, observations: np.ndarray, n: int) -> np.ndarray:
    """Leaders' tables [k, observations] and the follower's observations [k] -> [k, inputs], both one-hot."""
    answers = np.eye(n, dtype=np.float32)[tables].reshape(len(tables), -1)
    return np.concatenate([answers, np.eye(tables.shape[1], dtype=np.float32)[observations]], axis=1)


class FollowerEnvs(MatrixEnvs):
    """The follower's episodes: in each the leader is a random table, which the follower sees."""

    def __init__(self, payoffs: np.ndarray, num_envs: int, seed: int):
        num_observations, n = 1 + payoffs.shape[1] ** 2, payoffs.shape[1]
        super().__init__(payoffs, num_envs, num_observations * (n + 1))
        self.rng = np.random.default_rng(seed)

    def reset(self) -> np.ndarray:
        self.t, self.observations = 0, np.zeros(self.num_envs, np.int64)
        self.tables = self.rng.integers(self.n, size=(self.num_envs, self.num_observations))
        return follower_inputs(self.tables, self.observations, self.n)

    def step_wait(self) -> tuple:
        leader = self.tables[self.env, self.observations]
        rewards = self.payoffs[1, leader, self.actions].astype(np.float32)
        self.observations, self.t = 1 + self.n * leader + self.actions, self.t + 1
        inputs, infos = follower_inputs(self.tables, self.observations, self.n), [{} for _ in self.env]
        over = np.full(self.num_envs, self.t == NUM_STEPS)
        if over[0]:  # by the clock, which the follower does not see: values go on
            infos = [{"terminal_observation": x, "TimeLimit.truncated": True} for x in inputs]
            inputs = self.reset()
        return inputs, rewards, over, infos


class LeaderEnvs(MatrixEnvs):
    """The leader's episodes: a query of each observation, without reward, then the game against the follower's replies
    to these answers."""

    def __init__(self, payoffs: np.ndarray, num_envs: int, replies_of):
        super().__init__(payoffs, num_envs, 1 + payoffs.shape[1] ** 2)
        self.replies_of, self.one_hot = replies_of, np.eye(self.num_observations, dtype=np.float32)

    def reset(self) -> np.ndarray:
        self.t, self.observations = 0, np.zeros(self.num_envs, np.int64)
        self.answers = np.zeros((self.num_envs, self.num_observations), np.int64)
        return self.one_hot[self.observations]

    def step_wait(self) -> tuple:
        rewards, over = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos = [{} for _ in self.env]
        if self.t < self.num_observations:
            self.answers[:, self.t] = self.actions
            self.observations = np.full(self.num_envs, (self.t + 1) % self.num_observations)
        else:
            if self.t == self.num_observations:
                self.replies = self.replies_of(self.answers)
            follower = self.replies[self.env, self.observations]
            rewards = self.payoffs[0, self.actions, follower].astype(np.float32)
            self.observations = 1 + self.n * self.actions + follower
        self.t += 1
        inputs = self.one_hot[self.observations]
        if self.t == self.num_observations + NUM_STEPS:
            over, infos, inputs = ~over, [{"terminal_observation": x} for x in inputs], self.reset()
        return inputs, rewards, over, infos


def make_ppo(envs: MatrixEnvs, args: Args, steps: int, **settings) -> PPO:
    """Returns Stable-Baselines3's PPO on batches of so many steps of each episode."""
    settings |= {"n_steps": steps, "batch_size": steps * args.num_envs // 4, "n_epochs": 4, "ent_coef": args.ent_coef}
    network = {"net_arch": [128, 128], "activation_fn": torch.nn.ReLU}
    learning_rate = lambda left: args.learning_rate * left  # noqa: E731
    return PPO("MlpPolicy", envs, learning_rate, seed=args.seed, device="cpu", policy_kwargs=network, **settings)


def main(args: Args) -> dict:
    """Trains a follower and then a leader; returns what it writes to result.json."""
    torch.set_num_threads(1)
    start_time, start_cpu = time.time(), time.process_time()
    game = hindsight.Args(random_game=args.random_game)
    n, model = args.random_game[0], hindsight.complete_model(game)
    num_observations, env_id = 1 + n**2, game.env_id
    follower = make_ppo(FollowerEnvs(game.payoffs, args.num_envs, args.seed), args, 6 * NUM_STEPS, gamma=game.gamma)
    follower.learn(args.follower_timesteps)

    def replies_of(tables: np.ndarray) -> np.ndarray:
        observations = np.tile(np.arange(num_observations), len(tables))
        inputs = follower_inputs(tables.repeat(num_observations, 0), observations, n)
        return follower.predict(inputs, deterministic=True)[0].reshape(-1, num_observations)

    length, curve = num_observations + NUM_STEPS, []
    leader = make_ppo(LeaderEnvs(game.payoffs, args.num_envs, replies_of), args, 4 * length, gamma=1.0, gae_lambda=1.0)

    class Measure(BaseCallback):
        """Evaluates the greedy leader before each batch, exactly."""

        def _on_rollout_start(self) -> None:
            curve.append((follower.num_timesteps + leader.num_timesteps, *measure().values()))

        def _on_step(self) -> bool:
            return True

    def measure() -> dict[str, float]:
        table = leader.predict(np.eye(num_observations, dtype=np.float32), deterministic=True)[0]
        found = hindsight.measure(game, model, torch.tensor(table), torch.tensor(replies_of(table[None])[0]))
        return {name: found[name] for name in ("leader_return_greedy", "follower_regret", "leader_regret")}

    leader.learn(args.total_timesteps - follower.num_timesteps, callback=Measure())
    result = {"script": os.path.basename(__file__), "env_id": env_id, "seed": args.seed, "args": asdict(args)}
    found, combined_steps = measure(), follower.num_timesteps + leader.num_timesteps
    result |= found | {"combined_steps": combined_steps}
    curve.append((combined_steps, *found.values()))
    points, _, _, regrets = np.array(curve).T
    scale = np.ptp(game.payoffs[0]) / 3
    result["steps_to_converge"] = hindsight.steps_to_converge(points, regrets / scale)
    result |= {"stackelberg_value": game.optimum.value, "stackelberg_value_strict": game.optimum.strict}
    result |= {"wall_seconds": time.time() - start_time, "cpu_seconds": time.process_time() - start_cpu}
    run_path = f"{args.run_dir}/{env_id}__mlp_meta_rl__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(run_path)
    Path(run_path, "result.json").write_text(json.dumps(result))
    print(f"{env_id}: {result['leader_return_greedy']:.3f} of {game.optimum.value:.3f} per game step, {run_path}")
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
