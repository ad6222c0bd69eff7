"""Depth, surfaces, normals and light against computations that share nothing with the renderer."""

import math

import torch
from intrinsic_lab.scenes import SceneMaps, render_scenes
from torch.nn.functional import normalize


def cast(scenes, row: int, origin: list[float], direction: list[float]) -> tuple[float, int]:
    """Distance and surface of one ray in Python's own float64, by closed forms."""
    best, surface = math.inf, -1
    centre, half = scenes.centre[row].tolist(), scenes.half_size[row].tolist()
    for axis, (low_id, high_id) in enumerate(((2, 3), (0, 1), (4, 5))):
        if direction[axis] == 0:
            continue
        for side, wall in ((-1, low_id), (1, high_id)):
            distance = (centre[0][axis] + side * half[0][axis] - origin[axis]) / direction[axis]
            if 0 < distance < best:
                best, surface = distance, wall
    for index in range(6):
        if not scenes.present[row, index]:
            continue
        c, h = centre[6 + index], half[6 + index]
        yaw = scenes.yaw[row, 6 + index].item()
        ox, oy, oz = (origin[axis] - c[axis] for axis in range(3))
        dx, dy, dz = direction
        # Into the object's frame: the angle between its x axis and the world's is the yaw.
        ox, oz = math.cos(yaw) * ox - math.sin(yaw) * oz, math.sin(yaw) * ox + math.cos(yaw) * oz
        dx, dz = math.cos(yaw) * dx - math.sin(yaw) * dz, math.sin(yaw) * dx + math.cos(yaw) * dz
        found = []  # every place where the ray crosses the surface
        if index < 2:
            found = roots(dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - h[0] ** 2)
        elif index < 4:
            for axis, (o, d) in enumerate(((ox, dx), (oy, dy), (oz, dz))):
                for side in (-1, 1):
                    t = (side * h[axis] - o) / d if d else math.inf
                    at = (ox + t * dx, oy + t * dy, oz + t * dz)
                    if t < math.inf and all(abs(at[other]) <= h[other] for other in range(3) if other != axis):
                        found.append(t)
        else:
            sides = roots(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - h[0] ** 2)
            found = [t for t in sides if abs(oy + t * dy) <= h[1]]
            for side in (-1, 1):
                t = (side * h[1] - oy) / dy if dy else math.inf
                if t < math.inf and (ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= h[0] ** 2:
                    found.append(t)
        for distance in found:
            if 0 < distance < best:
                best, surface = distance, 6 + index
    return best, surface


def roots(a: float, b: float, c: float) -> list[float]:
    """Of a t^2 + 2 b t + c."""
    inside = b * b - a * c
    return [] if inside < 0 or a == 0 else [(-b - math.sqrt(inside)) / a, (-b + math.sqrt(inside)) / a]


def camera_rays(maps: SceneMaps) -> torch.Tensor:
    """`[b, h, w, 3]` float64, camera space, with z = -1: times the depth, they are the points."""
    height, width = maps.segmentation_bhw.shape[1:]
    tangent = torch.tan(torch.deg2rad(maps.scenes.vertical_fov_degrees.double()) / 2)[:, None, None]
    x = ((torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1) * (width / height)
    y = 1 - (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2
    x, y = (x * tangent).expand(-1, height, -1), (y[:, None] * tangent).expand(-1, -1, width)
    return torch.stack([x, y, -torch.ones_like(x)], -1)


def world_points(maps: SceneMaps) -> torch.Tensor:
    points = camera_rays(maps) * maps.depth_bhw1
    return torch.einsum("bhwa,bax->bhwx", points, maps.scenes.camera_axes.double()) + maps.scenes.camera_position.double()[:, None, None]


def test_depth_and_surface_of_every_pixel_are_those_of_a_scalar_ray_caster():
    maps = render_scenes(range(200, 224), height=13, width=17)
    directions = torch.einsum("bhwa,bax->bhwx", camera_rays(maps), maps.scenes.camera_axes.double())
    seen, errors = set(), []
    for row in range(24):
        origin = maps.scenes.camera_position[row].tolist()
        for y in range(13):
            for x in range(17):
                # The ray's z is -1 in camera space, so its parameter is the depth.
                depth, surface = cast(maps.scenes, row, origin, directions[row, y, x].tolist())
                assert maps.segmentation_bhw[row, y, x] == surface
                errors.append(abs(maps.depth_bhw1[row, y, x].item() / depth - 1))
                seen.add(surface)
    assert sorted(errors)[int(len(errors) * 0.995)] < 1e-5
    assert max(errors) < 1e-3  # at a ball's rim float32 cancels
    assert seen >= {0, 2, 3, 4, *range(6, 12)}


def test_normals_are_those_of_the_depth_by_finite_differences():
    maps = render_scenes(range(12), height=160, width=160)
    points = camera_rays(maps) * maps.depth_bhw1
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    up = points[:, :-2, 1:-1] - points[:, 2:, 1:-1]
    measured = normalize(torch.linalg.cross(across, up), dim=-1)
    exact = maps.normal_bhwc.double()
    middle, surface = exact[:, 1:-1, 1:-1], maps.segmentation_bhw
    smooth = torch.ones_like(middle[..., 0], dtype=torch.bool)
    for rows, columns in (
        (slice(0, -2), slice(1, -1)),
        (slice(2, None), slice(1, -1)),
        (slice(1, -1), slice(0, -2)),
        (slice(1, -1), slice(2, None)),
    ):
        smooth &= (surface[:, rows, columns] == surface[:, 1:-1, 1:-1]) & ((exact[:, rows, columns] * middle).sum(-1) > 0.97)
    degrees = torch.rad2deg(torch.acos((measured * middle).sum(-1).clamp(-1, 1)))
    assert smooth.double().mean() > 0.9
    assert (smooth & (surface[:, 1:-1, 1:-1] >= 6)).sum() > 10_000
    assert degrees[smooth].mean() < 0.1
    assert degrees[smooth].quantile(0.999) < 2.5  # balls' rims, where neighbours are 14 degrees apart
    flat = smooth & (surface[:, 1:-1, 1:-1] < 6)
    assert degrees[flat].max() < 0.2
    # Every surface that is seen faces the viewer.
    assert ((exact * normalize(-camera_rays(maps), dim=-1)).sum(-1) > -1e-4).all()


def test_picture_is_albedo_times_shading_in_srgb():
    maps = render_scenes(range(32), height=64, width=64)
    linear = maps.albedo_bhwc.double() * maps.shading_bhwc.double()
    expected = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert (maps.image_bhwc.double() - expected).abs().max() < 1e-5


def test_light_of_the_parameters_on_the_maps_gives_the_picture_where_no_shadow_falls():
    maps = render_scenes(range(300, 324), height=40, width=40)
    scenes, points = maps.scenes, world_points(maps)
    normals = torch.einsum("bhwa,bax->bhwx", maps.normal_bhwc.double(), scenes.camera_axes.double())
    vector = scenes.light_position.double()[:, None, None]
    is_point = scenes.light_is_point[:, None, None]
    towards = torch.where(is_point[..., None], vector - points, vector.expand_as(points))
    distance = towards.norm(dim=-1)
    falloff = torch.where(is_point, (scenes.light_reach.double()[:, None, None] / distance).square().clamp(max=1), 1.0)
    facing = (normals * towards / distance[..., None]).sum(-1)
    ambient = scenes.ambient.double()[:, None, None] * (0.8 + 0.2 * normals[..., 1:2])
    direct = scenes.light_color.double()[:, None, None] * (facing.clamp(min=0) * falloff)[..., None]

    # Whether something stands in the way is the scalar ray caster's to say.
    origins = points + 2e-3 * normals
    decided = wrong = lit = shadowed = 0
    for row in range(0, 24, 2):
        light_distance = distance[row] if scenes.light_is_point[row] else torch.full_like(distance[row], math.inf)
        for y in range(0, 40, 3):
            for x in range(0, 40, 3):
                if facing[row, y, x] <= 1e-3:
                    continue
                ray = (towards[row, y, x] / distance[row, y, x]).tolist()
                blocked_at, surface = cast(scenes, row, origins[row, y, x].tolist(), ray)
                blocked = surface >= 6 and blocked_at < light_distance[y, x]
                expected = ambient[row, y, x] + (0 if blocked else direct[row, y, x])
                decided += 1
                wrong += bool((maps.shading_bhwc[row, y, x] - expected).abs().max() > 1e-4)
                lit, shadowed = lit + (not blocked), shadowed + blocked
    assert lit > 500 and shadowed > 50
    assert wrong / decided < 0.003  # a shadow's border may pass through a pixel's centre

    # All pixels: either fully lit, or left with the ambient light alone.
    is_lit = (maps.shading_bhwc - (ambient + direct)).abs().amax(-1) < 1e-4
    is_dark = (maps.shading_bhwc - ambient).abs().amax(-1) < 1e-4
    assert (is_lit | is_dark).double().mean() > 0.9999
    linear = maps.albedo_bhwc * (ambient + direct)
    relit = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert (maps.image_bhwc - relit)[is_lit].abs().max() < 5e-4
    assert is_lit.double().mean() > 0.6


def test_lines_are_drawn_where_a_surface_or_an_edge_ends_and_nowhere_else():
    maps = render_scenes(range(8), height=48, width=56)
    surface, normal = maps.segmentation_bhw.tolist(), maps.normal_bhwc.double()
    line = maps.line_bhw1[..., 0]
    assert set(line.unique().tolist()) == {0.0, 1.0}
    borders = 0
    for b in range(8):
        for y in range(48):
            for x in range(56):
                near = [(y + dy, x + dx) for dy, dx in ((1, 0), (0, 1)) if y + dy < 48 and x + dx < 56]
                border = any(surface[b][v][u] != surface[b][y][x] for v, u in near)
                crease = any(float(normal[b, v, u] @ normal[b, y, x]) < 0.8 for v, u in near)
                assert bool(line[b, y, x]) == (border or crease)
                borders += border
    assert borders > 500
