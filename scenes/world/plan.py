"""What a scene of the world is: the plan of one scene, and the tensors of a batch of plans.

World frame as for rooms: x right, y up, metres. A plan is drawn by one of `kinds` from a seed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import TORUS, TURNED

Vector = tuple[float, float, float]
Axes = tuple[Vector, Vector, Vector]


def vector(numbers: Iterable[float]) -> Vector:
    """Three numbers as a tuple of three."""
    x, y, z = numbers
    return x, y, z


Wave = tuple[float, float, float, float]  # height in metres, kx, kz in radians per metre, phase

UPRIGHT: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ENDLESS = 1000.0  # metres: walls that are never seen
FORM_NUMBERS = 24
WAVES = 7
LIGHTS = 2
ROOM_ROWS = 6  # materials 0..5: floor, ceiling, left, right, back, front; 6..: the parts
HILLS_ROW = 2  # outdoors, where there is no wall


@dataclass(frozen=True)
class Material:
    """color, second: linear reflectance, mixed by the pattern. scale: cycles per metre. words: how a caption names it."""

    color: Vector
    second: Vector = (0.0, 0.0, 0.0)
    pattern: int = 0
    scale: float = 1.0
    offset: Vector = (0.0, 0.0, 0.0)
    roughness: float = 1.0
    metallic: float = 0.0
    words: str = ""


@dataclass(frozen=True)
class Part:
    """A convex or smooth solid. half: metres from the centre along its own axes (rows, in world coordinates); form: its shape's numbers.

    thing: which object of the scene it belongs to, 0..
    """

    shape: int
    centre: Vector
    half: Vector
    material: Material
    axes: Axes = UPRIGHT
    form: tuple[float, ...] = ()
    thing: int = 0


@dataclass(frozen=True)
class Camera:
    position: Vector
    axes: Axes  # rows right, up, back
    vertical_fov_degrees: float


@dataclass(frozen=True)
class Light:
    """place: a lamp's, or the unit vector towards a sun. reach: metres (as in rooms). size: metres; a sun's: its tangent."""

    is_lamp: bool
    place: Vector
    color: Vector
    size: float
    reach: float = 1.0


@dataclass(frozen=True)
class Sky:
    """Linear colours overhead and at the horizon, and what clouds cover, 0..1."""

    zenith: Vector = (0.0, 0.0, 0.0)
    horizon: Vector = (0.0, 0.0, 0.0)
    clouds: float = 0.0
    offset: Vector = (0.0, 0.0, 0.0)


CLEAR = Sky()


@dataclass(frozen=True)
class Plan:
    """One scene. low, high: the corners of the room; outdoors its floor is the ground and its walls are ENDLESS metres away.

    names: of the things, as a caption says them. faces: materials of the room (outdoors: ground, unused, hills, unused ...).
    mirrored: linear radiance above, around and below, seen in shiny surfaces. above, below: linear ambient irradiance.
    All lights and `above` together stay within 1 in each channel.
    """

    caption: str
    camera: Camera
    names: tuple[str, ...]
    parts: tuple[Part, ...]
    faces: tuple[Material, ...]
    lights: tuple[Light, ...]
    above: Vector
    below: Vector
    mirrored: tuple[Vector, Vector, Vector]
    low: Vector = (-ENDLESS, 0.0, -ENDLESS)
    high: Vector = (ENDLESS, ENDLESS, ENDLESS)
    sky: Sky = CLEAR
    waves: tuple[Wave, ...] = ()


@dataclass(frozen=True)
class Table:
    """A batch of plans as tensors: b scenes, P part slots, 6 + P materials, LIGHTS lights. Absent parts have shape -1."""

    vertical_fov_degrees: Tensor  # [b]
    camera_position: Tensor  # [b, 3]
    camera_axes: Tensor  # [b, 3, 3]
    low: Tensor  # [b, 3]
    high: Tensor  # [b, 3]
    shape: Tensor  # [b, P] int64
    thing: Tensor  # [b, P] int64
    centre: Tensor  # [b, P, 3]
    bound: Tensor  # [b, P] radius of the sphere around a part
    blocks: Tensor  # [b, P] radius of the ball that takes as much ambient light
    solid: Tensor  # [36, b * P]: 3 centre, 9 axes, 3 half, 24 form: one column a part, for gathering
    materials: Tensor  # [14, b * (6 + P)]: 3 color, 3 second, scale, 3 offset, roughness, metallic
    pattern: Tensor  # [b, 6 + P] int64
    is_lamp: Tensor  # [b, LIGHTS] bool
    light_place: Tensor  # [b, LIGHTS, 3]
    light_color: Tensor  # [b, LIGHTS, 3]
    light_size: Tensor  # [b, LIGHTS]
    light_reach: Tensor  # [b, LIGHTS]
    above: Tensor  # [b, 3]
    below: Tensor  # [b, 3]
    mirrored: Tensor  # [b, 3, 3]
    zenith: Tensor  # [b, 3]
    horizon: Tensor  # [b, 3]
    clouds: Tensor  # [b]
    cloud_offset: Tensor  # [b, 3]
    waves: Tensor  # [b, WAVES, 4]

    def __len__(self) -> int:
        return len(self.low)


def pack(plans: Sequence[Plan]) -> Table:
    """Plans as tensors."""
    slots = max(1, *(len(plan.parts) for plan in plans))
    dark = Light(False, (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), 0.0)
    nothing = [0.0] * (15 + FORM_NUMBERS)
    shape, thing, solid, pattern, lights = [], [], [], [], []
    materials: list[list[float]] = []
    for plan in plans:
        missing = slots - len(plan.parts)
        shape.append([part.shape for part in plan.parts] + [-1] * missing)
        thing.append([part.thing for part in plan.parts] + [0] * missing)
        for part in plan.parts:
            form = (*part.form, *nothing[: FORM_NUMBERS - len(part.form)])
            solid.append([*part.centre, *part.axes[0], *part.axes[1], *part.axes[2], *part.half, *form])
        solid.extend([nothing] * missing)
        used = [*plan.faces, *(part.material for part in plan.parts), *[plan.faces[0]] * missing]
        materials.extend([*of.color, *of.second, of.scale, *of.offset, of.roughness, of.metallic] for of in used)
        pattern.append([of.pattern for of in used])
        lights.append([*plan.lights, *[dark] * (LIGHTS - len(plan.lights))])

    b = len(plans)
    solid = torch.tensor(solid).reshape(b, slots, -1)
    half = solid[..., 12:15]

    def each(value) -> Tensor:
        return torch.tensor([value(plan) for plan in plans])

    def light(value) -> Tensor:
        return torch.tensor([[value(of) for of in row] for row in lights])

    return Table(
        vertical_fov_degrees=each(lambda plan: plan.camera.vertical_fov_degrees),
        camera_position=each(lambda plan: plan.camera.position),
        camera_axes=each(lambda plan: plan.camera.axes),
        low=each(lambda plan: plan.low),
        high=each(lambda plan: plan.high),
        shape=torch.tensor(shape),
        thing=torch.tensor(thing),
        centre=solid[..., :3].contiguous(),
        bound=_bound(torch.tensor(shape), half),
        blocks=half.prod(-1).pow(1 / 3),
        solid=solid.flatten(0, 1).T.contiguous(),
        materials=torch.tensor(materials).T.contiguous(),
        pattern=torch.tensor(pattern),
        is_lamp=light(lambda of: of.is_lamp),
        light_place=light(lambda of: of.place),
        light_color=light(lambda of: of.color),
        light_size=light(lambda of: of.size),
        light_reach=light(lambda of: of.reach),
        above=each(lambda plan: plan.above),
        below=each(lambda plan: plan.below),
        mirrored=each(lambda plan: plan.mirrored),
        zenith=each(lambda plan: plan.sky.zenith),
        horizon=each(lambda plan: plan.sky.horizon),
        clouds=each(lambda plan: plan.sky.clouds),
        cloud_offset=each(lambda plan: plan.sky.offset),
        waves=each(lambda plan: [*plan.waves, *[(0.0, 0.0, 0.0, 0.0)] * (WAVES - len(plan.waves))]),
    )


def _bound(shape: Tensor, half: Tensor) -> Tensor:
    """Radius [b, P] of the sphere around each part: its half diagonal, or less where it is round."""
    width = torch.maximum(half[..., 0], half[..., 2])
    turned = torch.hypot(width, half[..., 1])
    smooth = torch.maximum(width, half[..., 1])
    return torch.where(shape == TURNED, turned, torch.where(shape >= TORUS, smooth, half.norm(dim=-1)))
