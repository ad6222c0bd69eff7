"""Trees, houses, cars, people and what stands about in streets and parks."""

import math

from ..draw import Draw
from ..plan import Material, Part
from ..shapes import BEVELLED, BLEND, BUMPY, CYLINDER, ROOF, TURNED, frustum
from .parts import Thing, ball, box, rod, turned


def tree(draw: Draw, size: float, kind: str | None = None) -> Thing:
    kind = kind or draw.pick(("tree", "tree", "fir"))
    bark = draw.material(("mottled",), ("brown", "gray", "brown"), (3, 6), 0)
    leaves = draw.material(("mottled",), ("green", "green", "green", "yellow", "orange"), (2.5, 5), 0)
    trunk = size * draw.between(0.2, 0.4)
    if kind == "fir":
        parts = [turned(size * (0.24 - 0.05 * i), size * 0.42, (0, size * (0.14 + 0.2 * i), 0), leaves, frustum(0.02)) for i in range(3)]
        return Thing("fir", (*parts, turned(size * 0.04, size * 0.2, (0, 0, 0), bark)), size * 0.24, size)
    parts = []
    for _ in range(draw.count(1, 3)):
        r = size * draw.between(0.2, 0.3)
        form = (draw.between(4, 7), draw.between(0.08, 0.13), *(draw.between(0, 6.28) for _ in range(3)))
        place = (draw.between(-0.15, 0.15) * size, trunk + size * draw.between(0.15, 0.4), draw.between(-0.15, 0.15) * size)
        parts.append(Part(BUMPY, place, (r, r * draw.between(0.8, 1.15), r), leaves, form=form))
    return Thing("tree", (*parts, turned(size * 0.045, trunk + size * 0.25, (0, 0, 0), bark, frustum(0.6))), size * 0.3, size)


def bush(draw: Draw, size: float) -> Thing:
    leaves = draw.material(("mottled",), ("green", "green", "yellow"), (3, 7), 0)
    form = (draw.between(4, 7), draw.between(0.08, 0.13), *(draw.between(0, 6.28) for _ in range(3)))
    return Thing("bush", (Part(BUMPY, (0, size * 0.3, 0), (size / 2, size * 0.42, size / 2), leaves, form=form),), size / 2, size * 0.7)


def house(draw: Draw, size: float) -> Thing:
    wall = draw.material(
        ("", "brick", "brick", "wooden", "tiled"), ("white", "yellow", "red", "gray", "brown", "pink", "blue"), (0.8, 1.6), 0
    )
    tiles = draw.material(("", "lined", "tiled"), ("red", "brown", "gray", "black", "orange"), (1, 2), 0)
    trim = draw.material(("",), ("white", "brown", "green", "gray", "blue"), shiny=0)
    glass = draw.material(("",), ("black", "blue", "gray"), shiny=1)
    w, d, height = size, size * draw.between(0.7, 1.1), size * draw.between(0.45, 0.9)
    parts = [box(w, height, d, (0, height / 2, 0), wall)]
    if draw.chance(0.75):
        roof = size * draw.between(0.25, 0.5)
        parts.append(box(w * 1.1, roof, d * 1.08, (0, height + roof / 2, 0), tiles, shape=ROOF))
        top = height + roof
    else:
        parts.append(box(w * 1.06, 0.25, d * 1.06, (0, height + 0.1, 0), tiles))
        top = height
    parts.append(box(w * 0.14, height * 0.42, 0.1, (0, height * 0.21, d / 2), trim))
    for floor in range(1 if height < 3.2 else 2):
        y = height * (0.55 if height < 3.2 else 0.3 + 0.42 * floor)
        for x in (-0.32, 0.32):
            parts.append(box(w * 0.17, height * 0.2, 0.12, (x * w, y, d / 2), trim))
            parts.append(box(w * 0.14, height * 0.17, 0.14, (x * w, y, d / 2), glass))
    for side in (-1, 1):
        parts.append(box(0.14, height * 0.22, d * 0.2, (side * w / 2, height * 0.55, 0), glass))
    return Thing("house", tuple(parts), math.hypot(w, d) * 0.56, top)


