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

Three stages, one PPO, rewards as they come. (1) Gameplay: one network learns to aim for both players, who trade at
random; a trained one is committed, and every later network starts as its copy. (2) The meta-follower learns game and
trades against a leader that trades at random. It is told what the leader answered to the query right before the trade,
so it learns a best response to every leader. (3) The leader learns game and trades against the frozen follower. Last,
the follower learns on against the frozen leader, its trades alone and all of it: by its trades it must not gain.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from ale_py.roms import get_rom_path
from multi_agent_ale_py.ale_python_interface import ALEInterface, ale_lib
from PIL import Image, ImageDraw, ImageOps
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
    """if toggled, the networks run on the GPU"""
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
    """folder of an interrupted run to continue to the same bits; it keeps its flags, whatever others are given here"""

    leader: Literal["seller", "buyer"] = "seller"
    """who commits to its trade actions"""
    stage: Literal["trade", "gameplay", "all", "evaluate"] = "trade"
    """trade: stages 2 and 3 with the gameplay checkpoint; gameplay: stage 1 alone; all: the three stages from nothing;
    evaluate: no learning, only the evaluation of the checkpoint"""
    checkpoint: str = os.path.join(os.path.dirname(__file__), "benchmark/checkpoints/atari_trade_gameplay.pt")
    """model.pt of an earlier run: for `--stage trade`, its gameplay network is where leader and follower start"""
    gameplay_timesteps: int = 320_000
    """environment steps of stage 1: decisions (4 frames, both players act), queries and trades; 0: random weights"""
    follower_timesteps: int = 200_000
    """environment steps of stage 2"""
    total_timesteps: int = 280_000
    """environment steps of stages 2 and 3 together"""
    verification_timesteps: int = 40_000
    """environment steps of both verifications: the follower learns on, its trades alone and all of it"""
    eval_episodes: int = 100
    """episodes of every evaluation"""

    num_envs: int = 16
    """emulators; an update, in every stage, learns from one episode of each"""
    bullet_interval: tuple[int, int] = (8, 40)
    """least and most decisions between two bullets, drawn uniformly (stage 1 has its own)"""
    max_steps: int = 300
    """decisions after which an episode is cut off; it ends earlier when every bullet has been used and has landed"""

    learning_rate: float = 3e-3
    """stages 2 and 3: Adam's learning rate of the trades' logits and of the values"""
    body_learning_rate: float = 3e-5
    """stages 2 and 3: of all the rest, by which the game is played; 0 freezes the game"""
    gameplay_learning_rate: float = 7e-4
    """stage 1: of the whole network"""
    anneal_lr: bool = True
    """let learning rates and entropy bonuses decay linearly to a twentieth within a stage"""
    gamma: float = 0.998
    """discount factor per decision of the trades; with 0.99 a bullet bought is worth 0.80 at the trade"""
    gae_lambda: float = 0.95
    """lambda of the trades' advantages"""
    game_gamma: float = 0.98
    """discount factor per decision of the game, whose actions answer for the next hits alone"""
    game_gae_lambda: float = 0.95
    """lambda of the game's advantages"""
    shape_body: bool = False
    """stages 2 and 3: let trades and values shape what the network sees too, as they do in stage 1; aim then drifts"""
    credit_shots: bool = False
    """stages 2 and 3: reward a hit at the decision that fired the shot, as stage 1 does, instead of when it lands"""
    update_epochs: int = 2
    """passes over the decisions of an update"""
    minibatch_size: int = 256
    """most game decisions per minibatch; all trades of the update are in every minibatch"""
    clip_coef: float = 0.2
    """PPO's clipping coefficient"""
    kl_coef: float = 0.0
    """first coefficient of PPO's KL penalty, which adapts to a divergence of 0.01 an update (Table 4: 0.5)"""
    vf_coef: float = 0.5
    """coefficient of the value loss"""
    max_grad_norm: float = 0.5
    """largest norm of the gradient"""
    ent_coef: float = 0.05
    """stages 2 and 3: coefficient of the entropy bonus of the trades"""
    game_ent_coef: float = 0.003
    """coefficient of the entropy bonus of the game"""

    def __post_init__(self):
        self.state = None
        if self.resume is not None:
            try:
                self.state = torch.load(f"{self.resume}/checkpoint.pt", map_location="cpu", weights_only=True)
                assert self.state["args"].keys() == asdict(self).keys(), "it is of a script with other flags"
                vars(self).update(self.state["args"] | {"resume": self.resume})
            except Exception as error:  # torch.load raises whatever a foreign file makes it trip over
                raise ValueError(f"cannot resume {self.resume!r}: {error}") from error
        may_be_zero = {"seed", "gameplay_timesteps", "body_learning_rate", "kl_coef", "ent_coef", "game_ent_coef"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if not 1 <= self.bullet_interval[0] <= self.bullet_interval[1] < self.max_steps / NUM_BULLETS:
            raise ValueError("--bullet-interval must be 1 or more, the smaller first, and let all bullets come in time")
        if self.stage in ("trade", "all") and self.total_timesteps <= self.follower_timesteps:
            raise ValueError("--total-timesteps must exceed --follower-timesteps: the leader learns in what is left")
        if self.cuda and not torch.cuda.is_available():
            raise ValueError("--cuda: PyTorch finds no GPU here")
        make_agents(self)  # to see if the checkpoint fits


# -------------------------------------------------------------------------------------------------------- the emulator
FRAME_SKIP = 4  # frames per decision
GAME_ACTIONS = (0, 1, 3, 4, 11, 12)  # the emulator's NOOP, FIRE, RIGHT, LEFT, RIGHTFIRE, LEFTFIRE
FIRE_REMOVED = {0: 0, 1: 0, 3: 3, 4: 4, 11: 3, 12: 4}
BONUS = 200  # points for the other player's death; hits score 5 to 30, the saucer 100
LAUNCH_Y, LAUNCH_X = 85, 5  # where a missile is in its first frame: y, and x to the right of its shooter's


class Emulator:
    """Two-player Space Invaders, frame by frame: what would change on the day `ale-py` itself plays two players.

    The emulator writes in place: `scores` [2] of the last frame, `screens` [2, 210, 160] in palette codes, and RAM,
    which has `ship_x` [2], and `missile_y` and `missile_x` [2] of two slots. Either slot may hold either player's shot;
    an empty one has y = 246. The wrapper's own `act` and `getRAM` would take longer than the emulation.
    """

    def __init__(self):
        ALEInterface.setLoggerMode("error")
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(str(get_rom_path("space_invaders")))
        self.ale.setMode(33)  # two players at once, fixed shields
        self.ale.reset_game()
        self.game_over = self.ale.game_over
        self.buttons, self.scores, ram = np.zeros(2, np.intc), np.zeros(2, np.intc), np.zeros(128, np.uint8)
        self.ship_x, self.missile_y, self.missile_x = ram[28:30], ram[85:87], ram[87:89]
        self.screens = np.zeros((2, 210, 160), np.uint8)
        self.addresses = [array.ctypes.data for array in (self.buttons, self.scores, ram, *self.screens)]
        for _ in range(130):  # until the field is complete and shots are possible
            self.frame((0, 0))
        self.start = self.ale.cloneSystemState()

    def reset(self) -> None:
        """Goes back to the complete field."""
        self.ale.restoreSystemState(self.start)

    def frame(self, buttons: tuple[int, int], screen: int | None = None) -> None:
        """Runs one frame with each player's button, and keeps its picture as `screens[screen]` if told to."""
        self.buttons[:] = buttons
        ale_lib.actMulti(self.ale.obj, *self.addresses[:2])
        ale_lib.getRAM(self.ale.obj, self.addresses[2])
        if screen is not None:
            ale_lib.getScreen(self.ale.obj, self.addresses[3 + screen])


# ----------------------------------------------------------------------------------------------------- the environment
ENV_ID = "space_invaders_trade"
SELLER, BUYER = 0, 1  # player 1 and player 2 of the emulator
NUM_BULLETS = 5  # per episode
PRICES = (0.0, 0.25, 0.5, 0.75, 1.0)
LOWEST, HIGHEST = 0, len(PRICES) - 1  # trade actions
HIT_REWARD = np.array([0.1, 1.0], dtype=np.float32)  # per alien or saucer hit: seller, buyer
GAME, QUERY, TRADE = 0, 1, 2  # phases of the environment: emulator runs / leader commits / follower answers
IMAGE_SHAPE = (45, 80, 4)  # 180 x 160 pixels in blocks of 4 x 2; the last four decisions, the latest last
ECONOMY_SIZE = 6 + len(PRICES)
OWN_BULLETS, OTHERS_BULLETS, IN_FLIGHT, IS_BUYER, PENDING, TO_COME, PRICE = range(7)  # what is where in the economy
EPISODE = ("length", "steps", "given", "bullets", "fired", "hits", "landed", "offered", "accepted", "returns")
# Stage 1: bullets come faster and later in the game than in the trades, so that more is learned per decision.
GAMEPLAY_EPISODES = {"bullet_interval": (4, 24), "max_start": 400}

# Palette codes of ground, shields, aliens, saucer, missiles, the seller's ship and the buyer's; their colours; and grey
# values for both players. Each sees its own ship brightest, so that one network can play both sides.
CODES = (226, 52, 20, 82, 6, 196, 246)
COLOURS = np.zeros((3, 256), np.uint8)
COLOURS[:, CODES] = (80, 181, 134, 151, 142, 50, 162), (89, 83, 134, 25, 142, 132, 134), (22, 40, 29, 122, 142, 50, 56)
GREY = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
GREY[:, CODES] = (32, 64, 128, 160, 192, 255, 96), (32, 64, 128, 160, 192, 96, 255)


class TradeEnv(gym.Env):
    """Two-player Space Invaders in which a shot costs a bullet, and bullets can be sold.

    The first axis of every array is the player: 0 the seller, 1 the buyer.

    Observation: `image` uint8 [2, 45, 80, 4], each player's view of the last four decisions, centred on its ship;
    `economy` float32 [2, 11]: own bullets / 5, other's bullets / 5, an own shot is in the air, is the buyer, a trade is
    pending, share of the episode's bullets still to come, and the other's committed price as one-hot over `PRICES`
    (only for the follower, only while it answers).
    Action: int [2, 2], per player its game action (index into `GAME_ACTIONS`) and trade action (index into `PRICES`).
    Reward: float32 [2]: 0.1 / 1.0 per hit for seller / buyer, plus and minus the price of a trade.

    A bullet given to the seller stops the emulator for two steps: the QUERY step reads the leader's trade action, the
    TRADE step the follower's. The leader's answer to the query is what it plays, so the leader is invariant.
    """

    def __init__(self, leader=SELLER, bullet_interval=(8, 40), max_steps=300, max_start=60):
        """An episode starts after 1 to `max_start` frames in which the ships move at random."""
        self.leader, self.bullet_interval = leader, bullet_interval
        self.max_steps, self.max_start = max_steps, max_start
        image = gym.spaces.Box(0, 255, (2, *IMAGE_SHAPE), np.uint8)
        economy = gym.spaces.Box(0.0, 1.0, (2, ECONOMY_SIZE), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "economy": economy})
        self.action_space = gym.spaces.MultiDiscrete([[len(GAME_ACTIONS), len(PRICES)]] * 2)
        self.emulator = Emulator()
        self.image = np.zeros((2, *IMAGE_SHAPE), np.uint8)
        self.wide = np.zeros((IMAGE_SHAPE[0], 320), np.uint8)  # the playfield with a margin on both sides

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Starts an episode: random moves, then the game without bullets until the first one is given."""
        super().reset(seed=seed)
        self.emulator.reset()
        for frame in range(1 + int(self.np_random.integers(self.max_start))):
            if frame % 16 == 0:
                moves = self.np_random.choice((0, 3, 4), 2)  # stay, right, left
            self.emulator.frame(moves, screen=0)
        self.emulator.screens[1] = self.emulator.screens[0]

        self.phase, self.committed = GAME, 0
        self.length, self.steps = 0, 0  # of the episode: all steps, and the decisions among them
        intervals = self.np_random.integers(*self.bullet_interval, NUM_BULLETS, endpoint=True)
        self.arrivals = np.cumsum(intervals).tolist()  # the decisions after which the seller is given a bullet
        self.given, self.bullets = 0, [0, 0]  # so far, and held by each player
        self.shot, self.flying = [None, None], [False, False]  # x and decision of each player's latest shot
        self.fired, self.hits, self.returns = [0, 0], [0, 0], [0.0, 0.0]
        self.landed = []  # (player, decision of the shot, decision in which it landed) of every hit
        self.offered, self.accepted = [], []  # per trade [seller's, buyer's] trade action, and whether they agreed
        self._see()
        self.image[..., :-1] = self.image[..., -1:]
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
            offer = [int(action[SELLER][1]), int(action[BUYER][1])]
            offer[self.leader] = self.committed
            self.offered.append(offer)
            self.accepted.append(offer[SELLER] <= offer[BUYER])
            if self.accepted[-1]:  # the seller's price is paid
                self.bullets[SELLER] -= 1
                self.bullets[BUYER] += 1
                reward[:] = PRICES[offer[SELLER]], -PRICES[offer[SELLER]]
            self.phase = GAME
        else:
            self._play(action, reward)
            self.steps += 1
            if self.given < NUM_BULLETS and self.arrivals[self.given] <= self.steps:
                self.given += 1
                self.bullets[SELLER] += 1
                self.phase = QUERY
        self.returns = [total + float(r) for total, r in zip(self.returns, reward, strict=True)]

        terminated = self.given == NUM_BULLETS and not any(self.bullets + self.flying)
        terminated |= self.phase == GAME and self.emulator.game_over()
        truncated = self.phase == GAME and self.steps >= self.max_steps
        info = {"episode": {name: getattr(self, name) for name in EPISODE}} if terminated or truncated else {}
        return self._observation(), reward, terminated, truncated, info

    def _play(self, action, reward):
        """Runs the emulator for one decision, finds out from RAM who has fired, and counts hits."""
        emulator, moves, buttons = self.emulator, [GAME_ACTIONS[action[p][0]] for p in (SELLER, BUYER)], [0, 0]
        for frame in range(FRAME_SKIP):
            for p in (SELLER, BUYER):
                buttons[p] = moves[p] if self.bullets[p] else FIRE_REMOVED[moves[p]]
            if abs(int(emulator.ship_x[SELLER]) - int(emulator.ship_x[BUYER])) <= 2:
                # Ships in one place take turns in firing, or nobody could tell whose shot it was.
                buttons[self.steps % 2] = FIRE_REMOVED[buttons[self.steps % 2]]
            emulator.frame(buttons, screen=frame % 2 if frame >= FRAME_SKIP - 2 else None)

            missiles = list(zip(emulator.missile_y.tolist(), emulator.missile_x.tolist(), strict=True))
            for p, score in enumerate(emulator.scores.tolist()):
                if score % BONUS:
                    self.hits[p] += 1
                    self.landed.append((p, self.shot[p][1], self.steps))
                    self.flying[p] = False
                    reward[p] += HIT_REWARD[p]
                elif self.flying[p]:
                    self.flying[p] = any(y <= LAUNCH_Y and x == self.shot[p][0] for y, x in missiles)
                x = int(emulator.ship_x[p]) + LAUNCH_X
                if buttons[p] != FIRE_REMOVED[buttons[p]] and (LAUNCH_Y, x) in missiles:
                    self.shot[p], self.flying[p] = (x, self.steps), True
                    self.bullets[p] -= 1
                    self.fired[p] += 1
        self._see()

    def _see(self):
        """Adds the last two frames' pixel-wise maximum (missiles flicker) to both players' images.

        Each player's view is centred on its own ship, so that aiming is the same wherever the ship is.
        """
        screen = np.maximum(*self.emulator.screens)[16:196]
        rows = np.maximum(np.maximum(screen[0::4], screen[1::4]), np.maximum(screen[2::4], screen[3::4]))
        self.wide[:, 80:240] = rows
        self.image.view("<u4")[:] >>= 8  # the four decisions of a pixel are the bytes of a word: the oldest drops out
        for p in (SELLER, BUYER):
            muzzle = int(self.emulator.ship_x[p]) + 3  # the screen's column in which a shot flies
            view = self.wide[:, muzzle : muzzle + 160]
            self.image[p, ..., -1] = GREY[p].take(np.maximum(view[:, 0::2], view[:, 1::2]))

    def _observation(self):
        economy = np.zeros((2, ECONOMY_SIZE), np.float32)
        economy[:, OWN_BULLETS] = np.array(self.bullets) / NUM_BULLETS
        economy[:, OTHERS_BULLETS] = economy[::-1, OWN_BULLETS]
        economy[:, IN_FLIGHT] = self.flying
        economy[BUYER, IS_BUYER] = 1.0
        economy[:, PENDING] = self.phase != GAME
        economy[:, TO_COME] = 1 - self.given / NUM_BULLETS
        if self.phase == TRADE:
            economy[1 - self.leader, PRICE + self.committed] = 1.0
        return {"image": self.image.copy(), "economy": economy}

    def render(self) -> np.ndarray:
        """uint8 [470, 320, 3]: the screen, and below it bullets, hits, returns and the last trade."""
        text = "bullets {} (seller, green) and {} (buyer, yellow)\nhits {} and {}, returns {:.2f} and {:.2f}\n"
        text = text.format(*self.bullets, *self.hits, *self.returns)
        if self.phase == TRADE:
            text += f"{('seller', 'buyer')[self.leader]} leads and commits to {PRICES[self.committed]:.2f}"
        elif self.offered:
            text += "asked {:.2f}, limit {:.2f}: ".format(*np.take(PRICES, self.offered[-1]))
            text += "sold" if self.accepted[-1] else "kept"
        screen = Image.fromarray(COLOURS.T[np.maximum(*self.emulator.screens)])
        frame = ImageOps.expand(screen.resize((320, 420), Image.Resampling.NEAREST), (0, 0, 0, 50))
        ImageDraw.Draw(frame).multiline_text((8, 422), text, fill=(230, 230, 230))
        return np.asarray(frame)


# ------------------------------------------------------------------------------------------------------------- players
class Agent(nn.Module):
    """Image and economy into joint logits of game and trade (Figure 7), and what is to come of either."""

    def __init__(self):
        super().__init__()
        # RLlib's small Atari network; the first kernel is half as high as wide since the image's blocks are 4 x 2.
        convolutions = nn.Conv2d(IMAGE_SHAPE[2], 16, (4, 8), 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()
        self.cnn = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 4 * 8, 256), nn.ReLU())
        # The economy's branch to each part of the joint layer: trades need theirs fast, and the game its own steady.
        self.game_economy, self.trade_economy = (nn.Sequential(nn.Linear(ECONOMY_SIZE, 64), nn.ReLU()) for _ in "12")
        self.game_actor, self.trade_actor = nn.Linear(256 + 64, len(GAME_ACTIONS)), nn.Linear(256 + 64, len(PRICES))
        self.hit_critic, self.reward_critic = nn.Linear(256 + 64, 1), nn.Linear(256 + 64, 1)
        scales = {self.game_actor: 0.01, self.trade_actor: 0.01, self.hit_critic: 1.0, self.reward_critic: 0.01}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, scales.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)
        self.cnn.to(memory_format=torch.channels_last)  # that of the images

    def forward(self, image: torch.Tensor, economy: torch.Tensor, shape_body: bool = False) -> tuple:
        """uint8 [batch, 45, 80, 4], [batch, 11] -> log-probabilities of game [batch, 6] and trade actions [batch, 5],
        values [batch, 2]: hits and rewards to come, with the discount of the game and of the trades.

        The game's actions alone shape what the body sees, or trades and values do too.
        """
        device = self.game_actor.weight.device
        # In place: a second buffer of this size costs as much time as the network.
        image = self.cnn(image.to(device).permute(0, 3, 1, 2).float().div_(255.0))
        economy = economy.to(device)
        game = torch.cat([image, self.game_economy(economy)], 1)
        seen = game if shape_body else game.detach()
        # Scaled to length 1, so that 256 image features do not drown the economy.
        trade = torch.cat([F.normalize(seen[:, :256], dim=1), self.trade_economy(economy)], 1)
        hits = self.hit_critic(seen)
        hit_reward = torch.from_numpy(HIT_REWARD).to(device)[economy[:, IS_BUYER].long(), None]
        value = torch.cat([hits, hit_reward * hits.detach() + self.reward_critic(trade)], 1)
        return torch.log_softmax(self.game_actor(game), 1), torch.log_softmax(self.trade_actor(trade), 1), value


class Transition(NamedTuple):
    """A player's decisions [batch, ...], in the course of a game; those that it learns from have the last three too."""

    image: torch.Tensor
    economy: torch.Tensor
    is_trade: torch.Tensor  # whether the action is a trade action or a game action
    action: torch.Tensor
    logprob: torch.Tensor
    value: torch.Tensor  # [batch, 2]: hits and rewards to come
    return_: torch.Tensor | None = None  # [batch, 2]: what the values are to be
    advantage: torch.Tensor | None = None
    matters: torch.Tensor | None = None  # whether the action does, or the row is for the values alone


