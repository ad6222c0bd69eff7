"""What is around the things of a scene: a room, or a ground under a sky; and the light there."""

from collections.abc import Sequence
from dataclasses import dataclass

from .draw import Draw, lamp, scaled, sun
from .plan import CLEAR, ENDLESS, Light, Material, Sky, Vector, vector

# Noun: colours, patterns, cycles per metre.
GROUNDS = {
    "grass": (("green", "green", "green", "yellow"), ("mottled",), (1.0, 4.0)),
    "sand": (("yellow", "orange", "white"), ("mottled", ""), (0.3, 2.0)),
    "snow": (("white",), ("", "mottled"), (0.2, 1.0)),
    "earth": (("brown", "orange", "gray"), ("mottled",), (0.6, 3.0)),
    "road": (("gray", "black"), ("mottled", ""), (1.0, 6.0)),
    "square": (("gray", "white", "red", "yellow"), ("tiled", "tiled", "checkered", "brick"), (0.4, 1.2)),
}


@dataclass(frozen=True)
class Around:
    """The part of a plan that is not things, and how a caption says it.

    floor: "wooden brown floor" or "green grass"; background: "white walls" or "cloudy sky"; light: "light from left".
    """

    faces: tuple[Material, ...]
    lights: tuple[Light, ...]
    above: Vector
    below: Vector
    mirrored: tuple[Vector, Vector, Vector]
    floor: str
    background: str
    light: str
    low: Vector = (-ENDLESS, 0.0, -ENDLESS)
    high: Vector = (ENDLESS, ENDLESS, ENDLESS)
    sky: Sky = CLEAR

    @property
    def words(self) -> str:
        article = "a " if self.floor.endswith(("floor", "road", "square")) else ""
        return f"on {article}{self.floor}, {self.background}, {self.light}".replace("on a orange", "on an orange")


def surroundings(draw: Draw, eye: Vector, azimuth: float, reach: float, behind: tuple[float, float], outdoors: float) -> Around:
    """Open air, or a room that holds the camera; outdoors: how likely; behind: metres from the origin to the back wall."""
    if draw.chance(outdoors):
        return open_air(draw, azimuth, tuple(GROUNDS))
    wide = reach + draw.between(0.3, 2.0)
    low = (-wide, 0.0, min(-draw.between(*behind), eye[2] - 0.4))
    return room(draw, low, (wide, max(eye[1] + 0.4, draw.between(2, 3.5)), max(eye[2] + 0.6, 1.2)), azimuth)


def ground(draw: Draw, nouns: Sequence[str]) -> tuple[str, Material]:
    noun = draw.pick(nouns)
    colors, patterns, scale = GROUNDS[noun]
    return noun, draw.material(patterns, colors, scale, shiny=0, muted=0.25)


def open_air(draw: Draw, facing: float, nouns: Sequence[str]) -> Around:
    """A ground under a sky with its sun, or under clouds. facing: azimuth at which the camera stands, radians."""
    noun, floor = ground(draw, nouns)
    kind = draw.pick(("sunny", "sunny", "sunny", "cloudy", "evening", "dull"))
    low, high = {"evening": (7, 20), "dull": (30, 70)}.get(kind, (22, 75))
    towards, side = draw.towards_light((-180, 180), (low, high), facing)
    ambient, clouds = draw.ambient(0.2, 0.36), draw.between(0.2, 0.9)
    if kind == "evening":
        zenith, horizon = _near(draw, (0.12, 0.16, 0.36)), _near(draw, (0.85, 0.5, 0.3))
        above, tint = (0.8, 0.8, 1.0), draw.tint(draw.between(0.5, 0.9))
    elif kind == "dull":
        zenith, horizon = _near(draw, (0.55, 0.58, 0.62)), _near(draw, (0.75, 0.76, 0.78))
        above, tint, ambient = (0.95, 0.97, 1.0), (0.0, 0.0, 0.0), draw.ambient(0.7, 0.95)
    else:
        zenith, horizon = scaled(_near(draw, (0.1, 0.24, 0.6)), draw.between(0.7, 1.15)), _near(draw, (0.6, 0.74, 0.88))
        above, tint = (0.75, 0.88, 1.0), draw.tint(draw.between(0.0, 0.4))
        clouds = draw.between(0.6, 0.95) if kind == "cloudy" else draw.between(0.0, 0.45)
    above = scaled(above, ambient)
    return Around(
        faces=(floor,) * 6,
        lights=(sun(towards, scaled(tint, 1 - ambient), draw.pick((0.01, 0.02, 0.05))),),
        above=above,
        below=vector(0.5 * light * color for light, color in zip(above, floor.color, strict=True)),
        mirrored=(zenith, horizon, scaled(floor.color, 0.6)),
        floor=f"{floor.words.split()[-1]} {noun}",
        background=f"{kind} sky",
        light="no sun" if kind == "dull" else f"light from {side}",
        sky=Sky(zenith, horizon, clouds, vector(draw.between(0, 32) for _ in range(3))),
    )


def room(draw: Draw, low: Vector, high: Vector, facing: float) -> Around:
    """Walls, and one or two lamps or light from a side as from a large window. facing: azimuth at which the camera stands, radians."""
    floor = draw.material(
        ("wooden", "wooden", "tiled", "checkered", "mottled", "", "marbled", "woven"), scale=(0.8, 2.5), shiny=0.35, muted=0.3
    )
    paper = draw.material(
        ("", "", "", "", "striped", "brick", "tiled", "dotted", "mottled", "lined"), scale=(0.7, 2), shiny=0.02, muted=0.55
    )
    ceiling = draw.material(("",), ("white", "white", "white", "gray", "yellow"), shiny=0, muted=0.4)
    other = draw.material(("",), shiny=0, muted=0.6) if draw.chance(0.3) else paper

    ambient, warmth = draw.ambient(0.2, 0.45), draw.between(-0.3, 0.7)
    lights, sides = [], []
    for index, share in enumerate((1.0,) if draw.chance(0.6) else (0.65, 0.35)):
        color = scaled(draw.tint(warmth - 0.8 * index), share * (1 - ambient))
        towards, side = draw.towards_light((-150, 150), (25, 75), facing)
        sides.append(side)
        if draw.chance(0.55):
            x, y, z = ((a + b) / 2 + 0.42 * (b - a) * t for a, b, t in zip(low, high, towards, strict=True))
            y = min(y, high[1] - 0.15)
            lights.append(lamp((x, y, z), color, draw.between(0.05, 0.3), draw.between(0.6, 1.1) * max(y, 0.5)))
        else:
            lights.append(sun(towards, color, draw.between(0.02, 0.15)))
    above = scaled(draw.tint(warmth * 0.4), ambient)
    return Around(
        faces=(floor, ceiling, other, other, paper, other),
        lights=tuple(lights),
        above=above,
        below=vector(light * (0.35 + 0.4 * color) for light, color in zip(above, floor.color, strict=True)),
        mirrored=(scaled(ceiling.color, 0.75), scaled(paper.color, 0.45), scaled(floor.color, 0.4)),
        floor=f"{floor.words} floor",
        background=f"{paper.words} walls",
        light=f"light from {sides[0]}",
        low=low,
        high=high,
    )


def _near(draw: Draw, color: Vector) -> Vector:
    return vector(min(0.95, channel * draw.between(0.85, 1.15)) for channel in color)