def car(draw: Draw, scale: float = 1.0) -> Thing:
    paint = draw.material(("",), shiny=1)
    glass, rubber = draw.material(("",), ("black", "blue"), shiny=1), draw.material(("",), ("black",), shiny=0)
    long, w = 4.0 * scale, 1.7 * scale
    parts = [
        box(long, 0.6 * scale, w, (0, 0.6 * scale, 0), paint, shape=BEVELLED),
        box(long * 0.52, 0.56 * scale, w * 0.86, (-0.1 * long, 1.12 * scale, 0), glass, shape=BEVELLED),
        box(long * 0.4, 0.06 * scale, w * 0.8, (-0.1 * long, 1.39 * scale, 0), paint),
    ]
    sideways = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    for x in (-0.3, 0.31):
        for side in (-1, 1):
            wheel = (x * long, 0.33 * scale, side * w * 0.46)
            parts.append(Part(TURNED, wheel, (0.33 * scale, 0.12 * scale, 0.33 * scale), rubber, sideways, CYLINDER))
    return Thing("car", tuple(parts), long * 0.54, 1.4 * scale)


def fence(draw: Draw, long: float) -> Thing:
    wood = draw.material(("wooden", ""), ("brown", "white", "gray"), (1, 2), 0, 0.15)
    height, posts = draw.between(0.7, 1.2), max(2, round(long / 1.5) + 1)
    parts = [rod((-long / 2, height * y, 0), (long / 2, height * y, 0), 0.035, wood) for y in (0.45, 0.85)]
    for post in range(posts):
        parts.append(box(0.09, height, 0.09, ((post / (posts - 1) - 0.5) * long, height / 2, 0), wood))
    return Thing("fence", tuple(parts), long / 2, height)


def street_lamp(draw: Draw) -> Thing:
    metal = draw.material(("",), ("gray", "black", "green"), shiny=0, metal=0.7)
    height = draw.between(2.8, 4.5)
    light = draw.material(("",), ("white", "yellow"), shiny=1)
    return Thing("post", (turned(0.06, height, (0, 0, 0), metal, frustum(0.6)), ball(0.2, (0, height + 0.12, 0), light)), 0.2, height + 0.3)


def bench(draw: Draw) -> Thing:
    wood = draw.material(("wooden", ""), ("brown", "green", "white", "gray"), (1, 2), 0)
    parts = [box(1.6, 0.05, 0.12, (0, 0.45, z), wood) for z in (-0.14, 0.0, 0.14)]
    parts += [box(1.6, 0.1, 0.04, (0, y, -0.24), wood) for y in (0.65, 0.85)]
    for x in (-0.65, 0.65):
        parts += [box(0.07, 0.45, 0.36, (x, 0.22, 0), wood), box(0.06, 0.55, 0.05, (x, 0.65, -0.21), wood)]
    return Thing("bench", tuple(parts), 0.85, 0.9)


