"""A style-based generator, written from the papers' equations.

z -> mapping network -> w (Karras et al. 2019, section 2) -> an affine layer per convolution: style s -> modulated and demodulated
convolutions with a noise input (Karras et al. 2020, section 2.2, eq. 1 to 3), summed up from each resolution (section 4, output skips).
Upsampling is by the papers' [1, 3, 3, 1] filter with zeros outside the picture, as in published networks, or bilinear, which differs
from it at the borders alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mapping import StyleNetwork, require_classes

FIRST_SIDE = 4


@dataclass(frozen=True)
class StyleGanConfig:
    """widths: channels at 4 x 4, 8 x 8 ... up to the picture. mapping_layers: of the mapping network. Raises ValueError.

    filtered: enlarges by the papers' filter, after a transposed convolution; else bilinearly, before a convolution. classes, class_dim: how
    many, and how long their embedding is; 0 and 0 without.
    """

    widths: tuple[int, ...] = (128, 128, 96, 64, 32)
    latent_dim: int = 64
    style_dim: int = 64
    mapping_layers: int = 3
    filtered: bool = False
    classes: int = 0
    class_dim: int = 0

    def __post_init__(self) -> None:
        require_classes(self.classes, self.class_dim)
        numbers = (*self.widths, self.latent_dim, self.style_dim, self.mapping_layers)
        if not all(isinstance(number, int) and 1 <= number <= 8192 for number in numbers):
            raise ValueError(f"the generator's sizes are {self}: whole numbers from 1 to 8192 are wanted.")
        if not isinstance(self.filtered, bool):
            raise ValueError(f"filtered is {self.filtered!r}: true or false are wanted.")
        if not 1 <= len(self.widths) <= 9:
            raise ValueError(f"the generator has {len(self.widths)} resolutions, 1 to 9 are possible (4 to 1024 pixels).")

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return FIRST_SIDE * 2 ** (len(self.widths) - 1)

    @property
    def floats_per_picture(self) -> int:
        """How many numbers a picture takes at once, about: a few copies of the widest layers at full size."""
        return 1024 * self.resolution**2

    @property
    def noise_sides(self) -> tuple[int, ...]:
        """Side of each layer's noise, in the network's order: one at 4 x 4, two at every further resolution."""
        return (FIRST_SIDE, *(FIRST_SIDE * 2**level for level in range(1, len(self.widths)) for _ in range(2)))


def modulated_convolution(
    x_bchw: Tensor,
    weight_oikk: Tensor,
    style_bi: Tensor,
    demodulate: bool = True,
    enlarge: bool = False,
    padding: int | None = None,
) -> Tensor:
    """Convolution with `s_i w_ijk`, each output channel scaled to unit variance (Karras et al. 2020, eq. 1 and 3).

    enlarge: to twice the size, as `filtered_upsample` does. padding: zeros on each side; without it, as many as keep the size. Scales
    activations instead of weights, which is the same and keeps the batch in one convolution.
    """
    modulated = x_bchw * style_bi[:, :, None, None]
    if enlarge:
        # The filter and the convolution may change places: this way round, the filter's zeros outside are the published ones.
        wide = functional.conv_transpose2d(modulated, weight_oikk.flip(2, 3).transpose(0, 1), stride=2)
        output = functional.conv2d(wide, _filter(wide), padding=1, groups=wide.shape[1])
    else:
        output = functional.conv2d(modulated, weight_oikk, padding=weight_oikk.shape[-1] // 2 if padding is None else padding)
    if demodulate:
        energy = torch.einsum("oi,bi->bo", weight_oikk.square().sum((2, 3)), style_bi.square())
        output = output * torch.rsqrt(energy + 1e-8)[:, :, None, None]
    return output


def upsample(x_bchw: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return functional.interpolate(x_bchw, scale_factor=2, mode="bilinear", align_corners=False)


def filtered_upsample(x_bchw: Tensor) -> Tensor:
    """Twice the size: zeros between the pixels and around them, then the filter [1, 3, 3, 1] in both directions."""
    return functional.conv_transpose2d(x_bchw, _filter(x_bchw), stride=2, padding=1, groups=x_bchw.shape[1])


def _filter(x_bchw: Tensor) -> Tensor:
    """[channel, 1, 4, 4] that sums to 4, as many as there are pixels for one."""
    row = x_bchw.new_tensor([1.0, 3.0, 3.0, 1.0]) / 4
    return torch.outer(row, row).expand(x_bchw.shape[1], 1, 4, 4)


class StyledConvolution(nn.Module):
    """affine (w -> s), modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, enlarge: bool, filtered: bool):
        super().__init__()
        self.enlarge, self.filtered = enlarge, filtered
        self.affine = affine_layer(style_dim, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / math.sqrt(9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x_bchw: Tensor, w_bd: Tensor, noise_b1hw: Tensor) -> Tensor:
        x_bchw = upsample(x_bchw) if self.enlarge and not self.filtered else x_bchw
        output = modulated_convolution(x_bchw, self.weight, self.affine(w_bd), enlarge=self.enlarge and self.filtered)
        output = output + self.noise_strength * noise_b1hw + self.bias[:, None, None]
        return functional.leaky_relu(output, 0.2) * math.sqrt(2)


class ToPicture(nn.Module):
    """affine (w -> s) and a modulated 1 x 1 convolution to three channels, without demodulation."""

    def __init__(self, inputs: int, style_dim: int):
        super().__init__()
        self.affine = affine_layer(style_dim, inputs)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x_bchw: Tensor, w_bd: Tensor) -> Tensor:
        return modulated_convolution(x_bchw, self.weight, self.affine(w_bd), demodulate=False) + self.bias[:, None, None]


