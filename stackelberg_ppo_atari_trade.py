# /// script
# requires-python = ">=3.11"
# dependencies = ["ale-py==0.12.1", "gymnasium==1.4.0", "multi-agent-ale-py==0.1.12", "numpy==2.4.6", "pillow==13.0.0",
#   "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of a bilateral trade in two-player Space Invaders (Section 4.1, Appendix G, Figure 2).

    python stackelberg_ppo_atari_trade.py --leader seller
    python stackelberg_ppo_atari_trade.py --leader buyer

A shot costs a bullet. Only player 1, the seller, is given any; it can sell each one to player 2, the buyer, whose hits
count ten times as much. Who commits to its prices first takes the gains from trade: the seller as leader asks 0.75,
the highest price on the grid below the buyer's value of a bullet (just under 1); the buyer as leader pays no more than
0.25, the lowest above the seller's value (just under 0.1).

Three stages. (1) Gameplay: PPO on the game, with random trades, until the players aim well; a trained network is
committed. It stays frozen from here on, and trades are learned on top of its image features. (2) The meta-follower: PPO
on the follower's trade actions against a leader that trades at random. The follower is told what the leader answered to
the query right before the trade, so it learns a best response to every leader. (3) The leader: PPO on its trade actions
against the frozen follower. Last, the follower learns on against the frozen leader, and must not gain.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from ale_py.roms import get_rom_path
from multi_agent_ale_py.ale_python_interface import ALEInterface, ale_lib
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """seed of every random number"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    cuda: bool = False
    """if toggled, the networks run on the GPU; the emulators are the bottleneck either way"""
    track: bool = False
    """track the run with Weights and Biases too"""
    wandb_project_name: str = "stackelberg"
    """project in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    save_model: bool = False
    """save what was trained as model.pt in the run's folder (`--stage gameplay` always does)"""
    capture_video: bool = False
    """write one evaluation episode to episode.gif in the run's folder, with bullets, offers and payments beside it"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""
    resume: str | None = None
    """folder of an interrupted run to continue to the same bits, with its own flags; the script must be the same too"""

    leader: Literal["seller", "buyer"] = "seller"
    """who commits to its trade actions (with `--stage evaluate`, the checkpoint tells)"""
    stage: Literal["trade", "gameplay", "all", "evaluate"] = "trade"
    """trade: stages 2 and 3 with the gameplay checkpoint; gameplay: stage 1 alone; all: the three stages from nothing;
    evaluate: no learning, only the evaluation of `--trade-checkpoint`"""
    gameplay_checkpoint: str = os.path.join(os.path.dirname(__file__), "benchmark/checkpoints/atari_trade_gameplay.pt")
    """model.pt of a run with `--stage gameplay`, used by `--stage trade` and `--stage evaluate`"""
    trade_checkpoint: str | None = None
    """model.pt of a run with `--save-model`, for `--stage evaluate`"""
    gameplay_timesteps: int = 320_000
    """environment steps of stage 1: decisions (4 frames, both players act), queries and trades"""
    follower_timesteps: int = 120_000
    """environment steps of stage 2"""
    total_timesteps: int = 200_000
    """environment steps of stages 2 and 3 together"""
    verification_timesteps: int = 40_000
    """environment steps for which the follower learns on against the frozen leader"""
    eval_episodes: int = 100
    """episodes of every evaluation; both agents act greedily"""

    num_envs: int = 16
    """emulators; an update, in every stage, learns from one episode of each"""
    num_threads: int = 0
    """threads that step the emulators; 0 = one per CPU core, at most 8"""
    num_bullets: int = 5
    """bullets per episode"""
    bullet_interval: tuple[int, int] = (8, 40)
    """least and most decisions between two bullets, drawn uniformly (stage 1 has its own)"""
    max_steps: int = 300
    """decisions after which an episode is cut off; it ends earlier when every bullet has been used and has landed"""
    clip_coef: float = 0.2
    """PPO's clipping coefficient"""
    max_grad_norm: float = 0.5
    """largest norm of the gradient"""

    gameplay_learning_rate: float = 7e-4
    """stage 1: learning rate of Adam, decaying linearly to a twentieth"""
    gameplay_ent_coef: float = 0.01
    """stage 1: coefficient of the entropy bonus, decaying like the learning rate"""
    gamma: float = 0.98
    """stage 1: discount factor per decision"""
    gae_lambda: float = 0.9
    """stage 1: lambda of generalized advantage estimation"""
    update_epochs: int = 3
    """stage 1: passes over the decisions of an update"""
    minibatch_size: int = 256
    """stage 1: most rows per minibatch"""
    vf_coef: float = 0.5
    """stage 1: coefficient of the value loss"""

    learning_rate: float = 3e-3
    """stages 2 and 3: learning rate of Adam, decaying linearly to a twentieth"""
    ent_coef: float = 0.1
    """stages 2 and 3: coefficient of the entropy bonus, decaying like the learning rate"""
    trade_epochs: int = 8
    """stages 2 and 3: passes over the trades of an update, all of them in one minibatch"""

    def __post_init__(self):
        may_be_zero = {"seed", "num_threads", "gameplay_ent_coef", "gamma", "gae_lambda", "vf_coef", "ent_coef"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if not 1 <= self.bullet_interval[0] <= self.bullet_interval[1] < self.max_steps / self.num_bullets:
            raise ValueError("--bullet-interval must be 1 or more, the smaller first, and let all bullets come in time")
        if self.stage in ("trade", "all") and self.total_timesteps <= self.follower_timesteps:
            raise ValueError("--total-timesteps must exceed --follower-timesteps: the leader learns in what is left")
        if self.stage == "evaluate" and self.trade_checkpoint is None:
            raise ValueError("--stage evaluate needs --trade-checkpoint")
        if self.cuda and not torch.cuda.is_available():
            raise ValueError("--cuda: PyTorch finds no GPU here")
        self.num_threads = self.num_threads or min(os.cpu_count() or 1, 8)
        make_networks(self)  # to see if the checkpoints fit
        self.state = None if self.resume is None else load_state(self)


# ----------------------------------------------------------------------------------------------------- the environment
ENV_ID = "space_invaders_trade"
SELLER, BUYER = 0, 1  # player 1 and player 2 of the emulator
PRICES = (0.0, 0.25, 0.5, 0.75, 1.0)
HIT_REWARD = np.array([0.1, 1.0], dtype=np.float32)  # per alien or saucer hit: seller, buyer
FRAME_SKIP = 4  # frames per decision
GAME_ACTIONS = (0, 1, 3, 4, 11, 12)  # the emulator's NOOP, FIRE, RIGHT, LEFT, RIGHTFIRE, LEFTFIRE
FIRE_REMOVED = {0: 0, 1: 0, 3: 3, 4: 4, 11: 3, 12: 4}
GAME, QUERY, TRADE = 0, 1, 2  # phases of the environment: emulator runs / leader commits / follower answers
IMAGE_SHAPE = (4, 45, 80)  # the last four decisions, 180 x 160 pixels in blocks of 4 x 2
ECONOMY_SIZE, GAME_ECONOMY_SIZE = 10, 3  # the first three matter to the game
EPISODE = ("length", "steps", "given", "bullets", "fired", "hits", "landed", "offered", "accepted", "returns")
STAGES = ("gameplay", "follower", "leader", "verification", "evaluation")
# In stage 1 bullets come faster and later in the game than in the trades, so that more is learned per decision.
GAMEPLAY_EPISODES = {"bullet_interval": (4, 24), "max_start": 400}

# RAM addresses. A missile's slot says nothing about its shooter: a new missile is at y = 85 for one frame, at its
# shooter's x + 5; an empty slot has y = 246.
RAM_PLAYER_X, RAM_MISSILE_Y, RAM_MISSILE_X = 28, 85, 87

# The palette codes of ground, shields, aliens, saucer, missiles, player 1 and player 2 in colour (for videos) and as
# grey values: a player sees its own ship brightest, so that one network can play both sides.
CODES = (226, 52, 20, 82, 6, 196, 246)
COLOURS = ((80, 89, 22), (181, 83, 40), (134, 134, 29), (151, 25, 122), (142, 142, 142), (50, 132, 50), (162, 134, 56))
VIEW = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
VIEW[:, (0, *CODES[:5])] = 0, 32, 64, 128, 160, 192
VIEW[SELLER, CODES[5:]] = 255, 96
VIEW[BUYER, CODES[5:]] = 96, 255


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

    def __init__(self, leader=SELLER, num_bullets=5, bullet_interval=(8, 40), max_steps=300, max_start=60):
        """An episode starts after 1 to `max_start` frames in which the ships move at random."""
        self.leader, self.num_bullets = leader, num_bullets
        self.bullet_interval, self.max_steps, self.max_start = bullet_interval, max_steps, max_start
        image = gym.spaces.Box(0, 255, (2, *IMAGE_SHAPE), np.uint8)
        economy = gym.spaces.Box(0.0, 1.0, (2, ECONOMY_SIZE), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "economy": economy})
        self.action_space = gym.spaces.MultiDiscrete([[len(GAME_ACTIONS), len(PRICES)]] * 2)
        ALEInterface.setLoggerMode("error")
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(str(get_rom_path("space_invaders")))
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
        """Starts an episode: random moves, then the game without bullets until the first one is given."""
        super().reset(seed=seed)
        self.ale.restoreSystemState(self.start)
        for frame in range(1 + int(self.np_random.integers(self.max_start))):
            if frame % 16 == 0:
                self.buttons[:] = self.np_random.choice((0, 3, 4), 2)  # stay, right, left
            self._frame()
        self.phase, self.committed = GAME, 0
        self.length, self.steps = 0, 0  # of the episode: all steps, and the decisions among them
        intervals = self.np_random.integers(*self.bullet_interval, self.num_bullets, endpoint=True)
        self.arrivals = np.cumsum(intervals).tolist()  # the decisions after which the seller is given a bullet
        self.given, self.bullets = 0, [0, 0]  # so far, and held by each player
        self.shot, self.flying = [None, None], [False, False]  # x and decision of each player's latest shot
        self.fired, self.hits, self.returns = [0, 0], [0, 0], [0.0, 0.0]
        self.landed = []  # (player, decision of the shot) of every hit
        self.offered, self.accepted = [], []  # per trade [seller's, buyer's] trade action, and whether they agreed
        self.image[:] = 0
        ale_lib.getScreen(self.ale.obj, self.addresses[3])
        self.screens[1] = self.screens[0]
        self._see()
        self.image[:, :-1] = self.image[:, -1:]
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict, np.ndarray, bool, bool, dict]:
        """One decision, query or trade.

        The episode ends when all bullets are used and no shot is in the air, when the game is over, or after
        `max_steps` decisions. `info["episode"]` then tells about it, by the names in `EPISODE`.
        """
        reward = np.zeros(2, np.float32)
        self.length += 1
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
                self.bullets[SELLER] -= 1
                self.bullets[BUYER] += 1
                reward[:] = price, -price
            self.phase = GAME
        else:
            self._play(action, reward)
            self.steps += 1
            if self.given < self.num_bullets and self.arrivals[self.given] <= self.steps:
                self.given += 1
                self.bullets[SELLER] += 1
                self.phase = QUERY
        self.returns = [total + float(r) for total, r in zip(self.returns, reward, strict=True)]
        terminated = self.given == self.num_bullets and not any(self.bullets + self.flying)
        terminated |= self.phase == GAME and self.ale.game_over()
        truncated = self.phase == GAME and self.steps >= self.max_steps
        info = {"episode": {name: getattr(self, name) for name in EPISODE}} if terminated or truncated else {}
        return self._observation(), reward, terminated, truncated, info

    def _frame(self):
        """Runs the emulator for one frame; the wrapper's own `act` and `getRAM` would take longer than the emulator."""
        buttons, scores, ram = self.addresses[:3]
        ale_lib.actMulti(self.ale.obj, buttons, scores)
        ale_lib.getRAM(self.ale.obj, ram)

    def _play(self, action, reward):
        """Runs the emulator for one decision, finds out from RAM who has fired, and counts hits."""
        moves, buttons = [GAME_ACTIONS[action[p][0]] for p in (SELLER, BUYER)], [0, 0]
        for frame in range(FRAME_SKIP):
            for p in (SELLER, BUYER):
                buttons[p] = moves[p] if self.bullets[p] else FIRE_REMOVED[moves[p]]
            if abs(int(self.ram[RAM_PLAYER_X]) - int(self.ram[RAM_PLAYER_X + 1])) <= 2:
                # Ships in one place take turns in firing, or nobody could tell whose shot it was.
                buttons[self.steps % 2] = FIRE_REMOVED[buttons[self.steps % 2]]
            self.buttons[:] = buttons
            self._frame()
            if frame >= FRAME_SKIP - 2:
                ale_lib.getScreen(self.ale.obj, self.addresses[3 + frame % 2])
            ram = self.ram.tolist()
            missiles = [(ram[RAM_MISSILE_Y + i], ram[RAM_MISSILE_X + i]) for i in (0, 1)]
            for p, score in enumerate(self.scores.tolist()):
                if score % 200:  # the 200 points for the other player's death are not a hit
                    self.hits[p] += 1
                    self.landed.append((p, self.shot[p][1]))
                    self.flying[p] = False
                    reward[p] += HIT_REWARD[p]
                elif self.flying[p]:
                    self.flying[p] = any(y <= 85 and x == self.shot[p][0] for y, x in missiles)
            for x in (x for y, x in missiles if y == 85):
                armed = [p for p in (SELLER, BUYER) if buttons[p] in (1, 11, 12) and self.bullets[p]]
                shooters = [p for p in armed if ram[RAM_PLAYER_X + p] + 5 == x]
                if shooters:
                    p = shooters[0]
                    self.shot[p], self.flying[p] = (x, self.steps), True
                    self.bullets[p] -= 1
                    self.fired[p] += 1
        self._see()

    def _see(self):
        """Adds the last two frames' pixel-wise maximum (missiles flicker) to both players' images.

        Each player's view is centred on its own ship, so that aiming is the same wherever the ship is.
        """
        screen = np.maximum(*self.screens).reshape(210, 160)[16:196]
        rows = np.maximum(np.maximum(screen[0::4], screen[1::4]), np.maximum(screen[2::4], screen[3::4]))
        self.wide[:, 80:240] = rows
        self.image[:, :-1] = self.image[:, 1:]
        for p in (SELLER, BUYER):
            muzzle = int(self.ram[RAM_PLAYER_X + p]) + 3  # the screen's column in which a shot flies
            view = self.wide[:, muzzle : muzzle + 160]
            self.image[p, -1] = VIEW[p].take(np.maximum(view[:, 0::2], view[:, 1::2]))

    def _observation(self):
        economy, to_come = np.zeros((2, ECONOMY_SIZE), np.float32), 1 - self.given / self.num_bullets
        for p in (SELLER, BUYER):
            own, others = (min(self.bullets[q], 5) / 5 for q in (p, 1 - p))
            economy[p, :5] = own, others, p, self.phase != GAME, to_come
        if self.phase == TRADE:
            economy[1 - self.leader, 5 + self.committed] = 1.0
        return {"image": self.image.copy(), "economy": economy}

    def render(self) -> np.ndarray:
        """uint8 [420, 520, 3]: the screen, and beside it bullets, offers and payments."""
        names, k = ("seller", "buyer"), len(self.offered) + 1
        lines = [f"decision {self.steps}", f"bullets given: {self.given} of {self.num_bullets}", ""]
        for p, ship in ((SELLER, "green"), (BUYER, "yellow")):
            lines.append(f"{names[p].upper()} ({ship}){' LEADER' * (p == self.leader)}")
            lines += [f"  bullets {self.bullets[p]}", f"  hits {self.hits[p]} of {self.fired[p]} shots"]
            lines += [f"  return {self.returns[p]:.2f}", ""]
        trades = list(zip(np.take(PRICES, self.offered), self.accepted, strict=True)) if self.offered else []
        for trade, ((ask, limit), sold) in enumerate(trades, start=1):
            lines.append(f"{trade}: asks {ask:.2f}, pays {limit:.2f}: {'sold' if sold else 'kept'}")
        if self.phase == QUERY:
            lines.append(f"{k}: query: what does the {names[self.leader]} commit to?")
        elif self.phase == TRADE:
            lines.append(f"{k}: {names[self.leader]} commits to {PRICES[self.committed]:.2f}")
        lines += ["", f"payments: {sum(ask * sold for (ask, _), sold in trades):.2f}"]
        colour = np.zeros((256, 3), np.uint8)
        colour[list(CODES)] = COLOURS
        screen = Image.fromarray(colour[np.maximum(*self.screens)].reshape(210, 160, 3))
        frame = Image.new("RGB", (520, 420))
        frame.paste(screen.resize((320, 420), Image.Resampling.NEAREST), (0, 0))
        ImageDraw.Draw(frame).multiline_text((330, 20), "\n".join(lines), fill=(230, 230, 230), spacing=6)
        return np.asarray(frame)


