"""Where rays meet the parts, the room and the hills of a batch of plans. Vectors are `[3, b, p]`, as in `intersect`."""

import torch
from torch import Tensor

from ..intersect import dot, reciprocal
from .fields import hills
from .plan import HILLS_ROW, ROOM_ROWS, Table
from .shapes import HITS, NORMALS

# The sky is a wall at this depth, in metres; what lies behind it is not seen.
SKY_DEPTH = 60.0
SKY_ROW = 1
HILL_STEPS = 56


class Pairs:
    """Rays that may meet parts: scene, part and pixel `[n]` of each, and the ray in the part's own frame."""

    def __init__(self, table: Table, scene: Tensor, part: Tensor, pixel: Tensor, width: int):
        self.column = scene * table.shape.shape[1] + part
        self.ray = scene * width + pixel
        self.part = part
        solid = table.solid[:, self.column]
        self.centre, self.axes, self.half, self.form = solid[:3], solid[3:12], solid[12:15], solid[15:]

    def inwards(self, vector: Tensor) -> Tensor:
        """World to the part's frame, in half sizes; [3, n]."""
        return _product(self.axes, vector) / self.half

    def outwards(self, normal: Tensor) -> Tensor:
        """A normal of the part's frame in the world; [3, n], unit."""
        a = self.axes
        world = _product(a[[0, 3, 6, 1, 4, 7, 2, 5, 8]], normal / self.half)
        return world / dot(world, world).sqrt()


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """[9, n] by [3, n]."""
    return torch.stack([dot(matrix[row : row + 3], vector) for row in (0, 3, 6)])


