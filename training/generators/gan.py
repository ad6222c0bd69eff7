"""The nano GAN: a style-based generator of the pictures of `scenes`, non-saturating logistic loss with R1."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...methods.intrinsic_lora.generators.gan_file import save_gan
from ...methods.intrinsic_lora.generators.style_gan import StyleGanConfig, StyleGenerator
from ..config import TrainerConfig
from ..history import History
from ..loop import LoopConfig, Report, train
from ..scene_pictures import BASE_SEEDS, PicturePool
from .adversarial import both_players, gradient_penalty

# R1 on one step in so many, drawn at random, and that much stronger (lazily, as Karras et al. 2020, appendix B).
PENALTY_EVERY = 8
# Settings of the loop, as in the papers. Both players share one norm: clipping would let one slow the other.
PLAYERS: dict[str, Any] = {"betas": (0.0, 0.99), "weight_decay": 0.0, "clip_norm": 1e6, "ema_decay": 0.998}


@dataclass(frozen=True)
class GanConfig(TrainerConfig):
    """A generator of rendered scenes, of the default `StyleGanConfig`. batch: pictures per step. Raises ValueError."""

    loop: LoopConfig
    scenes: int = 20_000
    batch: int = 16

    def __post_init__(self) -> None:
        if min(self.scenes, self.batch) < 1:
            raise ValueError(f"scenes {self.scenes}, batch {self.batch}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        return self.loop.output / "gan"


class DownBlock(nn.Module):
    """Two convolutions, half the size, and a skip (Karras et al. 2020, section 4, residual discriminator)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.second = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        small = functional.avg_pool2d(x_bchw, 2)
        hidden = functional.leaky_relu(self.first(x_bchw), 0.2)
        hidden = functional.leaky_relu(functional.avg_pool2d(self.second(hidden), 2), 0.2)
        return (hidden + self.skip(small)) / math.sqrt(2)


class Discriminator(nn.Module):
    """One score per picture. widths: as the generator's, from 4 x 4 up."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        downwards = widths[::-1]
        self.from_picture = nn.Conv2d(3, downwards[0], 1)
        self.blocks = nn.Sequential(*(DownBlock(*pair) for pair in pairwise(downwards)))
        # One more channel: how much the pictures of the batch differ (Karras et al. 2018, section 3).
        self.last = nn.Conv2d(widths[0] + 1, widths[0], 3, padding=1)
        self.hidden = nn.Linear(widths[0] * 16, widths[0])
        self.score = nn.Linear(widths[0], 1)

    def forward(self, picture_bchw: Tensor) -> Tensor:
        x = self.blocks(functional.leaky_relu(self.from_picture(picture_bchw), 0.2))
        spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        x = functional.leaky_relu(self.last(torch.cat([x, spread], 1)), 0.2)
        return self.score(functional.leaky_relu(self.hidden(x.flatten(1)), 0.2))[:, 0]


class GanTask:
    """A `loop.Task` of both players. gamma: weight of R1."""

    def __init__(self, config: StyleGanConfig, pool: PicturePool, batch: int, gamma: float = 1.0):
        if pool.pictures.shape[-1] != config.resolution:
            raise ValueError(f"the pictures are {pool.pictures.shape[-1]} pixels wide, the generator makes {config.resolution}.")
        self.generator, self.discriminator = StyleGenerator(config), Discriminator(config.widths)
        self.module = nn.ModuleDict({"generator": self.generator, "discriminator": self.discriminator})
        self.config, self.pool, self.batch, self.gamma = config, pool, batch, gamma

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        real = self.pool.latents_input(0, torch.randint(self.pool.pictures.shape[1], (self.batch,), generator=draw))
        z = torch.randn(self.batch, self.config.latent_dim, generator=draw)
        noise = [torch.randn(self.batch, 1, side, side, generator=draw) for side in self.config.noise_sides]
        device = self.generator.constant.device
        real = real.to(device)
        made = self.generator(self.generator.style(z.to(device)), [values.to(device) for values in noise])
        loss = both_players(self.discriminator, made, real)
        if torch.rand((), generator=draw) < 1 / PENALTY_EVERY:
            loss = loss + self.gamma / 2 * PENALTY_EVERY * gradient_penalty(self.discriminator, real)
        return loss

    def save(self, folder: Path) -> None:
        self.generator.measure_mean_style()
        save_gan(self.generator, folder / "gan")


def train_gan(config: GanConfig, report: Report | None = None) -> History:
    """Train (or resume) both players and write the generator to `config.weights`."""
    network = StyleGanConfig()
    torch.manual_seed(config.loop.seed)
    pool = PicturePool.render(BASE_SEEDS[: config.scenes], network.resolution, kinds=("image",))
    return train(GanTask(network, pool, config.batch), config.loop, report=report, settings=config.task_settings())
