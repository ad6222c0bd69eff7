"""Tables, seats, beds, shelves and what else stands in rooms."""

import math

from ..draw import Draw
from ..plan import Part
from ..shapes import BEVELLED, BUMPY, frustum
from .parts import Thing, ball, box, rod, turned

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


def plant(draw: Draw, size: float | None = None) -> Thing:
    leaves = draw.material(("mottled",), ("green",), (6, 12), 0.2)
    pot = draw.material(("", "striped", "dotted"), scale=(2, 5), shiny=0.4)
    size = size or draw.between(0.5, 1.1)
    form = (draw.between(5, 7), 0.13, *(draw.between(0, 6.28) for _ in range(3)))
    crown = Part(BUMPY, (0, size * 0.7, 0), (size * 0.3, size * 0.36, size * 0.3), leaves, form=form)
    upside_down = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
    return Thing("plant", (crown, turned(size * 0.2, size * 0.35, (0, 0, 0), pot, frustum(0.7), upside_down)), size * 0.32, size)


def picture(draw: Draw) -> Thing:
    """Framed, its back at z = 0."""
    w, h = draw.between(0.4, 1.2), draw.between(0.4, 1.0)
    frame = draw.material(("wooden", ""), ("brown", "black", "white", "yellow", "gray"), shiny=0.3)
    print_ = draw.material(("mottled", "dotted", "lined", "checkered", "marbled", "striped"), scale=(1.5, 5), shiny=0.3)
    return Thing("picture", (box(w - 0.08, h - 0.08, 0.05, (0, h / 2, 0.02), print_), box(w, h, 0.04, (0, h / 2, 0.02), frame)), w / 2, h)


def rug(draw: Draw) -> Thing:
    cloth = draw.material(("striped", "checkered", "plaid", "woven", "dotted", "", "lined"), scale=(0.8, 2.5), shiny=0)
    wide, long = draw.between(1.2, 2.2), draw.between(1.0, 1.8)
    return Thing("rug", (box(wide, 0.015, long, (0, 0.0075, 0), cloth),), math.hypot(wide, long) / 2, 0.015)
