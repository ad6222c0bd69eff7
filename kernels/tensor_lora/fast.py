"""Tensor LoRA in torch: two thin matrix products, the second one adding into the output in place."""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Tokens converted at a time where a CPU has no 16-bit products; 64 keep the copy at 4 MB for five maps of width 3,072.
TOKENS_PER_CONVERSION = 64


def _cpu_product_dtypes() -> frozenset[torch.dtype]:
    """Dtypes that this CPU has instructions to multiply; without them torch's products are 5 to 20 times slower than converting."""
    probes = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    native = {torch.float32, torch.float64}
    if torch.backends.mkldnn.is_available():
        native |= {dtype for dtype, name in probes.items() if hasattr(torch.ops.mkldnn, name) and getattr(torch.ops.mkldnn, name)()}
    return frozenset(native)


# Asked once, here: torch.compile cannot trace the question.
CPU_PRODUCT_DTYPES = _cpu_product_dtypes()


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
            part = (*place, slice(start, start + TOKENS_PER_CONVERSION))
            out[part] += hidden[part] @ rows[place[-1]]
    return out


def _groups(tensor: Tensor) -> Iterator[Tensor]:
    """One at a time: autograd lets no view be written to that was taken before its sibling was."""
    return (tensor[number] for number in range(len(tensor))) if tensor.ndim == 4 else iter((tensor,))


def norm_lora_rotary_torch(
    key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor, scale: float, eps: float
) -> Tensor:
    """RMS norm, then `expand_torch_` into its fresh result, then the rotation in float32 or wider; shapes as `norm_lora_rotary`."""
    token_first = key.transpose(-2, -3)
    normed = F.rms_norm(token_first, token_first.shape[-1:], norm_weight.to(key.dtype), eps).contiguous()
    normed = expand_torch_(normed.flatten(-2), hidden, g3, scale).view(normed.shape)
    wide = torch.promote_types(key.dtype, torch.float32)
    # A rotation of a pair is one complex product, which reads neighbours once; by columns it is four strided passes, ten times slower.
    turn = torch.complex(rotation[..., 0, 0].to(wide), rotation[..., 1, 0].to(wide)).unsqueeze(-2)  # the same for all heads
    turned = torch.view_as_complex(normed.to(wide).unflatten(-1, (-1, 2))).mul_(turn)
    return torch.view_as_real(turned).flatten(-2).to(key.dtype).transpose(-2, -3)
