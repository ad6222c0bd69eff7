"""Cross-domain attention without concatenation: one fused pass per domain, merged by log-sum-exp. The derivation is in README.md."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..operands import any_requires_grad
from .fused import FusedPass, forward_kernel, fused_backward, fused_forward, has_backward
from .segments import Segment, per_row


def cross_domain_attention_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
) -> Tensor:
    """The torch path of `cross_domain_attention`; segments: the active ones."""
    # Without a query the fused CPU kernel would divide by zero, which ends the process.
    if not segments or query.numel() == 0:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    needs_grad = any_requires_grad((query, key, value, other_key, other_value))
    kernel = forward_kernel(query, key, value)
    if kernel is None or (needs_grad and not has_backward(kernel)):
        return _concatenated(query, key, value, other_key, other_value, segments, scale)
    if needs_grad:
        return _MergedAttention.apply(query, key, value, other_key, other_value, segments, scale, kernel)
    own = fused_forward(query, key, value, scale, kernel)
    for segment in segments:
        _merge_(own, _other_pass(query, other_key, other_value, segment, scale, kernel), segment)
    return own.output


def cross_domain_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
) -> Tensor:
    """The Triton path: one launch over all rows; the backward is the torch path's, from the kernel's output and log-sum-exp."""
    if any_requires_grad((query, key, value, other_key, other_value)):
        return _MergedAttention.apply(query, key, value, other_key, other_value, segments, scale, "triton")
    return _launch(query, key, value, other_key, other_value, segments, scale)[0]


def _launch(query, key, value, other_key, other_value, segments: tuple[Segment, ...], scale: float) -> tuple[Tensor, Tensor]:
    from .triton_kernel import launch

    weights, others = per_row(segments, query.shape[0])
    partner = None if others == list(range(query.shape[0])) else others
    return launch(query, key, value, other_key, other_value, weights, partner, scale)


def _other_pass(query: Tensor, other_key: Tensor, other_value: Tensor, segment: Segment, scale: float, kernel: str) -> FusedPass:
    return fused_forward(query[segment.rows], other_key[segment.others], other_value[segment.others], scale, kernel)


def _merge_(own: FusedPass, other: FusedPass, segment: Segment) -> None:
    """Folds the other domain's pass into `own.output`, in place: the share of the other domain is a sigmoid of the two masses."""
    output = own.output[segment.rows]
    share = torch.sigmoid(other.lse + math.log(segment.weight) - own.lse[segment.rows]).unsqueeze(-1)
    if output.device.type == "cpu" and output.dtype != share.dtype:
        # A CPU blends 16-bit numbers with a broadcast share one by one; with a share per element, in vectors: half the time.
        share = torch.empty_like(output).copy_(share)
    output.lerp_(other.output, share.to(output.dtype))


def _merge_lse_(own: FusedPass, other: FusedPass, segment: Segment) -> None:
    own.lse[segment.rows] = torch.logaddexp(own.lse[segment.rows], other.lse + math.log(segment.weight))


class _MergedAttention(torch.autograd.Function):
    """Fused passes forward; backward by the fused backward of each set of keys under the merged softmax."""

    @staticmethod
    def forward(ctx, query, key, value, other_key, other_value, segments, scale, kernel):
        states = []
        if kernel == "triton":
            output, lse = _launch(query, key, value, other_key, other_value, segments, scale)
        else:
            own = fused_forward(query, key, value, scale, kernel)
            states.append(own.flash_state)
            for segment in segments:
                other = _other_pass(query, other_key, other_value, segment, scale, kernel)
                states.append(other.flash_state)
                _merge_(own, other, segment)
                _merge_lse_(own, other, segment)
            output, lse = own.output, own.lse
        ctx.save_for_backward(query, key, value, other_key, other_value, output, lse)
        ctx.segments, ctx.scale, ctx.kernel, ctx.states = segments, scale, kernel, states
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, other_key, other_value, output, lse = ctx.saved_tensors
        if ctx.kernel == "triton" and query.device.type != "cpu":
            backward, states = _chunked_backward, [None] * (1 + len(ctx.segments))
        else:
            backward, states = fused_backward, ctx.states or [None] * (1 + len(ctx.segments))
        grad_query, grad_key, grad_value = backward(grad_output, query, key, value, output, lse, ctx.scale, states[0])
        grad_other_key, grad_other_value = torch.zeros_like(other_key), torch.zeros_like(other_value)
        for segment, state in zip(ctx.segments, states[1:], strict=True):
            rows, others = segment.rows, segment.others
            part = backward(
                grad_output[rows],
                query[rows],
                other_key[others],
                other_value[others],
                output[rows],
                lse[rows] - math.log(segment.weight),
                ctx.scale,
                state,
            )
            grad_query[rows] += part[0]
            grad_other_key[others] += part[1]
            grad_other_value[others] += part[2]
        return grad_query, grad_key, grad_value, grad_other_key, grad_other_value, None, None, None


def _chunked_backward(grad_output, query, key, value, output, lse, scale, _state, chunk: int = 512):
    """`fused_backward` in plain matrix products over chunks of queries, for forwards that have no fused backward of their own."""
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for start in range(0, query.shape[-2], chunk):
        part = slice(start, start + chunk)
        grad, q = grad_output[..., part, :], query[..., part, :]
        probability = torch.exp((q @ key.transpose(-1, -2)).to(lse.dtype) * scale - lse[..., part, None])
        row_sum = (grad.to(lse.dtype) * output[..., part, :]).sum(-1, keepdim=True)
        grad_scores = (probability * ((grad @ value.transpose(-1, -2)).to(lse.dtype) - row_sum) * scale).to(query.dtype)
        grad_query[..., part, :] = grad_scores @ key
        grad_key += grad_scores.transpose(-1, -2) @ q
        grad_value += probability.to(query.dtype).transpose(-1, -2) @ grad
    return grad_query, grad_key, grad_value


def _concatenated(query, key, value, other_key, other_value, segments: tuple[Segment, ...], scale: float) -> Tensor:
    """For devices whose fused attention gives no log-sum-exp: concatenated keys and one bias per key, differentiable anywhere."""
    pieces: list[Tensor] = []
    order: list[int] = []
    for segment in segments:
        keys = torch.cat([key[segment.rows], other_key[segment.others]], dim=-2)
        values = torch.cat([value[segment.rows], other_value[segment.others]], dim=-2)
        bias = query.new_zeros(1, 1, 1, keys.shape[-2])
        bias[..., key.shape[-2] :] = math.log(segment.weight)
        pieces.append(F.scaled_dot_product_attention(query[segment.rows], keys, values, attn_mask=bias, scale=scale))
        order += range(query.shape[0])[segment.rows]
    alone = [row for row in range(query.shape[0]) if row not in order]
    if alone:
        pieces.append(F.scaled_dot_product_attention(query[alone], key[alone], value[alone], scale=scale))
    inverse = torch.tensor(order + alone, device=query.device).argsort()
    return torch.cat(pieces).index_select(0, inverse)
