"""Attention in which every map is read with the colour map's query (LumiX), and its cross-intrinsic baseline. Maths: README.md."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Paths, run_backend
from ..operands import as_under_autocast, check_same_kind, forward_only, positive_scale
from . import fast, reference

OPERATION, CROSS_INTRINSIC = "query_broadcast_attention", "cross_intrinsic_attention"


def _query_broadcast_triton(*arguments) -> Tensor:
    from .triton_kernel import query_broadcast_triton

    return query_broadcast_triton(*arguments)


def _cross_intrinsic_triton(*arguments) -> Tensor:
    from .triton_kernel import cross_intrinsic_triton

    return cross_intrinsic_triton(*arguments)


PATHS: dict[str, Paths] = {
    OPERATION: {
        "reference": reference.query_broadcast_reference,
        "torch": fast.query_broadcast_torch,
        "triton": forward_only(_query_broadcast_triton, fast.query_broadcast_torch),
    },
    CROSS_INTRINSIC: {
        "reference": reference.cross_intrinsic_reference,
        "torch": fast.cross_intrinsic_torch,
        "triton": forward_only(_cross_intrinsic_triton, fast.cross_intrinsic_torch),
    },
}


def query_broadcast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    text_query: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k[m]^T * scale) v[m] for every map m, with one query for all maps and no copy of it (LumiX).

    query [group, heads, tokens, dim]: the colour map's; a group is the maps of one picture and prompt. key, value [group, maps, heads,
    key tokens, dim]. text_query [group, maps, heads, text, dim]: queries of the text tokens, which stay per map in double-stream blocks;
    they come first in the output, as in the keys. scale: default dim ** -0.5.
    Returns [group, maps, heads, (text +) tokens, dim]. Differentiable in every tensor. Raises ValueError for shapes that do not fit.
    """
    if query.ndim != 4 or key.ndim != 5 or key.shape != value.shape or (key.shape[0], key.shape[2], key.shape[4]) != _group_head_dim(query):
        raise ValueError(
            f"Expected query [group, heads, tokens, dim] and key, value [group, maps, heads, tokens, dim]; "
            f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}."
        )
    if text_query is not None and (text_query.ndim != 5 or text_query.shape[:3] != key.shape[:3] or text_query.shape[4] != key.shape[4]):
        raise ValueError(
            f"Expected text_query [group, maps, heads, text, dim] = [{key.shape[0]}, {key.shape[1]}, {key.shape[2]}, *, {key.shape[4]}], "
            f"got {tuple(text_query.shape)}."
        )
    query, key, value = as_under_autocast(query, key, value)
    if text_query is not None:
        (text_query,) = as_under_autocast(text_query)
    check_same_kind(query=query, key=key, value=value, text_query=text_query)
    return run_backend(backend, OPERATION, PATHS[OPERATION], (query, key, value, text_query), positive_scale(scale, query.shape[-1]))


def cross_intrinsic_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, backend: str = "auto") -> Tensor:
    """Every map's queries attend to the keys of all maps (IntrinsiX; LumiX's baseline): `maps` times the arithmetic, no copy per map.

    query, key, value [group, maps, heads, tokens, dim]; query may hold another number of tokens. Returns query's shape.
    """
    if query.ndim != 5 or key.shape != value.shape or key.ndim != 5 or query.shape[:3] != key.shape[:3] or query.shape[4] != key.shape[4]:
        raise ValueError(
            f"Expected query, key, value [group, maps, heads, tokens, dim]; "
            f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}."
        )
    query, key, value = as_under_autocast(query, key, value)
    check_same_kind(query=query, key=key, value=value)
    return run_backend(backend, CROSS_INTRINSIC, PATHS[CROSS_INTRINSIC], (query, key, value), positive_scale(scale, query.shape[-1]))


def _group_head_dim(query: Tensor) -> tuple[int, int, int]:
    return query.shape[0], query.shape[1], query.shape[3]
