# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py==0.12.1", "gymnasium==1.4.0", "multi-agent-ale-py==0.1.12", "numpy==2.4.6", "pillow==13.0.0",
#   "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of a bilateral trade in two-player Space Invaders (Section 4.1, Appendix G, Figure 2).

    python stackelberg_ppo_atari_trade.py --leader seller
    python stackelberg_ppo_atari_trade.py --leader buyer

Shots cost bullets. Only player 1, the seller, is given any; it can sell each one to player 2, the buyer, whose hits
count ten times as much. Who commits to its prices first takes the gains from trade: the seller as leader asks 0.75,
the highest price on the grid below the buyer's value of a bullet (just under 1); the buyer as leader pays no more than
0.25, the lowest above the seller's value (just under 0.1).

Three stages. (1) Gameplay: PPO on the game alone until the players aim well; a trained network is committed. (2) The
meta-follower: PPO on the follower's trade actions against a leader that trades at random; the follower is told the
leader's answer to the query made immediately before the trade, so it learns a best response to every leader. (3) The
leader: PPO on its trade actions against the frozen follower. What was learned about the game stays frozen in (2) and
(3); the trade actions are learned on top of its image features. Then the equilibrium is verified: the follower learns
on against the frozen leader, and must not gain.
"""

import contextlib
import copy
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NoReturn

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

try:
    from multi_agent_ale_py.ale_python_interface import ALEInterface, ale_lib
except ImportError:  # `check_args` says what to do
    ALEInterface = None


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment, part of the run's name"""
    seed: int = 1
    """seed of networks, action sampling, bullet times and no-op starts"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    cuda: bool = False
    """if toggled, the networks run on the GPU; the emulators are the bottleneck either way"""
    track: bool = False
    """track the run with Weights and Biases too (set WANDB_MODE=offline to work without the network)"""
    wandb_project_name: str = "stackelberg"
    """project name in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    save_model: bool = False
    """save what was trained as model.pt in the run's folder (`--stage gameplay` always does)"""
    capture_video: bool = False
    """write one evaluation episode to episode.gif in the run's folder, with bullets, offers and payments beside it"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""
    resume: str | None = None
    """folder of an interrupted run to continue exactly, with that run's flags; give no other flag"""

    leader: Literal["seller", "buyer"] = "seller"
    """who commits to its trade actions"""
    stage: Literal["trade", "gameplay", "all", "evaluate"] = "trade"
    """trade: stages 2 and 3 with the gameplay checkpoint; gameplay: stage 1 alone; all: the three stages from nothing;
    evaluate: no learning, only the evaluation of `--trade-checkpoint`"""
    gameplay_checkpoint: str = os.path.join(os.path.dirname(__file__), "benchmark/checkpoints/atari_trade_gameplay.pt")
    """model.pt of a run with `--stage gameplay`, used by `--stage trade` and `--stage evaluate`"""
    trade_checkpoint: str | None = None
    """model.pt of a run with `--save-model`, for `--stage evaluate`"""
    gameplay_timesteps: int = 120_000
    """decisions (4 frames, both players act) of stage 1. With 300,000 (and seed 1) the buyer hit with 1,000
    of 1,000 bullets: a bullet is then worth 1.0 to it, and whether it should pay 1.0 is a tie"""
    follower_timesteps: int = 120_000
    """environment steps of stage 2: decisions, queries and trades"""
    total_timesteps: int = 200_000
    """environment steps of stages 2 and 3 together"""
    verification_timesteps: int = 40_000
    """environment steps for which the follower learns on against the frozen leader"""
    eval_episodes: int = 100
    """episodes of every evaluation; both agents act greedily"""
    checkpoint_interval: int = 5
    """updates between two checkpoints for `--resume`"""

    num_envs: int = 16
    """emulators"""
    num_threads: int = 0
    """threads that step the emulators; 0 = one per CPU core, at most 8"""
    num_bullets: int = 5
    """bullets per episode"""
    bullet_interval: tuple[int, int] = (8, 40)
    """stages 2 and 3: least and most decisions between two bullets, drawn uniformly"""
    max_steps: int = 300
    """decisions after which an episode is cut off; it ends earlier when every bullet has been used and has landed"""
    ent_coef: float = 0.01
    """coefficient of the entropy bonus, in all stages, decaying like the learning rate"""
    clip_coef: float = 0.2
    """clipping of the probability ratio, in all stages"""
    max_grad_norm: float = 0.5
    """largest norm of the gradient, in all stages"""

    gameplay_learning_rate: float = 7e-4
    """stage 1: learning rate of Adam, decaying linearly to a twentieth"""
    num_steps: int = 128
    """stage 1: decisions per emulator and update"""
    gamma: float = 0.98
    """stage 1: discount factor per decision"""
    gae_lambda: float = 0.9
    """stage 1: lambda of generalized advantage estimation"""
    update_epochs: int = 3
    """stage 1: passes over a rollout"""
    minibatch_size: int = 256
    """stage 1: most rows per minibatch"""
    vf_coef: float = 0.5
    """stage 1: coefficient of the value loss"""

    learning_rate: float = 3e-3
    """stages 2 and 3: learning rate of Adam, decaying linearly to a twentieth"""
    batch_episodes: int = 16
    """stages 2 and 3: complete episodes (of five trades) per update"""
    trade_epochs: int = 8
    """stages 2 and 3: passes over the trades of a batch, all of them in one minibatch"""


# ----------------------------------------------------------------------------------------------------- the environment
SELLER, BUYER = 0, 1  # player 1 and player 2 of the emulator
PRICES = (0.0, 0.25, 0.5, 0.75, 1.0)
HIT_REWARD = np.array([0.1, 1.0], dtype=np.float32)  # per alien or saucer hit: seller, buyer
GAME_ACTIONS = (0, 1, 3, 4, 11, 12)  # the emulator's NOOP, FIRE, RIGHT, LEFT, RIGHTFIRE, LEFTFIRE
FIRE_REMOVED = {0: 0, 1: 0, 3: 3, 4: 4, 11: 3, 12: 4}
GAME, QUERY, TRADE = 0, 1, 2  # phases of the environment: emulator runs / leader commits / follower answers
IMAGE_SHAPE = (4, 45, 80)  # the last four decisions, 180 x 160 pixels in blocks of 4 x 2
ECONOMY_SIZE, GAME_ECONOMY_SIZE = 10, 3  # the first three matter to the game
FLIGHT = 24  # decisions: no shot is in the air for longer (at most 84 frames)

# RAM addresses. A missile's slot says nothing about its shooter: a new missile is at y = 85 for one frame, at its
# shooter's x + 5; an empty slot has y = 246.
RAM_PLAYER_X, RAM_MISSILE_Y, RAM_MISSILE_X = 28, 85, 87

# The palette codes of ground, shields, aliens, saucer, missiles, player 1 and player 2 in colour (for videos) and as
# grey values: a player sees its own ship brightest, so that one network can play both sides.
COLOURS = {226: (80, 89, 22), 52: (181, 83, 40), 20: (134, 134, 29), 82: (151, 25, 122), 6: (142, 142, 142)}
COLOURS |= {196: (50, 132, 50), 246: (162, 134, 56)}
VIEW = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
VIEW[:, [0, 226, 52, 20, 82, 6]] = 0, 32, 64, 128, 160, 192
VIEW[SELLER, [196, 246]] = VIEW[BUYER, [246, 196]] = 255, 96


def rom_path() -> str | None:
    """Path of the ROM that ale-py ships; None without it."""
    try:
        import ale_py.roms

        path = Path(ale_py.roms.get_rom_path("space_invaders"))
    except (ImportError, FileNotFoundError, TypeError):
        return None
    return str(path) if path.exists() else None


