"""Small things on a table, seen from close by."""

import math

from ..draw import Draw
from ..plan import Plan
from ..things import Ground, book, bottle, bowl, clear_of, cup, fruit, in_view, listed, placed, plate, sculpture, solid, table, vase
from ..weather import inside, walls


def tabletop(draw: Draw) -> Plan:
    board = table(draw, draw.between(1.0, 1.7))
    top = board.height
    azimuth, pitch = draw.between(-0.8, 0.8), draw.between(0.15, 1.15)
    distance = draw.between(0.55, 1.25)
    aim = (draw.between(-0.12, 0.12), top + draw.between(0.0, 0.12), draw.between(-0.1, 0.1))
    flat = distance * math.cos(pitch)
    eye = (aim[0] + flat * math.sin(azimuth), aim[1] + distance * math.sin(pitch), aim[2] + flat * math.cos(azimuth))
    camera = draw.camera(eye, aim, (32, 58), roll=7)

    parts = placed(board, (0, 0, 0), 0, draw.between(-0.3, 0.3))
    free, names = Ground(draw), []
    limit = min(0.42, board.radius * 0.62)
    makers = (cup, cup, bottle, vase, bowl, book, book, plate, fruit, fruit, fruit, solid, solid, sculpture)
    sizes = {bottle: (0.22, 0.34), bowl: (0.2, 0.3), book: (0.16, 0.26), plate: (0.18, 0.28), vase: (0.2, 0.3), fruit: (0.06, 0.1)}
    for index in range(1, draw.count(6, 13)):
        make = draw.pick(makers)
        thing = make(draw, draw.between(*sizes.get(make, (0.08, 0.16))))
        at = free.find(thing.radius, (-limit, limit), (-limit * 0.7, limit * 0.7))
        added = placed(thing, (at[0], top, at[1]), index, draw.between(-0.9, 0.9)) if at else []
        if added and clear_of(camera, added, 0.05):
            parts += added
            if in_view(camera, (at[0], top + thing.height / 2, at[1])):
                names.append(thing.name)

    room = walls(draw)
    low = (-draw.between(1.2, 3), 0.0, -draw.between(0.9, 3))
    high = (max(draw.between(1.2, 3), eye[0] + 0.4), max(draw.between(2.3, 3), eye[1] + 0.3), max(1.2, eye[2] + 0.4))
    low = (min(low[0], eye[0] - 0.4), *low[1:])
    light = inside(draw, low, high, room, math.degrees(azimuth))
    caption = f"{listed(names)} on a {board.name}, {room[4].words} walls, {light.words}"
    return Plan(caption, camera, tuple(parts), room, light.lights, light.above, light.below, light.mirrored, low, high)