def person(draw: Draw, height: float = 1.7) -> Thing:
    """Head with eyes and hair, body, arms and legs."""
    coat = draw.material(("", "", "striped", "plaid", "woven", "lined"), scale=(2, 5), shiny=0.1)
    skin, hair = (
        draw.material(("",), ("brown", "pink", "orange"), shiny=0.2, muted=0.3),
        draw.material(("",), ("black", "brown", "yellow", "gray")),
    )
    cloth, shoe = (draw.material(("", pattern), ("blue", "black", "gray", "brown"), shiny=0) for pattern in ("woven", ""))
    eye = Material((0.02, 0.02, 0.02), roughness=0.3)
    h = height
    torso = (0, 0.5, 0, 0.3, 0.34, 0.6, 0, 0.15, -0.34, 0.6, 0, 0.15, 0, 0.0, 0, 0.33, 0, -0.5, 0, 0.34, 0, 0.75, 0, 0.1)
    face = (0, 0.2, 0, 0.62, 0, -0.2, 0.12, 0.5, 0, -0.8, -0.1, 0.3, 0, -0.12, 0.62, 0.08, *(0, 0, 0, -9) * 2)
    parts = [
        Part(BLEND, (0, h * 0.64, 0), (h * 0.2, h * 0.2, h * 0.14), coat, form=torso),
        Part(BLEND, (0, h * 0.915, 0), (h * 0.085,) * 3, skin, form=face),
        ball(h * 0.06, (0, h * 0.945, -h * 0.012), hair, (1.02, 0.95, 1.0)),
    ]
    for side in (-1, 1):
        swing = draw.between(-0.06, 0.06) * h
        shoulder, hand = (side * h * 0.115, h * 0.765, 0), (side * h * 0.15, h * 0.47, swing + 0.03 * h)
        parts += [rod(hand, shoulder, h * 0.04, coat, frustum(0.9)), ball(h * 0.044, shoulder, coat), ball(h * 0.033, hand, skin)]
        foot = (side * h * 0.055, h * 0.03, -swing)
        parts.append(rod((side * h * 0.05, h * 0.56, 0), foot, h * 0.058, cloth, frustum(0.65)))
        parts.append(ball(h * 0.075, (foot[0], h * 0.025, foot[2] + h * 0.025), shoe, (0.45, 0.4, 1)))
        parts.append(ball(h * 0.008, (side * h * 0.022, h * 0.928, h * 0.049), eye))
    return Thing("person", tuple(parts), h * 0.2, h)


def animal(draw: Draw, length: float = 0.6) -> Thing:
    """A cat or a dog, sideways: body along x, its head at +x turned to +z."""
    noun = draw.pick(("cat", "dog"))
    fur = draw.material(("", "", "mottled", "striped", "lined"), ("brown", "black", "white", "gray", "orange", "yellow"), (3, 8), 0)
    dark = Material((0.02, 0.02, 0.02), roughness=0.3)
    h = length
    body = (0.5, 0.12, 0, 0.3, 0.1, 0.05, 0, 0.28, -0.35, 0.05, 0, 0.3, 0.66, 0.4, 0.05, 0.18, -0.6, 0.1, 0, 0.2, 0.2, 0.1, 0, 0.25)
    muzzle = 0.5 if noun == "dog" else 0.36
    face = (0, 0.1, 0, 0.5, 0, -0.12, muzzle, 0.24, 0.18, -0.15, 0.2, 0.26, -0.18, -0.15, 0.2, 0.26, *(0, 0, 0, -9) * 2)
    head = (0.44 * h, 0.72 * h, 0.06 * h)
    parts = [
        Part(BLEND, (0, 0.46 * h, 0), (0.55 * h, 0.55 * h, 0.42 * h), fur, form=body),
        Part(BLEND, head, (0.3 * h,) * 3, fur, form=face),
        rod((-0.4 * h, 0.52 * h, 0), (-0.62 * h, draw.between(0.5, 0.9) * h, 0.02 * h), 0.035 * h, fur, frustum(0.5)),
        ball(0.028 * h, (head[0], head[1] - 0.02 * h, head[2] + (0.21 if noun == "dog" else 0.165) * h), dark),
    ]
    for side in (-1, 1):
        ear = (head[0] + side * 0.1 * h, head[1] + 0.1 * h, head[2] - 0.02 * h)
        tip = (ear[0] + side * (0.06 if noun == "cat" else 0.1) * h, ear[1] + (0.14 if noun == "cat" else -0.06) * h, ear[2])
        parts.append(rod(ear, tip, 0.06 * h, fur, frustum(0.1 if noun == "cat" else 0.8)))
        parts.append(ball(0.02 * h, (head[0] + side * 0.065 * h, head[1] + 0.06 * h, head[2] + 0.135 * h), dark))
        for x in (-0.32, 0.28):
            parts.append(rod((x * h, 0.42 * h, side * 0.09 * h), (x * h, 0.02 * h, side * 0.09 * h), 0.055 * h, fur, frustum(0.75)))
    return Thing(noun, tuple(parts), 0.62 * h, 0.95 * h)
