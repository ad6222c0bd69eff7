"""Ray casting of a batch of scenes, all maps at once. Vectors are `[3, b, p]`: xyz first, so that each component is contiguous."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .camera import photographed
from .intersect import dot, object_hits, reciprocal, turn
from .names import ROOM
from .parameters import FREE_STYLE, ROOM_SURFACES, Scenes, Style
from .sampling import Worlds, sample_scenes
from .world.plan import Plan, Table
from .world.render import render_plans

# Rays leave a surface this far above it, in metres, so that it does not shadow itself.
SHADOW_OFFSET = 2e-3
# Neighbouring pixels whose normals are further apart than this have a line between them.
CREASE_COSINE = 0.8
# Scenes rendered together: their planes of floats stay within a core's cache at 128 x 128.
CHUNK_PIXELS = 4 * 128 * 128


@dataclass(frozen=True)
class SceneMaps:
    """A picture and its exact maps. Picture = sRGB(albedo x shading + specular); all float32 but the segmentation.

    image_bhwc: sRGB, 0..1. albedo_bhwc, shading_bhwc: linear, 0..1, three channels; a metal's albedo is what it reflects
    diffusely, its colour x (1 - metallic). specular_bhwc: linear, what highlights and mirrored surroundings add. roughness_bhw1,
    metallic_bhw1: 0..1. depth_bhw1: metres along the optical axis. normal_bhwc: unit vectors, camera space (x right, y up, z towards the
    viewer). segmentation_bhw: int64 surface id (0 floor or ground, 1 ceiling or sky, 2..5 walls, outdoors 2 hills, 6.. objects).
    line_bhw1: 1 on outlines and creases, else 0.

    The sky is a wall that faces the viewer, 60 m deep, behind everything: normal (0, 0, 1), albedo its colour, shading 1. A picture's
    depth is to be scaled with that in mind: relative to its farthest, all near things are alike.
    """

    image_bhwc: Tensor
    albedo_bhwc: Tensor
    shading_bhwc: Tensor
    depth_bhw1: Tensor
    normal_bhwc: Tensor
    segmentation_bhw: Tensor
    line_bhw1: Tensor
    captions: tuple[str, ...]
    scenes: Scenes | Worlds
    roughness_bhw1: Tensor
    metallic_bhw1: Tensor
    specular_bhwc: Tensor


def render_scenes(
    seeds: Sequence[int], height: int, width: int, style: Style = FREE_STYLE, kind: str = ROOM, camera: bool = False
) -> SceneMaps:
    """Draw and render one scene per seed; kind and camera as in `sample_scenes` and `render`.

    Raises ValueError for a size below 1, an empty list or an unknown kind.
    """
    return render(sample_scenes(seeds, style, kind), height, width, camera)


def render(scenes: Scenes | Worlds, height: int, width: int, camera: bool = False) -> SceneMaps:
    """Render given scenes; a scene's pixels do not depend on the others in its batch. Raises ValueError for a size below 1.

    camera: the picture as a camera would give it (`photographed`), no longer exactly that of its maps.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {width} x {height} was asked for: both sides must be at least 1.")

    def empty(channels: int) -> Tensor:
        return torch.empty(len(scenes), height, width, channels)

    maps = SceneMaps(
        image_bhwc=empty(3),
        albedo_bhwc=empty(3),
        shading_bhwc=empty(3),
        depth_bhw1=empty(1),
        normal_bhwc=empty(3),
        segmentation_bhw=torch.empty(len(scenes), height, width, dtype=torch.int64),
        line_bhw1=empty(1),
        captions=scenes.captions,
        scenes=scenes,
        roughness_bhw1=torch.ones(len(scenes), height, width, 1),
        metallic_bhw1=torch.zeros(len(scenes), height, width, 1),
        specular_bhwc=torch.zeros(len(scenes), height, width, 3),
    )
    step = max(1, CHUNK_PIXELS // (height * width))
    if isinstance(scenes, Scenes):
        for start in range(0, len(scenes), step):
            _render_rooms(maps, slice(start, start + step), scenes[start : start + step])
    else:
        planned: list[tuple[int, Plan]] = []
        for row, drawn in enumerate(scenes.drawn):
            if isinstance(drawn, Plan):
                planned.append((row, drawn))
            else:
                _render_rooms(maps, slice(row, row + 1), drawn)
        for start in range(0, len(planned), step):
            _render_plans(maps, planned[start : start + step])
    if camera:
        maps.image_bhwc.copy_(photographed(maps.image_bhwc, scenes.seeds))
    return maps


def srgb_from_linear(linear: Tensor) -> Tensor:
    """IEC 61966-2-1 for values in 0..1."""
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055)


