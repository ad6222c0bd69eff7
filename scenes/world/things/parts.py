"""A thing as a group of parts, and the parts things are made of; lengths in metres."""

import math
from dataclasses import dataclass

from ..draw import cross, unit
from ..plan import UPRIGHT, Axes, Material, Part, Vector, vector
from ..shapes import BALL, BOX, CYLINDER, TURNED


@dataclass(frozen=True)
class Thing:
    """noun: how a caption calls it, with its material's words. radius: of the circle it stands in."""

    noun: str
    parts: tuple[Part, ...]
    radius: float
    height: float

    @property
    def name(self) -> str:
        return f"{self.parts[0].material.words} {self.noun}"


def box(x: float, y: float, z: float, centre: Vector, material: Material, axes: Axes = UPRIGHT, shape: int = BOX) -> Part:
    """Full lengths."""
    return Part(shape, centre, (x / 2, y / 2, z / 2), material, axes)


def turned(radius: float, height: float, base: Vector, material: Material, form=CYLINDER, axes: Axes = UPRIGHT) -> Part:
    """Upright on its base."""
    return Part(TURNED, (base[0], base[1] + height / 2, base[2]), (radius, height / 2, radius), material, axes, form)


def ball(radius: float, centre: Vector, material: Material, stretch: Vector = (1.0, 1.0, 1.0)) -> Part:
    return Part(TURNED, centre, vector(radius * factor for factor in stretch), material, form=BALL)


def rod(start: Vector, end: Vector, radius: float, material: Material, form=CYLINDER) -> Part:
    """A thin cylinder between two places."""
    way = vector(e - s for s, e in zip(start, end, strict=True))
    length = math.sqrt(sum(x * x for x in way))
    up = unit(way)
    right = unit(cross(up, (0.31, 0.2, 0.93) if abs(up[2]) < 0.9 else (1.0, 0.1, 0.0)))
    middle = vector((s + e) / 2 for s, e in zip(start, end, strict=True))
    return Part(TURNED, middle, (radius, length / 2, radius), material, (right, up, cross(right, up)), form)
