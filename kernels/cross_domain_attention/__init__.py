"""Attention across two domains that are generated together (I-LDM, eq. 1 and 4). The maths is in README.md."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..dispatch import run_backend
from ..operands import as_under_autocast, check_same_kind, positive_scale
from .fast import cross_domain_attention_torch, cross_domain_attention_triton
from .reference import cross_domain_attention_reference
from .segments import Segment, active_segments, per_row

__all__ = ["OPERATION", "PATHS", "Segment", "cross_domain_attention", "joint_attention", "per_row"]

OPERATION = "cross_domain_attention"
PATHS = {
    "reference": cross_domain_attention_reference,
    "torch": cross_domain_attention_torch,
    "triton": cross_domain_attention_triton,
}


def cross_domain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    weight: float | Sequence[Segment],
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax([q k^T, q k'^T] * scale + [0, log w]) [v, v'], without concatenating (I-LDM, eq. 4).

    query [batch, heads, tokens, dim]; key, value [batch, heads, own, dim]; other_key, other_value [batch, heads, other, dim], `other`
    may be 0; any strides. weight: the weight in [0, 1] of the other domain's keys in every row, which reads the row of its own index; or
    segments, where rows differ. A row of weight 0 or in no segment never reads the other domain; weight 1 is plain attention on both.
    scale: default dim ** -0.5. Returns [batch, heads, tokens, dim]. Differentiable (once) in all tensors. Autocast casts the tensors as
    for PyTorch's own. Raises ValueError for shapes, dtypes or weights that do not fit, RuntimeError where a backend asked for by name
    cannot run.
    """
    query, key, value, other_key, other_value = as_under_autocast(query, key, value, other_key, other_value)
    _check_operands(query, key, value, other_key, other_value)
    rows = query.shape[0]
    if rows != other_key.shape[0]:
        raise ValueError(f"other_key has {other_key.shape[0]} rows and query has {rows}: give one row of the other domain per row.")
    segments = weight if isinstance(weight, Sequence) else [Segment(slice(None), slice(None), weight)]
    active = active_segments(segments, rows)
    operands = (query, key, value, other_key, other_value)
    return run_backend(backend, OPERATION, PATHS, operands, active if other_key.shape[-2] else (), positive_scale(scale, query.shape[-1]))


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Cross-domain attention for the rows of both domains at once: the other domain's rows are rows of the same batch.

    query, key, value [rows, heads, tokens, dim]: image and intrinsic rows of one batch, in any order. segments: who reads whom, with
    which weight (I-LDM: w(l, t) in image rows, 1 in intrinsic rows). Returns [rows, heads, tokens, dim]. Errors as
    `cross_domain_attention`.
    """
    return cross_domain_attention(query, key, value, key, value, segments, scale=scale, backend=backend)


def _check_operands(query: Tensor, key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    named = {"query": query, "key": key, "value": value, "other_key": other_key, "other_value": other_value}

    def shapes() -> str:
        return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())

    if any(tensor.ndim != 4 for tensor in named.values()):
        raise ValueError(f"Expected [batch, heads, tokens, dim] everywhere, got {shapes()}.")
    check_same_kind(**named)
    heads_and_dim = {(tensor.shape[1], tensor.shape[3]) for tensor in named.values()}
    if len(heads_and_dim) != 1 or key.shape != value.shape or other_key.shape != other_value.shape or key.shape[0] != query.shape[0]:
        raise ValueError(f"Batch, heads and dim must agree, and each value must have its key's shape; got {shapes()}.")
    if key.shape[2] == 0:
        raise ValueError("key holds no tokens: every row needs keys of its own domain.")
