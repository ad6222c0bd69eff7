"""Attention across two domains that are generated together (I-LDM, eq. 1 and 4). The maths is in README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import Backend, run_backend
from ..operands import any_requires_grad, as_under_autocast, check_same_kind, positive_scale
from . import fast
from .reference import cross_domain_attention_reference

OPERATION = "cross_domain_attention"


def cross_domain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    weight: float | Tensor,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax([q k^T, q k'^T] * scale + [0, log w]) [v, v'], without concatenating (I-LDM, eq. 4).

    query [batch, heads, tokens, dim]; key, value [batch, heads, own, dim]; other_key, other_value [batch, heads, other, dim], `other`
    may be 0; any strides. weight: a float, or a [batch] tensor, in [0, 1]: the weight of the other domain's keys in each row.
    A row of weight 0 never reads the other domain; weight 1 is plain attention on both. scale: default dim ** -0.5.
    Returns [batch, heads, tokens, dim]. Differentiable (once) in all tensors but `weight`. Autocast casts the tensors as for PyTorch's own.
    A weight tensor on a GPU is copied to the host by the torch path, which waits for the GPU: give a float or a CPU tensor in a loop. The
    Triton path reads it where it is, and does not check its range.
    Raises ValueError for shapes, dtypes or weights that do not fit, RuntimeError where a backend asked for by name cannot run.
    """
    query, key, value, other_key, other_value = as_under_autocast(query, key, value, other_key, other_value)
    _check_operands(query, key, value, other_key, other_value)
    if query.shape[0] != other_key.shape[0]:
        raise ValueError(
            f"other_key has {other_key.shape[0]} rows and query has {query.shape[0]}: give one row of the other domain per row."
        )
    return _attend(query, key, value, other_key, other_value, weight, None, scale, backend)


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor | Sequence[float],
    *,
    partner: Tensor | Sequence[int],
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Cross-domain attention for the rows of both domains at once: row r also reads row `partner[r]`, with weight `weights[r]`.

    query, key, value [rows, heads, tokens, dim]: image and intrinsic rows of one batch, in any order. weights [rows] in [0, 1]: the
    weight that row gives to its partner's keys (I-LDM: w(l, t) in image rows, 1 in intrinsic rows). partner [rows]: the row index each
    row is paired with. Returns [rows, heads, tokens, dim]. Errors as `cross_domain_attention`.
    """
    query, key, value = as_under_autocast(query, key, value)
    _check_operands(query, key, value, key, value)
    partner_rows = [int(row) for row in (partner.tolist() if isinstance(partner, Tensor) else partner)]
    if len(partner_rows) != query.shape[0] or not all(0 <= row < query.shape[0] for row in partner_rows):
        raise ValueError(f"partner is {partner_rows} for {query.shape[0]} rows: give each row the index of the row it is paired with.")
    return _attend(query, key, value, key, value, weights, tuple(partner_rows), scale, backend)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    weight: float | Tensor | Sequence[float],
    partner: tuple[int, ...] | None,
    scale: float | None,
    backend: Backend,
) -> Tensor:
    scale = positive_scale(scale, query.shape[-1])
    if isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("weight requires a gradient, which this operation does not give: pass weight.detach().")
    rows = query.shape[0]

    def host_weights() -> tuple[float, ...]:
        return row_weights(weight, rows)

    def reference() -> Tensor:
        others = other_key, other_value
        if partner is not None:
            others = tuple(tensor[list(partner)] for tensor in others)
        weights = torch.tensor(host_weights(), dtype=torch.float64)
        weights = weights.to(query.device, torch.promote_types(query.dtype, torch.float32))
        return cross_domain_attention_reference(query, key, value, *others, weights, scale)

    def torch_path() -> Tensor:
        return fast.cross_domain_attention_torch(query, key, value, other_key, other_value, host_weights(), partner, scale)

    def triton_path() -> Tensor:
        # A weight already on the GPU stays there: no synchronisation.
        on_gpu = isinstance(weight, Tensor) and weight.device.type == "cuda"
        weights = _one_weight_per_row(weight, rows) if on_gpu else host_weights()
        return fast.cross_domain_attention_triton(query, key, value, other_key, other_value, weights, partner, scale)

    return run_backend(
        backend,
        OPERATION,
        query,
        head_dim=query.shape[-1],
        tokens=query.shape[-2],
        reference=reference,
        torch_path=torch_path,
        triton_path=triton_path,
        needs_grad=any_requires_grad((query, key, value, other_key, other_value)),
    )


def row_weights(weight: float | Tensor | Sequence[float], rows: int) -> tuple[float, ...]:
    """The weight of each of `rows` rows as host floats; ValueError unless every one is in [0, 1]."""
    if isinstance(weight, Tensor):
        weight = _one_weight_per_row(weight, rows).tolist()
    weights = tuple(float(entry) for entry in weight) if isinstance(weight, Sequence) else (float(weight),) * rows
    if len(weights) != rows:
        raise ValueError(_weight_shape_message((len(weights),), rows))
    if not all(0.0 <= entry <= 1.0 for entry in weights):
        raise ValueError(f"weight holds {weights}: every weight of the other domain must be in [0, 1].")
    return weights


def _one_weight_per_row(weight: Tensor, rows: int) -> Tensor:
    """`weight` [] or [rows] as [rows], on its device; ValueError for another shape."""
    if weight.ndim and weight.shape != (rows,):
        raise ValueError(_weight_shape_message(tuple(weight.shape), rows))
    return weight.expand(rows)


def _weight_shape_message(shape: tuple[int, ...], rows: int) -> str:
    return f"weight has shape {shape} for {rows} rows: give one number, or one weight per row."


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
