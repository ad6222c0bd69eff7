"""Triton: attention over a row's own keys, then its partner's, in one launch. Imported only by the call that launches it.

A program owns BLOCK_M queries of one row and head. It walks two segments of keys with one running softmax; the partner's weight is
log2(w), added to the row maximum instead of to the scores (`exp2(s - (m - b))`), so it costs nothing per score. A head dim that is no
power of two is split into MAIN + TAIL columns (72 = 64 + 16, the last 8 masked) rather than padded to 128.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


@triton.jit
def _attend_block(
    acc, acc_tail, row_sum, row_max, query, query_tail, key_ptr, value_ptr, stride_kn, stride_kd, stride_vn, stride_vd,
    start, length, score_scale, bias,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    columns = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, MAIN)
    key_pointers = key_ptr + dims[:, None] * stride_kd + columns[None, :] * stride_kn
    value_pointers = value_ptr + columns[:, None] * stride_vn + dims[None, :] * stride_vd
    if MASKED or MAIN > HEAD_DIM:
        key = tl.load(key_pointers, mask=(columns[None, :] < length) & (dims[:, None] < HEAD_DIM), other=0.0)
        value = tl.load(value_pointers, mask=(columns[:, None] < length) & (dims[None, :] < HEAD_DIM), other=0.0)
    else:
        key = tl.load(key_pointers)
        value = tl.load(value_pointers)
    scores = tl.dot(query, key, input_precision=PRECISION)
    if TAIL > 0:
        tail_dims = MAIN + tl.arange(0, TAIL)
        key_tail = tl.load(
            key_ptr + tail_dims[:, None] * stride_kd + columns[None, :] * stride_kn,
            mask=(tail_dims[:, None] < HEAD_DIM) & (columns[None, :] < length),
            other=0.0,
        )
        scores = tl.dot(query_tail, key_tail, scores, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(columns[None, :] < length, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1) * score_scale + bias)
    probability = tl.exp2(scores * score_scale - (new_max - bias)[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(probability, 1)
    probability = probability.to(value.dtype)
    acc = tl.dot(probability, value, acc * decay[:, None], input_precision=PRECISION)
    if TAIL > 0:
        tail_dims = MAIN + tl.arange(0, TAIL)
        value_tail = tl.load(
            value_ptr + columns[:, None] * stride_vn + tail_dims[None, :] * stride_vd,
            mask=(tail_dims[None, :] < HEAD_DIM) & (columns[:, None] < length),
            other=0.0,
        )
        acc_tail = tl.dot(probability, value_tail, acc_tail * decay[:, None], input_precision=PRECISION)
    return acc, acc_tail, row_sum, new_max


@triton.jit
def _attend_segment(
    acc, acc_tail, row_sum, row_max, query, query_tail, key_ptr, value_ptr, stride_kn, stride_kd, stride_vn, stride_vd,
    length, score_scale, bias,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    whole_blocks = (length // BLOCK_N) * BLOCK_N
    for start in tl.range(0, whole_blocks, BLOCK_N):
        acc, acc_tail, row_sum, row_max = _attend_block(
            acc, acc_tail, row_sum, row_max, query, query_tail, key_ptr, value_ptr, stride_kn, stride_kd, stride_vn, stride_vd,
            start, length, score_scale, bias, HEAD_DIM, MAIN, TAIL, BLOCK_N, PRECISION, False,
        )  # fmt: skip
    if whole_blocks < length:
        acc, acc_tail, row_sum, row_max = _attend_block(
            acc, acc_tail, row_sum, row_max, query, query_tail, key_ptr, value_ptr, stride_kn, stride_kd, stride_vn, stride_vd,
            whole_blocks, length, score_scale, bias, HEAD_DIM, MAIN, TAIL, BLOCK_N, PRECISION, True,
        )  # fmt: skip
    return acc, acc_tail, row_sum, row_max


@triton.jit
def two_segment_attention_kernel(
    query_ptr, key_ptr, value_ptr, other_key_ptr, other_value_ptr, output_ptr, lse_ptr, weight_ptr, partner_ptr,
    stride_qb, stride_qh, stride_qn, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_okb, stride_okh, stride_okn, stride_okd,
    stride_ovb, stride_ovh, stride_ovn, stride_ovd,
    stride_ob, stride_oh, stride_on, stride_od,
    heads, tokens, own_tokens, other_tokens, rows_per_query, score_scale,
    HAS_OTHER: tl.constexpr, HAS_PARTNER: tl.constexpr,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, MAIN)
    query_base = query_ptr + (row // rows_per_query) * stride_qb + head * stride_qh
    output_base = output_ptr + row * stride_ob + head * stride_oh

    query = tl.load(
        query_base + queries[:, None] * stride_qn + dims[None, :] * stride_qd,
        mask=(queries[:, None] < tokens) & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )
    acc = tl.zeros([BLOCK_M, MAIN], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    if TAIL > 0:
        tail_dims = MAIN + tl.arange(0, TAIL)
        query_tail = tl.load(
            query_base + queries[:, None] * stride_qn + tail_dims[None, :] * stride_qd,
            mask=(queries[:, None] < tokens) & (tail_dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        acc_tail = tl.zeros([BLOCK_M, TAIL], dtype=tl.float32)
    else:
        # Never read: the compiler drops both.
        query_tail = query
        acc_tail = row_sum

    acc, acc_tail, row_sum, row_max = _attend_segment(
        acc, acc_tail, row_sum, row_max, query, query_tail,
        key_ptr + row * stride_kb + head * stride_kh, value_ptr + row * stride_vb + head * stride_vh,
        stride_kn, stride_kd, stride_vn, stride_vd, own_tokens, score_scale, 0.0,
        HEAD_DIM, MAIN, TAIL, BLOCK_N, PRECISION,
    )  # fmt: skip
    if HAS_OTHER:
        weight = tl.load(weight_ptr + row)
        other_row = row
        if HAS_PARTNER:
            other_row = tl.load(partner_ptr + row).to(tl.int64)
        # A row of weight 0 walks an empty segment: nothing of its partner is loaded.
        length = tl.where(weight > 0, other_tokens, 0)
        acc, acc_tail, row_sum, row_max = _attend_segment(
            acc, acc_tail, row_sum, row_max, query, query_tail,
            other_key_ptr + other_row * stride_okb + head * stride_okh, other_value_ptr + other_row * stride_ovb + head * stride_ovh,
            stride_okn, stride_okd, stride_ovn, stride_ovd, length, score_scale, tl.log2(tl.where(weight > 0, weight, 1.0)),
            HEAD_DIM, MAIN, TAIL, BLOCK_N, PRECISION,
        )  # fmt: skip

    inverse_sum = 1.0 / row_sum
    tl.store(
        output_base + queries[:, None] * stride_on + dims[None, :] * stride_od,
        (acc * inverse_sum[:, None]).to(output_ptr.dtype.element_ty),
        mask=(queries[:, None] < tokens) & (dims[None, :] < HEAD_DIM),
    )
    if TAIL > 0:
        tail_dims = MAIN + tl.arange(0, TAIL)
        tl.store(
            output_base + queries[:, None] * stride_on + tail_dims[None, :] * stride_od,
            (acc_tail * inverse_sum[:, None]).to(output_ptr.dtype.element_ty),
            mask=(queries[:, None] < tokens) & (tail_dims[None, :] < HEAD_DIM),
        )
    lse = (row_max + tl.log2(row_sum)) * 0.6931471805599453
    tl.store(lse_ptr + (row * heads + head) * tokens + queries, lse, mask=queries < tokens)


@dataclass(frozen=True)
class LaunchConfig:
    """Block sizes and pipelining of one launch."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """head_dim as (main, tail) columns, powers of two of at least 16: 64 -> (64, 0), 72 -> (64, 16), 160 -> (128, 32)."""
    main = max(16, 1 << (head_dim.bit_length() - 1))
    rest = max(0, head_dim - main)
    return main, 0 if rest == 0 else max(16, triton.next_power_of_2(rest))


def launch_config(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> LaunchConfig:
    """Block sizes that compile without spills on compute capability 8.0 and 9.0 (README.md, made by `kernels.compile_offline`)."""
    hopper = capability >= (9, 0)
    if dtype == torch.float32:
        return LaunchConfig(64, 32, 8, 2) if head_dim <= 80 else LaunchConfig(32, 32, 8, 2)
    if head_dim <= 80:
        return LaunchConfig(128, 64, 4 if hopper else 8, 3)
    return LaunchConfig(128, 64, 8, 3) if head_dim <= 128 else LaunchConfig(128, 32, 8, 3)


def precision_of(dtype: torch.dtype) -> str:
    """float32 products keep float32's accuracy on tensor cores by three TF32 products each; plain TF32 would lose it."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor | None,
    other_value: Tensor | None,
    weights: Sequence[float] | None,
    partner: Sequence[int] | None,
    scale: float,
    *,
    output: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch over all rows; returns (output like query, lse [rows, heads, tokens] float32, natural log).

    key, value: [rows, heads, own, dim]; query may hold fewer rows, each then serving rows / len(query) consecutive rows of keys. other_*
    None: own keys only. weights: of each row; partner: the row of other_* that each row reads, None for its own index. output: where to
    write (any strides), [rows, heads, tokens, dim].
    """
    rows, heads, own_tokens, head_dim = key.shape
    tokens = query.shape[-2]
    if output is None:
        # Tokens before heads: the layout in which every caller folds the heads back.
        output = query.new_empty(rows, tokens, heads, head_dim).transpose(1, 2)
    lse = query.new_empty(rows, heads, tokens, dtype=torch.float32)
    if tokens == 0 or rows == 0:
        return output, lse
    has_other = other_key is not None and other_key.shape[-2] > 0
    if other_key is None or other_value is None or not has_other:
        other_key, other_value, weights = key, value, None
    weight_tensor = lse if weights is None else torch.tensor(weights, dtype=torch.float32, device=query.device)
    partner_tensor = lse if partner is None else torch.tensor(partner, dtype=torch.int32, device=query.device)
    operands = (query, key, value, other_key, other_value, output)
    for tensor in operands:
        if sum((size - 1) * stride for size, stride in zip(tensor.shape[-2:], tensor.stride()[-2:], strict=True)) >= 2**31:
            raise ValueError(f"A row of shape {tuple(tensor.shape[1:])} spans 2^31 elements or more: split the tokens.")
    capability = torch.cuda.get_device_capability(query.device) if query.device.type == "cuda" else (9, 0)
    config = launch_config(head_dim, query.dtype, capability)
    main, tail = split_head_dim(head_dim)
    # Heads x rows exceed CUDA's 65,535 limit of grid.y only beyond any real batch; tokens go on x.
    grid = (triton.cdiv(tokens, config.block_m), rows * heads)
    two_segment_attention_kernel[grid](
        query, key, value, other_key, other_value, output, lse, weight_tensor, partner_tensor,
        *(stride for tensor in operands for stride in tensor.stride()),
        heads, tokens, own_tokens, other_key.shape[-2], rows // query.shape[0], scale * LOG2_E,
        HAS_OTHER=has_other, HAS_PARTNER=partner is not None,
        HEAD_DIM=head_dim, MAIN=main, TAIL=tail,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, PRECISION=precision_of(query.dtype),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return output, lse


# Dynamo would trace into the launcher and, in the interpreter, into the kernel: a call is opaque to it.
launch = torch.compiler.disable(launch)
