"""Tensor LoRA in torch: two thin matrix products, the second one adding into the output in place."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def shrink_torch(x: Tensor, merged: Tensor) -> Tensor:
    """H[i] = sum_j x[j] W[j,:,i,:]; one thin product per map of the input, whose small results are summed."""
    maps = merged.shape[-2]
    columns = rearrange(merged.to(x.dtype), "map_in d_in map_out rank -> map_in d_in (map_out rank)")
    groups = x if x.ndim == 4 else x.unsqueeze(0)
    hidden = torch.stack([torch.bmm(group, columns).sum(0) for group in groups])
    hidden = rearrange(hidden, "group token (map rank) -> group map token rank", map=maps)
    return hidden if x.ndim == 4 else hidden.squeeze(0)


def expand_torch_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float) -> Tensor:
    """out += scale * H G3^T, in place; a group at a time, because `baddbmm_` takes one batch dimension."""
    rows = rearrange(g3.to(out.dtype), "map d_out rank -> map rank d_out")
    for group_out, group_hidden in zip(_groups(out), _groups(hidden.to(out.dtype)), strict=True):
        group_out.baddbmm_(group_hidden, rows, alpha=scale)
    return out


def _groups(tensor: Tensor) -> list[Tensor]:
    return list(tensor) if tensor.ndim == 4 else [tensor]


def norm_lora_rotary_torch(
    key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor, scale: float, eps: float
) -> Tensor:
    """RMS norm, then `expand_torch_` into its fresh result, then the rotation in float32 or wider; shapes as `norm_lora_rotary`."""
    token_first = key.transpose(-2, -3)
    normed = F.rms_norm(token_first, token_first.shape[-1:], norm_weight.to(key.dtype), eps).contiguous()
    normed = expand_torch_(normed.flatten(-2), hidden, g3, scale).view(normed.shape)
    wide = torch.promote_types(key.dtype, torch.float32)
    pairs = normed.to(wide).unflatten(-1, (-1, 1, 2))
    matrices = rotation.to(wide).unsqueeze(-4)  # the same for all heads
    rotated = matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]
    return rotated.flatten(-2).to(key.dtype).transpose(-2, -3)
