"""Small things on a table, seen from close by."""

import math

from ..draw import Draw
from ..plan import Plan
from ..stage import Stage, with_article
from ..things.furniture import table
from ..things.small import book, bottle, bowl, cup, fruit, plate, sculpture, solid, vase
from ..weather import surroundings

# Metres across or high.
SIZES = {bottle: (0.22, 0.34), bowl: (0.2, 0.3), book: (0.16, 0.26), plate: (0.18, 0.28), vase: (0.2, 0.3), fruit: (0.06, 0.1)}
THINGS = (cup, cup, bottle, vase, bowl, book, book, plate, fruit, fruit, fruit, solid, solid, sculpture)


def tabletop(draw: Draw) -> Plan:
    board = table(draw, draw.between(1.0, 1.7))
    azimuth, pitch, distance = draw.between(-0.8, 0.8), draw.between(0.15, 1.15), draw.between(0.5, 1.2)
    aim = (draw.between(-0.12, 0.12), board.height + draw.between(0.0, 0.12), draw.between(-0.1, 0.1))
    flat = distance * math.cos(pitch)
    eye = (aim[0] + flat * math.sin(azimuth), aim[1] + distance * math.sin(pitch), aim[2] + flat * math.cos(azimuth))
    stage = Stage(draw, draw.camera(eye, aim, (34, 60), roll=7), 0.05)
    limit = min(0.4, board.radius * 0.6)
    for _ in range(draw.count(7, 14)):
        make = draw.pick(THINGS)
        thing = make(draw, draw.between(*SIZES.get(make, (0.08, 0.16))))
        stage.stand(thing, (-limit, limit), (-limit * 0.7, limit * 0.7), draw.between(-0.9, 0.9), board.height)
    seen = stage.listed() or "nothing"
    stage.add(board, (0, 0, 0), draw.between(-0.3, 0.3))

    around = surroundings(draw, eye, azimuth, 1.2, (0.9, 3.0), outdoors=0.12)
    return stage.plan(around, f"{seen} on {with_article(board.name)}, {around.background}, {around.light}")
