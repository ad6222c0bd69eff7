"""Objects as groups of parts. Each stands on y = 0 of its own frame, around its y axis; lengths in metres."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .draw import Draw, cross, turned_about_y, unit
from .plan import UPRIGHT, Axes, Camera, Material, Part, Vector
from .shapes import BALL, BEVELLED, BLEND, BOWL, BOX, BUMPY, CYLINDER, HEXAGON, PYRAMID, ROOF, TORUS, TURNED, frustum


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
    return Part(TURNED, centre, tuple(radius * factor for factor in stretch), material, form=BALL)


def rod(start: Vector, end: Vector, radius: float, material: Material, form=CYLINDER) -> Part:
    """A thin cylinder between two places."""
    way = tuple(e - s for s, e in zip(start, end, strict=True))
    length = math.sqrt(sum(x * x for x in way))
    up = unit(way)
    right = unit(cross(up, (0.31, 0.2, 0.93) if abs(up[2]) < 0.9 else (1.0, 0.1, 0.0)))
    middle = tuple((s + e) / 2 for s, e in zip(start, end, strict=True))
    return Part(TURNED, middle, (radius, length / 2, radius), material, (right, up, cross(right, up)), form)


def placed(thing: Thing, at: Vector, index: int, yaw: float = 0.0, rotation: Axes | None = None) -> list[Part]:
    """The parts of the scene's object `index`, turned and moved to their place."""
    rows = rotation or turned_about_y(yaw)

    def rotate(v: Vector) -> Vector:
        return tuple(v[0] * rows[0][i] + v[1] * rows[1][i] + v[2] * rows[2][i] for i in range(3))

    result = []
    for part in thing.parts:
        centre = tuple(c + a for c, a in zip(rotate(part.centre), at, strict=True))
        result.append(replace(part, centre=centre, axes=tuple(rotate(axis) for axis in part.axes), thing=index))
    return result


# Small things ------------------------------------------------------------------------------------------------------------

_PRINTS = ("", "", "", "checkered", "striped", "marbled", "mottled", "wooden", "dotted", "lined", "woven")


def solid(draw: Draw, size: float, kinds: Sequence[str] = ("ball", "box", "block", "cylinder", "cone", "ring", "pyramid", "nut")) -> Thing:
    """One of the simple solids, `size` metres across."""
    kind = draw.pick(kinds)
    material = draw.material(_PRINTS, scale=(0.5 / size, 1.3 / size), shiny=0.35, metal=0.12)
    r = size / 2
    if kind == "ball":
        part, height = ball(r, (0, r, 0), material), size
    elif kind in ("box", "block"):
        y, z = size * draw.between(0.4, 1.2), size * draw.between(0.5, 1)
        part, height = box(size * 0.9, y, z, (0, y / 2, 0), material, shape=BOX if kind == "box" else BEVELLED), y
    elif kind == "ring":
        tube = draw.between(0.18, 0.4)
        part, height = Part(TORUS, (0, tube * r, 0), (r, r, r), material, form=(tube,)), 2 * tube * r
    elif kind == "pyramid":
        height = size * draw.between(0.7, 1.2)
        part = box(size * 0.9, height, size * 0.9, (0, height / 2, 0), material, shape=PYRAMID)
    elif kind == "nut":
        height = size * draw.between(0.3, 0.9)
        part = box(size, height, size, (0, height / 2, 0), material, shape=HEXAGON)
    elif kind == "cone":
        height = size * draw.between(0.8, 1.5)
        part = turned(r, height, (0, 0, 0), material, frustum(draw.between(0, 0.3)))
    else:
        height = size * draw.between(0.5, 1.4)
        part = turned(r * 0.9, height, (0, 0, 0), material)
    return Thing({"nut": "block"}.get(kind, kind), (part,), r * 1.25, height)


def stone(draw: Draw, size: float) -> Thing:
    material = draw.material(("mottled", "mottled", "marbled", ""), ("gray", "brown", "white", "black"), (1 / size, 3 / size), 0.1)
    r = size / 2
    half = (r, r * draw.between(0.5, 0.9), r * draw.between(0.7, 1))
    form = (draw.between(3, 6), draw.between(0.05, 0.1), *(draw.between(0, 6.28) for _ in range(3)))
    return Thing("stone", (Part(BUMPY, (0, half[1] * 0.72, 0), half, material, form=form),), r, 1.6 * half[1])


