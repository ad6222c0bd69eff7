"""Where rays meet the parts, the room and the hills of a batch of plans. Vectors are `[3, b, p]`, as in `intersect`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..intersect import dot, reciprocal
from .fields import flattened, hills
from .plan import HILLS_ROW, ROOM_ROWS, Table
from .shapes import FORM_ROWS, HITS, NORMALS, SHADOW_HITS, STEPS_TOGETHER

# The sky is a wall at this depth, in metres; what lies behind it is not seen.
SKY_DEPTH = 60.0
SKY_ROW = 1
TILE = 8  # pixels: rays are compared with parts a square at a time
HILL_STEPS = 120


@dataclass(frozen=True)
class Frames:
    """Parts `[n]` of a batch, to look at from within: columns of the table."""

    centre: Tensor  # [3, n, 1]
    axes: Tensor  # [9, n, 1]
    half: Tensor  # [3, n, 1]
    form: Tensor  # [k, n, 1]

    def inwards(self, vector: Tensor) -> Tensor:
        """World to the parts' frames, in half sizes; [3, n, r]."""
        return _product(self.axes, vector) / self.half

    def outwards(self, normal: Tensor) -> Tensor:
        """Normals of the parts' frames in the world; [3, n, r], unit."""
        world = _product(self.axes[[0, 3, 6, 1, 4, 7, 2, 5, 8]], normal / self.half)
        return world / dot(world, world).sqrt()


def _frames(table: Table, column: Tensor, shape: int) -> Frames:
    solid = table.solid[: 15 + FORM_ROWS.get(shape, 0), column][..., None]
    return Frames(solid[:3], solid[3:12], solid[12:15], solid[15:])


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """[9, n, 1] by [3, n, r]."""
    return torch.stack([dot(matrix[row : row + 3], vector) for row in (0, 3, 6)])


@dataclass(frozen=True)
class Tiles:
    """A picture as squares of pixels; those that reach over its border repeat the border's."""

    pixels: Tensor  # [tiles, TILE^2] index of the pixel
    places: Tensor  # [p] where in `pixels`, flattened, each pixel stands
    height: int


