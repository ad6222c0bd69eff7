"""Light on the surfaces of a batch of plans: ambient with occlusion, lamps and suns with soft shadows, highlights, the sky."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from ..intersect import dot
from .patterns import fractal
from .plan import LIGHTS, ROOM_ROWS, Table
from .trace import Tiles, blocked

# A part takes ambient light up to this many times its size away.
OCCLUSION_REACH = 5.0
# How much of the ambient light a room's corner loses, and over how many metres.
CORNER_DARKNESS, CORNER_METRES = 0.35, 0.3
# Neighbouring pixels share shadow rays where their normals and places agree.
SAME_NORMAL = 0.95


def openness(table: Table, point: Tensor, normal: Tensor, row: Tensor, tiles: Tiles) -> Tensor:
    """[b, p]: the share of the ambient light that the parts and walls around leave, 0..1.

    A part counts as the ball of its volume: of a hemisphere, a ball of radius r at distance d takes cos (r / d)^2.
    """
    radius = table.blocks
    places, normals, rows = point[:, :, tiles.pixels], normal[:, :, tiles.pixels], row[:, tiles.pixels]
    middle = places.mean(-1)
    spread = (places - middle[..., None]).square().sum(0).amax(-1).sqrt()
    way = table.centre.permute(2, 0, 1)[..., None] - middle[:, :, None]
    near = dot(way, way).sqrt() < OCCLUSION_REACH * radius[..., None] + spread[:, None]
    scene, part, tile = (near & (table.shape >= 0)[..., None]).nonzero(as_tuple=True)
    way = table.centre[scene, part].T[..., None] - places[:, scene, tile]
    size = radius[scene, part, None]
    distance = dot(way, way).sqrt().maximum(size)
    cosine = (dot(way, normals[:, scene, tile]) / distance).clamp(0, 1)
    fade = (1 - distance / (OCCLUSION_REACH * size)).clamp(min=0)
    other = rows[scene, tile] != ROOM_ROWS + part[:, None]
    taken = 0.9 * cosine * (size / distance).square() * fade * (2 - fade) * other
    left = torch.zeros_like(places[0])
    left.flatten(0, 1).index_add_(0, scene * len(tiles.pixels) + tile, (1 - taken).log())
    left = left.flatten(1)[:, tiles.places].exp()

    for axis in range(3):
        for wall in (table.low, table.high):
            away = (point[axis] - wall[:, axis, None]).abs()
            facing = (1 - normal[axis].abs()) * CORNER_DARKNESS
            left *= 1 - facing * (-away / CORNER_METRES).exp()
    return left


def environment(table: Table, direction: Tensor, roughness: Tensor) -> Tensor:
    """Linear radiance [3, b, p] that a surface mirrors from a direction: above, around, below, blurred by its roughness."""
    above, around, below = table.mirrored.permute(1, 2, 0)[..., None]
    lift = direction[1] / (0.12 + roughness)
    return around + lift.clamp(0, 1) * (above - around) + (-lift).clamp(0, 1) * (below - around)


def shade(
    table: Table, point: Tensor, normal: Tensor, view: Tensor, row: Tensor, base: Tensor, surface: Tensor, offset: Tensor, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """Irradiance and raw highlights, linear [3, b, p].

    view: unit, towards the camera. base: colour of metals. surface: [2, b, p] roughness and metallic. offset: metres by which
    shadow rays leave the surface.
    """
    roughness, metallic = surface
    left = openness(table, point, normal, row, tiles)
    above, below = table.above.T[..., None], table.below.T[..., None]
    sky_share = 0.5 + 0.5 * normal[1]
    irradiance = (below + (above - below) * sky_share) * left

    reflectance = 0.04 + (base - 0.04) * metallic
    facing = dot(normal, view).clamp(1e-4, 1)
    glancing = (1 - facing) ** 5
    mirrored = 2 * facing * normal - view
    fresnel = reflectance + (torch.maximum(1 - roughness, reflectance) - reflectance).clamp(min=0) * glancing
    # Dull insulators mirror nothing to speak of: their share is in the albedo.
    gloss = (1 - roughness * (1 - metallic)).clamp(min=0)
    highlights = fresnel * environment(table, mirrored, roughness) * (left * gloss)

    for light in range(LIGHTS):
        if not table.light_color[:, light].any():
            continue
        towards, falloff, seen = light_at(table, light, point, normal, row, offset, tiles)
        cosine = dot(normal, towards)
        color = table.light_color[:, light].T[..., None]
        received = color * (cosine.clamp(min=0) * falloff * seen)
        irradiance = irradiance + received
        highlights = highlights + received * _microfacets(normal, view, towards, cosine, facing, roughness, reflectance) * gloss
    return irradiance, highlights


def _microfacets(
    normal: Tensor, view: Tensor, towards: Tensor, cosine: Tensor, facing: Tensor, roughness: Tensor, reflectance: Tensor
) -> Tensor:
    """GGX reflection over a white diffuser's (Walter et al. 2007; Schlick's Fresnel; Karis' visibility)."""
    alpha = (roughness * roughness).clamp(min=0.01)
    between = view + towards
    between = between / dot(between, between).sqrt().clamp(min=1e-6)
    squared = dot(normal, between).clamp(0, 1) ** 2
    spread = alpha.square() / (squared * (alpha.square() - 1) + 1).square()
    k = (roughness + 1) ** 2 / 8
    cosine = cosine.clamp(min=1e-3)
    visibility = 0.25 / ((cosine * (1 - k) + k) * (facing * (1 - k) + k))
    fresnel = reflectance + (1 - reflectance) * (1 - dot(view, between).clamp(0, 1)) ** 5
    return spread * visibility * fresnel