def sculpture(draw: Draw, size: float) -> Thing:
    """Balls that flow into each other."""
    material = draw.material(("", "", "marbled", "mottled", "wooden"), scale=(0.6 / size, 1.5 / size), shiny=0.5, metal=0.25)
    form = [0.0, -0.42, 0.0, 0.5]
    for _ in range(5):
        angle, out, up = draw.between(0, 6.28), draw.between(0.1, 0.5), draw.between(-0.5, 0.6)
        radius = draw.between(0.12, 0.32)
        limit = 0.95 - radius - 0.1
        reach = math.hypot(out, up)
        shrink = min(1.0, limit / reach)
        form += [out * shrink * math.cos(angle), up * shrink, out * shrink * math.sin(angle), radius]
    r = size / 2
    return Thing("sculpture", (Part(BLEND, (0, r * 0.93, 0), (r, r, r), material, form=tuple(form)),), r, 2 * r)


def fruit(draw: Draw, size: float) -> Thing:
    kind = draw.pick(("apple", "orange", "pear", "lemon"))
    colors = {"apple": ("red", "green", "yellow"), "orange": ("orange",), "pear": ("green", "yellow"), "lemon": ("yellow",)}[kind]
    skin = draw.material(("", "mottled"), colors, (1 / size, 3 / size), 0.6)
    r = size / 2
    if kind == "lemon":
        return Thing(kind, (ball(r, (0, 0.75 * r, 0), skin, (1.15, 0.75, 0.75)),), r * 1.2, 1.5 * r)
    if kind == "pear":
        form = (0, -0.4, 0, 0.52, 0, 0.0, 0, 0.36, 0, 0.35, 0, 0.26, *(0, 0, 0, -9) * 3)
        body = Part(BLEND, (0, 1.25 * r, 0), (1.35 * r,) * 3, skin, form=form)
        top = 2.05 * r
    else:
        body, top = ball(r, (0, 0.93 * r, 0), skin, (1, 0.93, 1)), 1.8 * r
    stem = rod((0, top, 0), (0.12 * r, top + 0.35 * r, 0), 0.06 * r, draw.material(("",), ("brown",), shiny=0))
    return Thing(kind, (body, stem), r, top)


def cup(draw: Draw, size: float) -> Thing:
    body = draw.material(("", "", "striped", "dotted", "checkered", "lined"), scale=(0.7 / size, 1.5 / size), shiny=0.7)
    drink = draw.material(("",), ("brown", "black", "orange", "white"), shiny=1.0)
    r, height = size * 0.42, size * draw.between(0.8, 1.15)
    handle = Part(TORUS, (r, height * 0.52, 0), (height * 0.33,) * 3, body, ((1, 0, 0), (0, 0, 1), (0, -1, 0)), (0.2,))
    parts = (turned(r, height, (0, 0, 0), body, frustum(1)), handle, turned(r * 0.86, 0.01 * size, (0, height * 0.995, 0), drink))
    return Thing("cup", parts, size * 0.75, height)


def bottle(draw: Draw, size: float) -> Thing:
    glass = draw.material(("",), ("green", "brown", "blue", "white", "red", "black"), shiny=1.0)
    label = draw.material(("", "striped", "dotted", "lined"), scale=(1 / size, 3 / size), shiny=0)
    r = size * draw.between(0.14, 0.2)
    body, shoulder = size * 0.6, size * 0.14
    parts = (
        turned(r, body, (0, 0, 0), glass),
        turned(r, shoulder, (0, body, 0), glass, frustum(0.4)),
        turned(r * 0.4, size - body - shoulder, (0, body + shoulder, 0), glass),
        turned(r * 1.02, body * 0.45, (0, body * 0.25, 0), label),
    )
    return Thing("bottle", parts, r * 1.1, size)


