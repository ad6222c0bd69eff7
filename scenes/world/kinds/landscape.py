"""Hills, with trees, stones and houses on them, around water or a plain."""

import math
from dataclasses import replace

import torch

from ..draw import Draw
from ..fields import hills
from ..plan import HILLS_ROW, WAVES, Plan, Wave
from ..stage import Stage
from ..things.outdoor import bush, house, person, tree
from ..things.small import stone
from ..weather import ground, open_air

SETTLED = ((tree,), (tree, bush, stone), (stone, stone, bush), (tree, tree, house), (tree, house, person, bush))
# Metres across or high.
SIZES = {tree: (2, 6), bush: (0.6, 1.8), stone: (0.4, 2.0), house: (4, 6), person: (1.5, 1.85)}


def landscape(draw: Draw) -> Plan:
    waves = _waves(draw)
    height = draw.pick((draw.between(1.2, 2.5), draw.between(2.5, 9.0)))
    aim = (draw.between(-6, 6), height * draw.between(0.3, 1.0) + draw.between(-1.0, 2.5), -15.0)
    stage = Stage(draw, draw.camera((0.0, height, 0.0), aim, (40, 68), roll=5), 0.5)

    noun, hill = ground(draw, ("grass", "grass", "sand", "snow", "earth"))
    wet = draw.chance(0.45)
    around = open_air(draw, 0.0, ("grass", "sand", "earth", "snow"))
    plain = draw.material(("",), ("blue", "cyan", "blue", "gray"), shiny=1, muted=0.2) if wet else around.faces[0]
    faces = [plain] * 6
    faces[HILLS_ROW] = hill

    makers = draw.pick(SETTLED)
    for _ in range(20):
        depth = draw.between(4, 38)
        make, x, z = draw.pick(makers), draw.between(-0.75, 0.75) * depth, -depth
        thing = make(draw, draw.between(*SIZES[make]))
        lowest, highest = _heights_around(waves, x, z, thing.radius if make is house else 0.3)
        if (wet and lowest < 0.05) or highest - lowest > 2 or len(stage.parts) > 40:
            continue
        stage.stand(thing, (x, x), (z, z), draw.between(-0.8, 0.8), max(lowest, 0.0) - 0.05)

    land = f"{hill.words.split()[-1]} hills of {noun}"
    words = f"{land} around water" if wet else f"{land} and a plain of {around.floor}"
    return replace(
        stage.plan(replace(around, faces=tuple(faces)), f"{words}{stage.listed(', ', 3)}, {around.background}, {around.light}"), waves=waves
    )


def _waves(draw: Draw) -> tuple[Wave, ...]:
    tall, long = draw.between(2.0, 7.0), draw.between(25, 50)
    waves = []
    for wave in range(WAVES):
        angle, number = draw.between(0, math.pi), 2 * math.pi / (long * 0.56**wave)
        waves.append((tall * 0.42**wave, number * math.cos(angle), number * math.sin(angle), draw.between(0, 6.28)))
    return tuple(waves)


def _heights_around(waves: tuple[Wave, ...], x: float, z: float, radius: float) -> tuple[float, float]:
    """Lowest and highest ground of a place and four around it, never below the plain."""
    around = torch.tensor([[0, 1, 1, -1, -1], [0, 1, -1, 1, -1]], dtype=torch.float64) * 0.7 * radius
    heights = hills(torch.tensor(waves, dtype=torch.float64).T[..., None], x + around[0], z + around[1]).clamp(min=0)
    return heights.min().item(), heights.max().item()