class TradeEnv(gym.Env):
    """Two-player Space Invaders in which a shot costs a bullet, and bullets can be sold.

    The first axis of every array is the player: 0 the seller, 1 the buyer.

    Observation: `image` uint8 [2, 4, 45, 80], each player's view of the last four decisions, centred on its ship;
    `economy` float32 [2, 10]: own bullets / 5, other's bullets / 5, is the buyer, a trade is pending, share of the
    episode's bullets still to come, and the other's committed price as one-hot over `PRICES` (only for the follower,
    only while it answers).
    Action: int [2, 2], per player its game action (index into `GAME_ACTIONS`) and trade action (index into `PRICES`).
    Reward: float32 [2]: 0.1 / 1.0 per hit for seller / buyer, plus and minus the price of a trade.

    A bullet given to the seller stops the emulator for two steps: the QUERY step reads the leader's trade action, the
    TRADE step the follower's. The leader's answer to the query is what it plays, so the leader is invariant.
    """

    # Everything that `get_state` stores besides the emulator, what is seen of it, and the random state.
    FIELDS = "phase committed steps arrivals given bullets shot fired hits offered accepted paid bonus returns unknown"

    def __init__(
        self,
        leader: int = SELLER,
        trades: bool = True,
        num_bullets: int = 5,
        bullet_interval: tuple[int, int] = (8, 40),
        max_steps: int = 300,
        max_start: int = 60,
        frame_skip: int = 4,
        seed: int = 0,
    ):
        """An episode starts after 1 to `max_start` frames in which both players do nothing.

        `trades=False` is the game alone: each player is given its own bullets, a hit counts 1 for both, and the ships
        move at random in those first frames.
        """
        self.leader, self.trades, self.num_bullets = leader, trades, num_bullets
        self.bullet_interval, self.max_steps = bullet_interval, max_steps
        self.max_start, self.frame_skip = max_start, frame_skip
        image = gym.spaces.Box(0, 255, (2, *IMAGE_SHAPE), np.uint8)
        economy = gym.spaces.Box(0.0, 1.0, (2, ECONOMY_SIZE), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "economy": economy})
        self.action_space = gym.spaces.MultiDiscrete([[len(GAME_ACTIONS), len(PRICES)]] * 2)
        self.rng = np.random.default_rng(seed)
        ALEInterface.setLoggerMode("error")
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(rom_path())
        self.ale.setMode(33)  # two players at once, fixed shields
        self.ale.reset_game()
        # The emulator reads and writes these in place.
        self.buttons, self.scores, self.ram = np.zeros(2, np.intc), np.zeros(2, np.intc), np.zeros(128, np.uint8)
        self.screens = np.zeros((2, 210 * 160), np.uint8)
        self.addresses = [x.ctypes.data for x in (self.buttons, self.scores, self.ram, *self.screens)]
        for _ in range(130):  # until the field is complete and shots are possible
            self._frame()
        self.start = self.ale.cloneSystemState()
        self.image = np.zeros((2, *IMAGE_SHAPE), np.uint8)
        self.wide = np.zeros((IMAGE_SHAPE[1], 320), np.uint8)  # the playfield with a margin on both sides

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Starts an episode: no-ops, then the game without bullets until the first one is given."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.ale.restoreSystemState(self.start)
        self.buttons[:] = 0
        for frame in range(1 + int(self.rng.integers(self.max_start))):
            if not self.trades and frame % 16 == 0:
                self.buttons[:] = self.rng.choice((0, 3, 4), 2)
            self._frame()
        self.phase, self.committed, self.steps = GAME, 0, 0
        low, high = self.bullet_interval
        self.arrivals = [[], []]  # per player the decisions at which it is still to be given a bullet, soonest last
        share = self.rng.random()
        for p in (SELLER,) if self.trades else (SELLER, BUYER):
            # In the game alone, one player gets no bullets in half of the episodes: a seller that sells has none.
            if self.trades or not p * 0.25 <= share < p * 0.25 + 0.25:
                self.arrivals[p] = np.cumsum(self.rng.integers(low, high + 1, self.num_bullets))[::-1].tolist()
        self.given = 0  # bullets given so far, and the number of the next one
        self.bullets = [[], []]  # numbers of the bullets that each player holds, oldest first
        self.shot = [None, None]  # [x, bullet number, decision, in the air] of each player's latest shot
        self.fired, self.hits, self.paid, self.returns = [0, 0], [0, 0], 0.0, [0.0, 0.0]
        self.offered, self.accepted = [], []  # per trade [seller's, buyer's] trade action, and whether they agreed
        self.bonus, self.unknown = 0, 0  # rewards for the other's death; shots whose shooter could not be told
        self.image[:] = 0
        ale_lib.getScreen(self.ale.obj, self.addresses[3])
        self.screens[1] = self.screens[0]
        self._see()
        self.image[:, :-1] = self.image[:, -1:]
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict, np.ndarray, bool, bool, dict]:
        """One decision, query or trade. `info["hits"]`: (player, bullet number, decisions since the shot) of each hit.

        The episode ends when all bullets are used and have landed, when the game is over, or after `max_steps`.
        """
        reward, info = np.zeros(2, np.float32), {"phase": self.phase, "hits": []}
        if self.phase == QUERY:
            self.committed = int(action[self.leader][1])
            self.phase = TRADE
        elif self.phase == TRADE:
            answers = [int(action[SELLER][1]), int(action[BUYER][1])]
            answers[self.leader] = self.committed
            price, limit = PRICES[answers[SELLER]], PRICES[answers[BUYER]]
            self.offered.append(answers)
            self.accepted.append(price <= limit)
            if price <= limit:
                self.bullets[BUYER].append(self.bullets[SELLER].pop())  # the new bullet is the seller's latest
                reward[:] = price, -price
                self.paid += price
            self.phase = GAME
        else:
            self._play(action, reward, info)
            self.steps += 1
            for p in (SELLER, BUYER):
                if self.arrivals[p] and self.arrivals[p][-1] <= self.steps:
                    self.arrivals[p].pop()
                    self.bullets[p].append(self.given)
                    self.given += 1
                    self.phase = QUERY if self.trades else GAME
        used = not (any(self.arrivals) or any(self.bullets) or any(shot and shot[3] for shot in self.shot))
        over = self.phase == GAME and (self.steps >= self.max_steps or self.ale.game_over())
        self.returns = [total + float(r) for total, r in zip(self.returns, reward, strict=True)]
        return self.observation(), reward, used or over, False, info

    def _frame(self):
        """Runs the emulator for one frame; the wrapper's own `act` and `getRAM` would take longer than the emulator."""
        buttons, scores, ram = self.addresses[:3]
        ale_lib.actMulti(self.ale.obj, buttons, scores)
        ale_lib.getRAM(self.ale.obj, ram)

    def _play(self, action, reward, info):
        """Runs the emulator for one decision, finds out from RAM who has fired, and counts hits."""
        moves, buttons = [GAME_ACTIONS[action[p][0]] for p in (SELLER, BUYER)], [0, 0]
        for frame in range(self.frame_skip):
            for p in (SELLER, BUYER):
                buttons[p] = moves[p] if self.bullets[p] else FIRE_REMOVED[moves[p]]
            if abs(int(self.ram[RAM_PLAYER_X]) - int(self.ram[RAM_PLAYER_X + 1])) <= 2:
                # Ships in one place take turns in firing, or nobody could tell whose shot it was.
                buttons[self.steps % 2] = FIRE_REMOVED[buttons[self.steps % 2]]
            self.buttons[:] = buttons
            self._frame()
            if frame >= self.frame_skip - 2:
                ale_lib.getScreen(self.ale.obj, self.addresses[3 + frame % 2])
            ram = self.ram.tolist()
            missiles = [(ram[RAM_MISSILE_Y + i], ram[RAM_MISSILE_X + i]) for i in (0, 1)]
            for p, score in enumerate(self.scores.tolist()):
                shot = self.shot[p]
                if score >= 200:  # the bonus for the other player's death is not a hit
                    score -= 200
                    self.bonus += 1
                if score > 0:
                    self.hits[p] += 1
                    shot[3] = False
                    reward[p] += HIT_REWARD[p] if self.trades else 1.0
                    info["hits"].append((p, shot[1], self.steps - shot[2]))
                elif shot and shot[3]:
                    shot[3] = any(y <= 85 and x == shot[0] for y, x in missiles)
            for y, x in missiles:
                if y != 85:
                    continue
                armed = [p for p in (SELLER, BUYER) if buttons[p] in (1, 11, 12) and self.bullets[p]]
                shooters = [p for p in armed if ram[RAM_PLAYER_X + p] + 5 == x]
                if shooters:
                    p = shooters[0]
                    self.shot[p] = [x, self.bullets[p].pop(0), self.steps, True]
                    self.fired[p] += 1
                else:
                    self.unknown += 1
        self._see()

    def _see(self):
        """Adds the last two frames' pixel-wise maximum (missiles flicker) to both players' images.

        Each player's view is centred on its own ship, so that aiming is the same wherever the ship is.
        """
        screen = np.maximum(*self.screens).reshape(210, 160)[16:196]
        self.wide[:, 80:240] = np.maximum(
            np.maximum(screen[0::4], screen[1::4]), np.maximum(screen[2::4], screen[3::4])
        )
        self.image[:, :-1] = self.image[:, 1:]
        for p in (SELLER, BUYER):
            muzzle = int(self.ram[RAM_PLAYER_X + p]) + 3  # the screen's column in which a shot flies
            view = self.wide[:, muzzle : muzzle + 160]
            self.image[p, -1] = VIEW[p].take(np.maximum(view[:, 0::2], view[:, 1::2]))

    def observation(self) -> dict:
        """What both players see now."""
        economy, to_come = np.zeros((2, ECONOMY_SIZE), np.float32), len(self.arrivals[SELLER]) / self.num_bullets
        for p in (SELLER, BUYER):
            own, others = (min(len(self.bullets[q]), 5) / 5 for q in (p, 1 - p))
            economy[p, :5] = own, others, p, self.phase != GAME, to_come
        if self.phase == TRADE:
            economy[1 - self.leader, 5 + self.committed] = 1.0
        return {"image": self.image.copy(), "economy": economy}

    def get_state(self) -> dict:
        """Exact state: emulator, images, random state and counters."""
        handle = self.ale.cloneSystemState()
        arrays = {"emulator": self.ale.encodeState(handle), "image": self.image, "screens": self.screens}
        self.ale.deleteState(handle)
        state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        fields = copy.deepcopy({name: getattr(self, name) for name in self.FIELDS.split()})
        return state | {"rng": self.rng.bit_generator.state, "fields": fields}

    def set_state(self, state: dict) -> None:
        """Puts the environment into a state of `get_state`."""
        handle = self.ale.decodeState(state["emulator"].numpy())
        self.ale.restoreSystemState(handle)
        self.ale.deleteState(handle)
        self.ale.getRAM(self.ram)
        self.image[:], self.screens[:] = state["image"].numpy(), state["screens"].numpy()
        self.rng.bit_generator.state = state["rng"]
        for name, value in copy.deepcopy(state["fields"]).items():
            setattr(self, name, value)