class Emulators:
    """`args.num_envs` environments, stepped by threads of this process: the emulator runs outside Python's lock."""

    def __init__(self, args, **kwargs):
        kwargs = {"bullet_interval": args.bullet_interval, "max_steps": args.max_steps} | kwargs
        self.envs = [TradeEnv(num_bullets=args.num_bullets, **kwargs) for _ in range(args.num_envs)]
        self.num_threads = min(args.num_threads, args.num_envs)
        self.pool = ThreadPoolExecutor(self.num_threads)

    def play(self, act: Callable, seeds: np.ndarray) -> list[dict]:
        """Plays an episode for each seed, on an emulator of its own; the seed is all that is random about it.

        `act` maps image [envs, 2, 4, 45, 80], economy [envs, 2, 10], phase [envs] and the environments' random
        generators to actions int [envs, 2, 2] and a row to keep, or None, for each environment. Returns for each seed
        `info["episode"]` with the episode's `rows`.
        """
        n = self.num_threads
        played = self.pool.map(lambda k: self._play_some(self.envs[k::n], act, seeds[k::n].tolist()), range(n))
        episodes = [None] * len(seeds)
        for k, some in enumerate(played):
            episodes[k::n] = some
        return episodes

    @torch.no_grad()
    def _play_some(self, envs, act, seeds):
        """A thread's share: its environments step together until the last episode is over."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)]
        rows, episodes, playing = [[] for _ in seeds], {}, list(range(len(seeds)))
        while playing:
            stacked = (np.stack([observations[i][key] for i in playing]) for key in ("image", "economy"))
            phase = torch.tensor([envs[i].phase for i in playing])
            actions, new_rows = act(*map(torch.from_numpy, stacked), phase, [generators[i] for i in playing])
            for i, action, row in zip(playing, actions.tolist(), new_rows, strict=True):
                observations[i], _, _, _, info = envs[i].step(action)
                if row is not None:
                    rows[i].append(row)
                if "episode" in info:
                    episodes[i] = info["episode"] | {"rows": rows[i]}
            playing = [i for i in playing if i not in episodes]
        return [episodes[i] for i in range(len(seeds))]


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
        first, second = layer_init(nn.Conv2d(IMAGE_SHAPE[0], 16, (4, 8), (2, 4))), layer_init(nn.Conv2d(16, 32, 4, 2))
        hidden = layer_init(nn.Linear(32 * 9 * 8, 256))
        self.cnn = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), hidden, nn.ReLU())
        self.economy = nn.Sequential(layer_init(nn.Linear(GAME_ECONOMY_SIZE, 32)), nn.ReLU())
        self.actor = layer_init(nn.Linear(256 + 32, len(GAME_ACTIONS)), 0.01)
        self.critic = layer_init(nn.Linear(256 + 32, 1), 1.0)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [batch, 4, 45, 80] -> float32 [batch, 256]."""
        # Channels last is the faster layout with a backward pass, and the slower one without.
        layout = torch.channels_last if self.training else torch.contiguous_format
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
        # What came of the bullets that it ended up with in training: how many there were, and their hits' reward.
        self.register_buffer("bullets", torch.zeros(()))
        self.register_buffer("earned", torch.zeros(()))

    def forward(self, features: torch.Tensor, economy: torch.Tensor) -> torch.Tensor:
        """[batch, 256], [batch, 10] -> logits [batch, 5]."""
        # Scaled to length 1, so that 256 image features do not drown ten economic ones.
        features, economy = features.to(self.actor.weight.device), economy.to(self.actor.weight.device)
        return self.actor(torch.cat([F.normalize(features, dim=1), self.economy(economy)], 1))