def light_at(
    table: Table, light: int, point: Tensor, normal: Tensor, row: Tensor, offset: Tensor, tiles: Tiles
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit direction to a light [3, b, p], its falloff and how much of it is seen, [b, p]."""
    is_lamp = table.is_lamp[:, light, None]
    place = table.light_place[:, light].T[..., None]
    towards = place - point * is_lamp
    distance = dot(towards, towards).sqrt()
    towards = towards / distance
    falloff = (table.light_reach[:, light, None] / distance).square().clamp(max=1).masked_fill(~is_lamp, 1.0)

    # Each pixel of a square of nine looks at another point of the light; what they see is shared afterwards.
    height, width = tiles.height, point.shape[2] // tiles.height
    nth = (torch.arange(height)[:, None] % 3 * 3 + torch.arange(width) % 3).flatten()
    u, v = (nth + 0.5) / 4.5 - 1, ((2 * nth) % 9 + 0.5) / 4.5 - 1
    across = torch.hypot(towards[0], towards[2]).clamp(min=1e-6)
    side = torch.stack([towards[2] / across, torch.zeros_like(across), -towards[0] / across])
    up = torch.linalg.cross(towards, side, dim=0)
    size = table.light_size[:, light, None]
    aim = towards * distance + (side * u + up * v) * size
    far = dot(aim, aim).sqrt()
    aim = aim / far
    wanted = (dot(normal, towards) > 0) & (table.light_color[:, light].amax(-1) > 0)[:, None] & (row != 1)
    reach = far.masked_fill(~is_lamp, float("inf"))
    hidden = blocked(table, point + normal * offset, aim, reach, wanted, tiles)
    seen = _shared((wanted & ~hidden).float(), wanted, point, normal, row, height, offset)
    return towards, falloff, seen


def _shared(seen: Tensor, wanted: Tensor, point: Tensor, normal: Tensor, row: Tensor, height: int, offset: Tensor) -> Tensor:
    """Mean [b, p] over the 3 x 3 pixels around each that lie on the same surface and face the same way."""

    def grid(of: Tensor) -> Tensor:
        return rearrange(of, "... (h w) -> ... h w", h=height)

    planes = torch.cat([normal, point, seen[None], wanted[None].float(), row[None].float()])
    padded = pad(grid(planes), (1, 1, 1, 1))
    normal, point, seen, row = grid(normal), grid(point), grid(seen), grid(row.float())
    flatness = 60 * grid(offset)
    total, count = seen.clone(), torch.ones_like(seen)
    h, w = seen.shape[-2:]
    for dy in range(3):
        for dx in range(3):
            if (dy, dx) == (1, 1):
                continue
            near = padded[..., dy : dy + h, dx : dx + w]
            agrees = (near[8] == row) & (near[7] > 0) & (dot(near[:3], normal) > SAME_NORMAL)
            agrees &= dot(near[3:6] - point, normal).abs() < flatness
            weight = agrees.float()
            total += weight * near[6]
            count += weight
    return (total / count).flatten(-2)


def sky_color(table: Table, direction: Tensor, scene: Tensor) -> Tensor:
    """Linear colour [3, n] of the sky of scenes [n] in directions [3, n]."""
    zenith, horizon = table.zenith.T[:, scene], table.horizon.T[:, scene]
    lift = direction[1].clamp(min=0)
    color = horizon + (zenith - horizon) * lift.sqrt()
    clouds = table.clouds[scene]
    place = torch.stack([direction[0], torch.zeros_like(lift), direction[2]]) / (lift + 0.18) * 0.9 + table.cloud_offset.T[:, scene]
    cover = ((fractal(place, 5) - 0.72 + 0.5 * clouds) * 5).clamp(0, 1) * (clouds > 0)
    # Clouds are white, greyer where they are thick.
    white = (0.9 - 0.25 * cover) * horizon.amax(0).clamp(min=0.5)
    return color + (white - color) * cover * (lift * 8).clamp(max=1)
