"""What a room is, and how one is drawn from a seed.

World frame: x right, y up, z towards the default viewer; metres. Every scene is a room (an axis-aligned box seen from
inside) with 2 to 6 objects on its floor: up to two spheres, two boxes and two upright cylinders.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OBJECT_WORDS = ("ball", "ball", "box", "box", "cylinder", "cylinder")
TEXTURE_WORDS = ("", "checkered", "striped", "marbled")  # index = texture id: solid, checker, stripes, noise
ROOM_SURFACES = 6  # surface ids 0..5: floor, ceiling, left, right, back, front; 6..11: the objects
SURFACES = ROOM_SURFACES + len(OBJECT_WORDS)

# Linear reflectance of the colours that captions name.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.62, 0.06, 0.05),
    "orange": (0.78, 0.28, 0.04),
    "yellow": (0.80, 0.62, 0.08),
    "green": (0.10, 0.45, 0.10),
    "cyan": (0.08, 0.52, 0.58),
    "blue": (0.06, 0.14, 0.62),
    "purple": (0.32, 0.09, 0.50),
    "pink": (0.80, 0.34, 0.46),
    "brown": (0.26, 0.13, 0.06),
    "white": (0.82, 0.82, 0.80),
    "gray": (0.34, 0.34, 0.35),
    "black": (0.05, 0.05, 0.06),
}
COLOR_WORDS = tuple(PALETTE)


def _require_within(name: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if value is not None and not low <= value <= high:
        raise ValueError(f"a style's {name} came as {value}: {low} to {high} is wanted.")


@dataclass(frozen=True)
class Style:
    """Limits what is drawn, so that a set of scenes shares a look. None leaves a choice free.

    colors: names out of PALETTE. textures: ids into TEXTURE_WORDS (ceilings stay plain). light_azimuth_degrees: -180..180,
    0 = from the viewer's side, 90 = from the right. light_color: linear RGB, 0..1 each. ambient: 0..0.5, its share of the
    light. Raises ValueError for names or ids that do not exist, for an empty choice, and for numbers outside these ranges.
    """

    colors: tuple[str, ...] | None = None
    textures: tuple[int, ...] | None = None
    light_azimuth_degrees: float | None = None
    light_color: tuple[float, float, float] | None = None
    ambient: float | None = None

    def __post_init__(self) -> None:
        unknown = [repr(name) for name in self.colors or () if name not in PALETTE]
        unknown += [repr(texture) for texture in self.textures or () if texture not in range(len(TEXTURE_WORDS))]
        if unknown:
            raise ValueError(f"a style names {', '.join(unknown)}: colours are {', '.join(COLOR_WORDS)}; textures 0..3.")
        for name in ("colors", "textures"):
            if getattr(self, name) is not None and not len(getattr(self, name)):
                raise ValueError(f"a style's {name} are empty: name at least one, or None to leave them free.")
        if self.light_color is not None and len(self.light_color) != 3:
            raise ValueError(f"a style's light_color has {len(self.light_color)} numbers: three are wanted, linear red, green and blue.")
        _require_within("light_azimuth_degrees", self.light_azimuth_degrees, -180, 180)
        _require_within("ambient", self.ambient, 0, 0.5)
        for channel in self.light_color or ():
            _require_within("light_color", channel, 0, 1)


FREE_STYLE = Style()


@dataclass(frozen=True)
class Scenes:
    """Parameters of a batch of rooms; the first dimension of every tensor is the scene.

    The surface tables have one row per surface id (SURFACES): room faces share the room's centre and half size.
    """

    seeds: tuple[int, ...]
    captions: tuple[str, ...]
    vertical_fov_degrees: Tensor  # [b]
    camera_position: Tensor  # [b, 3]
    camera_axes: Tensor  # [b, 3, 3], rows right, up, back in world coordinates
    present: Tensor  # [b, 6] bool, which objects exist
    centre: Tensor  # [b, SURFACES, 3]
    half_size: Tensor  # [b, SURFACES, 3]; a sphere's three are its radius, a cylinder's x and z its radius
    yaw: Tensor  # [b, SURFACES] radians about y
    color: Tensor  # [b, SURFACES, 2, 3] linear reflectance: first and second colour of the texture
    texture: Tensor  # [b, SURFACES] int64, index into TEXTURE_WORDS
    texture_scale: Tensor  # [b, SURFACES] cycles per metre
    light_is_point: Tensor  # [b] bool
    light_position: Tensor  # [b, 3] a point light's place; a directional light's unit vector towards the light
    light_reach: Tensor  # [b] metres: a point light's irradiance is min(1, (reach / distance)^2)
    light_color: Tensor  # [b, 3] linear irradiance at normal incidence
    ambient: Tensor  # [b, 3] linear irradiance from everywhere; light_color + ambient <= 1

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Scenes":
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})


class _Draws:
    """Hands out columns of one matrix of uniform numbers, so that a scene depends on its own seed alone."""

    def __init__(self, seeds: Sequence[int], columns: int = 192):
        rows = [torch.rand(columns, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform_bn = torch.stack(rows)
        self.used = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        count = math.prod(shape)
        columns = self.uniform_bn[:, self.used : self.used + count]
        self.used += count
        return (low + (high - low) * columns).reshape(-1, *shape)

    def choice(self, *shape: int, options: int) -> Tensor:
        return (self.uniform(*shape) * options).long().clamp(max=options - 1)


def sample_rooms(seeds: Sequence[int], style: Style = FREE_STYLE) -> Scenes:
    """Draw one room per seed; the same seed and style always give the same room, whatever the batch.

    Raises ValueError for an empty list of seeds.
    """
    if not len(seeds):
        raise ValueError("no seeds came: give at least one, e.g. [0].")
    draws = _Draws(seeds)
    b = len(seeds)

    # Camera: looks at a point near the objects, from the front, at eye height or above.
    fov = draws.uniform(low=38.0, high=58.0)
    azimuth = draws.uniform(low=-0.7, high=0.7)
    distance = draws.uniform(low=2.5, high=4.4)
    height = draws.uniform(low=0.7, high=3.2)
    target = torch.stack([draws.uniform(low=-0.3, high=0.3), draws.uniform(low=0.2, high=0.6), draws.uniform(low=-0.3, high=0.3)], -1)
    position = torch.stack([azimuth.sin() * distance, height, azimuth.cos() * distance], -1)
    back = torch.nn.functional.normalize(position - target, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).expand(b, 3), back), dim=-1)
    axes = torch.stack([right, torch.linalg.cross(back, right), back], 1)

    # Room: far enough out to hold the camera.
    half_width = torch.maximum(draws.uniform(low=2.0, high=5.0), position[:, 0].abs() + 0.5)
    ceiling = torch.maximum(draws.uniform(low=2.6, high=5.0), height + 0.5)
    far = draws.uniform(low=1.6, high=5.0)
    near = position[:, 2] + 1.0
    room_centre = torch.stack([torch.zeros(b), ceiling / 2, (near - far) / 2], -1)
    room_half = torch.stack([half_width, ceiling / 2, (near + far) / 2], -1)

    # Objects: one slot of a 3 x 2 grid each, so that they never meet.
    order = draws.uniform(6).argsort(-1)
    slot_x = torch.tensor([-1.2, 0.0, 1.2, -1.2, 0.0, 1.2])[order] + draws.uniform(6, low=-0.12, high=0.12)
    slot_z = torch.tensor([-0.6, -0.6, -0.6, 0.6, 0.6, 0.6])[order] + draws.uniform(6, low=-0.12, high=0.12)
    radius = draws.uniform(6, low=0.26, high=0.46)
    aspect = draws.uniform(6, low=0.45, high=1.5)
    depth_ratio = draws.uniform(6, low=0.7, high=1.0)
    is_sphere = torch.tensor([True, True, False, False, False, False])
    is_box = torch.tensor([False, False, True, True, False, False])
    # A box must fit its slot when turned: its half diagonal stays below the slot's half width.
    half_x = torch.where(is_box, radius * 0.82, radius)
    half_z = torch.where(is_box, half_x * depth_ratio, radius)
    half_y = torch.where(is_sphere, radius, radius * aspect)
    object_half = torch.stack([half_x, half_y, half_z], -1)
    object_centre = torch.stack([slot_x, half_y, slot_z], -1)
    object_yaw = torch.where(is_sphere, draws.uniform(6) * 2 * math.pi, draws.uniform(6) * math.pi)
    count = 2 + draws.choice(options=5)
    present = draws.uniform(6).argsort(-1).argsort(-1) < count[:, None]

    # Looks.
    words = style.colors or COLOR_WORDS
    palette = torch.tensor([PALETTE[name] for name in words])
    first = draws.choice(SURFACES, options=len(palette))
    second = draws.choice(SURFACES, options=len(palette))
    first[:, 3:6] = first[:, 2:3]  # the four walls are painted alike
    second[:, 3:6] = second[:, 2:3]
    jitter = 1 + draws.uniform(SURFACES, low=-0.2, high=0.15)[..., None]
    darker = draws.uniform(SURFACES) < 0.5
    color_a = (palette[first] * jitter).clamp(0.02, 0.92)
    color_b = torch.where(darker[..., None], color_a * 0.4, palette[second]).clamp(0.02, 0.92)
    room = torch.arange(SURFACES) < ROOM_SURFACES
    color = torch.stack([color_a, color_b], 2)
    if style.colors is None:
        # Rooms are muted so that objects stand out; a chosen palette is kept as it is.
        color = torch.where(room[:, None, None], 0.45 * color + 0.55 * torch.tensor([0.45, 0.44, 0.42]), color)
    textures = torch.tensor(style.textures or (0, 0, 0, 1, 2, 3), dtype=torch.int64)  # half of all surfaces are plain
    texture = textures[draws.choice(SURFACES, options=len(textures))]
    texture[:, 1] = 0
    texture[:, 3:6] = texture[:, 2:3]
    texture_scale = torch.where(room, draws.uniform(SURFACES, low=0.5, high=1.1), draws.uniform(SURFACES, low=1.6, high=3.2))
    texture_scale[:, 3:6] = texture_scale[:, 2:3]

    # Light.
    is_point = draws.uniform() < 0.5
    light_azimuth = draws.uniform(low=-2.4, high=2.4)
    if style.light_azimuth_degrees is not None:
        light_azimuth = torch.full((b,), math.radians(style.light_azimuth_degrees))
    elevation = draws.uniform(low=0.5, high=1.25)
    towards = torch.stack([light_azimuth.sin() * elevation.cos(), elevation.sin(), light_azimuth.cos() * elevation.cos()], -1)
    point_distance = draws.uniform(low=2.6, high=4.2)
    inside = (room_centre + room_half - 0.2, room_centre - room_half + 0.2)
    point = (towards * point_distance[:, None]).minimum(inside[0]).maximum(inside[1])
    ambient_level = draws.uniform(low=0.14, high=0.34)
    if style.ambient is not None:
        ambient_level = torch.full((b,), float(style.ambient))
    tint = torch.stack([1 + draws.uniform(low=-0.12, high=0.0), torch.full((b,), 0.95), 1 + draws.uniform(low=-0.2, high=0.0)], -1)
    if style.light_color is not None:
        tint = torch.tensor(style.light_color).expand(b, 3)
    light_color = (1 - ambient_level)[:, None] * tint

    surface_centre = torch.cat([room_centre[:, None].expand(b, ROOM_SURFACES, 3), object_centre], 1)
    return Scenes(
        seeds=tuple(int(seed) for seed in seeds),
        captions=tuple(_captions(present, first, texture, words, light_azimuth, elevation)),
        vertical_fov_degrees=fov,
        camera_position=position,
        camera_axes=axes,
        present=present,
        centre=surface_centre,
        half_size=torch.cat([room_half[:, None].expand(b, ROOM_SURFACES, 3), object_half], 1),
        yaw=torch.cat([torch.zeros(b, ROOM_SURFACES), object_yaw], 1),
        color=color,
        texture=texture,
        texture_scale=texture_scale,
        light_is_point=is_point,
        light_position=torch.where(is_point[:, None], point, towards),
        light_reach=0.8 * point[:, 1],
        light_color=light_color,
        ambient=ambient_level[:, None].expand(b, 3),
    )


def _captions(present: Tensor, color: Tensor, texture: Tensor, words: Sequence[str], azimuth: Tensor, elevation: Tensor) -> list[str]:
    def described(scene: int, surface: int, noun: str) -> str:
        adjectives = (TEXTURE_WORDS[int(texture[scene, surface])], words[int(color[scene, surface])])
        return " ".join(word for word in (*adjectives, noun) if word)

    captions = []
    for scene in range(len(present)):
        objects = [described(scene, ROOM_SURFACES + i, OBJECT_WORDS[i]) for i in range(6) if present[scene, i]]
        degrees = math.degrees(azimuth[scene])
        side = "front" if abs(degrees) < 40 else "back" if abs(degrees) > 120 else "right" if degrees > 0 else "left"
        side = "above" if elevation[scene] > 1.05 else side
        listed = ", ".join(f"a {name}" for name in objects[:-1]) + f" and a {objects[-1]}"
        floor, wall = described(scene, 0, "floor"), described(scene, 2, "walls")
        captions.append(f"{listed} on a {floor}, {wall}, light from {side}")
    return captions
