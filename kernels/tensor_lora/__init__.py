"""Tensor LoRA: one low-rank update that mixes all maps (LumiX). The maths and the costs are in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Paths, run_backend
from ..operands import any_requires_grad, check_same_kind, forward_only
from . import fast, reference

# The two halves and the fused key pass have rows of their own in the dispatch table.
SHRINK, EXPAND, NORM_LORA_ROTARY = "tensor_lora_shrink", "tensor_lora_expand", "norm_lora_rotary"


def _shrink_triton(*arguments) -> Tensor:
    from .triton_kernel import shrink_triton

    return shrink_triton(*arguments)


def _expand_reference_(out: Tensor, *arguments) -> Tensor:
    return out.copy_(reference.expand_reference(out, *arguments))


def _expand_triton_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float) -> Tensor:
    from .triton_kernel import expand_triton_

    # An update in place has no operands left to recompute from; with a gradient, torch's own in-place product keeps the graph.
    expand = fast.expand_torch_ if any_requires_grad((out, hidden, g3)) else expand_triton_
    return expand(out, hidden, g3, scale)


def _norm_lora_rotary_triton(*arguments) -> Tensor:
    from .triton_kernel import norm_lora_rotary_triton

    return norm_lora_rotary_triton(*arguments)


PATHS: dict[str, Paths] = {
    SHRINK: {
        "reference": reference.shrink_reference,
        "torch": fast.shrink_torch,
        "triton": forward_only(_shrink_triton, fast.shrink_torch),
    },
    EXPAND: {"reference": _expand_reference_, "torch": fast.expand_torch_, "triton": _expand_triton_},
    NORM_LORA_ROTARY: {
        "reference": reference.norm_lora_rotary_reference,
        "torch": fast.norm_lora_rotary_torch,
        "triton": forward_only(_norm_lora_rotary_triton, fast.norm_lora_rotary_torch),
    },
}


def merge_cores(g1: Tensor, g2: Tensor) -> Tensor:
    """W[j,u,i,r] = sum_q G1[i,j,q] G2[i,u,r,q]: what can be contracted once per checkpoint.

    g1 [maps, maps, rank] (output map, input map), g2 [maps, d_in, rank, rank] -> [map_in, d_in, map_out, rank], d_in innermost in memory;
    1.2 MB in bf16 for five maps, d_in 3,072, rank 8. Differentiable. Raises ValueError for shapes that do not fit.
    """
    fits = g1.ndim == 3 and g2.ndim == 4 and g1.shape[0] == g1.shape[1] == g2.shape[0] and g1.shape[2] == g2.shape[3]
    if not fits:
        raise ValueError(f"Expected g1 [maps, maps, rank] and g2 [maps, d_in, rank, rank], got {tuple(g1.shape)} and {tuple(g2.shape)}.")
    # d_in innermost: the layout in which a product with 40 columns reads both factors along rows, four times faster in bf16 on a CPU.
    return torch.einsum("ijq,iurq->jiru", g1, g2).contiguous().permute(0, 3, 1, 2)


def tensor_lora_(out: Tensor, x: Tensor, merged: Tensor, g3: Tensor, scale: float, *, backend: str = "auto") -> Tensor:
    """out[i] += scale * sum_j x[j] W[j,:,i,:] G3[i]^T, in place; returns `out`.

    out [(group,) maps, tokens, d_out]; x [(group,) maps, tokens, d_in]; merged from `merge_cores`; g3 [maps, d_out, rank]. Weights may have
    another dtype than the activations, which decide. Differentiable (in place: `out` must not be a leaf that requires a gradient).
    """
    return expand_(out, shrink(x, merged, backend=backend), g3, scale, backend=backend)


def shrink(x: Tensor, merged: Tensor, *, backend: str = "auto") -> Tensor:
    """H[i] = sum_j x[j] W[j,:,i,:]: x [(group,) maps, tokens, d_in] -> [(group,) maps, tokens, rank].

    One H serves every update of the same input (key and value share their cores and differ in g3).
    """
    if x.ndim not in (3, 4) or merged.ndim != 4 or tuple(merged.shape[:2]) != (x.shape[-3], x.shape[-1]):
        raise ValueError(
            f"Expected x [(group,) maps, tokens, d_in] and merged [maps, d_in, maps, rank], got {tuple(x.shape)} and {tuple(merged.shape)}."
        )

    return run_backend(backend, SHRINK, PATHS[SHRINK], (x, merged.to(x.dtype)))


def expand_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float, *, backend: str = "auto") -> Tensor:
    """out[i] += scale * H[i] G3[i]^T, in place: out [(group,) maps, tokens, d_out], hidden [(group,) maps, tokens, rank], g3 [maps, d_out,
    rank]. This is the `+ delta` of values. Any strides. Returns `out`."""
    _check_expand(out.shape, hidden, g3)
    return run_backend(backend, EXPAND, PATHS[EXPAND], (out, hidden, g3), scale)


def norm_lora_rotary(
    key: Tensor,
    norm_weight: Tensor,
    hidden: Tensor,
    g3: Tensor,
    rotation: Tensor,
    scale: float,
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """The key path of a LumiX block in one pass: RMS norm over the head dim, + Tensor LoRA delta, then the rotary embedding.

    key [(group,) maps, heads, tokens, dim], the projection's output, any strides; norm_weight [dim]; hidden [(group,) maps, tokens, rank]
    from `shrink`; g3 [maps, heads * dim, rank], the key's half; rotation [tokens, dim / 2, 2, 2], one rotation [[c, -s], [s, c]] per token
    and pair of neighbouring channels (FLUX's `pe`). Returns key's shape, a new tensor. Differentiable in key, norm_weight, hidden, g3.
    """
    heads, tokens, dim = key.shape[-3:]
    _check_expand((*key.shape[:-3], tokens, heads * dim), hidden, g3)
    if norm_weight.shape != (dim,) or rotation.shape != (tokens, dim // 2, 2, 2) or dim % 2:
        raise ValueError(
            f"Expected norm_weight [{dim}] and rotation [{tokens}, {dim // 2}, 2, 2] for key {tuple(key.shape)}, "
            f"got {tuple(norm_weight.shape)} and {tuple(rotation.shape)}."
        )
    # Autocast leaves keys that a norm of float32 weights made in float32, and products in 16 bits.
    hidden = hidden.to(key.dtype)
    check_same_kind(key=key, hidden=hidden)
    return run_backend(backend, NORM_LORA_ROTARY, PATHS[NORM_LORA_ROTARY], (key, norm_weight, hidden, g3, rotation), scale, eps)


def _check_expand(out_shape: tuple[int, ...], hidden: Tensor, g3: Tensor) -> None:
    maps, _, d_out = out_shape[-3:]
    expected_hidden = (*out_shape[:-1], hidden.shape[-1])
    if len(out_shape) not in (3, 4) or tuple(hidden.shape) != tuple(expected_hidden) or g3.shape != (maps, d_out, hidden.shape[-1]):
        raise ValueError(
            f"For an output {tuple(out_shape)}, expected hidden {tuple(expected_hidden[:-1])} + (rank,) and g3 ({maps}, {d_out}, rank), "
            f"got {tuple(hidden.shape)} and {tuple(g3.shape)}."
        )
