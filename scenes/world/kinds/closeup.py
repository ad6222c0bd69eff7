"""One thing, large, in a room or under the sky; the camera level with it, above or below."""

import math

from ..draw import Draw
from ..plan import Plan
from ..stage import Stage
from ..things.furniture import plant
from ..things.outdoor import animal, person
from ..things.small import bottle, bowl, cup, fruit, sculpture, solid, stone, vase
from ..weather import surroundings


def closeup(draw: Draw) -> Plan:
    make = draw.pick((sculpture, sculpture, stone, vase, solid, solid, fruit, cup, bowl, bottle, person, person, animal, animal, plant))
    thing = make(draw, draw.between(1.5, 1.8) if make is person else draw.between(0.3, 0.8))
    radius, middle = max(thing.radius, thing.height / 2), thing.height * 0.5
    if make is person:  # a portrait
        radius, middle = draw.between(0.2, 0.45) * thing.height / 1.7, thing.height * draw.between(0.8, 0.92)

    fov = draw.between(28, 60)
    distance = radius * draw.between(0.95, 1.7) / math.tan(math.radians(fov) / 2) + 0.3 * radius
    azimuth, pitch = draw.between(-0.9, 0.9), draw.between(-0.1, 0.25) if make is person else draw.between(-0.05, 0.9)
    flat = distance * math.cos(pitch)
    eye = (flat * math.sin(azimuth), max(0.12 * distance, middle + distance * math.sin(pitch)), flat * math.cos(azimuth))
    aim = (draw.between(-0.25, 0.25) * radius, middle + draw.between(-0.2, 0.2) * radius, 0.0)
    stage = Stage(draw, draw.camera(eye, aim, (fov, fov), roll=8), 0.03)
    stage.keep_free(0, 0, thing.radius)
    stage.add(thing, (0, 0, 0), draw.between(-0.8, 0.8))
    for _ in range(draw.count(0, 4)):
        other = draw.pick((solid, stone, fruit, vase, bottle, sculpture))(draw, radius * draw.between(0.35, 0.9))
        stage.stand(other, (-2.6 * radius, 2.6 * radius), (-3.5 * radius, 0.6 * radius), draw.between(0, 6.28))

    around = surroundings(draw, eye, azimuth, distance, (1.5 * radius + 0.2, 6 * radius + 0.2), outdoors=0.4)
    return stage.plan(around, f"close view of {stage.listed()} {around.words}")
