"""Crowds of small things, some on top of others, on a floor or a ground, often from above."""

import math

from ..draw import Draw
from ..plan import Plan
from ..shapes import BEVELLED, BOX, HEXAGON
from ..things import Ground, book, clear_of, cup, fruit, in_view, listed, placed, sculpture, solid, stone
from ..weather import ground, inside, outside, walls


def clutter(draw: Draw) -> Plan:
    spread = draw.between(0.6, 1.1)
    azimuth, pitch = draw.between(-3.1, 3.1), draw.pick((draw.between(0.25, 0.6), draw.between(0.6, 1.5)))
    distance = draw.between(1.3, 2.3)
    flat = distance * math.cos(pitch)
    eye = (flat * math.sin(azimuth), 0.15 + distance * math.sin(pitch), flat * math.cos(azimuth))
    camera = draw.camera(eye, (draw.between(-0.2, 0.2), 0.1, draw.between(-0.2, 0.2)), (38, 62), roll=15)

    makers = draw.pick(((solid,), (solid, solid, stone), (solid, fruit, cup, book), (stone,), (fruit, fruit, solid), (solid, sculpture)))
    free, parts, names, index = Ground(draw), [], [], 0
    for _ in range(draw.count(18, 34)):
        thing = draw.pick(makers)(draw, draw.between(0.14, 0.36))
        at = free.find(thing.radius * 0.8, (-spread, spread), (-spread, spread), tries=6)
        if not at:
            continue
        base = 0.0
        for _ in range(4):
            added = placed(thing, (at[0], base, at[1]), index, draw.between(0, 6.28))
            if not clear_of(camera, added):
                break
            parts += added
            index += 1
            if in_view(camera, (at[0], base + thing.height / 2, at[1])):
                names.append(thing.noun)
            if thing.parts[0].shape not in (BOX, BEVELLED, HEXAGON) or draw.chance(0.6):
                break
            base += thing.height
            thing = draw.pick(makers)(draw, thing.radius * draw.between(0.9, 1.4))

    if draw.chance(0.3):
        noun, floor = ground(draw)
        light = outside(draw, floor, math.degrees(azimuth))
        where, room, corners = f"on {noun}", (floor,) * 6, {}
    else:
        room = walls(draw)
        wide = max(spread, distance) + draw.between(0.3, 2)
        low, high = (-wide, 0.0, -wide), (wide, max(eye[1] + 0.5, 2.4), wide)
        light = inside(draw, low, high, room, math.degrees(azimuth))
        where, corners = f"on a {room[0].words} floor", {"low": low, "high": high}
    caption = f"many small things, {listed(names)} {where}, {light.words}"
    return Plan(caption, camera, tuple(parts), room, light.lights, light.above, light.below, light.mirrored, sky=light.sky, **corners)
