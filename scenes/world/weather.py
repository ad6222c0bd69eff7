"""Grounds, skies and the light under them, and the light of rooms."""

from dataclasses import dataclass

from .draw import Draw, lamp, scaled, sun
from .plan import CLEAR, Light, Material, Sky, Vector

# Noun: colours, patterns, cycles per metre.
GROUNDS = {
    "grass": (("green", "green", "green", "yellow"), ("mottled",), (1.0, 4.0)),
    "sand": (("yellow", "orange", "white"), ("mottled", ""), (0.3, 2.0)),
    "snow": (("white",), ("", "mottled"), (0.2, 1.0)),
    "earth": (("brown", "orange", "gray"), ("mottled",), (0.6, 3.0)),
    "a road": (("gray", "black"), ("mottled", ""), (1.0, 6.0)),
    "a square": (("gray", "white", "red", "yellow"), ("tiled", "tiled", "checkered", "brick"), (0.4, 1.2)),
}


@dataclass(frozen=True)
class Lighting:
    """The part of a plan that lights it, and how a caption says so."""

    lights: tuple[Light, ...]
    above: Vector
    below: Vector
    mirrored: tuple[Vector, Vector, Vector]
    words: str
    sky: Sky


def ground(draw: Draw, nouns=tuple(GROUNDS)) -> tuple[str, Material]:
    noun = draw.pick(nouns)
    colors, patterns, scale = GROUNDS[noun]
    return noun, draw.material(patterns, colors, scale, shiny=0, muted=0.25)


def outside(draw: Draw, floor: Material, facing: float = 0.0) -> Lighting:
    """A sky with its sun, or clouds all over. facing: degrees, azimuth at which the camera stands."""
    kind = draw.pick(("sunny", "sunny", "sunny", "cloudy", "evening", "dull"))
    ambient = draw.ambient(0.2, 0.36)
    if kind == "evening":
        towards, side = draw.towards_light((-180, 180), (7, 20), facing)
        zenith, horizon = _near(draw, (0.12, 0.16, 0.36)), _near(draw, (0.85, 0.5, 0.3))
        above, tint = (0.8, 0.8, 1.0), draw.tint(draw.between(0.5, 0.9))
    elif kind == "dull":
        towards, side = draw.towards_light((-180, 180), (30, 70), facing)
        zenith, horizon = _near(draw, (0.55, 0.58, 0.62)), _near(draw, (0.75, 0.76, 0.78))
        above, tint = (0.95, 0.97, 1.0), (0.0, 0.0, 0.0)
        ambient = draw.ambient(0.7, 0.95)
    else:
        towards, side = draw.towards_light((-180, 180), (22, 75), facing)
        blue = draw.between(0.7, 1.15)
        zenith, horizon = scaled(_near(draw, (0.1, 0.24, 0.6)), blue), _near(draw, (0.6, 0.74, 0.88))
        above, tint = (0.75, 0.88, 1.0), draw.tint(draw.between(0.0, 0.4))
    clouds = {"sunny": draw.between(0.0, 0.45), "cloudy": draw.between(0.6, 0.95)}.get(kind, draw.between(0.2, 0.9))
    above = scaled(above, ambient)
    below = tuple(0.5 * light * color for light, color in zip(above, floor.color, strict=True))
    bounced = tuple(0.6 * color for color in floor.color)
    offset = tuple(draw.between(0, 32) for _ in range(3))
    light = sun(towards, scaled(tint, 1 - ambient), draw.pick((0.01, 0.02, 0.05)))
    words = "dull sky" if kind == "dull" else f"{kind} sky, light from {side}"
    return Lighting((light,), above, below, (zenith, horizon, bounced), words, Sky(zenith, horizon, clouds, offset))


def inside(draw: Draw, low: Vector, high: Vector, room: tuple[Material, ...], facing: float = 0.0) -> Lighting:
    """One or two lamps, or light from a side as from a large window. facing: degrees, azimuth at which the camera stands."""
    ambient = draw.ambient(0.2, 0.45)
    warmth = draw.between(-0.3, 0.7)
    shares = (1.0,) if draw.chance(0.6) else (0.65, 0.35)
    lights, words = [], ""
    for index, share in enumerate(shares):
        color = scaled(draw.tint(warmth - 0.8 * index), share * (1 - ambient))
        towards, side = draw.towards_light((-150, 150), (25, 75), facing)
        if draw.chance(0.55):
            span = 0.42
            place = tuple((a + b) / 2 + span * (b - a) * t for a, b, t in zip(low, high, towards, strict=True))
            place = (place[0], min(place[1], high[1] - 0.15), place[2])
            reach = draw.between(0.6, 1.1) * max(place[1], 0.5)
            lights.append(lamp(place, color, draw.between(0.05, 0.35), reach))
        else:
            lights.append(sun(towards, color, draw.between(0.02, 0.2)))
        words = words or side
    above = scaled(draw.tint(warmth * 0.4), ambient)
    ceiling, wall, floor = room[1].color, room[4].color, room[0].color
    below = tuple(light * (0.35 + 0.4 * color) for light, color in zip(above, floor, strict=True))
    mirrored = (scaled(ceiling, 0.75), scaled(wall, 0.45), scaled(floor, 0.4))
    return Lighting(tuple(lights), above, below, mirrored, f"light from {words}", CLEAR)


def walls(draw: Draw) -> tuple[Material, ...]:
    """The six faces of a room."""
    floor = draw.material(
        ("wooden", "wooden", "tiled", "checkered", "mottled", "", "marbled", "woven"), scale=(0.8, 2.5), shiny=0.35, muted=0.3
    )
    paper = draw.material(
        ("", "", "", "", "striped", "brick", "tiled", "dotted", "mottled", "lined"), scale=(0.7, 2), shiny=0.02, muted=0.55
    )
    ceiling = draw.material(("",), ("white", "white", "white", "gray", "yellow"), shiny=0, muted=0.4)
    other = draw.material(("",), shiny=0, muted=0.6) if draw.chance(0.3) else paper
    return floor, ceiling, other, other, paper, other


def _near(draw: Draw, color: Vector) -> Vector:
    return tuple(min(0.95, channel * draw.between(0.85, 1.15)) for channel in color)