class Policy(NamedTuple):
    """A way to play: sampled from an agent's probabilities or greedily, with the agent's prices or others."""

    agent: Agent
    greedy: bool = True
    price: int | None = None  # always this trade action
    random_prices: bool = False  # any trade action, each time anew

    def act(self, image: torch.Tensor, economy: torch.Tensor, noise: torch.Tensor) -> Transition:
        """uint8 [batch, 45, 80, 4], [batch, 11], uniform noise [batch, 6 + 5] -> decisions."""
        game, trade, value = (x.cpu() for x in self.agent(image, economy))
        game_noise, trade_noise = noise.log().neg().log().neg().split([len(GAME_ACTIONS), len(PRICES)], 1)  # Gumbel's
        game_action = (game if self.greedy else game + game_noise).argmax(1)
        trade_action = (trade if self.greedy else trade + trade_noise).argmax(1)
        if self.random_prices:
            trade_action = trade_noise.argmax(1)
        if self.price is not None:
            trade_action = torch.full_like(trade_action, self.price)

        is_trade = economy[:, PENDING] > 0
        action = torch.where(is_trade, trade_action, game_action)
        index = torch.arange(len(action))
        logprob = torch.where(is_trade, trade[index, trade_action], game[index, game_action])
        return Transition(image, economy, is_trade, action, logprob, value)