class VectorTradeEnv:
    """`args.num_envs` emulators stepped by threads of this process (the emulator releases the interpreter's lock).

    What `step` finds lies in arrays with an axis of emulators in front: `image`, `economy`, `phase` (of the next step),
    `reward`, `done`, `hits`. A finished episode starts anew within the step; its counters are in `finished`. Each
    thread has a chunk of the emulators, and calls `look` with it when their arrays are up to date.
    """

    def __init__(self, args, seed, look: Callable[[slice], None] = lambda chunk: None, **kwargs):
        n, num_threads = args.num_envs, min(args.num_threads, args.num_envs)
        kwargs = {"bullet_interval": args.bullet_interval, "max_steps": args.max_steps} | kwargs
        seeds = np.random.SeedSequence(seed).generate_state(n)
        self.envs = [TradeEnv(num_bullets=args.num_bullets, seed=int(s), **kwargs) for s in seeds]
        self.pool = ThreadPoolExecutor(num_threads)
        self.look, self.chunks = look, [slice(k, n, num_threads) for k in range(num_threads)]
        self.image, self.economy = np.zeros((n, 2, *IMAGE_SHAPE), np.uint8), np.zeros((n, 2, ECONOMY_SIZE), np.float32)
        self.phase, self.reward, self.done = np.zeros(n, np.int64), np.zeros((n, 2), np.float32), np.zeros(n, bool)
        self.hits, self.finished = [[] for _ in range(n)], [None] * n

    def _write(self, i, observation):
        self.image[i], self.economy[i], self.phase[i] = *observation.values(), self.envs[i].phase

    def _write_all(self, observations):
        for i, observation in enumerate(observations):
            self._write(i, observation)
        for chunk in self.chunks:
            self.look(chunk)

    def reset(self):
        self._write_all(env.reset()[0] for env in self.envs)

    def _step_chunk(self, chunk, action):
        for i in range(len(self.envs))[chunk]:
            env = self.envs[i]
            observation, self.reward[i], self.done[i], _, info = env.step(action[i])
            self.hits[i], self.finished[i] = info["hits"], None
            if self.done[i]:
                self.finished[i] = {name: getattr(env, name) for name in env.FIELDS.split()}
                observation, _ = env.reset()
            self._write(i, observation)
        self.look(chunk)

    def step(self, action: np.ndarray) -> None:
        """Takes all players' actions, int [num_envs, 2, 2]."""
        action = action.tolist()
        if len(self.chunks) == 1:
            self._step_chunk(self.chunks[0], action)
        else:
            list(self.pool.map(lambda chunk: self._step_chunk(chunk, action), self.chunks))

    def get_state(self) -> list[dict]:
        return [env.get_state() for env in self.envs]

    def set_state(self, states: list[dict]) -> None:
        for env, state in zip(self.envs, states, strict=True):
            env.set_state(state)
        self._write_all(env.observation() for env in self.envs)


# ------------------------------------------------------------------------------------------------------------ networks
def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Gameplay(nn.Module):
    """Plays the game for either player: CNN, fully connected economic branch, joint output layer (Figure 7)."""

    def __init__(self):
        super().__init__()
        # RLlib's small Atari network; the first kernel is half as high as wide since the image's blocks are 4 x 2.
        convolutions = layer_init(nn.Conv2d(IMAGE_SHAPE[0], 16, (4, 8), (2, 4))), layer_init(nn.Conv2d(16, 32, 4, 2))
        hidden = layer_init(nn.Linear(32 * 9 * 8, 256))
        self.cnn = nn.Sequential(
            convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.Flatten(), hidden, nn.ReLU()
        )
        self.economy = nn.Sequential(layer_init(nn.Linear(GAME_ECONOMY_SIZE, 32)), nn.ReLU())
        self.actor = layer_init(nn.Linear(256 + 32, len(GAME_ACTIONS)), 0.01)
        self.critic = layer_init(nn.Linear(256 + 32, 1), 1.0)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [batch, 4, 45, 80] -> float32 [batch, 256]."""
        # Channels last is the faster layout in stage 1, which has a backward pass, and the slower one without.
        channels_last = self.cnn[0].weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return self.cnn(image.to(self.actor.weight.device).to(torch.float32, memory_format=layout) / 255.0)

    def heads(self, features: torch.Tensor, economy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 256], [batch, 10] -> logits [batch, 6], value [batch]."""
        hidden = torch.cat([features, self.economy(economy[:, :GAME_ECONOMY_SIZE].to(features.device))], 1)
        return self.actor(hidden), self.critic(hidden).squeeze(1)


