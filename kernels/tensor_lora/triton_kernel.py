"""Triton: the thin product of Tensor LoRA, its expansion into values, and the fused key pass. Imported only by the call that launches it.

The expansion is rank (8) multiply-adds per element against two bytes read and two written, so it rides on passes bound by memory; an
outer product per rank avoids padding 8 to the 16 that a tensor core wants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 16
SHRINK_BLOCK_TOKENS = 32
EXPAND_BLOCK_OUT = 256
HEADS_PER_PROGRAM = 4
NUM_WARPS, ROTARY_WARPS = 4, 8


@triton.jit
def shrink_kernel(
    x_ptr, merged_ptr, partial_ptr,
    stride_xg, stride_xm, stride_xl, stride_xd, stride_wm, stride_wd, stride_wc, maps, tokens, d_in, columns,
    BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(1) // maps).to(tl.int64)
    map_in = (tl.program_id(1) % maps).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    cols = tl.arange(0, COLUMNS)
    x_rows = x_ptr + group * stride_xg + map_in * stride_xm + rows[:, None].to(tl.int64) * stride_xl
    weight = merged_ptr + map_in * stride_wm + cols[None, :] * stride_wc
    acc = tl.zeros([BLOCK_TOKENS, COLUMNS], dtype=tl.float32)
    for start in tl.range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_tile = tl.load(x_rows + k[None, :] * stride_xd, mask=(rows[:, None] < tokens) & (k[None, :] < d_in), other=0.0)
        w_tile = tl.load(weight + k[:, None] * stride_wd, mask=(k[:, None] < d_in) & (cols[None, :] < columns), other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
    target = partial_ptr + ((group * maps + map_in) * tokens + rows[:, None]) * columns + cols[None, :]
    tl.store(target, acc, mask=(rows[:, None] < tokens) & (cols[None, :] < columns))


@triton.jit
def expand_kernel(
    out_ptr, hidden_ptr, g3_ptr,
    stride_og, stride_om, stride_ol, stride_od, stride_hg, stride_hm, stride_hl, stride_hr, stride_gm, stride_go, stride_gr,
    maps, tokens, d_out, scale,
    RANK: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(2) // maps).to(tl.int64)
    map_out = (tl.program_id(2) % maps).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    cols = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    hidden = hidden_ptr + group * stride_hg + map_out * stride_hm + rows * stride_hl
    weight = g3_ptr + map_out * stride_gm + cols * stride_go
    delta = tl.zeros([BLOCK_TOKENS, BLOCK_OUT], dtype=tl.float32)
    for r in tl.static_range(RANK):
        h = tl.load(hidden + r * stride_hr, mask=rows < tokens, other=0.0).to(tl.float32)
        g = tl.load(weight + r * stride_gr, mask=cols < d_out, other=0.0).to(tl.float32)
        delta += h[:, None] * g[None, :]
    target = out_ptr + group * stride_og + map_out * stride_om + rows[:, None].to(tl.int64) * stride_ol + cols[None, :] * stride_od
    inside = (rows[:, None] < tokens) & (cols[None, :] < d_out)
    before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (before + scale * delta).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_lora_rotary_kernel(
    key_ptr, norm_ptr, hidden_ptr, g3_ptr, rotation_ptr, out_ptr,
    stride_kg, stride_km, stride_kh, stride_kl, stride_kd, stride_hg, stride_hm, stride_hl, stride_hr,
    stride_gm, stride_go, stride_gr, stride_og, stride_om, stride_oh, stride_ol, stride_od,
    maps, heads, tokens, scale, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, RANK: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEADS_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    group = (tl.program_id(2) // maps).to(tl.int64)
    map_row = (tl.program_id(2) % maps).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    pairs = tl.arange(0, HALF)
    inside = (rows[:, None] < tokens) & (pairs[None, :] < DIM // 2)
    # The matrices stay in registers for all heads of the program: they are as many bytes as two heads of keys.
    matrix = rotation_ptr + rows[:, None] * (2 * DIM) + pairs[None, :] * 4
    m00 = tl.load(matrix, mask=inside, other=0.0)
    m01 = tl.load(matrix + 1, mask=inside, other=0.0)
    m10 = tl.load(matrix + 2, mask=inside, other=0.0)
    m11 = tl.load(matrix + 3, mask=inside, other=0.0)
    norm_even = tl.load(norm_ptr + 2 * pairs, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
    norm_odd = tl.load(norm_ptr + 2 * pairs + 1, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
    hidden = hidden_ptr + group * stride_hg + map_row * stride_hm + rows * stride_hl
    for step in tl.range(0, HEADS_PER_PROGRAM):
        head = tl.program_id(1) * HEADS_PER_PROGRAM + step
        live = inside & (head < heads)
        source = key_ptr + group * stride_kg + map_row * stride_km + head * stride_kh + rows[:, None].to(tl.int64) * stride_kl
        even = tl.load(source + 2 * pairs[None, :] * stride_kd, mask=live, other=0.0).to(tl.float32)
        odd = tl.load(source + (2 * pairs[None, :] + 1) * stride_kd, mask=live, other=0.0).to(tl.float32)
        norm = tl.rsqrt(tl.sum(even * even + odd * odd, 1) / DIM + eps)[:, None]
        delta_even = tl.zeros([BLOCK_TOKENS, HALF], dtype=tl.float32)
        delta_odd = tl.zeros([BLOCK_TOKENS, HALF], dtype=tl.float32)
        weight = g3_ptr + map_row * stride_gm + (head * DIM + 2 * pairs) * stride_go
        for r in tl.static_range(RANK):
            h = tl.load(hidden + r * stride_hr, mask=rows < tokens, other=0.0).to(tl.float32)
            ok = (pairs < DIM // 2) & (head < heads)
            delta_even += h[:, None] * tl.load(weight + r * stride_gr, mask=ok, other=0.0).to(tl.float32)[None, :]
            delta_odd += h[:, None] * tl.load(weight + stride_go + r * stride_gr, mask=ok, other=0.0).to(tl.float32)[None, :]
        even = even * norm * norm_even[None, :] + scale * delta_even
        odd = odd * norm * norm_odd[None, :] + scale * delta_odd
        target = out_ptr + group * stride_og + map_row * stride_om + head * stride_oh + rows[:, None].to(tl.int64) * stride_ol
        # Interleaved again before the store, so that it writes neighbouring addresses.
        rotated = tl.interleave(m00 * even + m01 * odd, m10 * even + m11 * odd)
        dims = tl.arange(0, 2 * HALF)
        keep = (rows[:, None] < tokens) & (dims[None, :] < DIM) & (head < heads)
        tl.store(target + dims[None, :] * stride_od, rotated.to(out_ptr.dtype.element_ty), mask=keep)


def shrink_block_k(dtype: torch.dtype) -> int:
    """Inputs per step of the thin product: 256 bytes of every row."""
    return 256 // dtype.itemsize


def _grouped(tensor: Tensor, ndim: int) -> Tensor:
    return tensor if tensor.ndim == ndim else tensor.unsqueeze(0)


def shrink_triton(x: Tensor, merged: Tensor) -> Tensor:
    """Shapes as `shrink`. One program per block of tokens and map of the input; their sum over maps is a small second pass."""
    grouped = _grouped(x, 4)
    groups, maps, tokens, d_in = grouped.shape
    map_out, rank = merged.shape[-2:]
    columns = map_out * rank
    weight = merged.flatten(-2)  # a view of what `merge_cores` returns
    partial = x.new_empty(groups, maps, tokens, columns, dtype=torch.float32)
    grid = (triton.cdiv(tokens, SHRINK_BLOCK_TOKENS), groups * maps)
    shrink_kernel[grid](
        grouped, weight, partial, *grouped.stride(), *weight.stride(), maps, tokens, d_in, columns,
        BLOCK_TOKENS=SHRINK_BLOCK_TOKENS, BLOCK_K=shrink_block_k(x.dtype),
        COLUMNS=max(16, triton.next_power_of_2(columns)), PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
        num_warps=NUM_WARPS, num_stages=3,
    )  # fmt: skip
    hidden = partial.sum(1).to(x.dtype).unflatten(-1, (map_out, rank)).transpose(1, 2)
    return hidden if x.ndim == 4 else hidden.squeeze(0)


def expand_triton_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float) -> Tensor:
    """Shapes as `expand_`, in place."""
    grouped, h = _grouped(out, 4), _grouped(hidden, 4)
    groups, maps, tokens, d_out = grouped.shape
    grid = (triton.cdiv(tokens, BLOCK_TOKENS), triton.cdiv(d_out, EXPAND_BLOCK_OUT), groups * maps)
    expand_kernel[grid](
        grouped, h, g3, *grouped.stride(), *h.stride(), *g3.stride(), maps, tokens, d_out, scale,
        RANK=h.shape[-1], BLOCK_TOKENS=BLOCK_TOKENS, BLOCK_OUT=EXPAND_BLOCK_OUT, num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def norm_lora_rotary_triton(
    key: Tensor, norm_weight: Tensor, hidden: Tensor, g3: Tensor, rotation: Tensor, scale: float, eps: float
) -> Tensor:
    """Shapes as `norm_lora_rotary`; one read of the keys, one write of the result, which has the key's layout [.., heads, tokens, dim]."""
    grouped, h = _grouped(key, 5), _grouped(hidden, 4)
    groups, maps, heads, tokens, dim = grouped.shape
    out = torch.empty_like(grouped, memory_format=torch.contiguous_format)
    grid = (triton.cdiv(tokens, BLOCK_TOKENS), triton.cdiv(heads, HEADS_PER_PROGRAM), groups * maps)
    norm_lora_rotary_kernel[grid](
        grouped, norm_weight.contiguous(), h, g3, rotation.to(torch.float32).contiguous(), out,
        *grouped.stride(), *h.stride(), *g3.stride(), *out.stride(), maps, heads, tokens, scale, eps,
        DIM=dim, HALF=triton.next_power_of_2(dim // 2), RANK=h.shape[-1], BLOCK_TOKENS=BLOCK_TOKENS,
        HEADS_PER_PROGRAM=HEADS_PER_PROGRAM, num_warps=ROTARY_WARPS,
    )  # fmt: skip
    return out if key.ndim == 5 else out.squeeze(0)


# Calls are opaque to Dynamo, which would otherwise trace into the launcher and, in the interpreter, into the kernel.
shrink_triton = torch.compiler.disable(shrink_triton)
expand_triton_ = torch.compiler.disable(expand_triton_)
norm_lora_rotary_triton = torch.compiler.disable(norm_lora_rotary_triton)