class Emulators:
    """`args.num_envs` environments that play an episode each, side by side."""

    def __init__(self, args: Args, **kwargs):
        kwargs = {"bullet_interval": args.bullet_interval, "max_steps": args.max_steps} | kwargs
        self.leader = ("seller", "buyer").index(args.leader)
        self.envs = [TradeEnv(self.leader, **kwargs) for _ in range(args.num_envs)]

    @torch.no_grad()
    def play(self, leader: Policy, follower: Policy, seeds: np.ndarray, learners: tuple[int, ...] = ()) -> list[dict]:
        """Plays an episode for each seed, at most one per environment; the seed is all that is random about it.

        Returns `info["episode"]` for each seed, with its `rows`: for each of the `learners`, its Transitions in order.
        A step in which only the other player answers, a query or a trade, leaves it no row.
        """
        policies = (leader, follower) if self.leader == SELLER else (follower, leader)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        observations = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds.tolist(), strict=False)]
        rows, episodes, playing = [{player: [] for player in learners} for _ in seeds], {}, list(range(len(seeds)))
        while playing:
            actions = np.zeros((len(seeds), 2, 2), np.int64)
            for player, policy in enumerate(policies):
                moments = (GAME, QUERY if player == self.leader else TRADE)
                asked = [i for i in playing if self.envs[i].phase in moments]
                if not asked:
                    continue
                image = torch.from_numpy(np.stack([observations[i]["image"][player] for i in asked]))
                economy = torch.from_numpy(np.stack([observations[i]["economy"][player] for i in asked]))
                noise = [torch.rand(len(GAME_ACTIONS) + len(PRICES), generator=generators[i]) for i in asked]
                decisions = policy.act(image, economy, torch.stack(noise))
                actions[asked, player] = decisions.action[:, None]  # the environment takes the one it has asked for
                if player in learners:
                    for i, *row in zip(asked, *decisions[:6], strict=True):
                        rows[i][player].append(row)

            for i in playing:
                observations[i], _, _, _, info = self.envs[i].step(actions[i])
                if "episode" in info:
                    episodes[i] = info["episode"] | {"rows": rows[i]}
            playing = [i for i in playing if i not in episodes]
        return [episodes[i] for i in range(len(seeds))]


