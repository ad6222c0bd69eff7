"""The alias-free generator of StyleGAN3 and StyleGAN-XL, written from the papers' equations.

w -> a rotation and a shift of fixed Fourier features (Karras et al. 2021, section 3.1) -> layers of one form: a modulated and demodulated
convolution, a bias, and a leaky ReLU between two low-pass filters, at twice the sampling rate, so that what it makes above a layer's band
is cut off before it folds back (section 3.2). There is no noise, and a margin of pixels around the picture, so that borders tell no layer
where it is. StyleGAN-XL (Sauer et al. 2022) is this network: its mapping network sees a class, and every stage of its progressive training
puts further layers on top.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mapping import StyleNetwork, require_classes
from .style_gan import affine_layer, modulated_convolution

# Pixels around the picture in all layers but the last ones (section 3.2).
MARGIN = 10
# How much finer than its input and output a layer's leaky ReLU is sampled (section 3.2, m = 2).
_OVERSAMPLING = 2
# Numbers that one picture may take at once: 32 GB, twice what 1024 pixels at StyleGAN-XL's widths take.
_LARGEST_PICTURE = 2**33


@dataclass(frozen=True)
class AliasFreeConfig:
    """What shapes the network. sides: of each layer's output in pixels, margin included; the last is the picture's. widths: its channels.

    up_taps, down_taps: lengths of each layer's filters, 0 for none. radial: whether the second has two dimensions. kernel: of the
    convolutions, 3 or 1 (the paper's configurations T and R). clamp: bound on activations, 0 for none. classes, class_dim: how many, and
    how long their embedding is; 0 and 0 without. Raises ValueError.
    """

    sides: tuple[int, ...]
    widths: tuple[int, ...]
    up_taps: tuple[int, ...]
    down_taps: tuple[int, ...]
    radial: tuple[bool, ...]
    kernel: int
    clamp: float
    latent_dim: int
    style_dim: int
    mapping_layers: int
    classes: int = 0
    class_dim: int = 0

    def __post_init__(self) -> None:
        layers = len(self.sides)
        if not 2 <= layers <= 64 or {len(self.widths), len(self.up_taps), len(self.down_taps), len(self.radial)} != {layers}:
            raise ValueError(f"the generator has {layers} layers: 2 to 64 are possible, each with a width and two filters' lengths.")
        _require_whole("sides", self.sides, 1, 1024 + 2 * MARGIN)
        _require_whole("widths", self.widths, 1, 8192)
        _require_whole("taps", (*self.up_taps, *self.down_taps), 0, 64)
        _require_whole("sizes of the mapping network", (self.latent_dim, self.style_dim, self.mapping_layers), 1, 8192)
        if self.kernel not in (1, 3) or not 0 <= self.clamp < math.inf or not all(isinstance(flag, bool) for flag in self.radial):
            raise ValueError(f"kernel {self.kernel}, clamp {self.clamp}: a kernel of 1 or 3 and a clamp of 0 or more are wanted.")
        if self.widths[-1] != 3 or sampling_rate(self.resolution) != self.resolution:
            raise ValueError(f"it ends in {self.widths[-1]} channels, {self.resolution} pixels wide: 3, and a power of two are wanted.")
        require_classes(self.classes, self.class_dim)
        for number, taps in enumerate(zip(self.up_taps, self.down_taps, strict=True)):
            if any((length == 0) != (factor == 1) for length, factor in zip(taps, self.factors(number), strict=True)):
                raise ValueError(
                    f"layer {number} has filters of {taps} taps and is sampled {self.factors(number)} times as finely as its input and "
                    "its output: a filter is wanted exactly where the sampling changes."
                )
        if self.floats_per_picture > _LARGEST_PICTURE:
            raise ValueError(f"a picture would take {self.floats_per_picture} numbers at once, {_LARGEST_PICTURE} are possible.")

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return self.sides[-1]

    @property
    def noise_sides(self) -> tuple[int, ...]:
        """There is no noise."""
        return ()

    def factors(self, layer: int) -> tuple[int, int]:
        """How many times finer than its input, and than its output, a layer's leaky ReLU is sampled; the last layer has none."""
        rates = [sampling_rate(self.sides[max(number, 0)]) for number in (layer - 1, layer)]
        fine = max(rates) * (1 if layer == len(self.sides) - 1 else _OVERSAMPLING)
        return fine // rates[0], fine // rates[1]

    @property
    def floats_per_picture(self) -> int:
        """How many numbers a picture takes at once, about: six copies of the layer that is largest where it is sampled finely."""
        layers = enumerate(zip(self.sides, self.widths, strict=True))
        return 6 * max(width * (side * self.factors(number)[1]) ** 2 for number, (side, width) in layers)


def _require_whole(what: str, numbers: tuple[int, ...], lowest: int, highest: int) -> None:
    if not all(isinstance(number, int) and lowest <= number <= highest for number in numbers):
        raise ValueError(f"the generator's {what} are {numbers}: whole numbers from {lowest} to {highest} are wanted.")


def sampling_rate(side: int) -> int:
    """Pixels in the picture's width, of a layer with or without the margin: rates are powers of two. Raises ValueError for other sides."""
    for rate in (side, side - 2 * MARGIN):
        if rate > 0 and rate & (rate - 1) == 0:
            return rate
    raise ValueError(f"a layer is {side} pixels wide: a power of two was expected, or {2 * MARGIN} more.")


class FourierFeatures(nn.Module):
    """The input (section 3.1): sines in a band, turned and shifted by what w says, and mixed.

    frequencies: `[channel, 2]` (x, y) in periods per picture; phases: `[channel]` in periods; placement: w -> (cosine, sine, shift x, y),
    all divided by the length of the first two. The shift is in pictures.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, side: int, style_dim: int):
        super().__init__()
        self.side = side
        self.register_buffer("frequencies", torch.randn(channels, 2))
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.weight = nn.Parameter(torch.randn(channels, channels) / math.sqrt(channels))
        self.placement = nn.Linear(style_dim, 4)
        nn.init.zeros_(self.placement.weight)
        self.placement.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])

    def forward(self, w_bd: Tensor) -> Tensor:
        placed = self.placement(w_bd)
        cosine, sine, shift_x, shift_y = (placed / placed[:, :2].norm(dim=1, keepdim=True))[:, :, None, None].unbind(1)
        centres = (torch.arange(self.side, dtype=w_bd.dtype, device=w_bd.device) + 0.5 - self.side / 2) / sampling_rate(self.side)
        # The picture is turned, then shifted: what was at R(p - shift) comes to p.
        x, y = centres[None, None, :] - shift_x, centres[None, :, None] - shift_y
        turned = torch.stack([(cosine * x - sine * y), (sine * x + cosine * y)], 1)
        periods = torch.einsum("cd,bdhw->bchw", self.frequencies, turned) + self.phases[:, None, None]
        return torch.einsum("oc,bchw->bohw", self.weight, torch.sin(2 * math.pi * periods))


class AliasFreeLayer(nn.Module):
    """affine (w -> s), modulated convolution, bias, filtered leaky ReLU. The last layer only mixes: no demodulation, no leaky ReLU.

    magnitude: mean square of the layer's inputs while it was trained, which they are divided by (section 3.1).
    """

    magnitude: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, config: AliasFreeConfig, number: int):
        super().__init__()
        self.side, self.factors, self.clamp = config.sides[number], config.factors(number), config.clamp
        self.last = number == len(config.sides) - 1
        inputs, outputs = config.widths[max(number - 1, 0)], config.widths[number]
        kernel = 1 if self.last else config.kernel
        self.affine = affine_layer(config.style_dim, inputs)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("magnitude", torch.ones(()))
        up, down = config.up_taps[number], config.down_taps[number]
        self.register_buffer("up_filter", torch.full((up,), 1 / up) if up else None)
        self.register_buffer("down_filter", torch.full((down,) * (1 + config.radial[number]), 1 / down) if down else None)

    def forward(self, x_bchw: Tensor, w_bd: Tensor) -> Tensor:
        x_bchw = x_bchw * torch.rsqrt(self.magnitude)
        # What reaches past the canvas is kept until the filters have seen it.
        padding = self.weight.shape[-1] - 1
        x_bchw = modulated_convolution(x_bchw, self.weight, self.affine(w_bd), demodulate=not self.last, padding=padding)
        x_bchw = x_bchw + self.bias[:, None, None]
        if self.last:
            return filtered(x_bchw, self.up_filter, self.down_filter, self.factors, self.side)
        return filtered(x_bchw, self.up_filter, self.down_filter, self.factors, self.side, self._leaky_relu)

    def _leaky_relu(self, x_bchw: Tensor) -> Tensor:
        x_bchw = functional.leaky_relu(x_bchw, 0.2) * math.sqrt(2)
        return x_bchw.clamp(-self.clamp, self.clamp) if self.clamp else x_bchw


def filtered(
    x_bchw: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    factors: tuple[int, int],
    side: int,
    pointwise: Callable[[Tensor], Tensor] = lambda fine: fine,
) -> Tensor:
    """`pointwise` on a signal that is sampled more finely for it, `[b, c, side, side]` (section 3.2).

    Zeros between the pixels (factors[0] times as many pixels) and around them, the first filter; `pointwise`; the second filter, of which
    each factors[1]-th pixel is kept. Filters are symmetric and sum to 1, `[taps]` for both directions or `[taps, taps]`; none: no filter.
    What goes in and what comes out have one centre.
    """
    lengths = (1 if up_filter is None else len(up_filter), 1 if down_filter is None else len(down_filter))
    before, after = zeros_around(x_bchw.shape[-1], side, factors, lengths)
    fine = _smoothed(x_bchw, up_filter, functional.conv_transpose2d, factors[0])
    # That the filter has seen a few zeros already is taken off again.
    left, right = before - lengths[0] + 1, after - lengths[0] + 1
    fine = pointwise(functional.pad(fine, (left, right, left, right)))
    return _smoothed(fine, down_filter, functional.conv2d, factors[1])


def zeros_around(side_before: int, side: int, factors: tuple[int, int], lengths: tuple[int, int]) -> tuple[int, int]:
    """Zeros before and after the finely sampled pixels, for filters of these lengths to give `side` pixels round the same centre."""
    wanted = (side - 1) * factors[1] + sum(lengths) - 1
    missing = wanted - ((side_before - 1) * factors[0] + 1)
    return (missing + 1) // 2, missing - (missing + 1) // 2


def _smoothed(x_bchw: Tensor, kernel: Tensor | None, convolution: Callable[..., Tensor], factor: int) -> Tensor:
    """Every channel by itself, with a stride; transposed convolutions keep the mean."""
    if kernel is None:
        return x_bchw
    gain = factor if convolution is functional.conv_transpose2d else 1
    channels = x_bchw.shape[1]
    if kernel.ndim == 2:
        return convolution(x_bchw, (gain**2 * kernel).expand(channels, 1, -1, -1), stride=factor, groups=channels)
    columns = convolution(x_bchw, (gain * kernel)[:, None].expand(channels, 1, -1, -1), stride=(factor, 1), groups=channels)
    return convolution(columns, (gain * kernel)[None, :].expand(channels, 1, -1, -1), stride=(1, factor), groups=channels)


class AliasFreeGenerator(StyleNetwork):
    """`style` makes w of z, `forward` a picture of w."""

    def __init__(self, config: AliasFreeConfig):
        super().__init__(config.latent_dim, config.style_dim, config.mapping_layers, config.classes, config.class_dim)
        self.config = config
        self.features = FourierFeatures(config.widths[0], config.sides[0], config.style_dim)
        self.layers = nn.ModuleList(AliasFreeLayer(config, number) for number in range(len(config.sides)))

    def forward(self, w_bd: Tensor, noise: tuple[Tensor, ...] = ()) -> Tensor:
        """Pictures `[b, 3, h, w]`, nominally -1..1, not clamped. noise: none, as `config.noise_sides` says."""
        x = self.features(w_bd)
        for layer in self.layers:
            x = layer(x, w_bd)
        return x
