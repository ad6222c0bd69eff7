"""Furnished rooms."""

import math

from ..draw import Draw
from ..plan import Plan
from ..things import (
    Ground,
    Thing,
    bed,
    box,
    cabinet,
    chair,
    clear_of,
    floor_lamp,
    in_view,
    listed,
    person,
    placed,
    plant,
    shelf,
    sofa,
    stool,
    table,
)
from ..weather import inside, walls


def interior(draw: Draw) -> Plan:
    x, back, front, height = draw.between(1.7, 3.2), draw.between(1.6, 3.4), draw.between(1.8, 3.2), draw.between(2.3, 3.4)
    low, high = (-x, 0.0, -back), (x, height, front)
    room = walls(draw)
    eye = (
        draw.between(-0.8, 0.8) * (x - 0.4),
        draw.pick((draw.between(0.4, 1), draw.between(1, 1.7), draw.between(1.5, height - 0.3))),
        front - 0.3,
    )
    aim = (draw.between(-0.4, 0.4), draw.between(0.3, 1.1), draw.between(-back, -0.2))
    camera = draw.camera(eye, aim, (45, 78), roll=6)

    free, parts, names = Ground(draw), [], []
    free.keep_free(eye[0], eye[2], 0.55)

    def add(thing: Thing, at: tuple[float, float, float], yaw: float) -> None:
        index = len(names)
        added = placed(thing, at, index, yaw)
        if clear_of(camera, added):
            parts.extend(added)
            names.append(thing.name if in_view(camera, (at[0], at[1] + thing.height / 2, at[2])) else "")

    for make in draw.dice.sample((sofa, bed, shelf, cabinet, cabinet, sofa), draw.count(1, 3)):
        thing = make(draw)
        side = draw.pick(("back", "left", "right"))
        away = {sofa: 0.5, bed: 1.05, shelf: 0.18, cabinet: 0.28}[make]
        span = (0.0, 0.0)
        if side == "back" and x > thing.radius:
            span = (-x + thing.radius, x - thing.radius)
            at, yaw = free.find(thing.radius, span, (-back + away,) * 2), 0.0
        else:
            sign = -1 if side == "left" else 1
            span = (-back + thing.radius, max(-back + thing.radius, front - 1 - thing.radius))
            at, yaw = free.find(thing.radius, (sign * (x - away),) * 2, span), -sign * math.pi / 2
        if at:
            add(thing, (at[0], 0, at[1]), yaw)
    if draw.chance(0.75):
        thing = table(draw)
        at = free.find(thing.radius, (-x * 0.6, x * 0.6), (-back * 0.6, front * 0.3))
        if at:
            add(thing, (at[0], 0, at[1]), draw.between(-0.4, 0.4))
            for _ in range(draw.count(1, 3)):
                seat, angle = chair(draw), draw.between(0, 6.28)
                reach = thing.radius + 0.3
                spot = at[0] + reach * math.sin(angle), at[1] + reach * math.cos(angle)
                inside_room = abs(spot[0]) < x - 0.4 and -back + 0.4 < spot[1] < front - 0.4
                if inside_room and free.find(0.3, (spot[0],) * 2, (spot[1],) * 2, tries=1):
                    add(seat, (spot[0], 0, spot[1]), angle + math.pi + draw.between(-0.3, 0.3))
    for make in draw.dice.sample((floor_lamp, plant, stool, chair, plant, person), draw.count(1, 3)):
        thing = make(draw)
        at = free.find(thing.radius, (-x + 0.35, x - 0.35), (-back + 0.35, front - 1))
        if at:
            add(thing, (at[0], 0, at[1]), draw.between(-1.2, 1.2))
    for _ in range(draw.count(0, 3)):
        add(_picture(draw), (draw.between(-0.75, 0.75) * x, draw.between(0.45, 0.62) * height, -back), 0.0)
    if draw.chance(0.5):
        cloth = draw.material(("striped", "checkered", "plaid", "woven", "dotted", "", "lined"), scale=(0.8, 2.5), shiny=0)
        wide, long = draw.between(1.2, 2.2), draw.between(1.0, 1.8)
        rug = Thing("rug", (box(wide, 0.015, long, (0, 0.0075, 0), cloth),), 0.0, 0.02)
        add(rug, (draw.between(-0.4, 0.4), 0, draw.between(-0.6, 0.3)), draw.between(-0.2, 0.2))

    light = inside(draw, low, high, room, math.degrees(math.atan2(eye[0], eye[2])))
    caption = f"a room with {listed([name for name in names if name])}, {room[0].words} floor, {room[4].words} walls, {light.words}"
    return Plan(caption, camera, tuple(parts), room, light.lights, light.above, light.below, light.mirrored, low, high)


def _picture(draw: Draw) -> Thing:
    """A picture or a window, on a wall that faces z."""
    w, h = draw.between(0.4, 1.2), draw.between(0.4, 1.0)
    frame = draw.material(("wooden", ""), ("brown", "black", "white", "yellow", "gray"), shiny=0.3)
    print_ = draw.material(("mottled", "dotted", "lined", "checkered", "marbled", "striped"), scale=(1.5, 5), shiny=0.3)
    return Thing("picture", (box(w - 0.08, h - 0.08, 0.05, (0, 0, 0.02), print_), box(w, h, 0.04, (0, 0, 0.02), frame)), 0.0, 0.0)