def affine_layer(style_dim: int, channels: int) -> nn.Linear:
    """A style that begins around 1: the convolution starts unmodulated."""
    affine = nn.Linear(style_dim, channels)
    nn.init.normal_(affine.weight, std=1 / math.sqrt(style_dim))
    nn.init.ones_(affine.bias)
    return affine


class StyleGenerator(StyleNetwork):
    """`style` makes w of z, `forward` a picture of w and noise."""

    def __init__(self, config: StyleGanConfig):
        super().__init__(config.latent_dim, config.style_dim, config.mapping_layers, config.classes, config.class_dim)
        self.config = config
        self.constant = nn.Parameter(torch.randn(1, config.widths[0], FIRST_SIDE, FIRST_SIDE))

        def convolution(inputs: int, outputs: int, enlarge: bool) -> StyledConvolution:
            return StyledConvolution(inputs, outputs, config.style_dim, enlarge, config.filtered)

        self.convolutions = nn.ModuleList([convolution(config.widths[0], config.widths[0], enlarge=False)])
        for inputs, outputs in pairwise(config.widths):
            self.convolutions.append(convolution(inputs, outputs, enlarge=True))
            self.convolutions.append(convolution(outputs, outputs, enlarge=False))
        self.to_picture = nn.ModuleList(ToPicture(width, config.style_dim) for width in config.widths)

    def forward(self, w_bd: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Pictures `[b, 3, h, w]`, nominally -1..1, not clamped. noise: a `[b, 1, side, side]` for each of `config.noise_sides`."""
        x = self.convolutions[0](self.constant.expand(len(w_bd), -1, -1, -1), w_bd, noise[0])
        picture = self.to_picture[0](x, w_bd)
        for level in range(1, len(self.config.widths)):
            x = self.convolutions[2 * level - 1](x, w_bd, noise[2 * level - 1])
            x = self.convolutions[2 * level](x, w_bd, noise[2 * level])
            enlarged = filtered_upsample(picture) if self.config.filtered else upsample(picture)
            picture = enlarged + self.to_picture[level](x, w_bd)
        return picture
