"""Smooth solids as signed fields, and hills as a height over the ground. Places are `[3, n]`, shape numbers `[k, n]`."""

from collections.abc import Callable

import torch
from torch import Tensor

BLEND_SHARPNESS = 14.0
BALLS = 6
# Hills grow out of flat ground around the origin, over about this many metres.
FLAT_RADIUS = 9.0


def torus(form: Tensor, place: Tensor) -> Tensor:
    """A ring of outer radius 1 about y, its tube's radius form[0]."""
    x, y, z = place
    return torch.hypot(torch.hypot(x, z) - (1 - form[0]), y) - form[0]


def blend(form: Tensor, place: Tensor) -> Tensor:
    """Smooth union of six balls, (x, y, z, radius) each: a softest-minimum of distances, so its slope never exceeds 1."""
    balls = form.view(BALLS, 4, *form.shape[1:])
    distance = (place - balls[:, :3]).square().sum(1).sqrt() - balls[:, 3]
    return -(-BLEND_SHARPNESS * distance).exp().sum(0).clamp(min=1e-30).log() / BLEND_SHARPNESS


def bumpy(form: Tensor, place: Tensor) -> Tensor:
    """A ball with bumps, its farthest point at 1 at most; form: waves per radius, their height, three phases."""
    x, y, z = place
    k, height, a, b, c = form[:5]
    coarse = (k * x + a).sin() * (k * y + b).sin() * (k * z + c).sin()
    fine = (2.1 * k * x + b).sin() * (1.9 * k * y + c).sin() * (2.2 * k * z + a).sin()
    return (x * x + y * y + z * z).sqrt() - 1 + height * (1.5 - coarse - 0.5 * fine)


def steepest(form: Tensor, field: Callable) -> Tensor | float:
    """How steep a field usually is at most."""
    return 1 + 0.6 * form[0] * form[1] if field is bumpy else 1.0


def hills(waves: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Height in metres over x, z `[...]`; waves: [4, w, ...]: height, kx, kz, phase. Flat at the origin."""
    height, kx, kz, phase = waves
    return flattened((height * (kx * x + kz * z + phase).sin()).sum(0), x, z)


def flattened(height: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Heights, less of them near the origin."""
    distance = x * x + z * z
    return height * (distance / (distance + FLAT_RADIUS**2))


def gradient(field, place: Tensor, step: float = 1e-5) -> Tensor:
    """[3, n] float64, by central differences."""
    place = place.double()
    rows = []
    for axis in range(3):
        offset = torch.zeros(3, 1, dtype=torch.float64)
        offset[axis] = step
        rows.append(field(place + offset) - field(place - offset))
    return torch.stack(rows) / (2 * step)
