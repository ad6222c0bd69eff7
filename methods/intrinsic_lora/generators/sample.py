"""A seed -> a generator's picture and its aligned maps: all from one latent and one noise (Intrinsic LoRA, section 3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...lora.layers import LoraLayer
from ...maps import map_kind
from .adapter import run_adapted
from .alias_free_gan import AliasFreeConfig
from .gan_file import Gan
from .style_gan import StyleGanConfig

# Instead of a class: one is drawn for each picture.
ANY_CLASS = -1


@dataclass(frozen=True)
class Draws:
    """What a picture is made from: z `[b, latent_dim]`, and a noise `[b, 1, side, side]` for each layer.

    classes_b: the number of its class, in a generator of classes.
    """

    z_bd: Tensor
    noise: tuple[Tensor, ...]
    classes_b: Tensor | None = None

    def __len__(self) -> int:
        return len(self.z_bd)

    def split(self, size: int) -> "Iterator[Draws]":
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, rows) -> "Draws":
        return Draws(self.z_bd[rows], tuple(noise[rows] for noise in self.noise), None if self.classes_b is None else self.classes_b[rows])

    def to(self, device: torch.device | str) -> "Draws":
        classes_b = None if self.classes_b is None else self.classes_b.to(device)
        return Draws(self.z_bd.to(device), tuple(noise.to(device) for noise in self.noise), classes_b)


def draw(config: StyleGanConfig | AliasFreeConfig, seed: int, batch: int, class_index: int = ANY_CLASS) -> Draws:
    """The draws of `batch` pictures, on the CPU. Picture i depends on the seed, on i and on a chosen class alone, not on the batch.

    class_index: of all pictures, or ANY_CLASS. Raises ValueError for a class that the generator does not have.
    """
    if not ANY_CLASS <= class_index < config.classes:
        has = f"its classes are 0 to {config.classes - 1}" if config.classes else "it has none"
        raise ValueError(f"class {class_index} was chosen of a generator: {has}. Choose one of them, or {ANY_CLASS} for any.")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        z = torch.randn(1, config.latent_dim, generator=generator)
        noise = [torch.randn(1, 1, side, side, generator=generator) for side in config.noise_sides]
        drawn = torch.randint(config.classes, (1,), generator=generator) if config.classes else torch.tensor([ANY_CLASS])
        rows.append((z, drawn, *noise))
    z, drawn, *noise = (torch.cat(parts) for parts in zip(*rows, strict=True))
    chosen = drawn if class_index == ANY_CLASS else torch.full_like(drawn, class_index)
    return Draws(z, tuple(noise), chosen if config.classes else None)


def pictures(
    generator: Gan,
    draws: Draws,
    truncation_b1: Tensor | float = 1.0,
    layers: Mapping[str, LoraLayer] | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Pictures `[b, 3, h, w]` in -1..1, not clamped; with `layers`, those of the adapted generator. Runs where the generator is."""
    draws = draws.to(generator.mean_style.device)
    w_bd = generator.style(draws.z_bd, truncation_b1, draws.classes_b)
    return run_adapted(generator, layers or {}, (w_bd, draws.noise), strength)


def map_pictures(
    generator: Gan,
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