def load(path: str, modules: dict[str, nn.Module]) -> dict:
    """Loads the weights that a model.pt has for these modules; returns all that is in it."""
    model = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(model[name])
        assert all(x.isfinite().all() for x in model[name].values()), f"its {name} has weights that are not finite"
    return model


def make_networks(args: Args) -> tuple[Gameplay, dict[str, Trader]]:
    """Returns the gameplay network and the trader of each stage, new ones or those of the checkpoints. A trade
    checkpoint sets who leads. Raises ValueError if one does not fit."""
    torch.manual_seed(args.seed)
    gameplay = Gameplay()
    traders = {stage: Trader() for stage in ("follower", "leader", "verification")}
    path = args.gameplay_checkpoint
    try:
        if args.stage in ("trade", "evaluate"):
            load(path, {"gameplay": gameplay})
        if args.stage == "evaluate":
            path = args.trade_checkpoint
            model = load(path, traders)
            assert model["who_leads"] in ("seller", "buyer"), f"who leads: {model['who_leads']!r}"
            assert torch.equal(model["gameplay_bias"], gameplay.actor.bias), "it is for another gameplay network"
            args.leader = model["who_leads"]
    except Exception as error:  # torch.load raises whatever a foreign file makes it trip over
        raise ValueError(f"checkpoint {path!r} does not fit: {error}") from error
    return gameplay, traders


