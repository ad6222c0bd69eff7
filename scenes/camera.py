"""What a camera does to a picture: exposure, vignette, blur, noise, and the steps of a compressed file."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import conv2d, pad

BLOCK = 8  # pixels: side of a JPEG block
# How likely a picture is blurred, noisy, compressed.
BLURRED, NOISY, COMPRESSED = 0.35, 0.6, 0.5


def photographed(image_bhwc: Tensor, seeds: Sequence[int]) -> Tensor:
    """sRGB pictures 0..1 as a camera with faults would give them; the same seed always gets the same faults."""
    return torch.stack([_photograph(image, seed) for image, seed in zip(image_bhwc, seeds, strict=True)])


def _photograph(image_hwc: Tensor, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    exposure, corners, blur, noise, steps, *chances = torch.rand(8, generator=dice).tolist()
    height, width, _ = image_hwc.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    image = image_hwc * (0.8 + 0.45 * exposure) * (1 - 0.3 * corners * (x * x + y * y) / 2)[..., None]
    image = image.clamp(0, 1)
    if chances[0] < BLURRED:
        image = _blurred(image, (0.25 + 0.4 * blur) * height / 128)
    if chances[1] < NOISY:
        # Photons: darker parts are noisier once a gamma has lifted them.
        image = image + 0.03 * noise * (1.3 - image) * torch.randn(image.shape, generator=dice)
    if chances[2] < COMPRESSED:
        image = _quantised(image, 0.01 + 0.05 * steps**2)
    return image.clamp(0, 1)


def _blurred(image_hwc: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` pixels."""
    reach = max(1, math.ceil(2 * sigma))
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weight = (weight / weight.sum()).view(1, 1, -1, 1)
    planes = rearrange(image_hwc, "h w c -> c 1 h w")
    planes = conv2d(pad(planes, (0, 0, reach, reach), mode="replicate"), weight)
    planes = conv2d(pad(planes, (reach, reach, 0, 0), mode="replicate"), weight.transpose(2, 3))
    return rearrange(planes, "c 1 h w -> h w c")


def _quantised(image_hwc: Tensor, step: float) -> Tensor:
    """Each 8 x 8 block's cosine coefficients in steps that grow with frequency, as JPEG's do."""
    height, width, _ = image_hwc.shape
    n = torch.arange(BLOCK) + 0.5
    basis = torch.cos(math.pi / BLOCK * torch.arange(BLOCK)[:, None] * n) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    planes = rearrange(image_hwc, "h w c -> 1 c h w")
    planes = pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    blocks = rearrange(planes, "1 c (y i) (x j) -> c y x i j", i=BLOCK, j=BLOCK)
    frequency = torch.arange(BLOCK)[:, None] + torch.arange(BLOCK)
    steps = step * (1 + frequency)
    coded = (basis @ blocks @ basis.T / steps).round() * steps
    blocks = basis.T @ coded @ basis
    return rearrange(blocks, "c y x i j -> (y i) (x j) c")[:height, :width]
