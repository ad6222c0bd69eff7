"""Between a map's data and the picture that a generator's VAE sees."""

import torch
from torch import Tensor


def srgb_from_linear(linear: Tensor) -> Tensor:
    """sRGB transfer function (IEC 61966-2-1), any shape; negative values are mirrored, nothing is clamped."""
    magnitude = linear.abs()
    curve = 1.055 * magnitude.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(magnitude <= 0.0031308, 12.92 * magnitude, curve) * linear.sign()


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """Inverse of `srgb_from_linear`."""
    magnitude = srgb.abs()
    curve = ((magnitude.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(magnitude <= 0.04045, magnitude / 12.92, curve) * srgb.sign()


def normal_picture(normal_bhw3: Tensor) -> Tensor:
    """-1..1 to the picture's 0..1."""
    return (normal_bhw3 + 1) / 2


def unit_normals(vector: Tensor) -> Tensor:
    """Vectors (last dimension 3) of length 1; a zero vector becomes (0, 0, 1), facing the viewer."""
    # On a decoder's planes several times faster than `norm`, which gathers its three numbers for every pixel.
    x, y, z = vector.unbind(-1)
    length = (x * x + y * y + z * z).sqrt()[..., None]
    towards_viewer = vector.new_tensor([0.0, 0.0, 1.0]).expand_as(vector)
    return torch.where(length > 1e-6, vector / length.clamp(min=1e-6), towards_viewer)


def normal_from_picture(picture_bhw3: Tensor) -> Tensor:
    """A picture's 0..1 to unit vectors, as `unit_normals`."""
    return unit_normals(picture_bhw3 * 2 - 1)


def relative_depth(depth_bhw1: Tensor) -> Tensor:
    """Any monotone depth to 0..1 per picture (nearest..farthest); a flat depth becomes 0."""
    nearest, farthest = depth_bhw1.amin((1, 2, 3), keepdim=True), depth_bhw1.amax((1, 2, 3), keepdim=True)
    return (depth_bhw1 - nearest) / (farthest - nearest).clamp(min=1e-12)


def grey_picture(values_bhw1: Tensor) -> Tensor:
    """One channel as grey, as it is."""
    return values_bhw1.expand(*values_bhw1.shape[:3], 3)


def grey_from_picture(picture_bhwc: Tensor) -> Tensor:
    """Mean over channels (as the I-LoRA authors read their depth); no normalisation here."""
    return picture_bhwc.mean(dim=-1, keepdim=True)


def depth_picture(depth_bhw1: Tensor) -> Tensor:
    """Relative depth of each picture as grey, near dark."""
    return grey_picture(relative_depth(depth_bhw1))


def as_is(values: Tensor) -> Tensor:
    """What is data and picture alike."""
    return values