def episode_seeds(args: Args, stage: str, num_episodes: int, done: int = 0) -> np.ndarray:
    """Seeds of the episodes that begin `done` steps into a stage."""
    return np.random.SeedSequence((args.seed, STAGES.index(stage), done)).generate_state(num_episodes)


# --------------------------------------------------------------------------------------------- PPO, the same everywhere
PLAYED = ("gameplay", "follower", "leader")
VERIFICATIONS = ("trade_deviation", "deviation")  # the follower learns on: its trades alone, and all of it
STAGES = (*PLAYED, *VERIFICATIONS, "evaluation")


def rewards(episode: dict, player: int, is_trade: torch.Tensor, credit_shots: bool) -> torch.Tensor:
    """[rows, 2]: hits and payments at each of a player's decisions; a leader is paid at the query before the trade."""
    reward = torch.zeros(len(is_trade), 2)
    decisions, trades = (torch.nonzero(x).squeeze(1).tolist() for x in (~is_trade, is_trade))
    for shooter, shot, landing in episode["landed"]:
        if shooter == player:
            reward[decisions[shot if credit_shots else landing], 0] += 1
    for row, (price, _), sold in zip(trades, episode["offered"], episode["accepted"], strict=True):
        reward[row, 1] = sold * PRICES[price] * (1 if player == SELLER else -1)
    return reward


