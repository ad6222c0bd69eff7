"""How well a generated picture and its generated maps tell of one scene, without any ground truth."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..metrics import normal_angle_degrees

# Farthest over nearest distance, less 1, that a relative depth may stand for.
DEPTH_RANGES = torch.logspace(-2, 3, 21, base=2.0).tolist()


def normals_from_depth(depth_bhw1: Tensor, vertical_fov_degrees: float) -> Tensor:
    """Camera-space unit normals (x right, y up, z towards the viewer), `[b, h - 1, w - 1, 3]`, of a pinhole camera's depth map.

    depth_bhw1: distance along the optical axis, any unit, above 0. By forward differences.
    """
    height, width = depth_bhw1.shape[1:3]
    tangent = torch.tensor(vertical_fov_degrees, dtype=depth_bhw1.dtype).deg2rad().div(2).tan()
    up = (1 - (torch.arange(height) + 0.5) * 2 / height).to(depth_bhw1) * tangent
    right = ((torch.arange(width) + 0.5) * 2 / width - 1).to(depth_bhw1) * tangent * width / height
    ray = torch.stack([right.expand(height, -1), up[:, None].expand(-1, width), -torch.ones(height, width).to(depth_bhw1)], -1)
    point = depth_bhw1 * ray
    to_right, to_up = point.diff(dim=2)[:, :-1], -point.diff(dim=1)[:, :, :-1]
    return functional.normalize(torch.linalg.cross(to_right, to_up), dim=-1)


def depth_normal_degrees(depth_bhw1: Tensor, normal_bhw3: Tensor, vertical_fov_degrees: float) -> Tensor:
    """Median angle between normals and those of a relative depth, `[b]`, degrees.

    The depth's scale does not change its normals, its range does: that of DEPTH_RANGES with the smallest angle counts.
    """
    nearest, farthest = depth_bhw1.amin((1, 2, 3), keepdim=True), depth_bhw1.amax((1, 2, 3), keepdim=True)
    relative = (depth_bhw1 - nearest) / (farthest - nearest).clamp(min=1e-6)
    angles = []
    for depth_range in DEPTH_RANGES:
        angle = normal_angle_degrees(normals_from_depth(1 + depth_range * relative, vertical_fov_degrees), normal_bhw3[:, :-1, :-1])
        angles.append(angle.flatten(1).median(1).values)
    return torch.stack(angles).amin(0)


def edge_strength(picture_bhwc: Tensor) -> Tensor:
    """Length of the forward differences, the channels' largest, `[b, h, w]`; 0 in the last row and column."""
    right, down = (picture_bhwc.diff(dim=dim, append=picture_bhwc.narrow(dim, -1, 1)) for dim in (2, 1))
    return (right**2 + down**2).sqrt().amax(-1)


def edge_agreement(one_bhw: Tensor, other_bhw: Tensor, tolerance: int = 1) -> Tensor:
    """Pearson's correlation of two edge maps, `[b]`, -1..1, each widened by `tolerance` pixels first; 0 for a map without edges."""
    size = 2 * tolerance + 1

    def centred(edges_bhw: Tensor) -> Tensor:
        wide = functional.max_pool2d(rearrange(edges_bhw, "b h w -> b 1 h w"), size, stride=1, padding=tolerance).flatten(1)
        return wide - wide.mean(1, keepdim=True)

    return functional.cosine_similarity(centred(one_bhw), centred(other_bhw), dim=1)


def frechet_distance(one_nd: Tensor, other_nd: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6), in float64.

    Biased upwards for few samples: compare only distances between sets of the same sizes.
    """
    one, other = one_nd.double(), other_nd.double()
    covariance_one, covariance_other = torch.cov(one.T), torch.cov(other.T)
    root = _root(covariance_one)
    cross = _root(root @ covariance_other @ root).trace()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return float(means + covariance_one.trace() + covariance_other.trace() - 2 * cross)


def _root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
