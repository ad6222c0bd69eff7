"""Crowds of small things, some on top of others, on a floor or a ground, often from above."""

import math

from ..draw import Draw
from ..plan import Plan
from ..shapes import BEVELLED, BOX, HEXAGON
from ..stage import Stage
from ..things.small import book, cup, fruit, sculpture, solid, stone
from ..weather import surroundings

CROWDS = ((solid,), (solid, solid, stone), (solid, fruit, cup, book), (stone, stone, solid), (fruit, fruit, solid), (solid, sculpture))


def clutter(draw: Draw) -> Plan:
    spread = draw.between(0.6, 1.1)
    azimuth, pitch = draw.between(-3.1, 3.1), draw.pick((draw.between(0.25, 0.6), draw.between(0.6, 1.5)))
    distance = draw.between(1.2, 2.1)
    flat = distance * math.cos(pitch)
    eye = (flat * math.sin(azimuth), 0.15 + distance * math.sin(pitch), flat * math.cos(azimuth))
    aim = (draw.between(-0.2, 0.2), 0.1, draw.between(-0.2, 0.2))
    stage = Stage(draw, draw.camera(eye, aim, (38, 62), roll=15), 0.05)

    makers = draw.pick(CROWDS)
    for _ in range(draw.count(18, 34)):
        thing, base = draw.pick(makers)(draw, draw.between(0.14, 0.36)), 0.0
        at = stage.find(thing.radius * 0.8, (-spread, spread), (-spread, spread), tries=6)
        while at and stage.add(thing, (at[0], base, at[1]), draw.between(0, 6.28)):
            # On what is flat above, something else may stand.
            if thing.parts[0].shape not in (BOX, BEVELLED, HEXAGON) or base > 0.7 or draw.chance(0.6):
                break
            base += thing.height
            thing = draw.pick(makers)(draw, thing.radius * draw.between(0.9, 1.4))

    around = surroundings(draw, eye, azimuth, max(spread, distance), (max(spread, distance), 3.0), outdoors=0.3)
    return stage.plan(around, f"many small things{stage.listed(', ', 4)} {around.words}")