def generalized_advantages(reward, value, gamma: float, gae_lambda: float) -> torch.Tensor:
    """Of a whole episode, after which nothing is to be had: [rows] -> [rows]."""
    advantage = reward + gamma * torch.cat([value[1:], torch.zeros(1)]) - value
    for t in reversed(range(len(advantage) - 1)):
        advantage[t] += gamma * gae_lambda * advantage[t + 1]
    return advantage


def learning_rows(args: Args, stage: str, episode: dict, player: int) -> Transition:
    """A player's rows of an episode, with returns and advantages.

    Trade actions answer for all that comes of them. Game actions answer for the next hits alone: payments, and the hits
    of bullets yet to be traded, do not depend on how the game is played now, and are noise in which aim would drown.
    """
    rows = Transition(*map(torch.stack, zip(*episode["rows"][player], strict=True)))
    hits, payments = rewards(episode, player, rows.is_trade, args.credit_shots or stage == "gameplay").unbind(1)
    reward = float(HIT_REWARD[player]) * hits + payments
    game = generalized_advantages(hits, rows.value[:, 0], args.game_gamma, args.game_gae_lambda)
    trade = generalized_advantages(reward, rows.value[:, 1], args.gamma, args.gae_lambda)
    advantage = torch.where(rows.is_trade, trade, game)
    matters = rows.is_trade | (rows.economy[:, OWN_BULLETS] > 0) | (stage == "gameplay")
    return rows._replace(return_=torch.stack([game, trade], 1) + rows.value, advantage=advantage, matters=matters)


def ppo_loss(args, stage: "Stage", rows: Transition, left: float, kl_coef: float) -> tuple[torch.Tensor, dict]:
    """PPO's loss, in which game and trades are averaged apart, or a few trades would drown; its parts by tag."""
    game, trade, value = stage.agent(rows.image, rows.economy, stage.name == "gameplay" or args.shape_body)
    value_error = (value - rows.return_).square().sum(1)
    kinds = [("game", ~rows.is_trade, game, args.game_ent_coef)]
    if stage.name != "gameplay":
        kinds.append(("trade", rows.is_trade, trade, args.ent_coef))
    loss, parts = 0.0, {}
    for name, kind, log_prob, ent_coef in kinds:
        log_prob, advantage = log_prob[kind], rows.advantage[kind]
        log_ratio = log_prob.gather(1, rows.action[kind, None]).squeeze(1) - rows.logprob[kind]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        # Where no shot is to be had, the game teaches nothing: noise and entropy bonus would undo what was learned.
        matters = rows.matters[kind].float()
        policy_loss = -(matters * torch.min(advantage * ratio, advantage * clipped)).mean()
        value_loss = 0.5 * value_error[kind].mean()
        entropy = -(matters * (log_prob.exp() * log_prob).sum(1)).mean()
        kl = (ratio - 1 - log_ratio).mean()
        loss = loss + policy_loss - ent_coef * left * entropy + args.vf_coef * value_loss + kl_coef * kl
        scalars = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "approx_kl": kl}
        parts |= {f"losses/{name}_{part}": scalar.item() for part, scalar in scalars.items()}
    return loss, parts


class Stage(NamedTuple):
    """Who plays, and who learns for how many environment steps: `learners`, players who all are `agent`."""

    name: str
    timesteps: int
    agent: Agent
    learners: tuple[int, ...]
    emulators: Emulators
    leader: Policy
    follower: Policy


