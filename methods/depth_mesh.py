"""A picture's depth as a mesh of triangles, the picture lying on it as its texture.

Camera space as in `relight`, which is also glTF's: x right, y up, z towards the viewer; in the unit of the depth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .relight import camera_points


@dataclass(frozen=True)
class DepthMesh:
    """vertices_n3: places. faces_m3: three vertices each, counter-clockwise for the camera. uvs_n2: 0..1 from the texture's top left."""

    vertices_n3: Tensor
    faces_m3: Tensor
    uvs_n2: Tensor


def depth_mesh(depth_hw: Tensor, vertical_fov_degrees: float, edge: float = 0.05, step: int = 1) -> DepthMesh:
    """A vertex at every `step`-th pixel's middle, two triangles between four of them.

    edge: there are no triangles where the depths of two neighbouring pixels differ by more than this share of the nearer one; 0: they
    stay. Where depth is not finite or not positive there is no surface. Raises ValueError where nothing is left.
    """
    height, width = depth_hw.shape
    known = depth_hw.isfinite() & (depth_hw > 0)
    depth = torch.where(known, depth_hw, 1.0)
    torn = ~known if edge <= 0 else ~known | _beside_an_edge(depth, edge)
    rows, columns = (torch.arange(0, size, step) for size in (height, width))
    if min(len(rows), len(columns)) < 2:
        raise ValueError(f"a depth map of {width} x {height} has no triangles at every {step}th pixel: take a smaller step.")
    number = torch.arange(len(rows) * len(columns)).reshape(len(rows), len(columns))
    corners = torch.stack([number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]], -1)
    # A triangle spans the pixels between its corners too.
    torn_between = functional.max_pool2d(torn[None].float(), step, stride=step)[0, : len(rows) - 1, : len(columns) - 1] > 0
    whole = corners[~torn_between & known[::step, ::step].reshape(-1)[corners].all(-1)]
    if not len(whole):
        raise ValueError(f"no triangle is left of this depth at an edge of {edge:g}: set a larger one, or 0 to keep all.")
    faces = torch.cat([whole[:, [0, 1, 2]], whole[:, [0, 2, 3]]])
    used, renumbered = faces.unique(return_inverse=True)
    points = camera_points(depth[None, ..., None], vertical_fov_degrees)[0, ::step, ::step].reshape(-1, 3)
    across, down = (columns + 0.5) / width, (rows + 0.5) / height
    uvs = torch.stack([across.expand(len(rows), -1), down[:, None].expand(-1, len(columns))], -1).reshape(-1, 2)
    return DepthMesh(points[used], renumbered, uvs[used])


def _beside_an_edge(depth_hw: Tensor, edge: float) -> Tensor:
    """True where the step to the pixel on the right, below, or diagonally across is an edge."""
    log_depth = functional.pad(depth_hw.log()[None, None], (0, 1, 0, 1), mode="replicate")[0, 0]
    around = torch.stack([log_depth[:-1, :-1], log_depth[1:, :-1], log_depth[:-1, 1:], log_depth[1:, 1:]])
    # The depths of one square of pixels: two of them differ by so much somewhere.
    return around.amax(0) - around.amin(0) > torch.tensor(1 + edge).log()
