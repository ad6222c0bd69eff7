"""Cross-domain attention without concatenation: one fused pass per domain, merged by log-sum-exp. The derivation is in README.md."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..operands import any_requires_grad
from .fused import FusedPass, forward_kernel, fused_backward, fused_forward, has_backward
from .runs import RowRun, active_runs


def cross_domain_attention_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    weights: tuple[float, ...],
    partner: tuple[int, ...] | None,
    scale: float,
) -> Tensor:
    """The torch path of `cross_domain_attention` (partner None) and `joint_attention` (other_* are then key and value themselves)."""
    runs = active_runs(weights, partner) if other_key.shape[-2] else ()
    # Without a query the fused CPU kernel would divide by zero, which ends the process.
    if not runs or query.numel() == 0:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    needs_grad = any_requires_grad((query, key, value, other_key, other_value))
    kernel = forward_kernel(query, key, value)
    if kernel is None or (needs_grad and not has_backward(kernel)):
        return _concatenated(query, key, value, other_key, other_value, weights, runs, scale)
    if needs_grad:
        return _MergedAttention.apply(query, key, value, other_key, other_value, weights, runs, scale, kernel)
    own = fused_forward(query, key, value, scale, kernel)
    for run in runs:
        _merge_(own, _other_pass(query, other_key, other_value, run, scale, kernel), weights, run)
    return own.output


def cross_domain_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    weights: tuple[float, ...] | Tensor,
    partner: tuple[int, ...] | None,
    scale: float,
) -> Tensor:
    """The Triton path: one launch over all rows; the backward is the torch path's, from the kernel's output and log-sum-exp."""
    needs_grad = any_requires_grad((query, key, value, other_key, other_value))
    if needs_grad:
        host_weights = tuple(weights.tolist()) if isinstance(weights, Tensor) else weights
        runs = active_runs(host_weights, partner) if other_key.shape[-2] else ()
        return _MergedAttention.apply(query, key, value, other_key, other_value, host_weights, runs, scale, "triton", partner)
    from .triton_kernel import launch

    return launch(query, key, value, other_key, other_value, weights, partner, scale)[0]


def _other_pass(query: Tensor, other_key: Tensor, other_value: Tensor, run: RowRun, scale: float, kernel: str) -> FusedPass:
    return fused_forward(query[run.rows], other_key[run.others], other_value[run.others], scale, kernel)


def _run_log_weights(weights: tuple[float, ...], run: RowRun, like: Tensor) -> float | Tensor:
    """log w of a run's rows: a float where they agree, which is every call of a sampler, else a [rows, 1, 1] tensor."""
    logs = [math.log(weight) for weight in weights[run.rows]]
    return logs[0] if len(set(logs)) == 1 else torch.tensor(logs, dtype=like.dtype, device=like.device)[:, None, None]


def _merge_(own: FusedPass, other: FusedPass, weights: tuple[float, ...], run: RowRun) -> None:
    """Folds the other domain's pass into `own.output`, in place: the share of the other domain is a sigmoid of the two masses."""
    output = own.output[run.rows]
    share = torch.sigmoid(other.lse + _run_log_weights(weights, run, other.lse) - own.lse[run.rows]).unsqueeze(-1)
    if output.device.type == "cpu" and output.dtype != share.dtype:
        # A CPU blends 16-bit numbers with a broadcast share one by one; with a share per element, in vectors: half the time.
        share = torch.empty_like(output).copy_(share)
    output.lerp_(other.output, share.to(output.dtype))


def _merge_lse_(own: FusedPass, other: FusedPass, weights: tuple[float, ...], run: RowRun) -> None:
    own.lse[run.rows] = torch.logaddexp(own.lse[run.rows], other.lse + _run_log_weights(weights, run, other.lse))


class _MergedAttention(torch.autograd.Function):
    """Fused passes forward; backward by the fused backward of each set of keys under the merged softmax."""

    @staticmethod
    def forward(ctx, query, key, value, other_key, other_value, weights, runs, scale, kernel, partner=None):
        states = []
        if kernel == "triton":
            from .triton_kernel import launch

            output, lse = launch(query, key, value, other_key, other_value, weights, partner, scale)
        else:
            own = fused_forward(query, key, value, scale, kernel)
            states.append(own.flash_state)
            for run in runs:
                other = _other_pass(query, other_key, other_value, run, scale, kernel)
                states.append(other.flash_state)
                _merge_(own, other, weights, run)
                _merge_lse_(own, other, weights, run)
            output, lse = own.output, own.lse
        ctx.save_for_backward(query, key, value, other_key, other_value, output, lse)
        ctx.weights, ctx.runs, ctx.scale, ctx.kernel, ctx.states = weights, runs, scale, kernel, states
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, other_key, other_value, output, lse = ctx.saved_tensors
        if ctx.kernel == "triton" and query.device.type != "cpu":
            backward, states = _chunked_backward, [None] * (1 + len(ctx.runs))
        else:
            backward, states = fused_backward, ctx.states or [None] * (1 + len(ctx.runs))
        grad_query, grad_key, grad_value = backward(grad_output, query, key, value, output, lse, ctx.scale, states[0])
        grad_other_key, grad_other_value = torch.zeros_like(other_key), torch.zeros_like(other_value)
        for run, state in zip(ctx.runs, states[1:], strict=True):
            rows, others = run.rows, run.others
            part = backward(
                grad_output[rows],
                query[rows],
                other_key[others],
                other_value[others],
                output[rows],
                lse[rows] - _run_log_weights(ctx.weights, run, lse),
                ctx.scale,
                state,
            )
            grad_query[rows] += part[0]
            grad_other_key[others] += part[1]
            grad_other_value[others] += part[2]
        return grad_query, grad_key, grad_value, grad_other_key, grad_other_value, None, None, None, None, None


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


def _concatenated(query, key, value, other_key, other_value, weights, runs: tuple[RowRun, ...], scale: float) -> Tensor:
    """For devices whose fused attention gives no log-sum-exp: concatenated keys and one bias per key, differentiable anywhere."""
    pieces, order = [], []
    inactive = [row for row, weight in enumerate(weights) if weight == 0]
    if inactive:
        pieces.append(F.scaled_dot_product_attention(query[inactive], key[inactive], value[inactive], scale=scale))
        order += inactive
    for run in runs:
        keys = torch.cat([key[run.rows], other_key[run.others]], dim=-2)
        values = torch.cat([value[run.rows], other_value[run.others]], dim=-2)
        bias = keys.new_zeros(keys.shape[0], 1, 1, keys.shape[-2], dtype=torch.float32)
        logs = torch.tensor([math.log(weight) for weight in weights[run.rows]], device=bias.device)
        bias[..., key.shape[-2] :] = logs[:, None, None, None]
        pieces.append(F.scaled_dot_product_attention(query[run.rows], keys, values, attn_mask=bias.to(query.dtype), scale=scale))
        order += range(query.shape[0])[run.rows]
    inverse = torch.tensor(order, device=query.device).argsort()
    return torch.cat(pieces).index_select(0, inverse)