def sample(logits: torch.Tensor, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gumbel sampling: logits [batch, n] -> action [batch], its log-probability [batch], both on the CPU.

    Every generator supplies the noise of its equal share of the batch.
    """
    log_probs, share = torch.log_softmax(logits, 1).cpu(), len(logits) // len(generators)
    uniform = torch.cat([torch.rand(share, logits.shape[1], generator=generator) for generator in generators])
    action = (log_probs - torch.log(-torch.log(uniform))).argmax(1)
    return action, log_probs.gather(1, action[:, None]).squeeze(1)


def ppo_step(args, module, optimizer, ent_coef, logits, action, old_logprob, advantage, more_loss=0.0) -> dict:
    """One gradient step on PPO's clipped loss over these rows. Returns TensorBoard tags."""
    log_probs = torch.log_softmax(logits, 1)
    log_ratio = log_probs.gather(1, action[:, None]).squeeze(1) - old_logprob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
    entropy = -(log_probs.exp() * log_probs).sum(1).mean()
    loss = policy_loss - ent_coef * entropy + more_loss
    if not loss.isfinite():
        flag = "--gameplay-learning-rate" if isinstance(module, Gameplay) else "--learning-rate"
        raise SystemExit(f"the training diverged: lower {flag}")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), args.max_grad_norm)
    optimizer.step()
    kl = ((ratio.detach() - 1) - log_ratio.detach()).mean()
    parts = {"policy_loss": policy_loss, "entropy": entropy, "approx_kl": kl}
    return {f"losses/{name}": part.item() for name, part in parts.items()}