def vase(draw: Draw, size: float) -> Thing:
    clay = draw.material(("", "striped", "marbled", "mottled", "lined"), scale=(0.6 / size, 1.5 / size), shiny=0.6, metal=0.1)
    r, height = size * 0.3, size * 0.75
    form = draw.pick(((0.55, 0.1, -0.35), (0.35, 0.05, 0.5), (0.8, 0.0, -0.5), (0.3, 0.35, 0.25)))
    parts = [turned(r, height, (0, 0, 0), clay, form)]
    if draw.chance(0.6):
        green, petals = (
            draw.material(("",), ("green",), shiny=0),
            draw.material(("",), ("red", "pink", "yellow", "white", "purple"), shiny=0),
        )
        for _ in range(draw.count(2, 4)):
            angle, out = draw.between(0, 6.28), draw.between(0.2, 0.9) * r
            end = (out * math.cos(angle), height + draw.between(0.25, 0.5) * size, out * math.sin(angle))
            parts += [rod((0, height * 0.9, 0), end, 0.012 * size, green), ball(draw.between(0.06, 0.1) * size, end, petals, (1, 0.7, 1))]
        return Thing("vase with flowers", tuple(parts), r * 1.2, height * 1.5)
    return Thing("vase", tuple(parts), r * 1.1, height)


def bowl(draw: Draw, size: float) -> Thing:
    """A full bowl: fruits look out of it."""
    clay = draw.material(("", "striped", "wooden", "dotted"), scale=(0.6 / size, 1.5 / size), shiny=0.5, metal=0.1)
    r, height = size / 2, size * 0.32
    parts = [turned(r, height, (0, 0, 0), clay, BOWL)]
    skin = draw.material(("",), ("red", "orange", "yellow", "green", "purple"), shiny=0.6)
    for angle in range(5):
        turn = angle * 1.2566 + draw.between(-0.2, 0.2)
        parts.append(ball(r * 0.33, (r * 0.5 * math.cos(turn), height + 0.04 * r, r * 0.5 * math.sin(turn)), skin))
    parts.append(ball(r * 0.36, (0, height + 0.3 * r, 0), skin))
    return Thing("bowl of fruit", tuple(parts), r, height * 1.6)


def book(draw: Draw, size: float) -> Thing:
    cover, paper = draw.material(("", "", "lined", "dotted"), scale=(0.5 / size, 2 / size)), draw.material(("",), ("white",), shiny=0)
    y, z = size * draw.between(0.1, 0.25), size * 0.7
    thin = 0.012 * size
    parts = (
        box(size, thin, z, (0, y, 0), cover),
        box(size * 0.96, y, z * 0.95, (0, y / 2, 0), paper),
        box(size, thin, z, (0, thin / 2, 0), cover),
        box(size, y, thin, (0, y / 2, -z / 2), cover),
    )
    return Thing("book", parts, size * 0.62, y + thin)


def plate(draw: Draw, size: float) -> Thing:
    material = draw.material(("", "", "dotted", "lined"), ("white", "white", "blue", "gray", "black", "yellow"), shiny=0.7)
    upside_down = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
    height = size * 0.06
    rim = Part(TORUS, (0, height, 0), (size / 2,) * 3, material, form=(0.04,))
    return Thing("plate", (turned(size / 2, height, (0, 0, 0), material, frustum(0.7), upside_down), rim), size / 2, height)


# Furniture ---------------------------------------------------------------------------------------------------------------

_TIMBER = ("wooden", "wooden", "wooden", "")


def table(draw: Draw, width: float | None = None) -> Thing:
    wood = draw.material(_TIMBER, scale=(0.8, 2), shiny=0.4)
    height = draw.between(0.42, 0.78)
    x = width or draw.between(0.8, 1.7)
    z = x * draw.between(0.5, 0.8)
    leg = draw.between(0.02, 0.045)
    if draw.chance(0.35):
        parts = [
            turned(x / 2, 0.04, (0, height - 0.04, 0), wood),
            turned(leg * 1.5, height - 0.04, (0, 0, 0), wood),
            turned(x * 0.28, 0.03, (0, 0, 0), wood),
        ]
        return Thing("table", tuple(parts), x / 2, height)
    parts = [box(x, 0.045, z, (0, height - 0.0225, 0), wood)]
    legs = draw.material(_TIMBER, metal=0.3) if draw.chance(0.4) else wood
    for sx in (-1, 1):
        for sz in (-1, 1):
            foot = (sx * (x / 2 - leg * 1.5), 0, sz * (z / 2 - leg * 1.5))
            parts.append(box(2 * leg, height - 0.045, 2 * leg, (foot[0], (height - 0.045) / 2, foot[2]), legs))
    return Thing("table", tuple(parts), math.hypot(x, z) / 2, height)


