"""Tensor LoRA in torch: two thin matrix products, the second one adding into the output in place."""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..operands import CPU_PRODUCT_DTYPES, any_requires_grad

# Tokens converted at a time where a CPU has no 16-bit products; 64 keep the copy at 4 MB for five maps of width 3,072.
TOKENS_PER_CONVERSION = 64
# Tokens of the key pass at a time on a CPU: 384 KB in float32 at width 3,072.
TOKENS_IN_CACHE = 32


def _converts(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype not in CPU_PRODUCT_DTYPES


def shrink_torch(x: Tensor, merged: Tensor) -> Tensor:
    """H[i] = sum_j x[j] W[j,:,i,:]; one thin product per map of the input, whose small results are summed."""
    columns = rearrange(merged, "map_in d_in map_out rank -> map_in d_in (map_out rank)")
    hidden = torch.stack([_summed_product(group, columns) for group in x]) if x.ndim == 4 else _summed_product(x, columns)
    return rearrange(hidden, "... token (map rank) -> ... map token rank", map=merged.shape[-2])


def _summed_product(x: Tensor, columns: Tensor) -> Tensor:
    """sum_j x[j] columns[j]: [maps, tokens, d_in], [maps, d_in, columns] -> [tokens, columns]."""
    if not _converts(x):
        return torch.bmm(x, columns.to(x.dtype)).sum(0)
    wide = columns.float()
    return torch.cat([torch.bmm(part.float(), wide).sum(0) for part in x.split(TOKENS_PER_CONVERSION, dim=1)]).to(x.dtype)


def expand_torch_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float) -> Tensor:
    """out += scale * H G3^T, in place; a group at a time, because `baddbmm_` takes one batch dimension."""
    rows = rearrange(g3, "map d_out rank -> map rank d_out")
    if _converts(out):
        return _expand_converting_(out, hidden.float(), rows.float() * scale)
    # The scale goes into the small factor: as `alpha` it is one more pass over the output on a CPU in 16 bits.
    rows, hidden = rows.to(out.dtype), (hidden * scale).to(out.dtype)
    for group_out, group_hidden in zip(_groups(out), _groups(hidden), strict=True):
        group_out.baddbmm_(group_hidden, rows)
    return out


def _expand_converting_(out: Tensor, hidden: Tensor, rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    for place in product(*(range(size) for size in out.shape[:-2])):
        for start in range(0, out.shape[-2], TOKENS_PER_CONVERSION):
            part: tuple[int | slice, ...] = (*place, slice(start, start + TOKENS_PER_CONVERSION))
            out[part] += hidden[part] @ rows[place[-1]]
    return out


def _groups(tensor: Tensor) -> Iterator[Tensor]:
    """One at a time: autograd lets no view be written to that was taken before its sibling was."""
    return (tensor[number] for number in range(len(tensor))) if tensor.ndim == 4 else iter((tensor,))


def norm_lora_rotary_torch(
    key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor, scale: float, eps: float
) -> Tensor:
    """RMS norm, then the expansion into its fresh result, then the rotation in float32 or wider; shapes as `norm_lora_rotary`."""
    in_parts = key.device.type == "cpu" and not any_requires_grad((key, norm_weight, hidden, g3)) and not torch.compiler.is_compiling()
    run = _key_pass_in_parts if in_parts else _key_pass
    return run(key.transpose(-2, -3), norm_weight, hidden, g3, _turns(key.dtype, rotation), scale, eps).transpose(-2, -3)


def _turns(dtype: torch.dtype, rotation: Tensor) -> Tensor:
    """A rotation of a pair as one complex number, [token, 1, dim / 2], the same for all heads: the product with it reads neighbours once;
    by columns it is four strided passes, ten times slower."""
    wide = torch.promote_types(dtype, torch.float32)
    return torch.complex(rotation[..., 0, 0].to(wide), rotation[..., 1, 0].to(wide)).unsqueeze(-2)


def _key_pass(key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, turns: Tensor, scale: float, eps: float) -> Tensor:
    """Three passes over all keys [..., token, head, dim]."""
    normed = F.rms_norm(key, key.shape[-1:], norm_weight.to(key.dtype), eps).contiguous()
    normed = expand_torch_(normed.flatten(-2), hidden, g3, scale).view(normed.shape)
    turned = torch.view_as_complex(normed.to(turns.real.dtype).unflatten(-1, (-1, 2))).mul_(turns)
    return torch.view_as_real(turned).flatten(-2).to(key.dtype)


def _key_pass_in_parts(key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, turns: Tensor, scale: float, eps: float) -> Tensor:
    """The same by parts that stay in a core's cache, in float32 or wider until they are stored; nothing is kept for a backward."""
    heads, dim = key.shape[-2:]
    wide = turns.real.dtype
    up = (rearrange(g3, "map d_out rank -> map rank d_out").to(wide) * scale).contiguous()
    hidden, norm_weight = hidden.to(wide), norm_weight.to(wide)
    out = torch.empty(key.shape, dtype=key.dtype)
    for place in product(*(range(size) for size in key.shape[:-3])):
        for start in range(0, key.shape[-3], TOKENS_IN_CACHE):
            tokens = slice(start, start + TOKENS_IN_CACHE)
            part: tuple[int | slice, ...] = (*place, tokens)
            x = key[part].to(wide, copy=True, memory_format=torch.contiguous_format)
            x *= torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(dim).add_(eps).rsqrt_()
            x *= norm_weight
            x.view(-1, heads * dim).addmm_(hidden[part], up[place[-1]])
            torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turns[tokens])
            out[part] = x
    return out
