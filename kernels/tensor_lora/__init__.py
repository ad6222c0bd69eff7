"""Tensor LoRA: one low-rank update that mixes all maps (LumiX). The maths and the costs are in README.md."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import Backend, run_backend
from ..operands import any_requires_grad, check_same_kind, with_torch_backward
from . import fast, reference

# The two halves and the fused key pass have rows of their own in the dispatch table.
SHRINK, EXPAND, NORM_LORA_ROTARY = "tensor_lora_shrink", "tensor_lora_expand", "norm_lora_rotary"


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


def tensor_lora_(out: Tensor, x: Tensor, merged: Tensor, g3: Tensor, scale: float, *, backend: Backend = "auto") -> Tensor:
    """out[i] += scale * sum_j x[j] W[j,:,i,:] G3[i]^T, in place; returns `out`.

    out [(group,) maps, tokens, d_out]; x [(group,) maps, tokens, d_in]; merged from `merge_cores`; g3 [maps, d_out, rank]. Weights may have
    another dtype than the activations, which decide. Differentiable (in place: `out` must not be a leaf that requires a gradient).
    """
    return expand_(out, shrink(x, merged, backend=backend), g3, scale, backend=backend)


def shrink(x: Tensor, merged: Tensor, *, backend: Backend = "auto") -> Tensor:
    """H[i] = sum_j x[j] W[j,:,i,:]: x [(group,) maps, tokens, d_in] -> [(group,) maps, tokens, rank].

    One H serves every update of the same input (key and value share their cores and differ in g3).
    """
    if x.ndim not in (3, 4) or merged.ndim != 4 or tuple(merged.shape[:2]) != (x.shape[-3], x.shape[-1]):
        raise ValueError(
            f"Expected x [(group,) maps, tokens, d_in] and merged [maps, d_in, maps, rank], got {tuple(x.shape)} and {tuple(merged.shape)}."
        )

    def triton_path(x: Tensor, merged: Tensor) -> Tensor:
        from .triton_kernel import shrink_triton

        return shrink_triton(x, merged)

    return _run(backend, SHRINK, (x, merged.to(x.dtype)), reference.shrink_reference, fast.shrink_torch, triton_path)


def expand_(out: Tensor, hidden: Tensor, g3: Tensor, scale: float, *, backend: Backend = "auto") -> Tensor:
    """out[i] += scale * H[i] G3[i]^T, in place: out [(group,) maps, tokens, d_out], hidden [(group,) maps, tokens, rank], g3 [maps, d_out,
    rank]. This is the `+ delta` of values. Any strides. Returns `out`."""
    _check_expand(out.shape, hidden, g3)

    def triton_path(out: Tensor, hidden: Tensor, g3: Tensor) -> Tensor:
        from .triton_kernel import expand_triton_

        # An update in place has no operands left to recompute from; with a gradient, torch's own in-place product keeps the graph.
        if any_requires_grad((out, hidden, g3)):
            return fast.expand_torch_(out, hidden, g3, scale)
        return expand_triton_(out, hidden, g3, scale)

    return run_backend(
        backend,
        EXPAND,
        out,
        head_dim=out.shape[-1],
        tokens=out.shape[-2],
        reference=lambda: out.copy_(reference.expand_reference(out, hidden, g3, scale)),
        torch_path=lambda: fast.expand_torch_(out, hidden, g3, scale),
        triton_path=lambda: triton_path(out, hidden, g3),
        needs_grad=any_requires_grad((out, hidden, g3)),
    )


def norm_lora_rotary(
    key: Tensor,
    norm_weight: Tensor,
    hidden: Tensor,
    g3: Tensor,
    rotation: Tensor,
    scale: float,
    *,
    eps: float = 1e-6,
    backend: Backend = "auto",
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

    def bound(path: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *operands: path(*operands, rotation, scale, eps)

    def triton_path(*operands) -> Tensor:
        from .triton_kernel import norm_lora_rotary_triton

        return norm_lora_rotary_triton(*operands)

    operands = (key, norm_weight, hidden, g3)
    paths = (reference.norm_lora_rotary_reference, fast.norm_lora_rotary_torch, triton_path)
    return _run(backend, NORM_LORA_ROTARY, operands, *(bound(path) for path in paths))


def _run(
    backend: Backend,
    operation: str,
    operands: tuple[Tensor, ...],
    reference_path: Callable[..., Tensor],
    torch_path: Callable[..., Tensor],
    triton_path: Callable[..., Tensor],
) -> Tensor:
    first = operands[0]
    return run_backend(
        backend,
        operation,
        first,
        head_dim=first.shape[-1],
        tokens=first.shape[-2],
        reference=lambda: reference_path(*operands),
        torch_path=lambda: torch_path(*operands),
        triton_path=lambda: with_torch_backward(triton_path, torch_path, operands),
        needs_grad=any_requires_grad(operands),
    )


def _check_expand(out_shape: tuple[int, ...], hidden: Tensor, g3: Tensor) -> None:
    maps, _, d_out = out_shape[-3:]
    expected_hidden = (*out_shape[:-1], hidden.shape[-1])
    if len(out_shape) not in (3, 4) or tuple(hidden.shape) != tuple(expected_hidden) or g3.shape != (maps, d_out, hidden.shape[-1]):
        raise ValueError(
            f"For an output {tuple(out_shape)}, expected hidden {tuple(expected_hidden[:-1])} + (rank,) and g3 ({maps}, {d_out}, rank), "
            f"got {tuple(hidden.shape)} and {tuple(g3.shape)}."
        )