def segmentation_colors(segmentation_bhw: Tensor) -> Tensor:
    """A fixed colour per surface id, `[..., 3]` in 0..1."""
    ids = torch.arange(int(segmentation_bhw.max()) + 1, dtype=torch.float32)
    hue = (ids * 0.61803398875) % 1.0
    table = torch.stack([0.5 + 0.45 * torch.cos(6.2831853 * (hue - shift)) for shift in (0.0, 1 / 3, 2 / 3)], -1)
    table[ids % 2 == 1] *= 0.65
    return table[segmentation_bhw]


def _render_rooms(maps: SceneMaps, rows: slice, scenes: Scenes) -> None:
    """Render some rooms into their places."""
    height, width = maps.segmentation_bhw.shape[1:]
    direction, along_axis = camera_rays(scenes, height, width)
    origin = rearrange(scenes.camera_position, "b xyz -> xyz b 1")
    distance, surface = _first_hit(scenes, origin, direction)
    point = origin + direction * distance
    local, normal = _local_frame(scenes, point, surface)
    planes = {
        "albedo": _albedo(scenes, surface, local),
        "shading": _shading(scenes, point, normal),
        "depth": (distance * along_axis)[None],
        "normal": torch.einsum("baw,wbp->abp", scenes.camera_axes, normal),
    }
    _fill(maps, rows, planes, surface)


def _render_plans(maps: SceneMaps, planned: Sequence[tuple[int, Plan]]) -> None:
    """Render some of the other scenes into their places (rows)."""
    height, width = maps.segmentation_bhw.shape[1:]
    planes, surface = render_plans([plan for _, plan in planned], height, width, camera_rays)
    _fill(maps, [row for row, _ in planned], planes, surface)


def _fill(maps: SceneMaps, rows: slice | list[int], planes: dict[str, Tensor], surface: Tensor) -> None:
    """Write planes `[c, b, p]` by the name of their map, surface ids `[b, p]`, and the picture and lines that follow from them."""
    height = maps.segmentation_bhw.shape[1]

    def grid(plane: Tensor) -> Tensor:
        return rearrange(plane, "... b (h w) -> ... b h w", h=height)

    linear = planes["albedo"] * planes["shading"]
    if "specular" in planes:
        linear = (linear + planes["specular"]).clamp(0, 1)
    for name, plane in {**planes, "image": srgb_from_linear(linear)}.items():
        into = f"{name}_bhwc" if len(plane) == 3 else f"{name}_bhw1"
        getattr(maps, into)[rows] = rearrange(plane, "c b (h w) -> b h w c", h=height)
    maps.segmentation_bhw[rows] = grid(surface)
    maps.line_bhw1[rows, ..., 0] = _lines(grid(surface), grid(planes["normal"])).float()


def camera_rays(scenes: Scenes | Worlds | Table, height: int, width: int) -> tuple[Tensor, Tensor]:
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
    inverse = reciprocal(direction)
    x, y, z = (centre - origin) * inverse + half * inverse.abs()
    distance = torch.minimum(torch.minimum(x, y), z)
    face = (direction > 0).long()  # x left 2 / right 3, y floor 0 / ceiling 1, z back 4 / front 5
    surface = torch.where(distance == y, face[1], torch.where(distance == x, 2 + face[0], 4 + face[2]))
    for index, scene, pixel, candidate in object_hits(scenes, origin, direction):
        closer = candidate < distance[scene, pixel]
        scene, pixel = scene[closer], pixel[closer]
        distance[scene, pixel] = candidate[closer]
        surface[scene, pixel] = ROOM_SURFACES + index
    return distance, surface


