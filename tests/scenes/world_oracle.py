"""What stands where in a plan, in float64 and by definitions of the solids that share nothing with the renderer."""

import math

import torch
from intrinsic_lab.scenes.world import shapes
from intrinsic_lab.scenes.world.plan import Part, Plan
from torch import Tensor


def _polygon(x: Tensor, z: Tensor, corners: int) -> Tensor:
    """How far beyond a regular polygon with a corner at (0, 1)."""
    apothem = math.cos(math.pi / corners)
    angles = [math.pi / corners * (2 * k + 1) for k in range(corners)]
    return torch.stack([x * math.sin(a) + z * math.cos(a) for a in angles]).amax(0) - apothem


def _solid(part: Part, p: Tensor) -> Tensor:
    """[n]: negative inside a part, at places `[n, 3]` in half sizes along its axes."""
    x, y, z = p.unbind(-1)
    cube = p.abs().amax(-1) - 1
    if part.shape == shapes.TURNED:
        a, b, c = part.form
        return torch.maximum(y.abs() - 1, x**2 + z**2 - (a + b * y + c * y**2))
    if part.shape == shapes.BOX:
        return cube
    if part.shape == shapes.BEVELLED:
        pairs = torch.stack([x.abs() + y.abs(), y.abs() + z.abs(), z.abs() + x.abs()]).amax(0)
        return torch.maximum(cube, pairs - 1.82)
    if part.shape == shapes.HEXAGON:
        return torch.maximum(y.abs() - 1, _polygon(x, z, 6))
    if part.shape == shapes.ROOF:
        return torch.stack([-1 - y, z.abs() - 1, x.abs() - (1 - y) / 2]).amax(0)
    if part.shape == shapes.PYRAMID:
        return torch.maximum(-1 - y, torch.maximum(x.abs(), z.abs()) - (1 - y) / 2)
    if part.shape == shapes.TORUS:
        (tube,) = part.form
        angle = torch.atan2(z, x)
        ring = torch.stack([(1 - tube) * angle.cos(), torch.zeros_like(y), (1 - tube) * angle.sin()], -1)
        return (p - ring).norm(dim=-1) - tube
    if part.shape == shapes.BLEND:
        balls = torch.tensor(part.form, dtype=torch.float64).view(6, 4)
        distances = torch.cdist(p, balls[:, :3]) - balls[:, 3]
        return -torch.logsumexp(-14 * distances, -1) / 14
    k, height, a, b, c = part.form
    bumps = torch.sin(k * x + a) * torch.sin(k * y + b) * torch.sin(k * z + c)
    bumps = bumps + 0.5 * torch.sin(2.1 * k * x + b) * torch.sin(1.9 * k * y + c) * torch.sin(2.2 * k * z + a)
    return p.norm(dim=-1) - (1 - 1.5 * height + height * bumps)


def inside_part(part: Part, place: Tensor) -> Tensor:
    """[n]: negative inside, at world places `[n, 3]` float64."""
    axes, half, centre = (torch.tensor(of, dtype=torch.float64) for of in (part.axes, part.half, part.centre))
    return _solid(part, (place - centre) @ axes.T / half)


def hill_height(plan: Plan, x: Tensor, z: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for height, kx, kz, phase in plan.waves:
        total += height * torch.sin(kx * x + kz * z + phase)
    return total * (x**2 + z**2) / (x**2 + z**2 + 81)


def nearest_miss(plan: Plan, place: Tensor) -> Tensor:
    """[n]: negative inside anything at all: a part, the hills, the ground, a wall."""
    low, high = (torch.tensor(of, dtype=torch.float64) for of in (plan.low, plan.high))
    values = [(place - low).amin(-1), (high - place).amin(-1)]
    if plan.waves:
        values.append(place[:, 1] - hill_height(plan, place[:, 0], place[:, 2]))
    values += [inside_part(part, place) for part in plan.parts]
    return torch.stack(values).amin(0)
