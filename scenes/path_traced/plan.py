"""What a procedural scene is made of, as plain numbers: no Blender is needed to draw one, compare two or test them.

Metres and radians; z is up. `build.build` turns a `Plan` into Blender's objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, sin

Vector = tuple[float, float, float]
TEXTURES = ("none", "noise", "brick", "wave", "voronoi", "checker", "magic")
SHAPES = ("cube", "sphere", "rock", "cylinder", "cone", "pyramid", "torus", "monkey", "grid", "lathe")


@dataclass(frozen=True)
class Material:
    """A surface: two linear colours and two roughnesses, mixed by a procedural texture of `cells` per metre.

    bump: height in metres of the texture's relief; it changes the picture and its light, not the normal map.
    """

    name: str
    colors: tuple[Vector, Vector]
    roughness: tuple[float, float]
    texture: str = "none"
    cells: float = 4.0
    metallic: float = 0.0
    bump: float = 0.0


@dataclass(frozen=True)
class Part:
    """A mesh: one of SHAPES with bounding box `size`, its centre at `place`, turned by `turn` (Euler angles about x, y, z).

    bevel: width in metres. subdivide: levels of Catmull-Clark. displace: height in metres of noise `displace_size` metres wide.
    hole: a box (centre, size) or, with `hole_round`, a cylinder along y, cut out. repeat: number of copies, and the step between
    them. profile: (radius, height) pairs that `lathe` turns about z.
    """

    shape: str
    size: Vector
    place: Vector
    material: Material
    turn: Vector = (0.0, 0.0, 0.0)
    smooth: bool = False
    bevel: float = 0.0
    subdivide: int = 0
    displace: float = 0.0
    displace_size: float = 0.5
    hole: tuple[Vector, Vector] | None = None
    hole_round: bool = False
    repeat: tuple[int, Vector] | None = None
    profile: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Light:
    """kind: "area" (square of side `size`, watts), "point" (radius `size`, watts) or "portal" (an opening for the sky's light)."""

    kind: str
    place: Vector
    target: Vector
    power: float
    size: float
    color: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Sky:
    """Blender's sky texture, its sun `sun` times as strong as on a clear day; one colour where `elevation` is None. Radians."""

    strength: float
    sun: float = 1.0
    elevation: float | None = None
    azimuth: float = 0.0
    color: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """fov: radians across the picture, which is square."""

    place: Vector
    target: Vector
    fov: float
    roll: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A whole scene."""

    seed: int
    kind: str
    caption: str
    parts: tuple[Part, ...]
    lights: tuple[Light, ...]
    sky: Sky
    camera: Camera


def placed(parts: Sequence[Part], place: Vector, yaw: float = 0.0) -> list[Part]:
    """Parts turned together about the z axis, then moved."""
    moved = []
    for part in parts:
        x, y, z = part.place
        turned = (cos(yaw) * x - sin(yaw) * y + place[0], sin(yaw) * x + cos(yaw) * y + place[1], z + place[2])
        moved.append(replace(part, place=turned, turn=(part.turn[0], part.turn[1], part.turn[2] + yaw)))
    return moved