def update(args: Args, stage: Stage, optimizer: torch.optim.Adam, seeds: np.ndarray, left: float) -> tuple[int, dict]:
    """An iteration of PPO, in any stage, on an episode for each seed; `left` is the share of the stage to come.

    Returns environment steps, and scalars by TensorBoard tag. In stage 1 only the game is learned.
    """
    episodes = stage.emulators.play(stage.leader, stage.follower, seeds, stage.learners)
    rows = [learning_rows(args, stage.name, episode, player) for player in stage.learners for episode in episodes]
    rows = Transition(*map(torch.cat, zip(*rows, strict=True)))
    generator = torch.Generator().manual_seed(sum(seeds.tolist()))
    game, trades = (torch.nonzero(kind).squeeze(1) for kind in (~rows.is_trade, rows.is_trade))
    if stage.name == "gameplay":
        trades = trades[:0]  # they are random
    for kind in (game[rows.matters[game]], trades):
        if len(kind) > 0:
            advantage = rows.advantage[kind]
            rows.advantage[kind] = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)

    group, device = optimizer.param_groups[0], stage.agent.game_actor.weight.device
    num_minibatches = math.ceil(len(game) / args.minibatch_size)  # of equal size, so that none is a single row
    for _ in range(args.update_epochs):
        for index in game[torch.randperm(len(game), generator=generator)].tensor_split(num_minibatches):
            index = torch.cat([index, trades])
            minibatch = Transition(*(column.index_select(0, index).to(device) for column in rows))
            loss, losses = ppo_loss(args, stage, minibatch, left, group["kl_coef"])
            if not loss.isfinite():
                flag = "--gameplay-learning-rate" if stage.name == "gameplay" else "--learning-rate"
                raise SystemExit(f"the training diverged: lower {flag}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(stage.agent.parameters(), args.max_grad_norm)
            optimizer.step()
    kl = losses["losses/game_approx_kl"]
    group["kl_coef"] *= 1.5 if kl > 0.02 else 0.5 if kl < 0.005 else 1.0
    return sum(e["length"] for e in episodes), charts(stage, episodes) | losses


def learn(args: Args, stage: Stage, state: dict, log) -> None:
    """The loop of every stage. All that it needs to go on after an interruption is in `state`, which `log` saves."""
    agent, body_rate, head_rate = stage.agent, args.body_learning_rate, args.learning_rate
    if stage.name == "gameplay":
        body_rate = head_rate = args.gameplay_learning_rate
    elif stage.name == "trade_deviation":
        body_rate = 0.0  # its game stays as it is
    body = nn.ModuleList([agent.cnn, agent.game_economy, agent.game_actor])
    heads = nn.ModuleList([agent.trade_economy, agent.trade_actor, agent.hit_critic, agent.reward_critic])
    groups = [{"params": [*part.parameters()], "kl_coef": args.kl_coef} for part in (body, heads)]
    optimizer = torch.optim.Adam(groups, lr=head_rate, eps=1e-5)
    done, weights, moments = state["stages"].get(stage.name, (0, agent.state_dict(), optimizer.state_dict()))
    agent.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    bar = tqdm(total=stage.timesteps, initial=done, desc=stage.name, leave=False, disable=None)
    while done < stage.timesteps:
        left = max(1 - done / stage.timesteps, 0.05) if args.anneal_lr else 1.0
        for group, rate in zip(optimizer.param_groups, (body_rate, head_rate), strict=True):
            group["lr"] = rate * left
        steps, scalars = update(args, stage, optimizer, episode_seeds(args, stage.name, args.num_envs, done), left)
        done += steps
        bar.update(steps)
        state["global_step"] += steps
        state["stages"][stage.name] = done, agent.state_dict(), optimizer.state_dict()
        log(scalars)
    bar.close()
    agent.half().float()  # so that it plays the same from a file with 16 bits a weight


def charts(stage: Stage, episodes: list[dict]) -> dict:
    """Means over the episodes of an update, by TensorBoard tag; of trades only where they are learned."""
    fired, hits, returns = (np.sum([e[name] for e in episodes], 0) for name in ("fired", "hits", "returns"))
    means = {f"{name}_hits_per_shot": hits[p] / max(fired[p], 1) for p, name in enumerate(("seller", "buyer"))}
    means["episode_length"] = np.mean([e["steps"] for e in episodes])
    if stage.name != "gameplay":
        leader, offered = stage.emulators.leader, np.array([offer for e in episodes for offer in e["offered"]])
        accepted = np.array([sold for e in episodes for sold in e["accepted"]])
        means["price_offered"], means["price_limit"] = np.take(PRICES, offered).mean(0)
        means |= {"acceptance_rate": accepted.mean(), "follower_return": returns[1 - leader] / len(episodes)}
        for action in np.unique(offered[:, leader]):
            means[f"acceptance_at_{PRICES[action]}"] = accepted[offered[:, leader] == action].mean()
        if stage.name == "leader":
            means["leader_return"] = returns[leader] / len(episodes)  # as it explores
    return {f"charts/{name}": mean for name, mean in means.items()}


# -------------------------------------------------------------------------------------- evaluation and the equilibrium
def evaluate(args: Args, emulators: Emulators, leader: Policy, follower: Policy, num_episodes: int) -> list[dict]:
    """Plays episodes that have the same bullets and starts, whatever the policies."""
    seeds, n = episode_seeds(args, "evaluation", num_episodes), args.num_envs
    batches = (emulators.play(leader, follower, seeds[k : k + n]) for k in range(0, num_episodes, n))
    return [episode for batch in batches for episode in batch]


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


def measure_aim(args: Args, emulators: Emulators, leader: Policy, follower: Policy) -> dict:
    """What each player (seller, buyer) makes of bullets: first nothing is sold, then everything."""
    aim = {"bullet_values": [], "bullet_value_errors": [], "hits_per_shot": []}
    for player, *prices in ((SELLER, HIGHEST, LOWEST), (BUYER, LOWEST, HIGHEST)):
        leads, follows = prices if emulators.leader == SELLER else reversed(prices)
        players = leader._replace(price=leads), follower._replace(price=follows)
        episodes = evaluate(args, emulators, *players, args.eval_episodes)
        hits, fired, given = np.array([(e["hits"][player], e["fired"][player], e["given"]) for e in episodes]).T
        values = hits / np.maximum(given, 1) * float(HIT_REWARD[player])
        aim["bullet_values"].append(values.mean())
        aim["bullet_value_errors"].append(values.std() / len(values) ** 0.5)
        aim["hits_per_shot"].append(hits.sum() / max(fired.sum(), 1))
    return aim


def best_response_table(args: Args, emulators: Emulators, leader: Policy, follower: Policy, aim: dict) -> list[dict]:
    """For each fixed leader price: share of trades that the follower lets happen, and of its best responses."""
    table, replies = [], 1 - emulators.leader
    value, error = aim["bullet_values"][replies], aim["bullet_value_errors"][replies]
    for action, price in enumerate(PRICES):
        episodes = evaluate(args, emulators, leader._replace(price=action), follower, math.ceil(args.eval_episodes / 5))
        sold = np.array([sold for e in episodes for sold in e["accepted"]])
        answers = np.array([offer[replies] for e in episodes for offer in e["offered"]])
        # A buyer trades if the bullet is worth the price to it; a seller asks the buyer's limit or keeps the bullet.
        trade = bool(price < value if replies == BUYER else price > value)
        best = (sold == trade) & ((replies == BUYER) | ~sold | (answers == action))
        row = {"leader_price": price, "trades": len(sold), "tie": bool(abs(price - value) <= 2 * error)}
        row |= {"acceptance_rate": sold.mean(), "best_response_rate": best.mean(), "best_response_trades": trade}
        table.append(row)
    return table


def report(args: Args, emulators: Emulators, agents: dict[str, Agent], curve: list) -> dict:
    """Evaluates the equilibrium: all that result.json says about it. Returns are per episode."""
    leader, follower, leads = Policy(agents["leader"]), Policy(agents["follower"]), emulators.leader
    result = {"aim_before": {}, "aim": {}, "best_responses": {}}
    for how, greedy in (("greedy", True), ("sampled", False)):
        before, *players = (Policy(agents[name], greedy) for name in ("gameplay", "leader", "follower"))
        result["aim_before"][how] = measure_aim(args, emulators, before, before)
        result["aim"][how] = measure_aim(args, emulators, *players)
        result["best_responses"][how] = best_response_table(args, emulators, *players, result["aim"][how])

    episodes = evaluate(args, emulators, leader, follower, args.eval_episodes)
    leader_returns, follower_returns = np.array([(e["returns"][leads], e["returns"][1 - leads]) for e in episodes]).T
    values, errors, _ = result["aim"]["greedy"].values()
    best, gain = solve(values, leads)
    prices = [PRICES[offer[leads]] for e in episodes for offer in e["offered"]]
    # the follower's best response: to trade or not to trade
    best_replies = [max(values[BUYER] - x, 0.0) if leads == SELLER else max(x, values[SELLER]) for x in prices]
    exploring = [explored for _, _, explored in curve[-math.ceil(len(curve) / 10) :]]
    result |= {
        "episodes": len(episodes),
        "leader_return": np.mean(exploring) if exploring else None,
        "leader_return_greedy": leader_returns.mean(),
        "follower_return_greedy": follower_returns.mean(),
        "stackelberg_value": NUM_BULLETS * gain,
        "stackelberg_value_error": NUM_BULLETS * errors[BUYER] if leads == BUYER else 0.0,
        "leader_regret": NUM_BULLETS * gain - leader_returns.mean(),
        "follower_regret": sum(best_replies) / len(episodes) - follower_returns.mean(),
        "optimal_leader_price": PRICES[best],
        "leader_prices": {str(price): prices.count(price) / len(prices) for price in PRICES},
        "acceptance_rate": np.mean([sold for e in episodes for sold in e["accepted"]]),
        "curve": curve,
    }
    for name in VERIFICATIONS if args.stage != "evaluate" else ():
        after = evaluate(args, emulators, leader, Policy(agents[name]), args.eval_episodes)
        gains = [e["returns"][1 - leads] for e in after] - follower_returns  # in pairs of the same starts and bullets
        result |= {f"{name}_gain": gains.mean(), f"{name}_gain_error": gains.std() / len(gains) ** 0.5}
    return result


def write_video(args: Args, emulators: Emulators, leader: Policy, follower: Policy, path: str) -> None:
    """Writes one greedy episode as an animated GIF; it halts at queries and trades."""
    env, step, frames, durations = emulators.envs[0], emulators.envs[0].step, [], []

    def filmed_step(action):
        frames.append(Image.fromarray(env.render()).quantize(32))
        durations.append(70 if env.phase == GAME else 900)
        return step(action)

    env.step = filmed_step
    evaluate(args, emulators, leader, follower, 1)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


# ------------------------------------------------------------------------------------------------------------- the run
def make_agents(args: Args) -> dict[str, Agent]:
    """Returns the network of each stage, new ones or those of the checkpoint. Raises ValueError if it does not fit."""
    torch.manual_seed(args.seed)
    agents = {name: Agent().to("cuda" if args.cuda else "cpu") for name in (*PLAYED, *VERIFICATIONS)}
    needed = {"trade": PLAYED[:1], "evaluate": PLAYED}.get(args.stage, ())
    if needed:
        try:
            model = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
            for name in needed:
                agents[name].load_state_dict(model[name])
                finite = all(weights.isfinite().all() for weights in model[name].values())
                assert finite, f"its {name} has weights that are not finite"
            who_leads = model["who_leads"] if args.stage == "evaluate" else args.leader
            assert who_leads == args.leader, f"in it the {who_leads} leads, and --leader is {args.leader}"
        except Exception as error:
            raise ValueError(f"checkpoint {args.checkpoint!r} does not fit: {error}") from error
    return agents


def start_run(args: Args) -> tuple[str, SummaryWriter]:
    """Returns the run's folder, a new one or that of `--resume`, and the writer of its curves."""
    run_path = args.resume or f"{args.run_dir}/{ENV_ID}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(run_path, exist_ok=args.resume is not None)
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        run_name = os.path.basename(os.path.abspath(run_path))
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name, "id": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, resume="allow")
    # TensorBoard forgets what the resumed run comes to again.
    writer = SummaryWriter(run_path, purge_step=args.state["global_step"] + 1 if args.state else None)
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return run_path, writer


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, removes what `--resume` needed, and says what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    Path(run_path, "checkpoint.pt").unlink(missing_ok=True)
    if "leader_prices" in result:
        print_equilibrium(result)
    for how, measured in result["aim"].items():
        seller, buyer = measured["hits_per_shot"]
        print(f"  aim, {how:<13} {seller:.3f} hits per shot of the seller, {buyer:.3f} of the buyer")
    print(f"""\
  steps              {result["global_step"]:,} in {result["wall_seconds"]:.0f} s
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


def print_equilibrium(result: dict) -> None:
    """Says in words whether the traders are in equilibrium: at least 95 % of what each does is best, ties aside, and
    the follower does not gain by trading otherwise."""
    price, sold, replies = result["optimal_leader_price"], result["acceptance_rate"], result["best_responses"]["greedy"]
    at_optimum = result["leader_prices"][str(price)]
    found = min(at_optimum, sold, *(row["best_response_rate"] for row in replies if not row["tie"])) >= 0.95
    found &= result.get("trade_deviation_gain", 0.0) <= 2 * result.get("trade_deviation_gain_error", 0.0)
    exploring = "" if result["leader_return"] is None else f"; {result['leader_return']:.2f} as it explores"
    print(f"""
{"a" if found else "NOT a"} Stackelberg equilibrium with the {result["args"]["leader"]} as leader
  leader's price     {price:.2f} in {at_optimum:.0%} of trades, the optimum of leaders with one price for all trades
  bullets sold       {sold:.0%}
  leader's return    {result["leader_return_greedy"]:.2f} per episode, greedy{exploring}
  optimum            {result["stackelberg_value"]:.2f} +- {result["stackelberg_value_error"]:.2f}
  follower's return  {result["follower_return_greedy"]:.2f}""")
    for row in replies:
        rates = f"trades in {row['acceptance_rate']:.0%}; it is a best response in {row['best_response_rate']:.0%}"
        print(f"  fixed price {row['leader_price']:.2f}   the follower {rates}{' (a tie)' * row['tie']}")
    for name in VERIFICATIONS if "deviation_gain" in result else ():
        gain, error = result[f"{name}_gain"], result[f"{name}_gain_error"]
        print(f"  {name:<18} learning on, the follower gains {gain:+.3f} +- {error:.3f} per episode")


def main(args: Args) -> dict:
    """Runs the stages; returns what it writes to result.json."""
    torch.backends.cudnn.deterministic = args.torch_deterministic
    torch.set_num_threads(1)  # a thread pool costs more than it gives with networks of this size
    agents = make_agents(args)
    # all that --resume needs; in the curve: step, greedy return (not measured in training), exploring return
    state = args.state or {"args": asdict(args), "stages": {}, "global_step": 0, "seconds": 0.0, "curve": []}
    start_time = time.time() - state["seconds"]  # as if there had been no pause
    run_path, writer = start_run(args)

    def log(scalars: dict[str, float]):
        global_step, state["seconds"] = state["global_step"], time.time() - start_time
        for tag, scalar in {**scalars, "charts/SPS": int(global_step / state["seconds"])}.items():
            writer.add_scalar(tag, scalar, global_step)
        writer.flush()  # before the state is: a resumed run does not come back to this step
        if "charts/leader_return" in scalars:
            state["curve"].append([global_step, None, float(scalars["charts/leader_return"])])
        torch.save(state, f"{run_path}/checkpoint.pt.tmp")
        os.replace(f"{run_path}/checkpoint.pt.tmp", f"{run_path}/checkpoint.pt")

    emulators = Emulators(args)
    gameplay, follower, leader = (Policy(agents[name]) for name in PLAYED)
    leads, follows = (emulators.leader,), (1 - emulators.leader,)

    def train(stage: str, start: str, timesteps: int, learners, leader: Policy, follower: Policy, emulators=emulators):
        agents[stage].load_state_dict(agents[start].state_dict())
        learn(args, Stage(stage, timesteps, agents[stage], learners, emulators, leader, follower), state, log)

    if args.stage in ("gameplay", "all"):
        aiming, more_bullets = gameplay._replace(greedy=False, random_prices=True), Emulators(args, **GAMEPLAY_EPISODES)
        train("gameplay", "gameplay", args.gameplay_timesteps, (SELLER, BUYER), aiming, aiming, more_bullets)
    if args.stage in ("trade", "all"):
        opponent, learner = gameplay._replace(random_prices=True), follower._replace(greedy=False)
        train("follower", "gameplay", args.follower_timesteps, follows, opponent, learner)
        leader_timesteps, learner = args.total_timesteps - args.follower_timesteps, leader._replace(greedy=False)
        train("leader", "gameplay", leader_timesteps, leads, learner, follower)
        for stage in VERIFICATIONS:  # the follower learns on
            learner = Policy(agents[stage], greedy=False)
            train(stage, "follower", args.verification_timesteps, follows, leader, learner)

    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    if args.stage == "gameplay":
        players = {"greedy": gameplay, "sampled": gameplay._replace(greedy=False)}
        result["aim"] = {how: measure_aim(args, emulators, player, player) for how, player in players.items()}
    else:
        result |= report(args, emulators, agents, state["curve"])
        final = "leader_return_greedy follower_return_greedy stackelberg_value leader_regret follower_regret"
        for name in final.split():
            writer.add_scalar(f"charts/{name}", result[name], state["global_step"])
        if args.capture_video:
            write_video(args, emulators, leader, follower, f"{run_path}/episode.gif")
    if args.save_model or args.stage == "gameplay":
        names = PLAYED[:1] if args.stage == "gameplay" else PLAYED
        model = {name: {key: x.half() for key, x in agents[name].state_dict().items()} for name in names}
        torch.save(model | {"who_leads": args.leader}, f"{run_path}/model.pt")
    result["stage_steps"] = {stage: steps for stage, (steps, *_) in state["stages"].items()}
    result |= {"global_step": state["global_step"], "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = result["global_step"] / result["wall_seconds"]
    writer.close()
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
