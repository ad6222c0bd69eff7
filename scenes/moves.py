"""A camera that moves through a scene, and where the surfaces that one frame shows are in another: exact motion.

>>> maps = render(camera_move(3, frames=12, kind="interior"), height=128, width=128)
>>> place_hw2, visible_hw = motion(maps, 5, 4)
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .names import ROOM
from .parameters import Scenes
from .rendering import SceneMaps, camera_rays
from .sampling import Worlds, sample_scenes
from .world.plan import Axes, Plan, Vector, vector
from .world.stage import distance_to_box
from .world.trace import SKY_DEPTH

# Metres that the camera keeps from things and walls.
CLEARANCE = 0.15
# A place counts as seen in another frame where that frame's depth agrees within this share.
DEPTH_AGREES = 0.02
# Of places in -1..1.
ROUNDING = 1e-5


def camera_move(
    seed: int,
    frames: int,
    kind: str = ROOM,
    sideways: float = 0.4,
    forward: float = 0.4,
    upward: float = 0.1,
    turn_degrees: float = 6.0,
) -> Worlds:
    """One scene from `frames` places on a straight line: the first is the scene's own camera.

    seed, kind: as in `sample_scenes`. sideways (to the right), forward (both level), upward: metres from the first to the last frame;
    turn_degrees: to the right, over the whole move. A move that would come within CLEARANCE of something is shortened. Raises ValueError
    for no frames.
    """
    if frames < 1:
        raise ValueError(f"a camera move of {frames} frames was asked for: give at least 1.")
    scene = sample_scenes([seed], kind=kind)
    [drawn] = [scene] if isinstance(scene, Scenes) else scene.drawn
    position, axes, is_free = _camera_of(drawn)
    right, back = (_level(axes[row]) for row in (0, 2))
    way = vector(sideways * r - forward * b + upward * u for r, b, u in zip(right, back, (0.0, 1.0, 0.0), strict=True))
    steps = [frame / max(1, frames - 1) for frame in range(frames)]

    def along(step: float) -> Vector:
        return vector(p + step * w for p, w in zip(position, way, strict=True))

    share = next((share for share in (1.0, 0.7, 0.5, 0.3, 0.15) if all(is_free(along(share * step)) for step in steps)), 0.0)
    places = [(along(share * step), _turned(axes, -math.radians(turn_degrees) * step)) for step in steps]
    kinds = (ROOM if isinstance(scene, Scenes) else scene.kinds[0],) * frames
    return Worlds((seed,) * frames, kinds, tuple(_seen_from(drawn, *place) for place in places))


def motion(maps: SceneMaps, frame: int, other: int) -> tuple[Tensor, Tensor]:
    """Where the surfaces of a frame's pixels are in another frame of one `camera_move`, by depth and cameras.

    Returns places [h, w, 2] in -1..1 (x right, y down, as `grid_sample` without aligned corners takes them) and where they are seen
    there [h, w]: in the picture, not hidden; the sky, which has no place, never.
    """
    height, width = maps.depth_bhw1.shape[1:3]
    scenes = maps.scenes
    direction, along_axis = camera_rays(scenes[frame : frame + 1], height, width)
    depth = maps.depth_bhw1[frame, ..., 0]
    way = rearrange(direction / along_axis, "xyz 1 (h w) -> h w xyz", h=height)
    place = scenes.camera_position[frame] + way * depth[..., None]
    right, up, back = ((place - scenes.camera_position[other]) @ scenes.camera_axes[other].T).unbind(-1)
    ahead = (-back).clamp(min=1e-6)
    tangent = float((scenes.vertical_fov_degrees[other].deg2rad() / 2).tan())
    grid = torch.stack([right / (ahead * tangent * width / height), -up / (ahead * tangent)], -1)
    inside = (grid.abs() <= 1 + ROUNDING - torch.tensor([1 / width, 1 / height])).all(-1) & (back < 0)
    there = warp(maps.depth_bhw1[other : other + 1], grid)[..., 0]
    return grid, inside & ((there - ahead).abs() <= DEPTH_AGREES * ahead) & (depth < 0.999 * SKY_DEPTH)


def warp(picture_1hwc: Tensor, grid_hw2: Tensor) -> Tensor:
    """A picture at the places of `motion`, [h, w, c], bilinear."""
    sampled = F.grid_sample(rearrange(picture_1hwc, "1 h w c -> 1 c h w"), grid_hw2[None], align_corners=False, padding_mode="border")
    return rearrange(sampled, "1 c h w -> h w c")


def _camera_of(drawn: Plan | Scenes) -> tuple[Vector, Axes, Callable[[Vector], bool]]:
    """Position and axes of a scene's camera, and whether another place is free of things."""
    if isinstance(drawn, Plan):
        plan = drawn

        def free_in_plan(at: Vector) -> bool:
            inside = all(low + CLEARANCE <= x <= high - CLEARANCE for low, x, high in zip(plan.low, at, plan.high, strict=True))
            return inside and all(distance_to_box(at, part) >= CLEARANCE for part in plan.parts)

        return plan.camera.position, plan.camera.axes, free_in_plan
    room = drawn

    def free_in_room(at: Vector) -> bool:
        place = torch.tensor(at)
        inside = ((place - room.centre[0, 0]).abs() <= room.half_size[0, 0] - CLEARANCE).all()
        # Objects stand upright, whatever their yaw: balls around them are enough.
        away = (place - room.centre[0, -room.present.shape[1] :]).norm(dim=-1) - room.half_size[0, -room.present.shape[1] :].norm(dim=-1)
        return bool(inside and (away[room.present[0]] >= CLEARANCE).all())

    rows = room.camera_axes[0].tolist()
    return vector(room.camera_position[0].tolist()), (vector(rows[0]), vector(rows[1]), vector(rows[2])), free_in_room


def _seen_from(drawn: Plan | Scenes, position: Vector, axes: Axes) -> Plan | Scenes:
    if isinstance(drawn, Plan):
        return replace(drawn, camera=replace(drawn.camera, position=position, axes=axes))
    return replace(drawn, camera_position=torch.tensor([position]), camera_axes=torch.tensor([axes]))


def _level(way: Vector) -> Vector:
    length = math.hypot(way[0], way[2])
    return (way[0] / length, 0.0, way[2] / length) if length > 1e-6 else (0.0, 0.0, 0.0)


def _turned(axes: Axes, angle: float) -> Axes:
    """Turned about the vertical, to the left for positive radians."""
    c, s = math.cos(angle), math.sin(angle)
    right, up, back = ((c * x + s * z, y, -s * x + c * z) for x, y, z in axes)
    return right, up, back