def chair(draw: Draw) -> Thing:
    wood = draw.material(_TIMBER, scale=(1, 3), shiny=0.3)
    seat = draw.material(("", "woven", "plaid", "checkered"), scale=(2, 5), shiny=0) if draw.chance(0.5) else wood
    w, height, back = draw.between(0.38, 0.5), draw.between(0.4, 0.5), draw.between(0.75, 1.05)
    parts = [box(w, 0.05, w, (0, height, 0), seat)]
    for sx in (-1, 1):
        x = sx * (w / 2 - 0.025)
        parts.append(box(0.04, height, 0.04, (x, height / 2, w / 2 - 0.025), wood))
        parts.append(box(0.04, back, 0.04, (x, back / 2, -w / 2 + 0.02), wood))
    if draw.chance(0.5):
        parts.append(box(w - 0.06, (back - height) * 0.6, 0.025, (0, back - (back - height) * 0.32, -w / 2 + 0.02), seat))
    else:
        parts += [box(w - 0.06, 0.05, 0.02, (0, height + (back - height) * s, -w / 2 + 0.02), wood) for s in (0.35, 0.65, 0.93)]
    return Thing("chair", tuple(parts), w * 0.72, back)


def stool(draw: Draw) -> Thing:
    wood = draw.material(_TIMBER, scale=(1, 3), shiny=0.4, metal=0.15)
    r, height = draw.between(0.16, 0.22), draw.between(0.4, 0.7)
    parts = [turned(r, 0.05, (0, height - 0.05, 0), wood)]
    for leg in range(3):
        angle = leg * 2.094
        c, s = math.cos(angle), math.sin(angle)
        parts.append(rod((1.1 * r * c, 0, 1.1 * r * s), (0.6 * r * c, height - 0.05, 0.6 * r * s), 0.018, wood))
    return Thing("stool", tuple(parts), r * 1.2, height)


def sofa(draw: Draw) -> Thing:
    cloth = draw.material(("", "", "woven", "plaid", "striped", "lined", "mottled"), scale=(0.8, 2.5), shiny=0.1)
    w, d = draw.between(1.2, 2.1), draw.between(0.75, 0.9)
    seat = draw.between(0.36, 0.44)
    parts = [
        box(w, seat, d, (0, seat / 2 + 0.04, 0), cloth, shape=BEVELLED),
        box(w, 0.8, 0.24, (0, 0.44, -d / 2 + 0.1), cloth, shape=BEVELLED),
    ]
    for sx in (-1, 1):
        parts.append(box(0.2, 0.58, d, (sx * (w / 2 - 0.05), 0.33, 0), cloth, shape=BEVELLED))
        parts.append(box(w / 2 - 0.2, 0.14, d - 0.25, (sx * (w / 4 - 0.06), seat + 0.1, 0.06), cloth, shape=BEVELLED))
    if draw.chance(0.6):
        pillow = draw.material(("", "striped", "dotted", "plaid", "checkered"), scale=(2, 5), shiny=0)
        parts.append(ball(0.22, (draw.between(-0.3, 0.3) * w, seat + 0.33, -0.08), pillow, (1, 0.9, 0.5)))
    return Thing("sofa", tuple(parts), w / 2 + 0.1, 0.84)


def bed(draw: Draw) -> Thing:
    wood = draw.material(_TIMBER, scale=(0.8, 2))
    sheet = draw.material(("", "plaid", "striped", "lined", "dotted", "woven"), scale=(0.8, 2.5), shiny=0)
    white = draw.material(("",), ("white", "white", "gray", "blue"), shiny=0)
    w, long = draw.between(1.0, 1.6), 2.0
    parts = [
        box(w, 0.28, long - 0.6, (0, 0.46, 0.3), sheet, shape=BEVELLED),
        box(w, 0.3, long, (0, 0.16, 0), wood),
        box(w * 0.99, 0.2, long, (0, 0.4, 0), white, shape=BEVELLED),
        box(w, 0.95, 0.06, (0, 0.48, -long / 2), wood),
    ]
    for sx in (-1, 1) if w > 1.3 else (0,):
        parts.append(ball(0.3, (sx * w / 4, 0.56, -long / 2 + 0.3), white, (1, 0.35, 0.7)))
    return Thing("bed", tuple(parts), 1.15, 0.95)


