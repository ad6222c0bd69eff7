"""Where rays meet the six objects of each scene. Vectors are `[3, b, p]`, xyz first, so that each component is contiguous.

Few rays come near an object, so a matrix product finds those that pass its bounding sphere, and only they are intersected.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .parameters import OBJECT_WORDS, ROOM_SURFACES, Scenes

# Bounding spheres are this much too large, in metres: far more than float32 loses in the products below.
BOUND_MARGIN = 0.01


def dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def reciprocal(direction: Tensor) -> Tensor:
    """1 / direction, but large instead of infinite: infinity times zero or minus infinity would make a slab test NaN."""
    return 1 / torch.where(direction.abs() < 1e-12, torch.full_like(direction, 1e-12), direction)


def turn(vector: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """World to a frame turned by yaw about y; with -sine, back again."""
    x, y, z = vector
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z])


def object_hits(
    scenes: Scenes, origin: Tensor, direction: Tensor, wanted: Tensor | None = None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield, for each of the six objects, (its index, scene [n], pixel [n], distance [n]) of the n rays that hit it.

    origin, direction: `[3, b, p]`, unit directions; origin may be `[3, b, 1]`. wanted: `[b, p]` bool, rays to look at.
    """
    near = _near_objects(scenes, origin, direction)
    if wanted is not None:
        near &= wanted[:, None]
    origin = origin.expand_as(direction)
    for index, word in enumerate(OBJECT_WORDS):
        surface = ROOM_SURFACES + index
        scene, pixel = near[:, index].nonzero(as_tuple=True)
        offset = origin[:, scene, pixel] - scenes.centre[scene, surface].T
        half = scenes.half_size[scene, surface].T
        if word == "ball":
            hit, distance = _sphere(offset, direction[:, scene, pixel], half)
        elif word == "box":
            yaw = scenes.yaw[:, surface]
            cosine, sine = yaw.cos()[scene], yaw.sin()[scene]
            hit, distance = _box(turn(offset, cosine, sine), turn(direction[:, scene, pixel], cosine, sine), half)
        else:
            hit, distance = _cylinder(offset, direction[:, scene, pixel], half)
        hit &= distance > 0
        yield index, scene[hit], pixel[hit], distance[hit]


def _near_objects(scenes: Scenes, origin: Tensor, direction: Tensor) -> Tensor:
    """[b, 6, p] bool: the line of the ray passes the sphere around an object that exists."""
    centre = scenes.centre[:, ROOM_SURFACES:]
    # The half diagonal holds boxes and cylinders; balls fit too.
    radius = scenes.half_size[:, ROOM_SURFACES:].norm(dim=-1) + BOUND_MARGIN
    # With o - c the way from an object's centre c to the origin o, the line is |o - c|^2 - ((o - c).d)^2 away, squared.
    along = torch.baddbmm(dot(origin, direction)[:, None], centre, direction.transpose(0, 1), alpha=-1)
    squared = torch.baddbmm(dot(origin, origin)[:, None], centre, origin.transpose(0, 1), alpha=-2)  # less |c|^2
    limit = torch.where(scenes.present, radius.square() - centre.square().sum(-1), -float("inf"))
    return torch.addcmul(squared, along, along, value=-1) < limit[..., None]


def _sphere(offset: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    b = dot(offset, direction)
    discriminant = b * b - dot(offset, offset) + half[0] ** 2
    return discriminant > 0, -b - discriminant.clamp(min=0).sqrt()


def _box(offset: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    inverse = reciprocal(direction)
    middle, reach = -offset * inverse, half * inverse.abs()
    distance = (middle - reach).amax(0)
    return distance < (middle + reach).amin(0), distance


def _cylinder(offset: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    a = direction[0] ** 2 + direction[2] ** 2
    b = offset[0] * direction[0] + offset[2] * direction[2]
    discriminant = b * b - a * (offset[0] ** 2 + offset[2] ** 2 - half[0] ** 2)
    root = discriminant.clamp(min=0).sqrt()
    inverse_y = reciprocal(direction[1])
    middle, reach = -offset[1] * inverse_y, half[1] * inverse_y.abs()
    distance = torch.maximum((-b - root) / a, middle - reach)
    return (discriminant > 0) & (distance < torch.minimum((-b + root) / a, middle + reach)), distance
