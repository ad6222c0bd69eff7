"""Lamps that somebody places on a picture: their light, shadows and highlights on its maps. `web/relight_gl.js` draws the same, live.

Picture space: x right and y up from the picture's centre, z towards the viewer, all in halves of the picture's height. Surfaces lie at
z = -relief x (depth - nearest) / (farthest - nearest): from 0 down to -relief. The viewer is far away and looks along -z.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from .maps import linear_from_srgb, srgb_from_linear
from .relight import point_light

MOST_LAMPS, MOST_FRAMES = 8, 100_000
# Places on the way to a lamp at which a shadow is looked for: nearest to the surface they are closest.
MARCH = 48
# How far above its surface a ray starts, in picture space: less is the roughness of an 8-bit map.
CLEARANCE = 0.01


@dataclass(frozen=True)
class Lamp:
    """x, y: place over the picture, shares of its width and height from the top left corner; it may lie outside, -4 to 5.

    height: above the nearest surface, in halves of the picture's height. color: sRGB, "#rrggbb". intensity: linear irradiance of a
    surface that faces it within `reach` (picture space); beyond, it falls with the square of the distance. Raises ValueError.
    """

    x: float = 0.3
    y: float = 0.25
    height: float = 0.6
    color: str = "#ffffff"
    intensity: float = 1.0
    reach: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("x", -4, 5), ("y", -4, 5), ("height", -10, 100), ("intensity", 0, 1000), ("reach", 0.001, 1000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"a lamp's {name} is {value!r}: a number from {low} to {high} is wanted.")
        linear_color(self.color)

    def position(self, width: int, height: int) -> tuple[float, float, float]:
        """In the picture space of a picture of this size."""
        return (2 * self.x - 1) * width / height, 1 - 2 * self.y, self.height


def linear_color(color: str) -> tuple[float, ...]:
    """Linear RGB of "#rrggbb". Raises ValueError."""
    try:
        if len(color) != 7 or color[0] != "#":
            raise ValueError
        return tuple(linear_from_srgb(torch.tensor(tuple(bytes.fromhex(color[1:]))) / 255).tolist())
    except (TypeError, ValueError):
        raise ValueError(f"the light's colour came as {color!r}: #rrggbb is wanted, e.g. #ffe0b0.") from None


def parse_lamps(text: str) -> list[list[Lamp]]:
    """Lamps of each frame: a JSON list of lamps, the same for all frames, or a list of such lists. Raises ValueError."""
    wanted = 'wanted is a list such as [{"x": 0.3, "y": 0.25, "height": 0.6, "color": "#ffffff"}], or a list of such lists, one a frame'
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the lamps are no JSON ({error}): {wanted}.") from None
    if not isinstance(content, list):
        raise ValueError(f"the lamps are {text[:60]!r}: {wanted}.")
    frames = content if content and all(isinstance(entry, list) for entry in content) else [content]
    if len(frames) > MOST_FRAMES or any(len(frame) > MOST_LAMPS for frame in frames):
        raise ValueError(
            f"there are {max(map(len, frames))} lamps in {len(frames)} frames: at most {MOST_LAMPS} in {MOST_FRAMES} are possible."
        )
    known = {field.name for field in fields(Lamp)}
    for entry in (entry for frame in frames for entry in frame):
        if not isinstance(entry, dict) or not entry.keys() <= known:
            raise ValueError(f"a lamp is {json.dumps(entry)[:80]}: {wanted}.")
    return [[Lamp(**entry) for entry in frame] for frame in frames]


def lamps_text(frames: Sequence[Sequence[Lamp]]) -> str:
    """What `parse_lamps` reads; a single frame as one list."""
    lists = [[asdict(lamp) for lamp in frame] for frame in frames]
    return json.dumps(lists[0] if len(lists) == 1 else lists)


def moved(first: Lamp, last: Lamp, frames: int) -> list[Lamp]:
    """A lamp's way from one place to another in equal steps, the ends included; its colour is the first's."""

    def between(one: float, other: float, at: float) -> float:
        return one + (other - one) * at

    steps = [frame / max(1, frames - 1) for frame in range(frames)]
    numbers = [name for name in ("x", "y", "height", "intensity", "reach")]
    ways = [{name: between(getattr(first, name), getattr(last, name), at) for name in numbers} for at in steps]
    return [Lamp(color=first.color, **way) for way in ways]


def relative_depth(depth_bhw1: Tensor) -> Tensor:
    """0 (nearest of its picture) to 1 (farthest)."""
    near, far = (bound.view(-1, 1, 1, 1) for bound in (depth_bhw1.flatten(1).amin(1), depth_bhw1.flatten(1).amax(1)))
    return (depth_bhw1 - near) / (far - near).clamp(min=1e-6)


def surface_places(relative_bhw1: Tensor, relief: float) -> Tensor:
    """Places of the pixels in picture space, `[b, h, w, 3]`. relief: how deep the farthest lies."""
    height, width = relative_bhw1.shape[1:3]
    y, x = (torch.arange(side, dtype=relative_bhw1.dtype, device=relative_bhw1.device) for side in (height, width))
    right = ((2 * x + 1) / width - 1) * (width / height)
    up = 1 - (2 * y + 1) / height
    plane = torch.stack(torch.meshgrid(right, up, indexing="xy"), -1).expand(len(relative_bhw1), -1, -1, -1)
    return torch.cat([plane, -relief * relative_bhw1], -1)


def visibility(place_bhw3: Tensor, position: tuple[float, float, float], hardness: float) -> Tensor:
    """How much of a lamp each pixel sees, `[b, h, w, 1]`, 0..1, looking along the way to it for higher surfaces (a height field).

    hardness: 0 (wide half-shadows) to 1 (sharp). A ray is followed up to the height of the nearest surface.
    """
    b, height, width, _ = place_bhw3.shape
    way = torch.tensor(position, dtype=place_bhw3.dtype, device=place_bhw3.device) - place_bhw3
    start_z = place_bhw3[..., 2]
    rise = way[..., 2]
    # Nothing is higher than 0.
    end = torch.where(rise > 1e-6, (-start_z + CLEARANCE) / rise.clamp(min=1e-6), torch.ones_like(rise)).clamp(max=1)
    steepness = 4 * (50 / 4) ** hardness
    seen = torch.ones_like(rise)
    heights = start_z.flatten(1)
    length = way.norm(dim=-1)
    for step in range(1, MARCH + 1):
        at = end * (step / MARCH) ** 2
        x, y, z = (place_bhw3 + way * at[..., None]).unbind(-1)
        column = ((x * height / width + 1) * width / 2).floor().long().clamp(0, width - 1)
        row = ((1 - y) * height / 2).floor().long().clamp(0, height - 1)
        there = heights.gather(1, (row * width + column).flatten(1)).view(b, height, width)
        below = (z + CLEARANCE - there).clamp(max=0)
        seen = torch.minimum(seen, 1 + steepness * below / (at * length).clamp(min=1e-4))
    return seen.clamp(min=0)[..., None]


def highlights(
    normal: Tensor, place: Tensor, position: tuple[float, float, float], base: Tensor, roughness: Tensor, metallic: Tensor
) -> Tensor:
    """GGX reflection over that of a white diffuser, `[b, h, w, 3]` (Walter et al. 2007; Schlick's Fresnel; Karis' visibility).

    base: linear colour, the albedo; insulators mirror 0.04 of the light, metals their base colour.
    """
    view = normal.new_tensor([0.0, 0.0, 1.0])
    towards = torch.nn.functional.normalize(normal.new_tensor(position) - place, dim=-1)
    half = torch.nn.functional.normalize(towards + view, dim=-1)
    facing, lit = normal[..., 2:].clamp(1e-4, 1), (normal * towards).sum(-1, keepdim=True).clamp(1e-3, 1)
    alpha_squared = (roughness.square().clamp(min=0.01)).square()
    cosine = (normal * half).sum(-1, keepdim=True).clamp(0, 1)
    spread = alpha_squared / (cosine.square() * (alpha_squared - 1) + 1).square()
    k = (roughness + 1).square() / 8
    masking = 0.25 / ((lit * (1 - k) + k) * (facing * (1 - k) + k))
    reflectance = 0.04 + (base - 0.04) * metallic
    fresnel = reflectance + (1 - reflectance) * (1 - half[..., 2:].clamp(0, 1)) ** 5
    # Dull insulators mirror nothing to speak of: their share is in the albedo.
    return spread * masking * fresnel * (1 - roughness * (1 - metallic))


@dataclass(frozen=True)
class Scene:
    """Maps of pictures of one size, as data; relative_depth: 0..1, see `relative_depth`."""

    albedo_bhw3: Tensor
    normal_bhw3: Tensor
    relative_bhw1: Tensor
    shading_bhw3: Tensor | None = None
    roughness_bhw1: Tensor | None = None
    metallic_bhw1: Tensor | None = None


@dataclass(frozen=True)
class Lighting:
    """color: linear RGB, a factor on all lamps. ambient, original: shares of white light and of the shading that was. shadows: 0..1."""

    color: tuple[float, ...] = (1.0, 1.0, 1.0)
    ambient: float = 0.2
    original: float = 0.0
    relief: float = 0.6
    shadows: float = 0.8
    hardness: float = 0.4


def relit(scene: Scene, lamps: Sequence[Lamp], lighting: Lighting) -> tuple[Tensor, Tensor]:
    """(picture in sRGB, shading) `[b, h, w, 3]` under some lamps, never clamped.

    picture = sRGB(albedo (1 - metallic) x shading + highlights); shading = ambient + original x shading there was + lamps with shadows.
    """
    height, width = scene.albedo_bhw3.shape[1:3]
    place = surface_places(scene.relative_bhw1, lighting.relief)
    shading = torch.full_like(scene.albedo_bhw3, lighting.ambient)
    if lighting.original and scene.shading_bhw3 is not None:
        shading = shading + lighting.original * scene.shading_bhw3
    shines = scene.roughness_bhw1 is not None or scene.metallic_bhw1 is not None
    one = torch.ones_like(scene.relative_bhw1)
    roughness = one if scene.roughness_bhw1 is None else scene.roughness_bhw1.clamp(0, 1)
    metallic = 0 * one if scene.metallic_bhw1 is None else scene.metallic_bhw1.clamp(0, 1)
    mirrored = torch.zeros_like(shading)
    for lamp in lamps:
        position = lamp.position(width, height)
        red, green, blue = (lamp.intensity * own * of_all for own, of_all in zip(linear_color(lamp.color), lighting.color, strict=True))
        received = point_light(position, (red, green, blue), lamp.reach)(scene.normal_bhw3, place)
        if lighting.shadows:
            received = received * (1 - lighting.shadows * (1 - visibility(place, position, lighting.hardness)))
        shading = shading + received
        if shines:
            mirrored = mirrored + received * highlights(scene.normal_bhw3, place, position, scene.albedo_bhw3, roughness, metallic)
    return srgb_from_linear(scene.albedo_bhw3 * (1 - metallic) * shading + mirrored), shading
