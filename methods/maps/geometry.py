"""What other models say of a picture's geometry, as maps: the packets of ComfyUI's MoGe and Depth Anything 3.

A packet is a mapping of `depth` `[b, h, w]` (along the optical axis, larger is farther; infinite or 0 where nothing is known), and where
they are known `normal` `[b, h, w, 3]` (OpenCV's axes; 0 where nothing is known), `mask` `[b, h, w]` (what is known), `sky` (0..1),
`intrinsics` `[b, 3, 3]` or `[1, b, 3, 3]` (in pixels or in picture sizes), `image` `[b, h, w, 3]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..ildm.consistency import normals_from_depth
from .bundle import PICTURE, MapBundle
from .files import NORMAL_AXES
from .values import unit_normals

SKY = 0.5


@dataclass(frozen=True)
class Geometry:
    """maps: picture, normals, depth in the packet's unit. known_bhw: where the packet says something. Fields of view: one per picture."""

    maps: MapBundle
    known_bhw: Tensor
    vertical_fov_degrees: list[float]


def read_geometry(packet: Mapping[str, Any], fallback_fov_degrees: float = 45.0) -> Geometry:
    """A packet as maps; what is not known gets the farthest known depth, and normals that face the viewer.

    fallback_fov_degrees: where the packet has no intrinsics. Normals come from the depth where it has none. Raises ValueError for what
    holds no depth, or none that is known.
    """
    if not isinstance(packet, Mapping) or "depth" not in packet:
        raise ValueError("this geometry holds no depth: connect what Run MoGe Inference or Run Depth Anything 3 gives.")
    depth_bhw = packet["depth"].float().cpu()
    known = depth_bhw.isfinite() & (depth_bhw > 0)
    if "mask" in packet:
        known &= packet["mask"].cpu() > 0
    if "sky" in packet:
        known &= packet["sky"].cpu() < SKY
    if not known.flatten(1).any(1).all():
        raise ValueError("this geometry knows no depth at all in one of its pictures: try another picture or another model.")
    farthest = torch.where(known, depth_bhw, 0).amax((1, 2), keepdim=True)
    depth_bhw1 = torch.where(known, depth_bhw, farthest)[..., None]
    fov = _vertical_fov(packet["intrinsics"]) if "intrinsics" in packet else [fallback_fov_degrees] * len(depth_bhw)
    maps = {"normal": _normals(packet, depth_bhw1, known, fov), "depth": depth_bhw1}
    if "image" in packet:
        maps[PICTURE] = packet["image"][..., :3].float().cpu()
    return Geometry(MapBundle(maps), known, fov)


def _vertical_fov(intrinsics: Tensor) -> list[float]:
    # The centre lies in the middle, whatever the unit.
    camera = intrinsics.float().cpu().reshape(-1, 3, 3)
    return (2 * (camera[:, 1, 2] / camera[:, 1, 1]).atan()).rad2deg().tolist()


def _normals(packet: Mapping[str, Any], depth_bhw1: Tensor, known_bhw: Tensor, fov: list[float]) -> Tensor:
    if "normal" in packet:
        given = packet["normal"].float().cpu()
        normal_bhw3 = given * given.new_tensor(NORMAL_AXES["opencv"])
    else:
        inner = torch.cat([normals_from_depth(depth[None], degrees) for depth, degrees in zip(depth_bhw1, fov, strict=True)])
        # Forward differences end one row and one column early.
        normal_bhw3 = functional.pad(inner.movedim(-1, 1), (0, 1, 0, 1), mode="replicate").movedim(1, -1)
    return unit_normals(torch.where(known_bhw[..., None], normal_bhw3, 0))