def part_hits(table: Table, origin: Tensor, direction: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(ray [n] as scene * p + pixel, part [n], distance [n]) of all meetings in front of the origins.

    origin: `[3, b, p]` or `[3, b, 1]`. wanted: `[b, p]` bool.
    """
    near = _near_parts(table, origin, direction)
    if wanted is not None:
        near &= wanted[:, None]
    width = direction.shape[2]
    origin, direction = origin.expand_as(direction).flatten(1), direction.flatten(1)
    scene, part, pixel = near.nonzero(as_tuple=True)
    shape = table.shape[scene, part]
    rays, parts, distances = [], [], []
    for kind, hit_of in HITS.items():
        chosen = (shape == kind).nonzero()[:, 0]
        if not len(chosen):
            continue
        pairs = Pairs(table, scene[chosen], part[chosen], pixel[chosen], width)
        towards = pairs.inwards(direction[:, pairs.ray])
        start = pairs.inwards(origin[:, pairs.ray] - pairs.centre)
        nearest = -dot(start, towards) / dot(towards, towards)
        hit, distance = hit_of(pairs.form, start + towards * nearest, towards, -nearest)
        hit = hit.nonzero()[:, 0]
        rays.append(pairs.ray[hit])
        parts.append(pairs.part[hit])
        distances.append((distance + nearest)[hit])
    if not rays:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0)
    return torch.cat(rays), torch.cat(parts), torch.cat(distances)


def _near_parts(table: Table, origin: Tensor, direction: Tensor) -> Tensor:
    """[b, P, p] bool: the ray passes, ahead of its origin, the sphere around a part that exists."""
    centre = table.centre
    # A margin far above what float32 loses at the distances seen.
    radius = table.bound * 1.02 + 0.02
    ahead = torch.baddbmm(-dot(origin, direction)[:, None], centre, direction.transpose(0, 1))
    squared = torch.baddbmm(dot(origin, origin)[:, None], centre, origin.transpose(0, 1), alpha=-2)
    limit = torch.where(table.shape >= 0, radius.square() - centre.square().sum(-1), -float("inf"))
    near = torch.addcmul(squared, ahead, ahead, value=-1) < limit[..., None]
    near &= ahead > -radius[..., None]
    return near


def first_hit(table: Table, origin: Tensor, direction: Tensor, along_axis: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [b, p] and row of the material [b, p] of what each camera ray meets first; beyond SKY_DEPTH, the sky."""
    low, high = table.low.T[..., None], table.high.T[..., None]
    inverse = reciprocal(direction)
    x, y, z = torch.maximum((low - origin) * inverse, (high - origin) * inverse)
    distance = torch.minimum(torch.minimum(x, y), z)
    face = (direction > 0).long()
    row = torch.where(distance == y, face[1], torch.where(distance == x, 2 + face[0], 4 + face[2]))
    for scene in (table.waves[:, 0, 0] > 0).nonzero()[:, 0].tolist():
        hill = _hill_hit(table.waves[scene], origin[:, scene], direction[:, scene], distance[scene].clamp(max=2 * SKY_DEPTH))
        row[scene][hill < distance[scene]] = HILLS_ROW
        distance[scene] = torch.minimum(distance[scene], hill)

    ray, part, found = part_hits(table, origin, direction)
    best, rows = distance.flatten(), row.flatten()
    best.scatter_reduce_(0, ray, found, "amin")
    first = found == best[ray]
    rows[ray[first]] = ROOM_ROWS + part[first]
    distance, row = best.view_as(distance), rows.view_as(row)
    sky = distance * along_axis > SKY_DEPTH
    return torch.where(sky, SKY_DEPTH / along_axis, distance), row.masked_fill(sky, SKY_ROW)


def _hill_hit(waves: Tensor, origin: Tensor, direction: Tensor, farthest: Tensor) -> Tensor:
    """Distance [p] to the hills of one scene, infinite where none is met before `farthest`; origin `[3, p]` or `[3, 1]`."""
    origin = origin.expand_as(direction)
    tallest = waves[:, 0].sum()
    slope = (waves[:, 0] * torch.hypot(waves[:, 1], waves[:, 2])).square().sum().sqrt()
    waves = waves.T[..., None]
    # From where the ray comes below the tallest possible hill.
    start = ((tallest - origin[1]) * reciprocal(direction[1])).clamp(min=0) * (origin[1] > tallest)
    result = torch.full_like(farthest, float("inf"))
    active = ((start < farthest) & ~((origin[1] > tallest) & (direction[1] >= 0))).nonzero()[:, 0]
    t = start[active]
    before = t
    for step in range(HILL_STEPS):
        place, towards = origin[:, active], direction[:, active]
        x, y, z = place + towards * t
        above = y - hills(waves, x, z)
        if step % 4 == 3 or step == HILL_STEPS - 1:
            met = above < 0
            result[active[met]] = _bisect(waves, place[:, met], towards[:, met], before[met], t[met])
            going = ~met & (t < farthest[active]) & ((y < tallest) | (towards[1] < 0))
            active, t, before, above = active[going], t[going], before[going], above[going]
            if not len(active):
                break
        ahead = above > 0
        before = torch.where(ahead, t, before)
        t = torch.where(ahead, t + (above / (1 + slope)).clamp(min=0.01) + 0.006 * t, t)
    return result


def _bisect(waves: Tensor, origin: Tensor, direction: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Between a parameter above the hills and one below, [n] each."""
    waves, origin, direction, above, below = (of.double() for of in (waves, origin, direction, above, below))
    for _ in range(18):
        middle = (above + below) / 2
        x, y, z = origin + direction * middle
        under = y < hills(waves, x, z)
        above, below = torch.where(under, above, middle), torch.where(under, middle, below)
    return ((above + below) / 2).float()


def blocked(table: Table, origin: Tensor, direction: Tensor, reach: Tensor, wanted: Tensor) -> Tensor:
    """[b, p] bool: something stands within `reach` metres `[b, p]` of the origins that are wanted."""
    ray, _, distance = part_hits(table, origin, direction, wanted)
    result = torch.zeros(wanted.numel(), dtype=torch.bool)
    result[ray[distance < reach.flatten()[ray]]] = True
    result = result.view_as(wanted)
    for scene in (table.waves[:, 0, 0] > 0).nonzero()[:, 0].tolist():
        pixel = (wanted[scene] & ~result[scene]).nonzero()[:, 0]
        hill = _hill_hit(table.waves[scene], origin[:, scene, pixel], direction[:, scene, pixel], torch.full((len(pixel),), SKY_DEPTH))
        result[scene, pixel] = hill < SKY_DEPTH
    return result


def normals_of(table: Table, point: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Of each hit: its place relative to its surface, in metres along that surface's axes [3, b, p], and unit world normal [3, b, p]."""
    # Room faces: the normal points inwards; ids 0, 1 are y, 2, 3 are x, 4, 5 are z.
    inwards = torch.tensor([[0, 0, 1, -1, 0, 0], [1, -1, 0, 0, 0, 0], [0, 0, 0, 0, 1, -1]], dtype=torch.float32)
    normal = inwards[:, row.clamp(max=ROOM_ROWS - 1)]
    place = point * (1 - normal.abs())

    width = point.shape[2]
    flat_point, flat_normal, flat_place = point.flatten(1), normal.flatten(1), place.flatten(1)
    scene, pixel = (row >= ROOM_ROWS).nonzero(as_tuple=True)
    part = row[scene, pixel] - ROOM_ROWS
    shape = table.shape[scene, part]
    for kind, normal_of in NORMALS.items():
        chosen = (shape == kind).nonzero()[:, 0]
        if not len(chosen):
            continue
        pairs = Pairs(table, scene[chosen], part[chosen], pixel[chosen], width)
        at = pairs.inwards(flat_point[:, pairs.ray] - pairs.centre)
        outward = normal_of(pairs.form, at)
        flat_normal[:, pairs.ray] = pairs.outwards(outward)
        # On a flat face the coordinate across it is left out: a pattern's cells must not end just there.
        flat_place[:, pairs.ray] = at * pairs.half * (outward.abs() < 1)
    normal, place = flat_normal.view_as(normal), flat_place.view_as(place)
    for scene in (table.waves[:, 0, 0] > 0).nonzero()[:, 0].tolist():
        pixel = (row[scene] == HILLS_ROW).nonzero()[:, 0]
        normal[:, scene, pixel] = _hill_normal(table.waves[scene], point[:, scene, pixel])
        place[:, scene, pixel] = point[:, scene, pixel]
    return place, normal


def _hill_normal(waves: Tensor, point: Tensor, step: float = 1e-4) -> Tensor:
    """[3, n], by central differences of the height in float64."""
    waves = waves.double().T[..., None]
    x, _, z = point.double()
    up = torch.full_like(x, 2 * step)
    normal = torch.stack(
        [
            hills(waves, x - step, z) - hills(waves, x + step, z),
            up,
            hills(waves, x, z - step) - hills(waves, x, z + step),
        ]
    )
    return (normal / dot(normal, normal).sqrt()).float()
