"""Things in front of a camera: where they stand, which ones the picture shows, how a caption lists them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from .draw import Draw, turned_about_y
from .plan import Camera, Part, Plan, Vector, vector
from .things.parts import Thing
from .weather import Around


class Stage:
    """Puts things into a scene, none into another and none around the camera.

    clearance: metres that the camera keeps from the boxes around all parts.
    """

    def __init__(self, draw: Draw, camera: Camera, clearance: float = 0.12):
        self.draw = draw
        self.camera = camera
        self.clearance = clearance
        self.parts: list[Part] = []
        self.names: list[str] = []
        self._shown: list[tuple[float, str]] = []
        self._taken: list[tuple[float, float, float]] = []

    def keep_free(self, x: float, z: float, radius: float) -> None:
        self._taken.append((x, z, radius))

    def find(self, radius: float, x: tuple[float, float], z: tuple[float, float], tries: int = 12) -> tuple[float, float] | None:
        """A free circle with its centre between two x and two z; None where there seems to be none."""
        for _ in range(tries):
            at = self.draw.between(*x), self.draw.between(*z)
            if all(math.hypot(at[0] - tx, at[1] - tz) >= radius + other for tx, tz, other in self._taken):
                self.keep_free(*at, radius)
                return at
        return None

    def add(self, thing: Thing, at: Vector, yaw: float = 0.0) -> bool:
        """Whether it could be put there: a thing around the camera is left out."""
        parts = _placed(thing, at, yaw, len(self.names))
        if any(distance_to_box(self.camera.position, part) < self.clearance for part in parts):
            return False
        self.parts += parts
        self.names.append(thing.name)
        if any(in_view(self.camera, (at[0], at[1] + level * thing.height, at[2])) for level in (0.2, 0.5, 0.85)):
            self._shown.append((math.dist(at, self.camera.position), thing.name))
        return True

    def stand(self, thing: Thing, x: tuple[float, float], z: tuple[float, float], yaw: float = 0.0, y: float = 0.0) -> bool:
        """Finds a free place for it, at the height y."""
        at = self.find(thing.radius, x, z)
        return at is not None and self.add(thing, (at[0], y, at[1]), yaw)

    def listed(self, before: str = "", most: int = 5) -> str:
        """What the picture shows, the nearest first, with `before`; nothing at all if it shows nothing."""
        return before + listed([name for _, name in sorted(self._shown)], most) if self._shown else ""

    def plan(self, around: Around, caption: str) -> Plan:
        return Plan(
            caption=caption,
            camera=self.camera,
            names=tuple(self.names),
            parts=tuple(self.parts),
            faces=around.faces,
            lights=around.lights,
            above=around.above,
            below=around.below,
            mirrored=around.mirrored,
            low=around.low,
            high=around.high,
            sky=around.sky,
        )


def distance_to_box(place: Vector, part: Part) -> float:
    """Metres to the box around a part."""
    way = tuple(p - c for p, c in zip(place, part.centre, strict=True))
    along = (abs(sum(a * w for a, w in zip(axis, way, strict=True))) for axis in part.axes)
    return math.hypot(*(max(0.0, a - half) for a, half in zip(along, part.half, strict=True)))


def _placed(thing: Thing, at: Vector, yaw: float, index: int) -> list[Part]:
    rows = turned_about_y(yaw)

    def rotate(v: Vector) -> Vector:
        return vector(v[0] * rows[0][i] + v[1] * rows[1][i] + v[2] * rows[2][i] for i in range(3))

    result = []
    for part in thing.parts:
        right, up, back = part.axes
        centre = vector(c + a for c, a in zip(rotate(part.centre), at, strict=True))
        result.append(replace(part, centre=centre, axes=(rotate(right), rotate(up), rotate(back)), thing=index))
    return result


def in_view(camera: Camera, place: Vector, margin: float = 0.95) -> bool:
    """Whether a square picture shows a place."""
    way = tuple(p - c for p, c in zip(place, camera.position, strict=True))
    right, up, back = (sum(a * w for a, w in zip(axis, way, strict=True)) for axis in camera.axes)
    limit = math.tan(math.radians(camera.vertical_fov_degrees) / 2) * margin
    return back < 0 and abs(right) < -back * limit and abs(up) < -back * limit


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """ "a red ball, two chairs and a table": what a caption says of objects."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    said = []
    for name, count in list(counts.items())[:most]:
        said.append(with_article(name) if count == 1 else f"{'two' if count == 2 else 'several'} {_plural(name)}")
    return said[0] if len(said) == 1 else ", ".join(said[:-1]) + f" and {said[-1]}"


def _plural(name: str) -> str:
    irregular = {"person": "people", "shelf": "shelves", "bench": "benches", "bush": "bushes"}
    noun = name.rsplit(" ", 1)[-1]
    return name.removesuffix(noun) + irregular.get(noun, noun if noun.endswith("s") else f"{noun}es" if noun == "box" else f"{noun}s")
