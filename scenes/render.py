"""Ray casting of a batch of scenes, all maps at once. Vectors are `[3, b, p]`: xyz first, so that each component is contiguous."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor

from .parameters import ROOM_SURFACES, SURFACES, Scenes, Style, sample_scenes

# Rays leave a surface this far above it, in metres, so that it does not shadow itself.
SHADOW_OFFSET = 2e-3
# Scenes rendered together: their planes of floats stay within a core's cache at 128 x 128.
CHUNK_PIXELS = 4 * 128 * 128


@dataclass(frozen=True)
class SceneMaps:
    """A picture and its exact maps. Picture = sRGB(albedo x shading); all float32 but the segmentation.

    image_bhwc: sRGB, 0..1. albedo_bhwc, shading_bhwc: linear, 0..1, three channels. depth_bhw1: metres along the optical
    axis. normal_bhwc: unit vectors, camera space (x right, y up, z towards the viewer). segmentation_bhw: int64 surface id
    (0 floor, 1 ceiling, 2..5 walls, 6.. objects). line_bhw1: 1 on outlines and creases, else 0.
    """

    image_bhwc: Tensor
    albedo_bhwc: Tensor
    shading_bhwc: Tensor
    depth_bhw1: Tensor
    normal_bhwc: Tensor
    segmentation_bhw: Tensor
    line_bhw1: Tensor
    captions: tuple[str, ...]
    scenes: Scenes


def render_scenes(seeds: Sequence[int], height: int, width: int, style: Style = Style()) -> SceneMaps:
    """Draw and render one scene per seed. Raises ValueError for a size below 1 or an empty list."""
    return render(sample_scenes(seeds, style), height, width)


def render(scenes: Scenes, height: int, width: int) -> SceneMaps:
    """Render given scenes; a scene's pixels do not depend on the others in its batch."""
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {width} x {height} was asked for: both sides must be at least 1.")
    step = max(1, CHUNK_PIXELS // (height * width))
    chunks = [_render_chunk(scenes[start : start + step], height, width) for start in range(0, len(scenes), step)]
    joined = {}
    for field in fields(SceneMaps):
        values = [getattr(chunk, field.name) for chunk in chunks]
        if field.name not in ("captions", "scenes"):
            joined[field.name] = values[0] if len(values) == 1 else torch.cat(values)
    return SceneMaps(**joined, captions=scenes.captions, scenes=scenes)


def segmentation_colors(segmentation_bhw: Tensor) -> Tensor:
    """A fixed colour per surface id, `[..., 3]` in 0..1."""
    ids = torch.arange(SURFACES, dtype=torch.float32)
    hue = (ids * 0.61803398875) % 1.0
    table = torch.stack([0.5 + 0.45 * torch.cos(6.2831853 * (hue - shift)) for shift in (0.0, 1 / 3, 2 / 3)], -1)
    table[ids % 2 == 1] *= 0.65
    return table[segmentation_bhw]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _turn(vector: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """World to a frame turned by yaw about y; with -sine, back again."""
    x, y, z = vector
    return torch.stack([cosine * x - sine * z, y, sine * x + cosine * z])


def _primitive_distances(scenes: Scenes, origin: Tensor, direction: Tensor):
    """Yield (object index, distance along the unit direction or inf, [b, p]) for each of the six objects."""
    infinity = float("inf")
    for index in range(6):
        surface = ROOM_SURFACES + index
        centre = rearrange(scenes.centre[:, surface], "b xyz -> xyz b 1")
        half = rearrange(scenes.half_size[:, surface], "b xyz -> xyz b 1")
        offset = origin - centre
        if index < 2:
            b = _dot(offset, direction)
            discriminant = b * b - _dot(offset, offset) + half[0] ** 2
            distance = -b - discriminant.clamp(min=0).sqrt()
            hit = (discriminant > 0) & (distance > 0)
        elif index < 4:
            cosine, sine = scenes.yaw[:, surface, None].cos(), scenes.yaw[:, surface, None].sin()
            local = _turn(offset.expand_as(direction), cosine, sine)
            inverse = 1 / _turn(direction, cosine, sine)
            middle, reach = -local * inverse, half * inverse.abs()
            distance = (middle - reach).amax(0)
            hit = (distance < (middle + reach).amin(0)) & (distance > 0)
        else:
            a = direction[0] ** 2 + direction[2] ** 2
            b = offset[0] * direction[0] + offset[2] * direction[2]
            discriminant = b * b - a * (offset[0] ** 2 + offset[2] ** 2 - half[0] ** 2)
            root = discriminant.clamp(min=0).sqrt()
            inverse_y = 1 / direction[1]
            middle, reach = -offset[1] * inverse_y, half[1] * inverse_y.abs()
            distance = torch.maximum((-b - root) / a, middle - reach)
            hit = (discriminant > 0) & (distance < torch.minimum((-b + root) / a, middle + reach)) & (distance > 0)
        hit = hit & scenes.present[:, index, None]
        yield index, torch.where(hit, distance, infinity)


def _camera_rays(scenes: Scenes, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit directions [3, b, p] in world space and their component along the optical axis [b, p]."""
    tangent = (scenes.vertical_fov_degrees.deg2rad() / 2).tan()[:, None]
    v, u = torch.meshgrid(1 - (torch.arange(height) + 0.5) * 2 / height, (torch.arange(width) + 0.5) * 2 / width - 1, indexing="ij")
    right, up = u.reshape(1, -1) * tangent * (width / height), v.reshape(1, -1) * tangent
    along_axis = (right**2 + up**2 + 1).rsqrt()
    axes = rearrange(scenes.camera_axes, "b row xyz -> row xyz b 1")
    return (axes[0] * right + axes[1] * up - axes[2]) * along_axis, along_axis


def _first_hit(scenes: Scenes, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [b, p] and surface id [b, p]; the room is closed, so every ray hits something."""
    centre = rearrange(scenes.centre[:, 0], "b xyz -> xyz b 1")
    half = rearrange(scenes.half_size[:, 0], "b xyz -> xyz b 1")
    inverse = 1 / direction
    distance, axis = ((centre - origin) * inverse + half * inverse.abs()).min(0)
    positive = direction.gather(0, axis[None])[0] > 0
    # (axis, sign) -> surface id: x left 2 / right 3, y floor 0 / ceiling 1, z back 4 / front 5
    surface = torch.tensor([2, 0, 4])[axis] + positive.long()
    for index, candidate in _primitive_distances(scenes, origin, direction):
        closer = candidate < distance
        distance = torch.where(closer, candidate, distance)
        surface = torch.where(closer, ROOM_SURFACES + index, surface)
    return distance, surface


def _local_frame(scenes: Scenes, point: Tensor, surface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each hit: place in its surface's own frame [3, b, p], world normal [3, b, p], and the gathered looks [8, b, p]."""
    shape = torch.cat([scenes.centre, scenes.half_size, scenes.yaw.cos()[..., None], scenes.yaw.sin()[..., None]], -1)
    looks = torch.cat([scenes.color.flatten(2), scenes.texture[..., None].float(), scenes.texture_scale[..., None]], -1)
    table = rearrange(torch.cat([shape, looks], -1), "b surface value -> value b surface").contiguous()
    gathered = table.gather(2, surface.expand(table.shape[0], *surface.shape))
    centre, half, cosine, sine, looks = gathered[0:3], gathered[3:6], gathered[6], gathered[7], gathered[8:]
    local = _turn(point - centre, cosine, sine)
    relative = local / half
    # Boxes and the room: the face whose coordinate is the largest. Cylinders: cap or mantle, whichever is further out.
    face = torch.nn.functional.one_hot(relative.abs().argmax(0), 3).permute(2, 0, 1) * local.sign()
    mantle = torch.stack([local[0], torch.zeros_like(local[0]), local[2]])
    cap = torch.stack([torch.zeros_like(local[0]), local[1].sign(), torch.zeros_like(local[0])])
    on_cap = relative[1].abs() > (relative[0] ** 2 + relative[2] ** 2).sqrt()
    kind = surface - ROOM_SURFACES
    normal = torch.where(kind < 2, local, torch.where(kind < 4, face, torch.where(on_cap, cap, mantle)))
    normal = torch.where(kind < 0, -face, normal)
    normal = normal / _dot(normal, normal).sqrt()
    return local, _turn(normal, cosine, -sine), looks


def _albedo(local: Tensor, looks: Tensor) -> Tensor:
    """Linear reflectance [3, b, p]: solid, checker, stripes or noise over the surface's own coordinates."""
    first, second, texture, scale = looks[0:3], looks[3:6], looks[6], looks[7]
    # The offset keeps flat faces, whose coordinate is constant, off the cell borders.
    x, y, z = local * scale + 0.253
    checker = ((2 * x).floor() + (2 * y).floor() + (2 * z).floor()) % 2
    stripes = (3 * (x + 0.35 * y + 0.2 * z)).floor() % 2
    noise = 0.5 + 0.5 * (6.1 * x + 2.3 * (4.7 * y).sin() + 1.7 * (5.3 * z + 3.1 * x).sin()).sin() * (3.7 * z + 2.9 * y).cos()
    share = torch.where(texture == 1, checker, torch.where(texture == 2, stripes, noise))
    share = torch.where(texture == 0, torch.zeros_like(share), share)
    return first + (second - first) * share


def _shading(scenes: Scenes, point: Tensor, normal: Tensor) -> Tensor:
    """Linear irradiance [3, b, p]: ambient, dimmer from below, plus the unshadowed part of the light."""
    column = lambda value: rearrange(value, "b xyz -> xyz b 1")
    is_point = scenes.light_is_point[None, :, None]
    light = column(scenes.light_position)
    towards = torch.where(is_point, light - point, light.expand_as(point))
    distance = _dot(towards, towards).sqrt()
    towards = towards / distance
    falloff = torch.where(is_point[0], (scenes.light_reach[:, None] / distance).square().clamp(max=1), torch.ones_like(distance))
    reach = torch.where(is_point[0], distance, torch.full_like(distance, float("inf")))
    origin = point + normal * SHADOW_OFFSET
    lit = torch.ones_like(distance, dtype=torch.bool)
    for _, blocked_at in _primitive_distances(scenes, origin, towards):
        lit &= ~(blocked_at < reach)
    direct = _dot(normal, towards).clamp(min=0) * falloff * lit
    ambient = column(scenes.ambient) * (0.8 + 0.2 * normal[1])
    return ambient + column(scenes.light_color) * direct


def _lines(segmentation_bhw: Tensor, normal_bhwc: Tensor) -> Tensor:
    """1 where a pixel's surface or orientation differs from its right or lower neighbour's."""
    line = torch.zeros(segmentation_bhw.shape)
    creased = lambda a, b: (a * b).sum(-1) < 0.8
    below = (segmentation_bhw[:, 1:] != segmentation_bhw[:, :-1]) | creased(normal_bhwc[:, 1:], normal_bhwc[:, :-1])
    right = (segmentation_bhw[:, :, 1:] != segmentation_bhw[:, :, :-1]) | creased(normal_bhwc[:, :, 1:], normal_bhwc[:, :, :-1])
    line[:, :-1][below] = 1
    line[:, :, :-1][right] = 1
    return line[..., None]


def _render_chunk(scenes: Scenes, height: int, width: int) -> SceneMaps:
    direction, along_axis = _camera_rays(scenes, height, width)
    origin = rearrange(scenes.camera_position, "b xyz -> xyz b 1")
    distance, surface = _first_hit(scenes, origin, direction)
    point = origin + direction * distance
    local, normal, looks = _local_frame(scenes, point, surface)
    albedo = _albedo(local, looks)
    shading = _shading(scenes, point, normal)
    camera_normal = torch.einsum("baw,wbp->abp", scenes.camera_axes, normal)
    picture = lambda planes: rearrange(planes, "c b (h w) -> b h w c", h=height).contiguous()
    normal_bhwc = picture(camera_normal)
    segmentation_bhw = rearrange(surface, "b (h w) -> b h w", h=height)
    return SceneMaps(
        image_bhwc=picture(_srgb(albedo * shading)),
        albedo_bhwc=picture(albedo),
        shading_bhwc=picture(shading),
        depth_bhw1=rearrange(distance * along_axis, "b (h w) -> b h w 1", h=height),
        normal_bhwc=normal_bhwc,
        segmentation_bhw=segmentation_bhw,
        line_bhw1=_lines(segmentation_bhw, normal_bhwc),
        captions=scenes.captions,
        scenes=scenes,
    )


def _srgb(linear: Tensor) -> Tensor:
    """IEC 61966-2-1 for values in 0..1."""
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055)
