"""A seed -> a generator's picture and its aligned maps: all from one latent and one noise (Intrinsic LoRA, section 3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...lora.layers import LoraLayer
from ...maps import map_kind
from .adapter import run_adapted
from .style_gan import StyleGanConfig, StyleGenerator


@dataclass(frozen=True)
class Draws:
    """What a picture is made from: z `[b, latent_dim]`, and a noise `[b, 1, side, side]` for each layer."""

    z_bd: Tensor
    noise: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.z_bd)

    def split(self, size: int) -> "Iterator[Draws]":
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, rows) -> "Draws":
        return Draws(self.z_bd[rows], tuple(noise[rows] for noise in self.noise))

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(self.z_bd.to(device), tuple(noise.to(device) for noise in self.noise))


def draw(config: StyleGanConfig, seed: int, batch: int) -> Draws:
    """The draws of `batch` pictures, on the CPU. Picture i depends on the seed and on i alone, not on the batch."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        z = torch.randn(1, config.latent_dim, generator=generator)
        rows.append((z, *(torch.randn(1, 1, side, side, generator=generator) for side in config.noise_sides)))
    z, *noise = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Draws(z, tuple(noise))


def pictures(
    generator: StyleGenerator,
    draws: Draws,
    truncation_b1: Tensor | float = 1.0,
    layers: Mapping[str, LoraLayer] | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Pictures `[b, 3, h, w]` in -1..1, not clamped; with `layers`, those of the adapted generator. Runs where the generator is."""
    draws = draws.to(generator.constant.device)
    w_bd = generator.style(draws.z_bd, truncation_b1)
    return run_adapted(generator, layers or {}, (w_bd, draws.noise), strength)


def map_pictures(
    generator: StyleGenerator,
    draws: Draws,
    layers_of_map: Mapping[str, Mapping[str, LoraLayer]],
    truncation: float = 1.0,
    strength: float = 1.0,
) -> Iterator[tuple[str | None, Tensor]]:
    """The picture, under the name None (`bhwc`, 0..1), then each map as data (`methods.maps`), one forward at a time."""
    unadapted: dict[str | None, Mapping[str, LoraLayer]] = {None: {}}
    for name, layers in (unadapted | dict(layers_of_map)).items():
        picture = rearrange(pictures(generator, draws, truncation, layers, strength).float() / 2 + 0.5, "b c h w -> b h w c")
        yield name, picture.clamp(0, 1) if name is None else map_kind(name).from_picture(picture)
