"""Streets, parks and yards under a sky."""

import math

from ..draw import Draw
from ..plan import Plan
from ..things import (
    Ground,
    Thing,
    bench,
    bush,
    car,
    clear_of,
    fence,
    house,
    in_view,
    listed,
    person,
    placed,
    solid,
    stone,
    street_lamp,
    tree,
)
from ..weather import ground, outside


def outdoor(draw: Draw) -> Plan:
    place = draw.pick(("street", "park", "park", "yard", "yard"))
    height = draw.pick((draw.between(0.3, 1.0), draw.between(1.2, 1.9), draw.between(1.2, 1.9), draw.between(2.5, 7.0)))
    eye = (draw.between(-1, 1), height, 0.0)
    far = draw.between(6, 14)
    aim = (draw.between(-0.3, 0.3) * far, height * draw.between(0.3, 1.1) + draw.between(-0.4, 1.2), -far)
    camera = draw.camera(eye, aim, (38, 70), roll=7)
    nouns = {
        "street": ("a road", "a square"),
        "park": ("grass", "grass", "earth", "snow"),
        "yard": ("grass", "sand", "a square", "earth", "snow"),
    }
    noun, floor = ground(draw, nouns[place])

    free, parts, seen = Ground(draw), [], []
    free.keep_free(eye[0], eye[2], 1.2)
    index = 0

    def add(thing: Thing, x: tuple[float, float], z: tuple[float, float], yaw: float) -> None:
        nonlocal index
        at = free.find(thing.radius, x, z)
        added = placed(thing, (at[0], 0.0, at[1]), index, yaw) if at else []
        if added and clear_of(camera, added, 0.3):
            parts.extend(added)
            index += 1
            if in_view(camera, (at[0], thing.height * 0.4, at[1])):
                seen.append((math.hypot(*at), thing.name))

    if place == "street":
        for side in (-1, 1):
            for row in range(draw.count(1, 2)):
                depth = -9 - 11 * row
                add(
                    house(draw, draw.between(5, 8)),
                    (side * 7.5 - 1, side * 7.5 + 1),
                    (depth - 2, depth),
                    -side * 1.4 + draw.between(-0.2, 0.2),
                )
        for _ in range(draw.count(1, 2)):
            add(car(draw), (-4, 4), (-14, -5), draw.pick((1.57, 0.3)) + draw.between(-0.4, 0.4))
        others = (person, person, street_lamp, tree, solid)
    elif place == "park":
        others = (tree, tree, tree, bush, bush, bench, stone, person, fence)
    else:
        if draw.chance(0.6):
            add(house(draw, draw.between(4, 7)), (-6, 6), (-20, -12), draw.between(-0.7, 0.7))
        others = (solid, solid, solid, stone, fence, tree, bush, person, bench)
    for _ in range(draw.count(5, 9)):
        make = draw.pick(others)
        near = draw.between(2.5, 14.0)
        sizes = {tree: (2.5, 7), bush: (0.7, 1.8), stone: (0.4, 1.6), solid: (0.4, 1.5), fence: (3, 7), person: (1.5, 1.85)}
        thing = make(draw, draw.between(*sizes[make])) if make in sizes else make(draw)
        add(thing, (-0.7 * near - 1, 0.7 * near + 1), (-near - 1.5, -near), draw.between(-0.6, 0.6))

    light = outside(draw, floor, 0.0)
    names = [name for _, name in sorted(seen)]
    caption = f"a {place} with {listed(names)} on {noun}, {light.words}"
    return Plan(caption, camera, tuple(parts), (floor,) * 6, light.lights, light.above, light.below, light.mirrored, sky=light.sky)