def cut(height: int, width: int) -> Tiles:
    """A picture of this size as tiles."""
    down, right = torch.arange(-(-height // TILE) * TILE), torch.arange(-(-width // TILE) * TILE)
    pixels = down.clamp(max=height - 1)[:, None] * width + right.clamp(max=width - 1)
    places = torch.arange(pixels.numel()).view(-1, pixels.shape[1] // TILE, TILE, TILE)
    places = rearrange(places, "y x i j -> (y i) (x j)")[:height, :width].flatten()
    return Tiles(rearrange(pixels, "(y i) (x j) -> (y x) (i j)", i=TILE, j=TILE), places, height)


def part_hits(
    table: Table, origin: Tensor, direction: Tensor, tiles: Tiles, wanted: Tensor | None = None, hits: Mapping[int, Callable] = HITS
) -> tuple[Tensor, Tensor, Tensor]:
    """(ray [n] as scene * p + pixel, part [n], distance [n]) of all meetings in front of the origins.

    origin, direction: `[3, b, p]`. wanted: `[b, p]` bool. hits: by shape, HITS or SHADOW_HITS.
    """
    pixels = direction.shape[2]
    origin, direction = origin[:, :, tiles.pixels], direction[:, :, tiles.pixels]
    near = _near_parts(table, origin, direction)
    if wanted is not None:
        wanted = wanted[:, tiles.pixels]
        near &= wanted.any(-1)[:, None]
    scene, part, tile = near.nonzero(as_tuple=True)
    shape, column, row = table.shape[scene, part], scene * table.shape.shape[1] + part, scene * len(tiles.pixels) + tile
    origin, direction = origin.flatten(1, 2), direction.flatten(1, 2)
    rays, parts, distances = [scene.new_empty(0)], [scene.new_empty(0)], [origin.new_empty(0)]
    for kind, hit_of in hits.items():
        chosen = (shape == kind).nonzero()[:, 0]
        if not len(chosen):
            continue
        frames, rows = _frames(table, column[chosen], kind), row[chosen]
        towards = frames.inwards(direction[:, rows])
        start = frames.inwards(origin[:, rows] - frames.centre)
        nearest = -dot(start, towards) / dot(towards, towards)
        hit, distance = hit_of(frames.form, start + towards * nearest, towards, -nearest)
        if wanted is not None:
            hit &= wanted.flatten(0, 1)[rows]
        block, within = hit.nonzero(as_tuple=True)
        at = chosen[block]
        rays.append(scene[at] * pixels + tiles.pixels[tile[at], within])
        parts.append(part[at])
        distances.append((distance + nearest)[block, within])
    return torch.cat(rays), torch.cat(parts), torch.cat(distances)


def _near_parts(table: Table, origin: Tensor, direction: Tensor) -> Tensor:
    """[b, P, tiles] bool: some ray of a tile may meet the sphere around a part that exists.

    A tile's rays stay around its mean ray, within their spread at the origin and their spread in direction times the way.
    """
    start, along = origin.mean(-1), direction.mean(-1)
    along = along / dot(along, along).sqrt()
    spread, fan = (torch.sqrt(dot(away, away).amax(-1))[:, None] for away in (origin - start[..., None], direction - along[..., None]))
    way = table.centre.permute(2, 0, 1)[..., None] - start[:, :, None]
    ahead, squared = dot(way, along[:, :, None]), dot(way, way)
    radius = (table.bound * 1.001 + 1e-3)[..., None]
    limit = radius + spread + fan * (squared.sqrt() + radius + spread)
    near = squared - ahead.clamp(min=0).square() < limit.square()
    return near & (table.shape >= 0)[..., None]


def first_hit(table: Table, origin: Tensor, direction: Tensor, along_axis: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
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

    ray, part, found = part_hits(table, origin.expand_as(direction), direction, tiles)
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
    start = ((tallest - origin[1]) / direction[1]).clamp(min=0) * (origin[1] > tallest)
    result = torch.full_like(farthest, float("inf"))
    active = ((start < farthest) & ~((origin[1] > tallest) & (direction[1] >= 0))).nonzero()[:, 0]
    t = start[active]
    before = t
    for _ in range(0, HILL_STEPS, STEPS_TOGETHER):
        place, towards, end = origin[:, active], direction[:, active], farthest[active]
        # A wave's phase along a ray is a line.
        first, rate = (waves[1] * of[0] + waves[2] * of[2] for of in (place, towards))
        first = first + waves[3]
        for _ in range(STEPS_TOGETHER):
            x, y, z = place + towards * t
            above = y - flattened(waves[0].T @ torch.addcmul(first, rate, t).sin(), x, z)[0]
            ahead = above > 0
            before = torch.where(ahead, t, before)
            further = t + (above / (0.6 + 0.7 * slope)).clamp(min=0.01) + 0.006 * t
            t = torch.where(ahead, torch.minimum(further, end), t)
        met = ~ahead
        result[active[met]] = _between(waves, place[:, met], towards[:, met], before[met], t[met])
        going = ahead & (before < end) & ((y < tallest) | (towards[1] < 0))
        active, t, before = active[going], t[going], before[going]
    return result


def _between(waves: Tensor, origin: Tensor, direction: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Where rays enter the hills, between parameters above and below them, [n] each: regula falsi (Illinois) in float64."""
    waves, origin, direction, above, below = (of.double() for of in (waves, origin, direction, above, below))

    def height(t: Tensor) -> Tensor:
        x, y, z = origin + direction * t
        return y - hills(waves, x, z)

    over, under = height(above), height(below)
    for _ in range(8):
        t = above + (below - above) * (over / (over - under).clamp(min=1e-12)).clamp(0, 1)
        value = height(t)
        up = value > 0
        above, below = torch.where(up, t, above), torch.where(up, below, t)
        # An end that stays counts half, so that it does not stay for ever.
        over, under = torch.where(up, value, over / 2), torch.where(up, under / 2, value)
    return t.float()


def blocked(table: Table, origin: Tensor, direction: Tensor, reach: Tensor, wanted: Tensor, tiles: Tiles) -> Tensor:
    """[b, p] bool: something stands within `reach` metres `[b, p]` of the origins that are wanted."""
    ray, _, distance = part_hits(table, origin, direction, tiles, wanted, SHADOW_HITS)
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

    flat_point, flat_normal, flat_place = point.flatten(1), normal.flatten(1), place.flatten(1)
    scene, pixel = (row >= ROOM_ROWS).nonzero(as_tuple=True)
    part = row[scene, pixel] - ROOM_ROWS
    shape, column, rays = table.shape[scene, part], scene * table.shape.shape[1] + part, scene * point.shape[2] + pixel
    for kind, normal_of in NORMALS.items():
        chosen = (shape == kind).nonzero()[:, 0]
        if not len(chosen):
            continue
        frames, ray = _frames(table, column[chosen], kind), rays[chosen]
        at = frames.inwards(flat_point[:, ray, None] - frames.centre)
        outward = normal_of(frames.form[..., 0], at[..., 0])[..., None]
        flat_normal[:, ray] = frames.outwards(outward)[..., 0]
        # On a flat face the coordinate across it is left out: a pattern's cells must not end just there.
        flat_place[:, ray] = (at * frames.half * (outward.abs() < 1))[..., 0]
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