def _local_frame(scenes: Scenes, point: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
    """Of each hit: place in its surface's own frame [3, b, p] and unit world normal [3, b, p]."""
    local = point - rearrange(scenes.centre[:, 0], "b xyz -> xyz b 1")
    normal = -_face(local, rearrange(scenes.half_size[:, 0], "b xyz -> xyz b 1"))

    scene, pixel = (surface >= ROOM_SURFACES).nonzero(as_tuple=True)
    of_hit = surface[scene, pixel]
    kind = (of_hit - ROOM_SURFACES) // 2  # ball, box, cylinder
    half, yaw = scenes.half_size[scene, of_hit].T, scenes.yaw[scene, of_hit]
    cosine, sine = yaw.cos(), yaw.sin()
    x, y, z = place = turn(point[:, scene, pixel] - scenes.centre[scene, of_hit].T, cosine, sine)
    zero = torch.zeros_like(x)
    # Cylinders: cap or mantle, whichever is further out.
    on_cap = (y / half[1]).abs() > ((x / half[0]) ** 2 + (z / half[2]) ** 2).sqrt()
    round_normal = torch.where(on_cap, torch.stack([zero, y.sign(), zero]), torch.stack([x, zero, z]))
    outward = torch.where(kind == 0, place, torch.where(kind == 1, _face(place, half), round_normal))
    local[:, scene, pixel] = place
    normal[:, scene, pixel] = turn(outward / dot(outward, outward).sqrt(), cosine, -sine)
    return local, normal


def _face(local: Tensor, half: Tensor) -> Tensor:
    """Outward unit normal of a box, [3, ...], at the place `local` on it: the face whose relative coordinate is the largest."""
    x, y, z = (local / half).abs()
    on_x = (x >= y) & (x >= z)
    on_y = ~on_x & (y >= z)
    return torch.stack([on_x, on_y, ~(on_x | on_y)]) * local.sign()


def _checker(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return ((2 * x).floor() + (2 * y).floor() + (2 * z).floor()) % 2


def _stripes(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (3 * (x + 0.35 * y + 0.2 * z)).floor() % 2


def _noise(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return 0.5 + 0.5 * (6.1 * x + 2.3 * (4.7 * y).sin() + 1.7 * (5.3 * z + 3.1 * x).sin()).sin() * (3.7 * z + 2.9 * y).cos()


def _albedo(scenes: Scenes, surface: Tensor, local: Tensor) -> Tensor:
    """Linear reflectance [3, b, p]: solid, or a mixture of two colours by a texture over the surface's own coordinates."""
    texture = scenes.texture.gather(1, surface)
    first_color = rearrange(scenes.color[:, :, 0], "b surface rgb -> rgb b surface")
    albedo = first_color.gather(2, surface.expand(3, *surface.shape))
    for texture_id, share in enumerate((_checker, _stripes, _noise), start=1):
        rows, pixel = (texture == texture_id).nonzero(as_tuple=True)
        of_hit = surface[rows, pixel]
        # The offset keeps flat faces, whose coordinate is constant, off the cell borders.
        x, y, z = local[:, rows, pixel] * scenes.texture_scale[rows, of_hit] + 0.253
        first, second = scenes.color[rows, of_hit].permute(1, 2, 0)
        albedo[:, rows, pixel] = first + (second - first) * share(x, y, z)
    return albedo


def _shading(scenes: Scenes, point: Tensor, normal: Tensor) -> Tensor:
    """Linear irradiance [3, b, p]: ambient, dimmer from below, plus the unshadowed part of the light."""
    is_point = scenes.light_is_point[None, :, None]
    light, color, ambient = (rearrange(of, "b xyz -> xyz b 1") for of in (scenes.light_position, scenes.light_color, scenes.ambient))
    towards = torch.where(is_point, light - point, light)
    distance = dot(towards, towards).sqrt()
    towards /= distance
    falloff = torch.where(is_point[0], (scenes.light_reach[:, None] / distance).square().clamp(max=1), 1.0)
    reach = torch.where(is_point[0], distance, float("inf"))
    direct = dot(normal, towards).clamp(min=0) * falloff
    for _, scene, pixel, blocked_at in object_hits(scenes, point + normal * SHADOW_OFFSET, towards, wanted=direct > 0):
        shadowed = blocked_at < reach[scene, pixel]
        direct[scene[shadowed], pixel[shadowed]] = 0
    return ambient * (0.8 + 0.2 * normal[1]) + color * direct


def _lines(segmentation_bhw: Tensor, normal_cbhw: Tensor) -> Tensor:
    """True [b, h, w] where a pixel's surface or orientation differs from its right or lower neighbour's."""
    line = torch.zeros(segmentation_bhw.shape, dtype=torch.bool)
    surface, normal = segmentation_bhw, normal_cbhw
    line[:, :-1] |= (surface[:, 1:] != surface[:, :-1]) | (dot(normal[:, :, 1:], normal[:, :, :-1]) < CREASE_COSINE)
    line[:, :, :-1] |= (surface[:, :, 1:] != surface[:, :, :-1]) | (dot(normal[..., 1:], normal[..., :-1]) < CREASE_COSINE)
    return line
