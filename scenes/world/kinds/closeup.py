"""One thing, large, in a room or under the sky; the camera level with it, above or below."""

import math

from ..draw import Draw
from ..plan import Plan
from ..things import (
    Ground,
    bottle,
    bowl,
    clear_of,
    cup,
    fruit,
    in_view,
    listed,
    person,
    placed,
    plant,
    sculpture,
    solid,
    stone,
    vase,
)
from ..weather import ground, inside, outside, walls


def closeup(draw: Draw) -> Plan:
    size = draw.between(0.3, 0.8)
    make = draw.pick((sculpture, sculpture, stone, vase, solid, solid, fruit, cup, bowl, bottle, person, plant))
    thing = person(draw, 1.7) if make is person else plant(draw) if make is plant else make(draw, size)
    parts = placed(thing, (0, 0, 0), 0, draw.between(-0.8, 0.8))
    radius = max(thing.radius, thing.height / 2)
    middle = thing.height * 0.5
    if make is person:  # a portrait
        radius, middle = draw.between(0.28, 0.5), thing.height * draw.between(0.78, 0.9)

    fov = draw.between(28, 60)
    distance = radius * draw.between(0.95, 1.7) / math.tan(math.radians(fov) / 2) + 0.3 * radius
    azimuth, pitch = draw.between(-0.9, 0.9), draw.between(-0.05, 0.9) if make is not person else draw.between(-0.1, 0.25)
    flat = distance * math.cos(pitch)
    eye = (flat * math.sin(azimuth), max(0.12 * distance, middle + distance * math.sin(pitch)), flat * math.cos(azimuth))
    aim = (draw.between(-0.25, 0.25) * radius, middle + draw.between(-0.2, 0.2) * radius, 0.0)
    camera = draw.camera(eye, aim, (fov, fov), roll=8)

    place = Ground(draw)
    place.keep_free(0, 0, thing.radius)
    names = [thing.name]
    for index in range(1, draw.count(1, 4)):
        other = draw.pick((solid, stone, fruit, vase, bottle))(draw, radius * draw.between(0.35, 0.9))
        at = place.find(other.radius, (-2.6 * radius, 2.6 * radius), (-3.5 * radius, 0.6 * radius))
        added = placed(other, (at[0], 0, at[1]), index, draw.between(0, 6.28)) if at else []
        if added and clear_of(camera, added):
            parts += added
            if in_view(camera, (at[0], other.height / 2, at[1])):
                names.append(other.name)

    if draw.chance(0.4):
        noun, floor = ground(draw)
        light = outside(draw, floor, math.degrees(azimuth))
        where, low, high, room = f"on {noun}", {}, {}, (floor,) * 6
        corners = {}
    else:
        room = walls(draw)
        wide = distance + draw.between(0.3, 2.0)
        low = (-wide, 0.0, -draw.between(1.5, 6.0) * radius - 0.2)
        high = (wide, max(eye[1] + 0.4, draw.between(2, 3.5)), eye[2] + 0.6)
        light = inside(draw, low, high, room, math.degrees(azimuth))
        where, corners = f"on a {room[0].words} floor, {room[4].words} walls", {"low": low, "high": high}
    caption = f"close view of {listed(names)} {where}, {light.words}"
    return Plan(caption, camera, tuple(parts), room, light.lights, light.above, light.below, light.mirrored, sky=light.sky, **corners)
