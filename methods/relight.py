"""A new light on a picture's intrinsic maps: Lambert's law, picture = sRGB(albedo x shading).

Camera space: x right, y up, z towards the viewer, the camera at the origin looking along -z; places are in the unit of
the depth (metres). Irradiances are linear; 1 makes a white surface white.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .maps import srgb_from_linear

Light = Callable[[Tensor, Tensor | None], Tensor]
"""(normal `[b, h, w, 3]`, place of each pixel `[b, h, w, 3]` or None) -> linear irradiance `[b, h, w, 3]`."""


def direction_from_angles(azimuth_degrees: float, elevation_degrees: float) -> tuple[float, float, float]:
    """Unit vector towards a light: azimuth 0 is the viewer's side, 90 the right; elevation 90 is straight above."""
    azimuth, elevation = math.radians(azimuth_degrees), math.radians(elevation_degrees)
    return math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)


def camera_points(depth_bhw1: Tensor, vertical_fov_degrees: float | Tensor) -> Tensor:
    """Place of each pixel in camera space, `[b, h, w, 3]`, from depth along the optical axis.

    vertical_fov_degrees: one number, or `[b]`. Square pixels. Raises ValueError unless it lies between 0 and 180.
    """
    height, width = depth_bhw1.shape[1:3]
    fov = torch.as_tensor(vertical_fov_degrees, dtype=depth_bhw1.dtype, device=depth_bhw1.device).reshape(-1, 1, 1)
    if not ((fov > 0) & (fov < 180)).all():
        raise ValueError(f"the vertical field of view came as {fov.flatten().tolist()} degrees: between 0 and 180 is wanted.")
    tangent = (fov.deg2rad() / 2).tan()
    pixel_y, pixel_x = (torch.arange(n, dtype=depth_bhw1.dtype, device=depth_bhw1.device) + 0.5 for n in (height, width))
    up = (1 - pixel_y * 2 / height)[None, :, None] * tangent
    right = (pixel_x * 2 / width - 1)[None, None, :] * tangent * (width / height)
    depth = depth_bhw1[..., 0]
    return torch.stack([right * depth, up * depth, -depth], dim=-1)


def _color_of(color: Tensor | tuple[float, float, float], like: Tensor) -> Tensor:
    """Linear RGB, `[3]` or `[b, 3]`, ready to multiply `[b, h, w, 3]`."""
    return torch.as_tensor(color, dtype=like.dtype, device=like.device).reshape(-1, 1, 1, 3)


def directional_light(direction: Tensor | tuple[float, float, float], color: Tensor | tuple[float, float, float]) -> Light:
    """Parallel light, as from the sun. direction: towards the light, any length; color: linear irradiance at normal incidence.

    Both `[3]` or one per picture, `[b, 3]`.
    """

    def irradiance(normal: Tensor, _place: Tensor | None) -> Tensor:
        towards = torch.nn.functional.normalize(_color_of(direction, normal), dim=-1)
        return (normal * towards).sum(-1, keepdim=True).clamp(min=0) * _color_of(color, normal)

    return irradiance


def point_light(
    position: Tensor | tuple[float, float, float], color: Tensor | tuple[float, float, float], reach: float | Tensor = 1.0
) -> Light:
    """A lamp at a place in camera space; its irradiance is color x min(1, (reach / distance)^2).

    position, color: `[3]` or `[b, 3]`; reach: one number or `[b]`, in the depth's unit. Needs places (ValueError without).
    """

    def irradiance(normal: Tensor, place: Tensor | None) -> Tensor:
        if place is None:
            raise ValueError("a point light needs to know where the surfaces are: connect a depth map, or use a directional light.")
        towards = _color_of(position, normal) - place
        distance = towards.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        reach_b = torch.as_tensor(reach, dtype=normal.dtype, device=normal.device).reshape(-1, 1, 1, 1)
        falloff = (reach_b / distance).square().clamp(max=1)
        return (normal * towards / distance).sum(-1, keepdim=True).clamp(min=0) * falloff * _color_of(color, normal)

    return irradiance


def relight(albedo_bhw3: Tensor, shading_bhw3: Tensor) -> Tensor:
    """sRGB picture of linear albedo under linear shading; never clamped."""
    return srgb_from_linear(albedo_bhw3 * shading_bhw3)
