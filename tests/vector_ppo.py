"""A PPO in the shape of CleanRL's `ppo.py`: it knows Gymnasium's vector API and nothing of this project.

`test_own_loop.py` runs it as it stands but for the line that makes the environments, which the README replaces.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
from torch.distributions.categorical import Categorical


@dataclass
class Args:
    seed: int = 1
    total_timesteps: int = 100_000
    learning_rate: float = 2.5e-3
    num_envs: int = 4
    num_steps: int = 256
    gamma: float = 0.99
    gae_lambda: float = 0.95
    num_minibatches: int = 4
    update_epochs: int = 4
    clip_coef: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


class Agent(nn.Module):
    def __init__(self, envs):
        super().__init__()
        obs_size, num_actions = int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n)
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(obs_size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_outputs))
            for num_outputs in (num_actions, 1)
        )

    def get_action_and_value(self, obs, action=None):
        probs = Categorical(logits=self.actor(obs))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(obs).flatten()


args = Args()
torch.manual_seed(args.seed)
envs = gym.make_vec("CartPole-v1", args.num_envs, vectorization_mode="sync")
agent = Agent(envs)
optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

obs = torch.zeros((args.num_steps, args.num_envs, *envs.single_observation_space.shape))
actions = torch.zeros((args.num_steps, args.num_envs, *envs.single_action_space.shape))
logprobs, rewards, dones, values = torch.zeros((4, args.num_steps, args.num_envs))
episodic_returns = []
next_obs, _ = envs.reset(seed=args.seed)
next_obs, next_done = torch.Tensor(next_obs), torch.zeros(args.num_envs)
num_iterations = args.total_timesteps // (args.num_steps * args.num_envs)
for iteration in range(num_iterations):
    optimizer.param_groups[0]["lr"] = (1 - iteration / num_iterations) * args.learning_rate
    for step in range(args.num_steps):
        obs[step], dones[step] = next_obs, next_done
        with torch.no_grad():
            action, logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
        actions[step] = action
        next_obs, reward, terminations, truncations, infos = envs.step(action.numpy())
        rewards[step] = torch.tensor(reward)
        next_obs, next_done = torch.Tensor(next_obs), torch.Tensor(np.logical_or(terminations, truncations))
        if "final_info" in infos:
            for info in infos["final_info"]:
                if info and "episode" in info:
                    episodic_returns.append(info["episode"]["r"])

    with torch.no_grad():
        next_value = agent.get_action_and_value(next_obs)[3]
        advantages, last = torch.zeros_like(rewards), 0
        for t in reversed(range(args.num_steps)):
            nonterminal = 1 - (next_done if t == args.num_steps - 1 else dones[t + 1])
            next_values = next_value if t == args.num_steps - 1 else values[t + 1]
            delta = rewards[t] + args.gamma * next_values * nonterminal - values[t]
            advantages[t] = last = delta + args.gamma * args.gae_lambda * nonterminal * last
        returns = advantages + values

    batch = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns, values)]
    for _ in range(args.update_epochs):
        for minibatch in torch.randperm(args.num_steps * args.num_envs).chunk(args.num_minibatches):
            b_obs, b_actions, b_logprobs, b_advantages, b_returns, b_values = (x[minibatch] for x in batch)
            _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs, b_actions)
            ratio = (newlogprob - b_logprobs).exp()
            b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-b_advantages * ratio, -b_advantages * clipped_ratio).mean()
            v_clipped = b_values + torch.clamp(newvalue - b_values, -args.clip_coef, args.clip_coef)
            v_loss = 0.5 * torch.max((newvalue - b_returns) ** 2, (v_clipped - b_returns) ** 2).mean()
            optimizer.zero_grad()
            (pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