def episode_seeds(args, stage: str, num_episodes: int, done: int = 0) -> np.ndarray:
    """Seeds of the episodes that begin `done` steps into a stage."""
    return np.random.SeedSequence((args.seed, STAGES.index(stage), done)).generate_state(num_episodes)


# --------------------------------------------------------------------------------------------------- stage 1: gameplay
def gameplay_policy(agent: Gameplay, image, economy, phase, generators) -> tuple[torch.Tensor, list]:
    """Both players sample game actions, and trade at random.

    Rows of the decisions: image, economy, game action, log-probability, value.
    """
    logits, value = agent.heads(agent.features(image.flatten(0, 1)), economy.flatten(0, 1))
    trade_action, _ = sample(torch.zeros(len(logits), len(PRICES)), generators)
    game_action, logprob = (x.view(-1, 2) for x in sample(logits, generators))
    rows = zip(image, economy, game_action, logprob, value.cpu().view(-1, 2), strict=True)
    rows = [row if moment == GAME else None for row, moment in zip(rows, phase, strict=True)]
    return torch.stack([game_action, trade_action.view(-1, 2)], 2), rows


def generalized_advantages(args, reward: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Of a whole episode, after which nothing is to be had: [decisions, players] -> [decisions, players]."""
    delta = reward + args.gamma * torch.cat([value[1:], torch.zeros(1, 2)]) - value
    for t in reversed(range(len(delta) - 1)):
        delta[t] += args.gamma * args.gae_lambda * delta[t + 1]
    return delta


def update_gameplay(args, agent: Gameplay, emulators, optimizer, seeds, left) -> tuple[int, dict]:
    """PPO on the game; one network plays both players, each from its own view."""
    generator, batch = torch.Generator().manual_seed(sum(seeds.tolist())), []
    episodes = emulators.play(partial(gameplay_policy, agent), seeds)
    for episode in episodes:
        image, economy, action, logprob, value = map(torch.stack, zip(*episode["rows"], strict=True))
        # A hit counts 1 for both, and is credited to the decision that fired the shot.
        reward = torch.zeros_like(value)
        for player, shot in episode["landed"]:
            reward[shot, player] += 1.0
        advantage = generalized_advantages(args, reward, value)
        batch.append([x.flatten(0, 1) for x in (image, economy, action, logprob, advantage, advantage + value)])
    columns = [torch.cat(column) for column in zip(*batch, strict=True)]
    # What a player does without a bullet matters little: of those rows, a quarter is learned from.
    bullets = columns[1][:, 0]
    kept = torch.nonzero((bullets > 0) | (torch.rand(len(bullets), generator=generator) < 0.25)).squeeze(1)
    num_minibatches = -(-len(kept) // args.minibatch_size)  # of equal size, so that none is a single row
    for _ in range(args.update_epochs):
        for index in kept[torch.randperm(len(kept), generator=generator)].tensor_split(num_minibatches):
            image, economy, *rest, advantage, return_ = (x[index].to(agent.actor.weight.device) for x in columns)
            logits, value = agent.heads(agent.features(image), economy)
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
            value_loss = 0.5 * (value - return_).square().mean()
            rest += [advantage, args.vf_coef * value_loss]
            losses = ppo_step(args, agent, optimizer, args.gameplay_ent_coef * left, logits, *rest)
            losses["losses/value_loss"] = value_loss.item()
    return sum(e["length"] for e in episodes), game_charts(episodes) | losses


def game_charts(episodes: list[dict]) -> dict:
    """Aim and length of episodes, by TensorBoard tag."""
    fired, hits, given = (np.sum([e[name] for e in episodes]) for name in ("fired", "hits", "given"))
    charts = {"charts/hits_per_shot": hits / max(fired, 1), "charts/hits_per_bullet": hits / max(given, 1)}
    return charts | {"charts/episode_length": np.mean([e["steps"] for e in episodes])}


# ---------------------------------------------------------------------------------------------- stages 2 and 3: trades
# A policy maps the image features [batch, 256] and economic features [batch, 10] of trades to logits [batch, 5]. What
# it is certain of has a logit that no sampling noise can outweigh.
Policy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CERTAIN = 1e6


def fixed(action: int) -> Policy:
    """Always the same price."""
    return lambda features, economy: CERTAIN * F.one_hot(torch.full((len(features),), action), len(PRICES)).float()


def random_leader(features: torch.Tensor, economy: torch.Tensor) -> torch.Tensor:
    """The leader of the meta-follower's training: any price, each time anew."""
    return torch.zeros(len(features), len(PRICES))


def greedy(trader: Trader) -> Policy:
    """A trader's most probable action."""
    return lambda features, economy: CERTAIN * F.one_hot(trader(features, economy).argmax(1), len(PRICES)).float()


class Trading:
    """Trades on `args.num_envs` emulators, where the frozen gameplay network plays the game."""

    def __init__(self, args, gameplay: Gameplay, leader: int):
        self.args, self.gameplay, self.leader, self.emulators = args, gameplay, leader, Emulators(args, leader=leader)

    def act(self, leader_policy, follower_policy, learner, image, economy, phase, generators):
        """Actions, and the learner's trades as rows: features, economy, action, log-probability."""
        features = self.gameplay.features(image.flatten(0, 1))
        game_action = self.gameplay.heads(features, economy.flatten(0, 1))[0].argmax(1).cpu().view(-1, 2)
        actions, features = torch.stack([game_action, torch.zeros_like(game_action)], 2), features.view(-1, 2, 256)
        rows = [None] * len(phase)
        for player, moment, policy in ((self.leader, QUERY, leader_policy), (1 - self.leader, TRADE, follower_policy)):
            envs = torch.nonzero(phase == moment).squeeze(1).tolist()
            if envs:
                seen = features[envs, player], economy[envs, player]
                answer, logprob = sample(policy(*seen), [generators[env] for env in envs])
                actions[envs, player, 1] = answer
                if player == learner:
                    for env, *row in zip(envs, *seen, answer, logprob, strict=True):
                        rows[env] = row
        return actions, rows

    def evaluate(self, leader_policy: Policy, follower_policy: Policy, num_episodes: int) -> list[dict]:
        """Episodes that have the same bullets and starts, whatever the policies."""
        seeds, n = episode_seeds(self.args, "evaluation", num_episodes), self.args.num_envs
        batches = (seeds[first : first + n] for first in range(0, num_episodes, n))
        act = partial(self.act, leader_policy, follower_policy, None)
        return [episode for batch in batches for episode in self.emulators.play(act, batch)]


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


def trade_rewards(trader: Trader, episodes: list[dict], learner: int) -> torch.Tensor:
    """Per trade, what is paid, and, if the learner ends up with the bullet, what its bullets have been worth so far.

    That average tells a price of 1.0 from a value of 0.98 long before single hits do.
    """
    offers, sold = (torch.tensor([x for e in episodes for x in e[name]]) for name in ("offered", "accepted"))
    payment = torch.tensor(PRICES)[offers[:, SELLER]] * sold * (1 if learner == SELLER else -1)
    held = sold == (learner == BUYER)
    trader.bullets += held.sum()
    trader.earned += sum(e["hits"][learner] for e in episodes) * float(HIT_REWARD[learner])
    return payment + held * (trader.earned / trader.bullets.clamp(min=1)).cpu()


def update_trader(args, trader, trading, learner, opponent, optimizer, seeds, left) -> tuple[int, dict]:
    """PPO on the trade actions of player `learner` against the fixed policy `opponent`.

    Its rows are trades only: no gameplay decision drowns them.
    """
    policies = (trader, opponent) if learner == trading.leader else (opponent, trader)
    episodes = trading.emulators.play(partial(trading.act, *policies, learner), seeds)
    rows = [row for episode in episodes for row in episode["rows"]]
    columns = [torch.stack(column).to(trader.actor.weight.device) for column in zip(*rows, strict=True)]
    features, economy, *rest = columns
    reward = trade_rewards(trader, episodes, learner).to(economy.device)
    rest.append(standardise(reward, economy[:, -len(PRICES) :]))
    for _ in range(args.trade_epochs):
        losses = ppo_step(args, trader, optimizer, args.ent_coef * left, trader(features, economy), *rest)
    charts = trade_charts(episodes, trading.leader)
    if learner != trading.leader:
        del charts["charts/leader_return"]  # of a random or a frozen leader: not of the leader as it explores
    return sum(e["length"] for e in episodes), charts | losses


def trade_charts(episodes: list[dict], leader: int) -> dict:
    """Means over episodes, by TensorBoard tag."""
    asked, limits = np.take(PRICES, [offer for e in episodes for offer in e["offered"]]).T
    accepted, returns = [a for e in episodes for a in e["accepted"]], np.mean([e["returns"] for e in episodes], 0)
    return {
        "charts/leader_return": returns[leader],
        "charts/follower_return": returns[1 - leader],
        "charts/price_offered": asked.mean(),
        "charts/price_limit": limits.mean(),
        "charts/acceptance_rate": np.mean(accepted),
        "charts/trades_per_episode": sum(accepted) / len(episodes),
    } | game_charts(episodes)


# -------------------------------------------------------------------------------------- evaluation and the equilibrium
def solve(values: list[float], leader: int) -> tuple[int, float]:
    """Exact optimum of leaders that name one price of the grid in every trade: trade action and gain per bullet.

    `values`: mean reward from a bullet (seller, buyer). The follower breaks ties for the leader.
    """
    seller, buyer = values
    if leader == SELLER:
        gains = [price if price <= buyer else seller for price in PRICES]
    else:
        gains = [buyer - price if price >= seller else 0.0 for price in PRICES]
    best = int(np.argmax(gains))
    return best, gains[best]


def bullet_values(trading: Trading) -> tuple[list[float], list[float]]:
    """Mean reward from a bullet (seller, buyer) and standard errors: first nothing is sold, then everything."""
    worth = []
    for player, prices in ((SELLER, (4, 0)), (BUYER, (0, 4))):
        asks, pays = map(fixed, prices)
        policies = (asks, pays) if trading.leader == SELLER else (pays, asks)
        episodes = trading.evaluate(*policies, trading.args.eval_episodes)
        worth.append([e["hits"][player] / max(e["given"], 1) * float(HIT_REWARD[player]) for e in episodes])
    return np.mean(worth, 1).tolist(), (np.std(worth, 1) / len(worth[0]) ** 0.5).tolist()


def best_response_table(trading: Trading, follower_policy: Policy, values: list[float]) -> list[dict]:
    """For each fixed leader price: share of trades that the follower lets happen, and of its best responses."""
    table, leader = [], trading.leader
    for action, price in enumerate(PRICES):
        episodes = trading.evaluate(fixed(action), follower_policy, max(trading.args.eval_episodes // 5, 1))
        sold = np.array([sold for e in episodes for sold in e["accepted"]])
        answers = np.array([offer[1 - leader] for e in episodes for offer in e["offered"]])
        # A buyer trades if the bullet is worth the price to it; a seller asks the buyer's limit or keeps the bullet.
        trade = bool(price < values[BUYER] if leader == SELLER else price > values[SELLER])
        best = (sold == trade) & ((leader == SELLER) | ~sold | (answers == action))
        row = {"leader_price": price, "trades": len(sold), "acceptance_rate": sold.mean()}
        table.append(row | {"best_response_trades": trade, "best_response_rate": best.mean()})
    return table


def report(trading: Trading, traders: dict[str, Trader], curve: list) -> dict:
    """Evaluates the equilibrium: all that result.json says about it. Returns are per episode."""
    exploring = [exploring_return for _, _, exploring_return in curve]  # none if nothing was learned
    leader, num_bullets, num_episodes = trading.leader, trading.args.num_bullets, trading.args.eval_episodes
    policies = {stage: greedy(trader) for stage, trader in traders.items()}
    episodes = trading.evaluate(policies["leader"], policies["follower"], num_episodes)
    after = trading.evaluate(policies["leader"], policies["verification"], num_episodes)
    leader_return, follower_return = np.array([e["returns"] for e in episodes]).T[[leader, 1 - leader]]
    # the same starts and bullets: differences in pairs
    gain = np.array([e["returns"][1 - leader] for e in after]) - follower_return
    values, errors = bullet_values(trading)
    best, leader_gain = solve(values, leader)
    played = [PRICES[offer[leader]] for e in episodes for offer in e["offered"]]
    # the follower's best response: to trade or not to trade
    responses = [max(values[BUYER] - x, 0.0) if leader == SELLER else max(x, values[SELLER]) for x in played]
    fired, hits, held = (sum(e[name][BUYER] for e in episodes) for name in ("fired", "hits", "bullets"))
    return {
        "episodes": len(episodes),
        "leader_return": np.mean(exploring[-math.ceil(len(exploring) / 10) :]) if exploring else None,
        "leader_return_greedy": leader_return.mean(),
        "follower_return_greedy": follower_return.mean(),
        "stackelberg_value": num_bullets * leader_gain,
        "leader_regret": num_bullets * leader_gain - leader_return.mean(),
        "follower_regret": sum(responses) / len(episodes) - follower_return.mean(),
        "optimal_leader_price": PRICES[best],
        "leader_prices": {str(price): played.count(price) / len(played) for price in PRICES},
        "acceptance_rate": np.mean([sold for e in episodes for sold in e["accepted"]]),
        "bullet_values": values,
        "bullet_value_errors": errors,
        "buyer_hits_per_shot": hits / fired if fired else None,
        "buyer_hits_per_bullet": hits / (fired + held) if fired + held else None,
        "best_responses": best_response_table(trading, policies["follower"], values),
        "verification_gain": gain.mean(),
        "verification_gain_error": gain.std() / len(gain) ** 0.5,
        "curve": curve,
    }


def write_video(trading: Trading, leader_policy: Policy, follower_policy: Policy, path: str) -> None:
    """Writes one episode as an animated GIF; it halts at queries and trades."""
    env, frames, durations = trading.emulators.envs[0], [], []

    def draw(duration):
        frames.append(Image.fromarray(env.render()).quantize(32))
        durations.append(duration)

    def act(*seen):
        draw(70 if env.phase == GAME else 900)
        return trading.act(leader_policy, follower_policy, None, *seen)

    trading.emulators.play(act, episode_seeds(trading.args, "evaluation", 1))
    draw(2000)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


# ------------------------------------------------------------------------------------------------------------- the run
def stored_flags(resume: str | None = None) -> Args:
    """Returns what tyro takes for defaults: the flags of the run to `--resume`, if there is one, or the usual ones."""
    flags = Args.__new__(Args)  # without checks, which come when tyro knows all flags
    with contextlib.suppress(Exception):
        vars(flags).update(torch.load(f"{resume}/checkpoint.pt", weights_only=True)["args"])
    return flags


def fingerprint(args: Args) -> str:
    """Returns a hash of all but the flags that decides how a run goes on: this script and the gameplay network."""
    gameplay = Path(args.gameplay_checkpoint).read_bytes() if args.stage == "trade" else b""
    return hashlib.sha256(Path(__file__).read_bytes() + gameplay).hexdigest()


def lock(run_path: str):
    """Returns the run's lock, held as long as the file is open. Raises BlockingIOError if another process holds it."""
    file = open(f"{run_path}/lock", "a")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def load_state(args: Args) -> dict:
    """Returns the state of the run to resume, and locks it. Raises ValueError if it began with another script, another
    gameplay network or other flags, or if another process is at work on it."""
    try:
        state = torch.load(f"{args.resume}/checkpoint.pt", map_location="cpu", weights_only=True)
        assert state.get("fingerprint") == fingerprint(args), "the script or its gameplay checkpoint has changed"
        for flag, value in state["args"].items():
            same = flag == "resume" or value == getattr(args, flag)
            assert same, f"--{flag.replace('_', '-')} is {value!r} in that run, not {getattr(args, flag)!r}"
        args.lock = lock(args.resume)
    except BlockingIOError as error:
        raise ValueError(f"cannot resume {args.resume!r}: another process is at work on it") from error
    except Exception as error:  # torch.load raises whatever a foreign file makes it trip over
        raise ValueError(f"cannot resume {args.resume!r}: {error}") from error
    return state


def start_run(args: Args) -> tuple[str, SummaryWriter]:
    """Makes the run's folder and the writer of its curves, or takes up those of `--resume`; starts Weights and Biases
    if asked for."""
    run_path, purge_step = args.resume, None
    if args.resume is None:
        run_path = f"{args.run_dir}/{ENV_ID}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
        os.makedirs(run_path)
        args.lock = lock(run_path)
    else:
        purge_step = args.state["global_step"] + 1  # TensorBoard forgets what the resumed run comes to again
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        run_name = os.path.basename(os.path.abspath(run_path))
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name, "id": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, resume="allow")
    writer = SummaryWriter(run_path, purge_step=purge_step)
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return run_path, writer


def learn(args: Args, state: dict, log, stage: str, module: nn.Module, learning_rate: float, timesteps, update) -> None:
    """The loop of every stage. All that it needs to go on after an interruption is in `state`, which `log` saves.

    `update(optimizer, seeds, left)` plays an episode for each seed and learns from them; it returns environment steps
    and scalars. `left`, the share of the stage to come, scales learning rate and entropy bonus.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, eps=1e-5)
    done, weights, moments = state["stages"].get(stage, (0, None, None))
    if done:
        module.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    bar = tqdm(total=timesteps, initial=done, desc=stage, leave=False, disable=None)
    while done < timesteps:
        left = max(1 - done / timesteps, 0.05)
        optimizer.param_groups[0]["lr"] = learning_rate * left
        steps, scalars = update(optimizer, episode_seeds(args, stage, args.num_envs, done), left)
        done += steps
        bar.update(steps)
        state["global_step"] += steps
        state["stages"][stage] = done, module.state_dict(), optimizer.state_dict()
        log(state["global_step"], scalars)
    bar.close()


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, removes what `--resume` needed, and says what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    for name in ("checkpoint.pt", "lock"):
        Path(run_path, name).unlink(missing_ok=True)
    if "best_responses" in result:
        print_equilibrium(result)
    seller, buyer = result["bullet_values"]
    print(f"""\
  value of a bullet  {seller:.3f} to the seller, {buyer:.3f} to the buyer
  steps              {result["global_step"]:,} in {result["wall_seconds"]:.0f} s
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


def print_equilibrium(result: dict) -> None:
    """Says in words whether the traders are in equilibrium: at least 95 % of what each does is best, and the follower
    does not gain by learning on."""
    price, sold, responses = result["optimal_leader_price"], result["acceptance_rate"], result["best_responses"]
    at_optimum = result["leader_prices"][str(price)]
    gain, error = result["verification_gain"], result["verification_gain_error"]
    best = min(at_optimum, sold, *(row["best_response_rate"] for row in responses)) >= 0.95
    exploring = "" if result["leader_return"] is None else f"; {result['leader_return']:.2f} as it explores"
    print(f"""
{"a" if best and gain <= 2 * error else "NOT a"} Stackelberg equilibrium with the {result["args"]["leader"]} as leader
  leader's price     {price:.2f} in {at_optimum:.0%} of trades, the optimum of leaders with one price for all trades
  bullets sold       {sold:.0%}
  leader's return    {result["leader_return_greedy"]:.2f} per episode, greedy{exploring}
  optimum            {result["stackelberg_value"]:.2f}
  follower's return  {result["follower_return_greedy"]:.2f}""")
    for row in responses:
        rates = f"trades in {row['acceptance_rate']:.0%}; it is a best response in {row['best_response_rate']:.0%}"
        print(f"  fixed price {row['leader_price']:.2f}   the follower {rates}")
    print(f"  verification       learning on, the follower gains {gain:+.3f} +- {error:.3f} per episode")


def main(args: Args) -> dict:
    """Runs the stages; returns what it writes to result.json."""
    torch.backends.cudnn.deterministic = args.torch_deterministic
    torch.set_num_threads(1)  # the emulators' threads need the cores; a thread pool beside them is slower
    gameplay, traders = make_networks(args)
    for module in (gameplay, *traders.values()):
        module.to("cuda" if args.cuda else "cpu")
    # all that --resume needs; in the curve: step, greedy return (not measured in training), exploring return
    state = {"args": asdict(args), "fingerprint": fingerprint(args), "stages": {}}
    state = args.state or state | {"global_step": 0, "seconds": 0.0, "curve": []}
    start_time = time.time() - state["seconds"]  # as if there had been no pause
    run_path, writer = start_run(args)

    def log(global_step: int, scalars: dict[str, float]):
        state["seconds"] = time.time() - start_time
        for tag, scalar in {**scalars, "charts/SPS": int(global_step / state["seconds"])}.items():
            writer.add_scalar(tag, scalar, global_step)
        writer.flush()  # before the state is: a resumed run does not come back to this step
        if "charts/leader_return" in scalars:
            state["curve"].append([global_step, None, float(scalars["charts/leader_return"])])
        torch.save(state, f"{run_path}/checkpoint.pt.tmp")
        os.replace(f"{run_path}/checkpoint.pt.tmp", f"{run_path}/checkpoint.pt")

    # stage 1: the game
    if args.stage in ("gameplay", "all"):
        update = partial(update_gameplay, args, gameplay, Emulators(args, **GAMEPLAY_EPISODES))
        learn(args, state, log, "gameplay", gameplay, args.gameplay_learning_rate, args.gameplay_timesteps, update)
    leader = ("seller", "buyer").index(args.leader)
    trading = Trading(args, gameplay.eval().requires_grad_(False), leader)

    # stages 2 and 3: the follower, then the leader; and the verification, in which the follower learns on
    def learn_trades(stage: str, learner: int, opponent: Policy, timesteps: int):
        update = partial(update_trader, args, traders[stage], trading, learner, opponent)
        learn(args, state, log, stage, traders[stage], args.learning_rate, timesteps, update)

    if args.stage in ("trade", "all"):
        leader_timesteps = args.total_timesteps - args.follower_timesteps
        learn_trades("follower", 1 - leader, random_leader, args.follower_timesteps)
        learn_trades("leader", leader, greedy(traders["follower"]), leader_timesteps)
        traders["verification"].load_state_dict(traders["follower"].state_dict())
        learn_trades("verification", 1 - leader, greedy(traders["leader"]), args.verification_timesteps)

    # the evaluation
    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    model = {"gameplay": gameplay.state_dict()} if args.stage in ("gameplay", "all") else {}
    if args.stage == "gameplay":
        result["bullet_values"], result["bullet_value_errors"] = bullet_values(trading)
    else:
        result |= report(trading, traders, state["curve"])
        final = "leader_return_greedy follower_return_greedy stackelberg_value leader_regret follower_regret"
        for name in final.split():
            writer.add_scalar(f"charts/{name}", result[name], state["global_step"])
        model |= {"who_leads": args.leader, "gameplay_bias": gameplay.actor.bias.cpu()}
        model |= {stage: trader.state_dict() for stage, trader in traders.items()}
        if args.capture_video:
            write_video(trading, greedy(traders["leader"]), greedy(traders["follower"]), f"{run_path}/episode.gif")
    if args.save_model or args.stage == "gameplay":
        torch.save(model, f"{run_path}/model.pt")
    result |= {"global_step": state["global_step"], "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = result["global_step"] / result["wall_seconds"]
    writer.close()
    finish(result, run_path)
    return result


if __name__ == "__main__":
    defaults, _ = tyro.cli(stored_flags, add_help=False, return_unknown_args=True)
    main(tyro.cli(Args, default=defaults, description=__doc__))
