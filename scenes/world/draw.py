"""The dice of one scene: numbers, colours, materials, lights and cameras, within the limits of a style."""

import math
import random
from collections.abc import Sequence

from ..parameters import COLOR_WORDS, PALETTE, TEXTURE_WORDS, Style
from .patterns import PATTERN_IDS
from .plan import Axes, Camera, Light, Material, Vector, vector

# Second colours of patterns that have one of their own, as a share of the first.
_WOOD = ("brown", "brown", "brown", "orange", "yellow", "black", "white", "gray")
_STONE = ("gray", "brown", "white", "red", "orange")


class Draw:
    """Everything random about one scene; the same seed, kind and style always give the same."""

    def __init__(self, kind: str, seed: int, style: Style):
        self.dice = random.Random(f"{kind} {seed}")
        self.style = style

    def between(self, low: float, high: float) -> float:
        return self.dice.uniform(low, high)

    def chance(self, share: float) -> bool:
        return self.dice.random() < share

    def pick(self, options: Sequence):
        return options[self.dice.randrange(len(options))]

    def count(self, low: int, high: int) -> int:
        """low to high, both possible."""
        return self.dice.randint(low, high)

    def color(self, words: Sequence[str] = COLOR_WORDS) -> tuple[str, Vector]:
        """A name and a colour near it; a style's colours come before those asked for."""
        word = self.pick(self.style.colors or words)
        level = self.between(0.75, 1.15)
        return word, vector(min(0.92, max(0.02, level * self.between(0.92, 1.08) * channel)) for channel in PALETTE[word])

    def material(
        self,
        patterns: Sequence[str] = ("",),
        colors: Sequence[str] = COLOR_WORDS,
        scale: tuple[float, float] = (2.0, 5.0),
        shiny: float = 0.3,
        metal: float = 0.0,
        muted: float = 0.0,
    ) -> Material:
        """patterns: names to choose from. shiny, metal: how likely. muted: 0..1 towards grey."""
        if self.style.textures is not None:
            patterns = [TEXTURE_WORDS[index] for index in self.style.textures]
        pattern = self.pick(patterns)
        if pattern == "wooden":
            colors = [word for word in colors if word in _WOOD] or _WOOD
        elif pattern == "brick":
            colors = _STONE
        word, color = self.color(colors)
        if muted and self.style.colors is None:
            grey = sum(color) / 3
            color = vector(channel + muted * (0.5 * grey + 0.22 - channel) for channel in color)
        if pattern in ("wooden", "mottled", "tiled", "brick", "woven"):
            factor = self.between(0.45, 0.75) if pattern != "brick" else self.between(0.5, 1.6)
            second = vector(min(0.9, factor * channel + (0.1 if pattern == "brick" else 0.0)) for channel in color)
        else:
            _, second = self.color() if self.chance(0.6) else ("", vector(0.4 * channel for channel in color))
        metallic, roughness, finish = 0.0, self.between(0.75, 1.0), ""
        if self.chance(metal):
            metallic, roughness, finish, pattern = self.between(0.75, 1.0), self.between(0.18, 0.55), "metal", ""
        elif self.chance(shiny):
            roughness, finish = self.between(0.15, 0.5), "shiny"
        # A quarter off the whole keeps cells from ending on the flat faces of parts.
        offset = vector(self.count(0, 30) + 0.253 for _ in range(3))
        words = " ".join(said for said in (finish, pattern, word) if said)
        return Material(color, second, PATTERN_IDS[pattern], self.between(*scale), offset, roughness, metallic, words)

    def tint(self, warmth: float) -> Vector:
        """A light's colour, brightest channel 1; warmth -1 (blue) to 1 (orange)."""
        if self.style.light_color is not None:
            return self.style.light_color
        red, blue = (1.0, 1 - 0.55 * warmth) if warmth > 0 else (1 + 0.35 * warmth, 1.0)
        return red, 1 - 0.22 * abs(warmth), blue

    def ambient(self, low: float, high: float) -> float:
        share = self.between(low, high)
        return share if self.style.ambient is None else self.style.ambient

    def towards_light(self, azimuth: tuple[float, float], elevation: tuple[float, float], facing: float = 0.0) -> tuple[Vector, str]:
        """Unit vector towards a light and the side it comes from. Angles in degrees; facing: azimuth at which the camera stands,
        radians."""
        side = self.between(*azimuth) if self.style.light_azimuth_degrees is None else self.style.light_azimuth_degrees
        height = math.radians(self.between(*elevation))
        turned = math.radians(side) + facing
        towards = (math.sin(turned) * math.cos(height), math.sin(height), math.cos(turned) * math.cos(height))
        side = (side + 180) % 360 - 180
        if height > 1.05:
            return towards, "above"
        return towards, "front" if abs(side) < 40 else "back" if abs(side) > 140 else "right" if side > 0 else "left"

    def camera(self, position: Vector, target: Vector, fov: tuple[float, float], roll: float = 0.0) -> Camera:
        """Looks from a position at a target; roll: at most, degrees."""
        return look(position, target, self.between(*fov), math.radians(self.between(-roll, roll)))


def look(position: Vector, target: Vector, fov_degrees: float, roll: float = 0.0) -> Camera:
    back = unit(vector(p - t for p, t in zip(position, target, strict=True)))
    right = unit(cross((0.0, 1.0, 0.0), back))
    up = cross(back, right)
    c, s = math.cos(roll), math.sin(roll)
    rolled = vector(c * r + s * u for r, u in zip(right, up, strict=True))
    return Camera(position, (rolled, cross(back, rolled), back), fov_degrees)


def unit(way: Vector) -> Vector:
    length = math.sqrt(sum(x * x for x in way))
    return vector(x / length for x in way)


def cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def scaled(way: Vector, factor: float) -> Vector:
    return vector(factor * x for x in way)


def lamp(place: Vector, color: Vector, size: float, reach: float) -> Light:
    return Light(True, place, color, size, reach)


def sun(towards: Vector, color: Vector, size: float) -> Light:
    return Light(False, towards, color, size)


def turned_about_y(angle: float) -> Axes:
    """Rows: the images of a turned frame's axes."""
    c, s = math.cos(angle), math.sin(angle)
    return (c, 0.0, -s), (0.0, 1.0, 0.0), (s, 0.0, c)
