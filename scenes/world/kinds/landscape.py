"""Hills, with trees, stones and houses on them, around water or a plain."""

import math

import torch

from ..draw import Draw
from ..fields import hills
from ..plan import WAVES, Plan
from ..things import Ground, bush, clear_of, house, in_view, listed, person, placed, stone, tree
from ..weather import ground, outside


def landscape(draw: Draw) -> Plan:
    tall, long = draw.between(2.0, 7.0), draw.between(25, 50)
    waves = []
    for wave in range(WAVES):
        angle, number = draw.between(0, math.pi), 2 * math.pi / (long * 0.56**wave)
        waves.append((tall * 0.42**wave, number * math.cos(angle), number * math.sin(angle), draw.between(0, 6.28)))
    height = draw.pick((draw.between(1.2, 2.5), draw.between(2.5, 9.0)))
    eye = (0.0, height, 0.0)
    camera = draw.camera(eye, (draw.between(-6, 6), height * draw.between(0.3, 1.0) + draw.between(-1.0, 2.5), -15.0), (40, 68), roll=5)

    noun, hill = ground(draw, ("grass", "grass", "sand", "snow", "earth"))
    if draw.chance(0.45):
        water = draw.material(("",), ("blue", "cyan", "blue", "gray"), shiny=1, muted=0.2)
        floor, where = water, f"{hill.words.split()[-1]} hills of {noun} around water"
    else:
        other, floor = (noun, hill) if draw.chance(0.5) else ground(draw, ("grass", "sand", "earth", "snow"))
        where = f"{hill.words.split()[-1]} hills of {noun} and a plain of {other}"

    free, parts, names = Ground(draw), [], []
    makers = draw.pick(((tree,), (tree, bush, stone), (stone, stone, bush), (tree, tree, house), (tree, house, person, bush)))
    sizes = {tree: (2, 6), bush: (0.6, 1.8), stone: (0.4, 2.0), house: (4, 6), person: (1.5, 1.85)}
    for index in range(20):
        depth = draw.between(4, 38)
        make, x, z = draw.pick(makers), draw.between(-0.75, 0.75) * depth, -depth
        thing = make(draw, draw.between(*sizes[make]))
        lowest, highest = _heights_around(waves, x, z, thing.radius if make is house else 0.3)
        on_water = "water" in where and lowest < 0.05
        if on_water or highest - lowest > 2 or len(parts) > 40 or not free.find(thing.radius, (x, x), (z, z), tries=1):
            continue
        base = max(lowest, 0.0) - 0.05
        added = placed(thing, (x, base, z), index, draw.between(-0.8, 0.8))
        if clear_of(camera, added, 0.5):
            parts += added
            if in_view(camera, (x, base + thing.height / 2, z)):
                names.append(thing.name)
    light = outside(draw, hill, 0.0)
    caption = f"{where}, {listed(names, 3)}, {light.words}" if names else f"{where}, {light.words}"
    room = (floor, floor, hill, floor, floor, floor)
    return Plan(
        caption, camera, tuple(parts), room, light.lights, light.above, light.below, light.mirrored, sky=light.sky, waves=tuple(waves)
    )


def _heights_around(waves: list[tuple[float, float, float, float]], x: float, z: float, radius: float) -> tuple[float, float]:
    """Lowest and highest ground of a place and four around it, never below the plain."""
    at_x, at_z = torch.tensor([[0, 1, 1, -1, -1], [0, 1, -1, 1, -1]], dtype=torch.float64) * 0.7 * radius + torch.tensor([[x], [z]])
    heights = hills(torch.tensor(waves, dtype=torch.float64).T[..., None], at_x, at_z).clamp(min=0)
    return heights.min().item(), heights.max().item()
