"""Solids, stones, fruits and what stands on tables. A thing stands on y = 0 of its own frame, around its y axis."""

import math
from collections.abc import Sequence

from ..draw import Draw
from ..plan import Part
from ..shapes import BEVELLED, BLEND, BOWL, BOX, BUMPY, HEXAGON, PYRAMID, TORUS, frustum
from .parts import Thing, ball, box, rod, turned

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
    balls = [(0.0, -0.42, 0.0, 0.5)]
    for _ in range(12):
        # Each grows out of one before it, within the ball of radius 1 that rays are tested with.
        x, y, z, grown = draw.pick(balls)
        angle, lift, radius = draw.between(0, 6.28), draw.between(-0.4, 1.0), draw.between(0.14, 0.34)
        out, reach = math.sqrt(1 - lift * lift), 0.8 * (grown + radius)
        ball_at = (x + reach * out * math.cos(angle), y + reach * lift, z + reach * out * math.sin(angle))
        if math.hypot(*ball_at) + radius < 0.93 and len(balls) < 6:
            balls.append((*ball_at, radius))
    form = [number for ball in balls + [(0.0, 0.0, 0.0, -9.0)] * (6 - len(balls)) for number in ball]
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