class Trader(nn.Module):
    """Chooses a trade action: the same build, with frozen image features and an economic branch of its own."""

    def __init__(self):
        super().__init__()
        self.economy = nn.Sequential(layer_init(nn.Linear(ECONOMY_SIZE, 64)), nn.ReLU())
        self.actor = layer_init(nn.Linear(256 + 64, len(PRICES)), 0.01)

    def forward(self, features: torch.Tensor, economy: torch.Tensor) -> torch.Tensor:
        """[batch, 256], [batch, 10] -> logits [batch, 5]."""
        # Scaled to length 1, so that 256 image features do not drown ten economic ones.
        features, economy = features.to(self.actor.weight.device), economy.to(self.actor.weight.device)
        return self.actor(torch.cat([F.normalize(features, dim=1), self.economy(economy)], 1))


def sample(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gumbel sampling: logits [batch, n] -> action [batch], its log-probability [batch]."""
    log_probs = torch.log_softmax(logits, 1)
    action = (log_probs - torch.log(-torch.log(torch.rand_like(logits)))).argmax(1)
    return action, log_probs.gather(1, action[:, None]).squeeze(1)


def ppo_step(args, module, optimizer, ent_coef, logits, action, old_logprob, advantage, more_loss=0.0) -> dict:
    """One gradient step on PPO's clipped loss over these rows. Returns TensorBoard tags."""
    log_probs = torch.log_softmax(logits, 1)
    log_ratio = log_probs.gather(1, action[:, None]).squeeze(1) - old_logprob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
    entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    optimizer.zero_grad()
    (policy_loss - ent_coef * entropy + more_loss).backward()
    nn.utils.clip_grad_norm_(module.parameters(), args.max_grad_norm)
    optimizer.step()
    kl = ((ratio.detach() - 1) - log_ratio.detach()).mean()
    parts = {"policy_loss": policy_loss, "entropy": entropy, "approx_kl": kl}
    return {f"losses/{name}": part.item() for name, part in parts.items()}


# --------------------------------------------------------------------------------------------------- stage 1: gameplay
def train_gameplay(args, run, agent: Gameplay) -> dict:
    """PPO on the game with scarce bullets; one network plays both players, each from its own view.

    Returns hits per shot and per bullet and the length of the last 100 episodes.
    """
    # Bullets come faster than in the trades, after a random time of the game, so that more is learned per decision.
    venv = VectorTradeEnv(args, (args.seed, 1), trades=False, bullet_interval=(4, 24), max_start=400)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.gameplay_learning_rate, eps=1e-5)
    n, total, N = args.num_steps, args.num_steps + FLIGHT, 2 * args.num_envs
    # A hit is credited to the decision that fired the shot. The last FLIGHT rows of a rollout, whose shots may still be
    # in the air, therefore wait for the next update: they move to the front of these arrays.
    images = torch.zeros((total, N, *IMAGE_SHAPE), dtype=torch.uint8)
    economies = torch.zeros((total, N, ECONOMY_SIZE))
    actions = torch.zeros((total, N), dtype=torch.long)
    logprobs, rewards, values, dones = (torch.zeros((total, N)) for _ in range(4))
    rows = [images, economies, actions, logprobs, rewards, values, dones]
    update, first, recent = 0, 0, deque(maxlen=100)  # `recent`: finished episodes
    saved = run.restore("gameplay")
    if saved is None:
        venv.reset()
    else:
        agent.load_state_dict(saved["agent"])
        optimizer.load_state_dict(saved["optimizer"])
        venv.set_state(saved["envs"])
        update, first = saved["update"], FLIGHT
        recent.extend(saved["recent"])
        for tensor, kept in zip(rows, saved["rows"], strict=True):
            tensor[:FLIGHT] = kept
    num_updates = max(1, (args.gameplay_timesteps - FLIGHT * args.num_envs) // (n * args.num_envs))
    action = np.zeros((args.num_envs, 2, 2), np.int64)
    bar = run.progress_bar("gameplay", num_updates * n * args.num_envs, update * n * args.num_envs)
    while update < num_updates:
        update += 1
        left = max(1 - (update - 1) / num_updates, 0.05)
        optimizer.param_groups[0]["lr"] = args.gameplay_learning_rate * left
        for t in range(first, total):
            images[t] = torch.from_numpy(venv.image).view(N, *IMAGE_SHAPE)
            economies[t] = torch.from_numpy(venv.economy).view(N, ECONOMY_SIZE)
            with torch.no_grad():
                logits, values[t] = (x.cpu() for x in agent.heads(agent.features(images[t]), economies[t]))
            actions[t], logprobs[t] = sample(logits)
            action[:, :, 0] = actions[t].view(-1, 2).numpy()
            venv.step(action)
            rewards[t] = 0.0
            for i, hits in enumerate(venv.hits):
                for player, _, age in hits:
                    rewards[max(t - age, 0), 2 * i + player] += 1.0
            dones[t] = torch.from_numpy(venv.done).float().repeat_interleave(2)
            recent.extend(episode for episode in venv.finished if episode)
        run.global_step += (total - first) * args.num_envs
        bar.update(n * args.num_envs)

        # generalized advantages of the first n rows; row n supplies the value to bootstrap from
        advantages, last = torch.zeros((n, N)), torch.zeros(N)
        for t in reversed(range(n)):
            alive = 1.0 - dones[t]
            delta = rewards[t] + args.gamma * values[t + 1] * alive - values[t]
            advantages[t] = last = delta + args.gamma * args.gae_lambda * alive * last
        returns = advantages + values[:n]
        flat = [x[:n].flatten(0, 1) for x in (images, economies, actions, logprobs, advantages, returns)]
        # what a player does without a bullet matters little: of those rows, a quarter is learned from
        kept = torch.nonzero((flat[1][:, 0] > 0) | (torch.rand(n * N) < 0.25)).squeeze(1)
        num_minibatches = -(-len(kept) // args.minibatch_size)  # of equal size, so that none is a single row
        for _ in range(args.update_epochs):
            for index in kept[torch.randperm(len(kept))].tensor_split(num_minibatches):
                image, economy, *rest, advantage, return_ = (x[index].to(run.device) for x in flat)
                logits, value = agent.heads(agent.features(image), economy)
                advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
                value_loss = 0.5 * (value - return_).square().mean()
                rest += [advantage, args.vf_coef * value_loss]
                losses = ppo_step(args, agent, optimizer, args.ent_coef * left, logits, *rest)
                losses["losses/value_loss"] = value_loss.item()
        for tensor in rows:
            tensor[:FLIGHT] = tensor[n:].clone()
        first = FLIGHT

        fired, hits, given = (np.sum([e[name] for e in recent]) for name in ("fired", "hits", "given"))
        statistics = {"hits_per_shot": hits / max(fired, 1), "hits_per_bullet": hits / max(given, 1)}
        statistics["episode_length"] = np.mean([e["steps"] for e in recent] or [0])
        statistics = {name: float(value) for name, value in statistics.items()}
        run.log({f"charts/{name}": value for name, value in statistics.items()} | losses)
        if update % args.checkpoint_interval == 0 or update == num_updates:
            progress = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict(), "envs": venv.get_state()}
            progress |= {"update": update, "recent": list(recent), "rows": [x[:FLIGHT].clone() for x in rows]}
            run.save("gameplay", progress)
    bar.close()
    return statistics


# ---------------------------------------------------------------------------------------------- stages 2 and 3: trades
# A policy maps the image features [batch, 256] and economic features [batch, 10] of trades to trade actions [batch].
Policy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fixed(action: int) -> Policy:
    """Always the same price."""
    return lambda features, economy: torch.full((len(features),), action)


def random_leader(features: torch.Tensor, economy: torch.Tensor) -> torch.Tensor:
    """The leader of the meta-follower's training: any price, each time anew."""
    return torch.randint(len(PRICES), (len(features),))


def greedy(trader: Trader) -> Policy:
    """A trader's most probable action."""
    return lambda features, economy: trader(features, economy).argmax(1).cpu()


def ordered(leader: int, leader_policy: Policy, follower_policy: Policy) -> list[Policy]:
    """The policies of seller and buyer."""
    return [leader_policy, follower_policy] if leader == SELLER else [follower_policy, leader_policy]


class Trading:
    """Plays trades on many emulators; the game itself is played by the frozen gameplay network.

    If `learner` is a player, its policy is a `Trader` that is sampled from, and every finished episode carries its
    trades as `rows`: features, economy, action, log-probability, payment, whether the learner ended up with the bullet,
    reward from this bullet's hit.
    """

    def __init__(self, args, gameplay, policies, leader, seed, learner=None):
        self.gameplay, self.policies, self.leader, self.learner = gameplay, policies, leader, learner
        self.features = torch.zeros(args.num_envs, 2, 256)
        self.action = np.zeros((args.num_envs, 2, 2), np.int64)  # what to do next, as far as the game is concerned
        self.venv = VectorTradeEnv(args, seed, self._look, leader=leader)
        self.rows = [[] for _ in range(args.num_envs)]

    @torch.no_grad()
    def _look(self, chunk):
        """Image features and game actions of a chunk of emulators, computed in the thread that steps them."""
        image, economy = (torch.from_numpy(x[chunk]).flatten(0, 1) for x in (self.venv.image, self.venv.economy))
        features = self.gameplay.features(image)
        self.action[chunk, :, 0] = self.gameplay.heads(features, economy)[0].argmax(1).view(-1, 2).cpu()
        self.features[chunk] = features.view(-1, 2, 256).cpu()

    @torch.no_grad()
    def step(self) -> list[dict]:
        """One step of all emulators, each in its own phase. Returns the episodes that ended."""
        venv, learner, phase = self.venv, self.learner, self.venv.phase.copy()
        for player, moment in ((self.leader, QUERY), (1 - self.leader, TRADE)):
            envs = np.flatnonzero(phase == moment)
            if not len(envs):
                continue
            features, economy = self.features[envs, player], torch.from_numpy(venv.economy[envs, player])
            answer = self.policies[player](features, economy)
            if player == learner:
                answer, logprob = sample(answer.cpu())
                for i, *columns in zip(envs, features, economy, answer, logprob, strict=True):
                    self.rows[i].append([*columns, 0.0, False, 0.0])
            self.action[envs, player, 1] = answer
        venv.step(self.action)
        for i, rows in enumerate(self.rows if learner is not None else []):
            if phase[i] == TRADE:
                rows[-1][-3] = float(venv.reward[i, learner])
                accepted = venv.finished[i]["accepted"] if venv.done[i] else venv.envs[i].accepted
                rows[-1][-2] = accepted[-1] == (learner == BUYER)
            for bullet in (bullet for player, bullet, _ in venv.hits[i] if player == learner):
                # Every bullet opens one trade, so bullet k is the subject of row k.
                rows[bullet][-1] += float(HIT_REWARD[learner])
        finished = [venv.finished[i] | {"env": int(i), "rows": self.rows[i]} for i in np.flatnonzero(venv.done)]
        self.rows = [[] if done else rows for done, rows in zip(venv.done, self.rows, strict=True)]
        return finished


def standardise(reward: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 among the trades with the same committed price.

    `context` [trades, 5] is that price as one-hot, zero for a leader, whose trades are all compared. Whether to pay 1.0
    for a bullet worth 0.98 is a matter of 0.02 and would drown among prices whose rewards differ by up to 1.
    """
    advantage = torch.zeros_like(reward)
    for price in context.unique(dim=0):
        same = (context == price).all(1)
        advantage[same] = (reward[same] - reward[same].mean()) / (reward[same].std(correction=0) + 1e-4)
    return advantage


def train_trader(args, run, stage, gameplay, trader, learner, opponent, leader, timesteps, seed) -> None:
    """PPO on the trade actions of player `learner` against the fixed policy `opponent`.

    An episode is the sequence of its trades. An update's rows are trades only: no gameplay decision drowns them.
    """
    trading = Trading(args, gameplay, ordered(learner, trader, opponent), leader, seed, learner)
    optimizer = torch.optim.Adam(trader.parameters(), lr=args.learning_rate, eps=1e-5)
    update, done, recent, bullets, earned = 0, 0, deque(maxlen=100), 0, 0.0
    saved = run.restore(stage)
    if saved is None:
        trading.venv.reset()
    else:
        trader.load_state_dict(saved["trader"])
        optimizer.load_state_dict(saved["optimizer"])
        trading.venv.set_state(saved["envs"])
        trading.rows, update, done = saved["trades"], saved["update"], saved["done"]
        recent.extend(saved["recent"])
        bullets, earned = saved["bullets"], saved["earned"]
    bar = run.progress_bar(stage, timesteps, done)
    while done < timesteps:
        left = max(1 - done / timesteps, 0.05)
        optimizer.param_groups[0]["lr"] = args.learning_rate * left
        batch = []
        while len(batch) < args.batch_episodes:
            batch += trading.step()
            done += args.num_envs
            run.global_step += args.num_envs
            bar.update(args.num_envs)
        update += 1
        bullets += sum(held for episode in batch for *_, held, _ in episode["rows"])
        earned += sum(hits for episode in batch for *_, hits in episode["rows"])
        # A trade's reward: what is paid, and what a bullet has been worth to the learner so far if it ends up with it.
        # The average tells 1.0 from a value of 0.98 long before single hits do.
        value = earned / max(bullets, 1)
        rows = [(*row, payment + held * value) for e in batch for *row, payment, held, _ in e.pop("rows")]
        *columns, reward = zip(*rows, strict=True)
        features, economy, *rest = (torch.stack(column).to(run.device) for column in columns)
        rest.append(standardise(torch.tensor(reward), economy[:, -len(PRICES) :].cpu()).to(run.device))
        for _ in range(args.trade_epochs):
            losses = ppo_step(args, trader, optimizer, args.ent_coef * left, trader(features, economy), *rest)
        recent.extend(batch)
        charts = trade_charts(recent, leader)
        run.log(charts | losses)
        if stage == "leader":
            run.state["curve"].append([run.global_step, charts["charts/leader_return"]])
        if update % args.checkpoint_interval == 0:
            progress = {"trader": trader.state_dict(), "optimizer": optimizer.state_dict(), "trades": trading.rows}
            progress |= {"envs": trading.venv.get_state(), "update": update, "done": done, "recent": list(recent)}
            run.save(stage, progress | {"bullets": bullets, "earned": earned})
    bar.close()


def trade_charts(episodes, leader: int) -> dict:
    """Means over episodes, by TensorBoard tag."""
    asked, limits = zip(*(offer for e in episodes for offer in e["offered"]), strict=True)
    accepted, returns = [a for e in episodes for a in e["accepted"]], np.mean([e["returns"] for e in episodes], 0)
    fired, hits = (np.sum([e[name] for e in episodes]) for name in ("fired", "hits"))
    charts = {
        "leader_return": returns[leader],
        "follower_return": returns[1 - leader],
        "price_offered": np.take(PRICES, asked).mean(),
        "price_limit": np.take(PRICES, limits).mean(),
        "acceptance_rate": np.mean(accepted),
        "trades_per_episode": sum(accepted) / len(episodes),
        "hits_per_shot": hits / max(fired, 1),
    }
    return {f"charts/{name}": float(value) for name, value in charts.items()}


# -------------------------------------------------------------------------------------- evaluation and the equilibrium
def evaluate(args, gameplay, policies, leader, seed, episodes=None) -> list[dict]:
    """Episodes of greedy play; the same seed gives the same bullets and starts whatever the policies."""
    episodes = episodes or args.eval_episodes
    trading = Trading(args, gameplay, policies, leader, seed)
    trading.venv.reset()
    # Every emulator contributes its share, or short episodes, which finish first, would count too often.
    share = [episodes // args.num_envs + (i < episodes % args.num_envs) for i in range(args.num_envs)]
    finished = [[] for _ in share]
    while any(len(f) < k for f, k in zip(finished, share, strict=True)):
        for episode in trading.step():
            finished[episode["env"]].append(episode)
    return [episode for f, k in zip(finished, share, strict=True) for episode in f[:k]]


def bullet_values(args, gameplay, leader, seed) -> tuple[list[float], list[float]]:
    """Mean reward from a bullet (seller, buyer) and standard errors: first nothing is sold, then everything."""
    values, errors = [], []
    for player, (price, limit) in ((SELLER, (4, 0)), (BUYER, (0, 4))):
        episodes = evaluate(args, gameplay, [fixed(price), fixed(limit)], leader, seed)
        means = np.array([e["hits"][player] / max(e["given"], 1) for e in episodes]) * float(HIT_REWARD[player])
        values.append(float(means.mean()))
        errors.append(float(means.std() / len(means) ** 0.5))
    return values, errors


def solve(values: list[float], leader: int) -> tuple[int, float]:
    """Exact optimum on the price grid: the leader's trade action and its gain per bullet.

    `values`: mean reward from a bullet (seller, buyer). The follower breaks ties for the leader.
    """
    seller, buyer = values
    if leader == SELLER:
        gains = [price if price <= buyer else seller for price in PRICES]
    else:
        gains = [buyer - price if price >= seller else 0.0 for price in PRICES]
    best = int(np.argmax(gains))
    return best, gains[best]


def best_response_table(args, gameplay, follower, leader, values, seed) -> list[dict]:
    """For each fixed leader price: share of trades that the follower lets happen, and what the best response is."""
    table = []
    for action, price in enumerate(PRICES):
        policies = ordered(leader, fixed(action), follower)
        episodes = evaluate(args, gameplay, policies, leader, seed, max(args.eval_episodes // 5, 1))
        accepted = [a for e in episodes for a in e["accepted"]]
        answers = [PRICES[o[1 - leader]] for e in episodes for o in e["offered"]]
        # A buyer trades if the bullet is worth the price to it; a seller asks the buyer's limit or keeps the bullet.
        trade = price < values[BUYER] if leader == SELLER else price > values[SELLER]
        both = zip(accepted, answers, strict=True)
        best = [sold == trade and (leader == SELLER or not sold or answer == price) for sold, answer in both]
        row = {"leader_price": price, "trades": len(accepted), "acceptance_rate": float(np.mean(accepted))}
        table.append(row | {"best_response_trades": trade, "best_response_rate": float(np.mean(best))})
    return table


def report(args, gameplay, traders) -> dict:
    """Evaluates the equilibrium: all that result.json says about it."""
    leader = (SELLER, BUYER)[args.leader == "buyer"]
    follower, seed = 1 - leader, (args.seed, 100)

    def play(trader):
        policies = ordered(leader, greedy(traders["leader"]), greedy(trader))
        return evaluate(args, gameplay, policies, leader, seed)

    episodes = play(traders["follower"])
    returns = np.array([e["returns"] for e in episodes])
    values, errors = bullet_values(args, gameplay, leader, seed)
    best, leader_gain = solve(values, leader)
    played = [PRICES[offer[leader]] for e in episodes for offer in e["offered"]]
    # the follower's best response: to trade or not to trade
    responses = [max(values[BUYER] - x, 0.0) if leader == SELLER else max(x, values[SELLER]) for x in played]
    fired, hits = (sum(e[name][BUYER] for e in episodes) for name in ("fired", "hits"))
    received = fired + sum(len(e["bullets"][BUYER]) for e in episodes)
    result = {
        "episodes": len(episodes),
        "leader_return": returns[:, leader].mean(),
        "follower_return": returns[:, follower].mean(),
        "stackelberg_value": args.num_bullets * leader_gain,
        "leader_regret": args.num_bullets * leader_gain - returns[:, leader].mean(),
        "follower_regret": sum(responses) / len(episodes) - returns[:, follower].mean(),
        "optimal_leader_price": PRICES[best],
        "leader_prices": {str(price): played.count(price) / len(played) for price in PRICES},
        "acceptance_rate": np.mean([a for e in episodes for a in e["accepted"]]),
        "bullet_values": values,
        "bullet_value_errors": errors,
        "buyer_hits_per_shot": hits / fired if fired else None,
        "buyer_hits_per_bullet": hits / received if received else None,
        "best_responses": best_response_table(args, gameplay, greedy(traders["follower"]), leader, values, seed),
    }
    if "verification" in traders:
        after = np.array([e["returns"] for e in play(traders["verification"])])
        gain = after[:, follower] - returns[:, follower]  # the same starts and bullets: differences in pairs
        result |= {"verification_gain": gain.mean(), "verification_gain_error": gain.std() / len(gain) ** 0.5}
    return result


def summary(args, result: dict) -> str:
    """Says in words what the run found. A follower that gains by learning on is no follower of an equilibrium."""
    price, (seller, buyer), share = result["optimal_leader_price"], result["bullet_values"], result["leader_prices"]
    gain, error = (result.get(f"verification_gain{suffix}", 0.0) for suffix in ("", "_error"))
    found = min(share[str(price)], result["acceptance_rate"]) >= 0.95 and gain <= 2 * error
    found = found and all(row["best_response_rate"] >= 0.95 for row in result["best_responses"])
    lines = [
        f"{'A' if found else 'NOT a'} Stackelberg equilibrium with the {args.leader} as leader",
        f"  leader's price    {price:.2f}, the optimum, in {share[str(price)]:.0%} of trades",
        f"  bullets sold      {result['acceptance_rate']:.0%}",
        f"  leader's return   {result['leader_return']:.2f} per episode (optimum {result['stackelberg_value']:.2f})",
        f"  follower's return {result['follower_return']:.2f} per episode",
        f"  value of a bullet {seller:.3f} to the seller, {buyer:.3f} to the buyer",
    ]
    for row in result["best_responses"]:
        best = "to trade" if row["best_response_trades"] else "not to trade"
        lines.append(
            f"  fixed price {row['leader_price']:.2f}  the follower trades in {row['acceptance_rate']:.0%}; the best "
            f"response is {best}, and it is played in {row['best_response_rate']:.0%}"
        )
    if "verification_gain" in result:
        lines.append(f"  verification      learning on, the follower gains {gain:+.3f} +- {error:.3f} per episode")
    return "\n".join(lines)


def draw_episode(args, gameplay, policies, leader, seed, path) -> None:
    """Writes one episode as an animated GIF: the game, and beside it bullets, offers and payments."""
    colour = np.zeros((256, 3), np.uint8)
    colour[list(COLOURS)] = list(COLOURS.values())
    trading = Trading(Args(**asdict(args) | {"num_envs": 1, "num_threads": 1}), gameplay, policies, leader, seed)
    trading.venv.reset()
    env, frames, durations, names = trading.venv.envs[0], [], [], ("seller", "buyer")
    while not frames or not trading.step():
        lines = [f"decision {env.steps}", f"bullets given: {env.given} of {env.num_bullets}", ""]
        for p, ship in ((SELLER, "green"), (BUYER, "yellow")):
            lines += [f"{names[p].upper()} ({ship}){' LEADER' * (p == leader)}", f"  bullets {len(env.bullets[p])}"]
            lines += [f"  hits {env.hits[p]} of {env.fired[p]} shots", f"  return {env.returns[p]:.2f}", ""]
        for k, ((ask, limit), sold) in enumerate(zip(env.offered, env.accepted, strict=True), start=1):
            lines.append(f"{k}: asks {PRICES[ask]:.2f}, pays {PRICES[limit]:.2f}: {'sold' if sold else 'kept'}")
        if env.phase == QUERY:
            lines.append(f"{len(env.offered) + 1}: query: what does the {names[leader]} commit to?")
        if env.phase == TRADE:
            lines.append(f"{len(env.offered) + 1}: {names[leader]} commits to {PRICES[env.committed]:.2f}")
        lines += ["", f"payments: {env.paid:.2f}"]
        screen = Image.fromarray(colour[np.maximum(*env.screens)].reshape(210, 160, 3))
        frame = Image.new("RGB", (520, 420))
        frame.paste(screen.resize((320, 420), Image.Resampling.NEAREST), (0, 0))
        ImageDraw.Draw(frame).multiline_text((330, 20), "\n".join(lines), fill=(230, 230, 230), spacing=6)
        frames.append(frame.quantize(32))
        durations.append(70 if env.phase == GAME else 900)
    animation = {"format": "GIF", "save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    write_atomically(path, lambda temporary: frames[0].save(temporary, **animation))


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


def check_args(args: Args) -> None:
    """Exits with 2 if something is wrong that can be known before the work begins."""
    if not re.fullmatch(r"[\w.-]+", args.exp_name):
        fail(f"--exp-name is part of a folder's name: use letters, digits, '_', '-' and '.', not {args.exp_name!r}")
    if ALEInterface is None:
        fail("the two-player emulator is missing: pip install multi-agent-ale-py==0.1.12")
    if rom_path() is None:
        fail("the ROM of Space Invaders is missing; ale-py ships it: pip install ale-py==0.12.1")
    counts = "num_envs num_bullets max_steps num_steps update_epochs minibatch_size batch_episodes trade_epochs "
    counts += "eval_episodes checkpoint_interval gameplay_timesteps follower_timesteps total_timesteps"
    limits = dict.fromkeys(counts.split(), (1, 1e12))
    limits |= dict.fromkeys("num_threads verification_timesteps seed ent_coef vf_coef".split(), (0, 1e12))
    limits |= dict.fromkeys("gameplay_learning_rate learning_rate clip_coef max_grad_norm".split(), (1e-12, 1e12))
    limits |= dict.fromkeys("gamma gae_lambda".split(), (0, 1))
    for name, (low, high) in limits.items():
        if not low <= getattr(args, name) <= high:
            fail(f"--{name.replace('_', '-')} must be from {low:g} to {high:g}, not {getattr(args, name)}")
    if args.total_timesteps <= args.follower_timesteps and args.stage in ("trade", "all"):
        fail("--total-timesteps must exceed --follower-timesteps: the leader learns in what is left")
    if not 1 <= args.bullet_interval[0] <= args.bullet_interval[1]:
        fail(f"--bullet-interval must be two numbers from 1, the smaller first, not {args.bullet_interval}")
    if args.bullet_interval[1] * args.num_bullets >= args.max_steps:
        fail("--max-steps is too small: the last bullet may come after it (--num-bullets times --bullet-interval)")
    if args.cuda and not torch.cuda.is_available():
        fail("--cuda: PyTorch finds no GPU here; run without it")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights and Biases: pip install wandb")
    if args.stage == "evaluate" and args.trade_checkpoint is None:
        fail("--stage evaluate needs --trade-checkpoint")


def load(path: str | Path, what: str) -> dict:
    """Loads a file that this script wrote. Exits with 2 if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state if isinstance(state, dict) else fail(f"{what} {path} holds something else")
    except OSError as error:
        fail(f"{what} {path}: {error.strerror or error}")
    except Exception:  # torch.load raises whatever a foreign file makes it trip over
        fail(f"{what} {path} cannot be read: this script did not write it, or it is damaged")


def load_weights(module: nn.Module, weights: dict, what: str) -> None:
    """Loads weights of any precision. Exits with 2 if they have other shapes."""
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (RuntimeError, AttributeError):
        fail(f"{what} has other shapes than this script's networks; make one with --stage gameplay or --save-model")


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Lets `write` make the file under another name first, so that nobody ever meets half of it."""
    write(path + ".tmp")
    os.replace(path + ".tmp", path)


def half(module: nn.Module) -> dict:
    """Weights as float16, for small files."""
    return {name: tensor.half().cpu() for name, tensor in module.state_dict().items()}


def digest(module: nn.Module) -> float:
    """A number that tells one gameplay network from another."""
    return round(sum(tensor.double().abs().sum().item() for tensor in module.state_dict().values()), 3)


# ------------------------------------------------------------------------------------------------------------- the run
class Run:
    """The run's folder: logs, and checkpoint.pt, from which `--resume` continues."""

    def __init__(self, args: Args, state: dict | None = None, path: str | None = None):
        self.args, self.state = args, state
        self.path = path or self._make_folder()
        if state is None:
            self.state = {"args": asdict(args), "finished": {}, "global_step": 0, "seconds": 0.0, "curve": []}
        self.global_step = self.first_step = self.state["global_step"]
        self.device, self.start_time = torch.device("cuda" if args.cuda else "cpu"), time.time()
        if args.track:
            import wandb

            name = os.path.basename(os.path.normpath(self.path))
            names = {"id": name, "name": name, "project": args.wandb_project_name, "entity": args.wandb_entity}
            try:
                wandb.init(**names, dir=self.path, config=asdict(args), sync_tensorboard=True, resume="allow")
            except wandb.Error as error:  # no key, no network
                if state is None:
                    shutil.rmtree(self.path)
                fail(f"--track: {' '.join(str(error).split())}")
        self.writer = SummaryWriter(self.path, purge_step=None if state is None else self.global_step + 1)
        if state is None:
            rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
            self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
            self.save(None, None)

    def _make_folder(self) -> str:
        name = f"space_invaders_trade__{self.args.exp_name}__{self.args.seed}__"
        for second in itertools.count(int(time.time())):  # the same run, started twice in one second, needs two names
            path = os.path.join(self.args.run_dir, f"{name}{second}")
            try:
                os.makedirs(path)
                return path
            except FileExistsError:
                continue
            except OSError as error:
                fail(f"--run-dir {self.args.run_dir}: cannot make a folder in it: {error.strerror}")

    def seconds(self) -> float:
        return self.state["seconds"] + time.time() - self.start_time

    def progress_bar(self, stage: str, total: int, done: int) -> tqdm:
        return tqdm(total=total, initial=done, desc=stage, unit="step", disable=not sys.stderr.isatty())

    def log(self, scalars: dict[str, float]) -> None:
        sps = (self.global_step - self.first_step) / (time.time() - self.start_time)
        for tag, scalar in (scalars | {"charts/SPS": sps}).items():
            self.writer.add_scalar(tag, scalar, self.global_step)

    def begin(self, stage: str, index: int) -> dict | None:
        """Every stage starts from a seed of its own. Returns the stage's result if it is finished already."""
        torch.manual_seed(1000 * self.args.seed + index)
        return self.state["finished"].get(stage)

    def restore(self, stage: str) -> dict | None:
        """What the stage saved last, with the random state of that moment; None if it has saved nothing."""
        if self.state.get("stage") != stage:
            return None
        torch.set_rng_state(self.state["torch_rng"])
        return self.state["progress"]

    def save(self, stage: str | None, progress: dict | None) -> None:
        changes = {"stage": stage, "progress": progress, "torch_rng": torch.get_rng_state()}
        changes |= {"global_step": self.global_step, "seconds": self.seconds()}
        write_atomically(os.path.join(self.path, "checkpoint.pt"), lambda path: torch.save(self.state | changes, path))

    def finish(self, stage: str, result: dict) -> dict:
        self.state["finished"][stage] = result
        self.save(None, None)
        return result


def run_gameplay(args: Args, run: Run) -> tuple[Gameplay, dict]:
    """Stage 1. The weights are rounded to float16, as they are in a checkpoint's file."""
    finished = run.begin("gameplay", 1)
    gameplay = Gameplay().to(run.device, memory_format=torch.channels_last)
    if finished is None:
        statistics = train_gameplay(args, run, gameplay)
        finished = run.finish("gameplay", {"weights": half(gameplay), "statistics": statistics})
    load_weights(gameplay, finished["weights"], "the gameplay network")
    return gameplay, finished["statistics"]


def run_trades(args: Args, run: Run, gameplay: Gameplay, leader: int) -> dict[str, Trader]:
    """Stages 2 and 3, and the verification, in which the follower learns on: networks by stage."""
    traders, timesteps = {}, args.total_timesteps - args.follower_timesteps
    plan = [("follower", args.follower_timesteps), ("leader", timesteps), ("verification", args.verification_timesteps)]
    for index, (stage, timesteps) in enumerate(plan, start=2):
        if timesteps == 0:
            continue
        finished = run.begin(stage, index)
        trader = traders[stage] = Trader().to(run.device)
        if finished is None:
            opponent = random_leader
            if stage == "leader":
                opponent = greedy(traders["follower"])
            elif stage == "verification":
                opponent = greedy(traders["leader"])
                trader.load_state_dict(traders["follower"].state_dict())
            learner = leader if stage == "leader" else 1 - leader
            train_trader(args, run, stage, gameplay, trader, learner, opponent, leader, timesteps, (args.seed, index))
            finished = run.finish(stage, trader.state_dict())
        trader.load_state_dict(finished)
    return traders


def main(args: Args) -> dict:
    """Runs the stages; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    state, path, gameplay, traders = None, args.resume, Gameplay(), None
    if path is not None:
        changed = [f.name for f in fields(Args) if f.name != "resume" and getattr(args, f.name) != f.default]
        if changed:
            fail(f"--resume continues with the run's own flags: drop --{changed[0].replace('_', '-')}")
        if os.path.isfile(os.path.join(path, "result.json")):
            fail(f"the run in {path} is finished: there is nothing to resume")
        state = load(os.path.join(path, "checkpoint.pt"), "checkpoint")
        if "finished" not in state:
            fail(f"{path} holds no run of this script")
        args = Args(**state["args"])
    check_args(args)
    args.num_threads = args.num_threads or min(os.cpu_count() or 1, 8)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    torch.set_num_threads(1)  # the emulators' threads need the cores; a thread pool beside them is slower
    if args.stage in ("trade", "evaluate"):
        weights = load(args.gameplay_checkpoint, "gameplay checkpoint").get("gameplay", {})
        load_weights(gameplay, weights, f"gameplay checkpoint {args.gameplay_checkpoint}")
    if args.stage == "evaluate":
        trained = load(args.trade_checkpoint, "trade checkpoint")
        if not {"leader", "traders", "gameplay_digest"} <= set(trained):
            fail(f"trade checkpoint {args.trade_checkpoint} is not a model.pt of this script's trade stages")
        if trained["gameplay_digest"] != digest(gameplay):
            fail("the trade checkpoint was trained with another gameplay network than --gameplay-checkpoint")
        args.leader, traders = trained["leader"], {role: Trader() for role in trained["traders"]}
        for role, trader in traders.items():
            load_weights(trader, trained["traders"][role], f"trade checkpoint {args.trade_checkpoint}")

    run, leader = Run(args, state, path), (SELLER, BUYER)[args.leader == "buyer"]
    result = {"script": os.path.basename(__file__), "env_id": "space_invaders_trade", "seed": args.seed}
    result["args"] = asdict(args)
    if args.stage in ("gameplay", "all"):
        gameplay, result["gameplay"] = run_gameplay(args, run)
        statistics = ", ".join(f"{name} {value:.3f}" for name, value in result["gameplay"].items())
        print(f"gameplay, sampled actions, last 100 episodes: {statistics}")
    gameplay = gameplay.to(run.device, memory_format=torch.contiguous_format).requires_grad_(False)
    model = {"gameplay": half(gameplay)} if args.stage in ("gameplay", "all") else {}
    if args.stage != "gameplay":
        traders = traders or run_trades(args, run, gameplay, leader)
        traders = {role: trader.to(run.device).requires_grad_(False) for role, trader in traders.items()}
        result |= report(args, gameplay, traders) | {"curve": run.state["curve"]}
        for tag in ("leader_return", "follower_return", "stackelberg_value", "leader_regret", "follower_regret"):
            run.writer.add_scalar(f"eval/{tag}", result[tag], run.global_step)
        model |= {"leader": args.leader, "gameplay_digest": digest(gameplay)}
        model["traders"] = {role: trader.state_dict() for role, trader in traders.items()}
        if args.capture_video:
            policies = ordered(leader, greedy(traders["leader"]), greedy(traders["follower"]))
            draw_episode(args, gameplay, policies, leader, (args.seed, 200), os.path.join(run.path, "episode.gif"))
        print(summary(args, result))
    if args.save_model or args.stage == "gameplay":
        write_atomically(os.path.join(run.path, "model.pt"), lambda file: torch.save(model, file))
    run.writer.close()
    if args.track:
        import wandb

        wandb.finish()
    steps, seconds = run.global_step, run.seconds()
    result |= {"global_step": steps, "wall_seconds": seconds, "steps_per_second": steps / seconds}
    text, result_path = json.dumps(result, indent=1, default=float) + "\n", os.path.join(run.path, "result.json")
    write_atomically(result_path, lambda file: Path(file).write_text(text))
    os.remove(os.path.join(run.path, "checkpoint.pt"))
    print(f"  {steps:,} steps in {seconds:.0f} s\n  curves            tensorboard --logdir {args.run_dir}")
    print(f"  result            {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
