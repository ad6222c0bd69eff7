"""Furnished rooms."""

import math

from ..draw import Draw
from ..plan import Plan
from ..stage import Stage
from ..things.furniture import bed, cabinet, chair, floor_lamp, picture, plant, rug, shelf, sofa, stool, table
from ..things.outdoor import animal, person
from ..weather import room

# What stands at a wall, and how far its middle is from it in metres.
AT_WALLS = {sofa: 0.5, bed: 1.05, shelf: 0.18, cabinet: 0.28}


def interior(draw: Draw) -> Plan:
    x, back, front, height = draw.between(1.7, 3.2), draw.between(1.6, 3.4), draw.between(1.8, 3.2), draw.between(2.3, 3.4)
    level = draw.pick((draw.between(0.4, 1), draw.between(1, 1.7), draw.between(1.5, height - 0.3)))
    eye = (draw.between(-0.8, 0.8) * (x - 0.4), level, front - 0.3)
    aim = (draw.between(-0.4, 0.4), draw.between(0.3, 1.1), draw.between(-back, -0.2))
    stage = Stage(draw, draw.camera(eye, aim, (45, 78), roll=6))
    stage.keep_free(eye[0], eye[2], 0.55)

    for make in draw.dice.sample((sofa, bed, shelf, cabinet, cabinet, sofa), draw.count(1, 3)):
        thing, away = make(draw), AT_WALLS[make]
        side = draw.pick((0, -1, 1))
        if side:
            along = (-back + thing.radius, max(-back + thing.radius, front - 1 - thing.radius))
            stage.stand(thing, (side * (x - away),) * 2, along, -side * math.pi / 2)
        elif x > thing.radius:
            stage.stand(thing, (-x + thing.radius, x - thing.radius), (-back + away,) * 2)
    if draw.chance(0.75):
        _table_and_chairs(stage, draw, x, back, front)
    for make in draw.dice.sample((floor_lamp, plant, stool, chair, animal, person), draw.count(1, 3)):
        stage.stand(make(draw), (-x + 0.35, x - 0.35), (-back + 0.35, front - 1), draw.between(-1.2, 1.2))
    hung: list[tuple[float, float]] = []
    for _ in range(draw.count(0, 3)):
        thing, at = picture(draw), draw.between(-0.75, 0.75) * x
        if all(abs(at - other) > thing.radius + reach for other, reach in hung):
            hung.append((at, thing.radius))
            stage.add(thing, (at, draw.between(0.38, 0.55) * height, -back))
    if draw.chance(0.5):
        stage.add(rug(draw), (draw.between(-0.4, 0.4), 0, draw.between(-0.6, 0.3)), draw.between(-0.2, 0.2))

    around = room(draw, (-x, 0.0, -back), (x, height, front), math.atan2(eye[0], eye[2]))
    return stage.plan(around, f"a room{stage.listed(' with ')}, {around.floor}, {around.background}, {around.light}")


def _table_and_chairs(stage: Stage, draw: Draw, x: float, back: float, front: float) -> None:
    thing = table(draw)
    at = stage.find(thing.radius, (-x * 0.6, x * 0.6), (-back * 0.6, front * 0.3))
    if not at or not stage.add(thing, (at[0], 0, at[1]), draw.between(-0.4, 0.4)):
        return
    for _ in range(draw.count(1, 3)):
        angle, reach = draw.between(0, 6.28), thing.radius + 0.36
        spot = at[0] + reach * math.sin(angle), at[1] + reach * math.cos(angle)
        if abs(spot[0]) < x - 0.4 and -back + 0.4 < spot[1] < front - 0.4:
            stage.stand(chair(draw), (spot[0],) * 2, (spot[1],) * 2, angle + math.pi + draw.between(-0.3, 0.3))