def shelf(draw: Draw) -> Thing:
    """Boards with books."""
    wood = draw.material(_TIMBER, scale=(0.8, 2))
    w, height, d, boards = draw.between(0.8, 1.4), draw.between(1.0, 1.9), 0.3, draw.count(3, 4)
    parts = [box(0.04, height, d, (sx * w / 2, height / 2, 0), wood) for sx in (-1, 1)]
    parts.append(box(w, height, 0.02, (0, height / 2, -d / 2), wood))
    covers = [draw.material(("", "", "lined"), scale=(4, 9)) for _ in range(4)]
    for board in range(boards + 1):
        y = 0.04 + board * (height - 0.06) / boards
        parts.append(box(w, 0.03, d, (0, y, 0), wood))
        if board < boards:
            x = -w / 2 + 0.06
            for _ in range(draw.count(2, 4)):
                thick, tall = draw.between(0.06, 0.2), (height / boards) * draw.between(0.5, 0.8)
                if x + thick > w / 2 - 0.05:
                    break
                parts.append(box(thick * 0.96, tall, 0.2, (x + thick / 2, y + 0.015 + tall / 2, 0.02), draw.pick(covers)))
                x += thick + draw.pick((0.0, 0.0, 0.1))
    return Thing("shelf", tuple(parts), w / 2 + 0.05, height)


def cabinet(draw: Draw) -> Thing:
    wood = draw.material(("wooden", "wooden", "", ""), scale=(0.8, 2), shiny=0.3)
    knob = draw.material(("",), ("gray", "yellow", "black"), shiny=0, metal=1)
    w, height, d = draw.between(0.6, 1.4), draw.between(0.6, 1.1), draw.between(0.4, 0.5)
    parts = [box(w, height - 0.08, d, (0, height / 2 + 0.04, 0), wood)]
    for sx in (-1, 1):
        for y in (0.3, 0.7):
            parts.append(box(w / 2 - 0.04, height * 0.36, 0.02, (sx * w / 4, height * y + 0.03, d / 2 + 0.01), wood))
            parts.append(ball(0.02, (sx * w / 4, height * y + 0.03, d / 2 + 0.03), knob))
        parts += [box(0.05, 0.08, 0.05, (sx * (w / 2 - 0.05), 0.04, z * (d / 2 - 0.05)), wood) for z in (-1, 1)]
    return Thing("cabinet", tuple(parts), math.hypot(w, d) / 2, height)


def floor_lamp(draw: Draw) -> Thing:
    shade = draw.material(("", "striped", "lined", "woven"), ("white", "yellow", "orange", "red", "blue", "gray"), scale=(2, 5), shiny=0)
    metal = draw.material(("",), ("gray", "black", "yellow"), shiny=0, metal=0.8)
    height = draw.between(1.3, 1.7)
    parts = (
        turned(0.22, 0.3, (0, height, 0), shade, frustum(0.6)),
        turned(0.015, height, (0, 0, 0), metal),
        turned(0.15, 0.03, (0, 0, 0), metal),
    )
    return Thing("lamp", parts, 0.24, height + 0.3)


def plant(draw: Draw) -> Thing:
    leaves = draw.material(("mottled",), ("green",), (6, 12), 0.2)
    pot = draw.material(("", "striped", "dotted"), scale=(2, 5), shiny=0.4)
    size = draw.between(0.5, 1.1)
    form = (draw.between(5, 7), 0.13, *(draw.between(0, 6.28) for _ in range(3)))
    crown = Part(BUMPY, (0, size * 0.7, 0), (size * 0.3, size * 0.36, size * 0.3), leaves, form=form)
    upside_down = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
    return Thing("plant", (crown, turned(size * 0.2, size * 0.35, (0, 0, 0), pot, frustum(0.7), upside_down)), size * 0.32, size)


