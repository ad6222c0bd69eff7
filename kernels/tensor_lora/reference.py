"""Tensor LoRA, spelled as its equations (LumiX)."""

import torch
from torch import Tensor


def tensor_lora_reference(x: Tensor, g1: Tensor, g2: Tensor, g3: Tensor, scale: float) -> Tensor:
    """Y[i] = scale * sum_j sum_{u,r,q} G3[i,:,r] G1[i,j,q] G2[i,u,r,q] x[j,:,u], as one contraction.

    x [(group,) maps, tokens, d_in], g1 [maps, maps, rank], g2 [maps, d_in, rank, rank], g3 [maps, d_out, rank] -> [(group,) maps, tokens,
    d_out].
    """
    return scale * torch.einsum("ior,ijq,iurq,...jlu->...ilo", g3, g1, g2, x)


def shrink_reference(x: Tensor, merged: Tensor) -> Tensor:
    """H[i] = sum_j x[j] W[j,:,i,:]; shapes as `shrink`."""
    return torch.einsum("...jlu,juir->...ilr", x, merged)


def expand_reference(out: Tensor, hidden: Tensor, g3: Tensor, scale: float) -> Tensor:
    """out + scale * H[i] G3[i]^T; shapes as `expand_`, not in place."""
    return out + scale * torch.einsum("...ilr,ior->...ilo", hidden, g3).to(out.dtype)


def norm_lora_rotary_reference(
    key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor, scale: float, eps: float
) -> Tensor:
    """rotate(RMS norm(key) * norm_weight + scale * H G3^T); shapes as `norm_lora_rotary`. Computed in float32 or wider, rounded once."""
    heads, dim = key.shape[-3], key.shape[-1]
    wide = torch.promote_types(key.dtype, torch.float32)
    x = key.to(wide)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight.to(wide)
    delta = scale * torch.einsum("...ilr,ior->...ilo", hidden.to(wide), g3.to(wide))
    shifted = normed + delta.unflatten(-1, (heads, dim)).transpose(-2, -3)
    pairs = shifted.unflatten(-1, (-1, 1, 2))
    return (rotation.to(wide) * pairs).sum(-1).flatten(-2).to(key.dtype)