# Outdoors ----------------------------------------------------------------------------------------------------------------


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
    """Head, body, arms and legs."""
    coat = draw.material(("", "", "striped", "plaid", "woven", "lined"), scale=(2, 5), shiny=0.1)
    skin, hair = (
        draw.material(("",), ("brown", "pink", "orange"), shiny=0.2, muted=0.3),
        draw.material(("",), ("black", "brown", "yellow", "gray")),
    )
    cloth = draw.material(("", "", "woven"), ("blue", "black", "gray", "brown"), shiny=0)
    h = height
    torso = (0, 0.5, 0, 0.3, 0.34, 0.6, 0, 0.15, -0.34, 0.6, 0, 0.15, 0, 0.0, 0, 0.33, 0, -0.5, 0, 0.34, 0, 0.75, 0, 0.1)
    parts = [
        Part(BLEND, (0, h * 0.64, 0), (h * 0.2, h * 0.2, h * 0.14), coat, form=torso),
        Part(
            BLEND,
            (0, h * 0.915, 0),
            (h * 0.085,) * 3,
            skin,
            form=(0, 0.2, 0, 0.62, 0, -0.2, 0.12, 0.5, 0, -0.8, -0.1, 0.3, *(0, 0, 0, -9) * 3),
        ),
        ball(h * 0.06, (0, h * 0.945, -h * 0.012), hair, (1.02, 0.95, 1.0)),
    ]
    for side in (-1, 1):
        swing = draw.between(-0.06, 0.06) * h
        shoulder, hand = (side * h * 0.12, h * 0.77, 0), (side * h * 0.16, h * 0.47, swing + 0.03 * h)
        parts += [rod(shoulder, hand, h * 0.03, coat), ball(h * 0.033, hand, skin)]
        parts.append(rod((side * h * 0.055, h * 0.03, -swing), (side * h * 0.05, h * 0.56, 0), h * 0.045, cloth))
        parts.append(box(h * 0.055, h * 0.035, h * 0.13, (side * h * 0.055, h * 0.0175, -swing + h * 0.025), rubber_of(cloth)))
    return Thing("person", tuple(parts), h * 0.22, h)


def rubber_of(cloth: Material) -> Material:
    return replace(cloth, color=(0.05, 0.04, 0.04), pattern=0)


# Placing -----------------------------------------------------------------------------------------------------------------


class Ground:
    """Finds free places on a floor: circles that do not meet."""

    def __init__(self, draw: Draw):
        self.draw = draw
        self.taken: list[tuple[float, float, float]] = []

    def keep_free(self, x: float, z: float, radius: float) -> None:
        self.taken.append((x, z, radius))

    def find(self, radius: float, x: tuple[float, float], z: tuple[float, float], tries: int = 12) -> tuple[float, float] | None:
        for _ in range(tries):
            at = self.draw.between(*x), self.draw.between(*z)
            if all(math.hypot(at[0] - tx, at[1] - tz) >= radius + other for tx, tz, other in self.taken):
                self.keep_free(*at, radius)
                return at
        return None


def in_view(camera: Camera, place: Vector, margin: float = 0.95) -> bool:
    """Whether a square picture shows a place."""
    way = tuple(p - c for p, c in zip(place, camera.position, strict=True))
    right, up, back = (sum(a * w for a, w in zip(axis, way, strict=True)) for axis in camera.axes)
    limit = math.tan(math.radians(camera.vertical_fov_degrees) / 2) * margin
    return back < 0 and abs(right) < -back * limit and abs(up) < -back * limit


def clear_of(camera: Camera, parts: Sequence[Part], distance: float = 0.12) -> bool:
    """Whether no part's surrounding sphere holds the camera."""
    return all(math.dist(part.centre, camera.position) > math.hypot(*part.half) + distance for part in parts)


def listed(names: Sequence[str], most: int = 5) -> str:
    """ "a red ball, two chairs and a table": what a caption says of objects."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    said = []
    for name, count in list(counts.items())[:most]:
        article = "an" if name[0] in "aeiou" else "a"
        said.append(f"{article} {name}" if count == 1 else f"{'two' if count == 2 else 'several'} {_plural(name)}")
    if not said:
        return "nothing"
    return said[0] if len(said) == 1 else ", ".join(said[:-1]) + f" and {said[-1]}"


def _plural(name: str) -> str:
    irregular = {"person": "people", "shelf": "shelves", "bench": "benches", "bush": "bushes"}
    noun = name.rsplit(" ", 1)[-1]
    return name.removesuffix(noun) + irregular.get(noun, noun if noun.endswith("s") else f"{noun}es" if noun == "box" else f"{noun}s")
