"""PyTorch's own fused attention kernels, asked for what `scaled_dot_product_attention` keeps to itself: the log-sum-exp.

The log-sum-exp is what makes two attentions over different keys mergeable, and what their backward needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class FusedPass:
    """Attention over one set of keys. output [batch, heads, tokens, dim]; lse [batch, heads, tokens], natural log, float32 or wider.

    flash_state: what CUDA's flash backward wants back from its forward; None on the CPU.
    """

    output: Tensor
    lse: Tensor
    flash_state: tuple | None = None


def _cuda_params(query: Tensor, key: Tensor, value: Tensor) -> "torch.backends.cuda.SDPAParams":
    return torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)


def forward_kernel(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Name of the fused forward that gives the log-sum-exp of these operands: "cpu", "flash", "efficient", or None."""
    if query.device.type == "cpu":
        return "cpu"
    if query.device.type != "cuda":
        return None
    params = _cuda_params(query, key, value)
    # Flash wants head dims in multiples of 8; `scaled_dot_product_attention` would pad, which costs the copies we avoid.
    if query.shape[-1] % 8 == 0 and torch.backends.cuda.can_use_flash_attention(params):
        return "flash"
    return "efficient" if torch.backends.cuda.can_use_efficient_attention(params) else None


def has_backward(kernel: str | None) -> bool:
    """Whether `fused_backward` exists for a forward kernel; the efficient kernel's wants its own padded log-sum-exp."""
    return kernel in ("cpu", "flash")


def _unit_last_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def fused_forward(query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> FusedPass:
    """Attention and its log-sum-exp. Operands [batch, heads, tokens, dim], at least one key; kernel from `forward_kernel`."""
    query, key, value = _unit_last_stride(query), _unit_last_stride(key), _unit_last_stride(value)
    if kernel == "cpu":
        return FusedPass(*aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale))
    if kernel == "flash":
        output, lse, *state, _ = aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
        return FusedPass(output, lse[..., : query.shape[-2]], tuple(state))
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)
    # Some versions pad the log-sum-exp to a multiple of 32 queries.
    return FusedPass(output, lse[..., : query.shape[-2]])


def fused_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, scale: float, flash_state: tuple | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value of ONE set of keys inside a larger softmax.

    output, lse: of the whole softmax, seen from these keys (lse minus their log weight): then exp(score - lse) is the probability
    of each of these keys, and the row sum of grad_output * output is the whole softmax's: both kernels use only these two.
    """
    query, key, value, grad_output = (_unit_last_stride(tensor) for tensor in (query, key, value, grad_output))
    if flash_state is None:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_output, query, key, value, output, lse, 0.0, False, scale=scale
        )
    cumulative_query, cumulative_key, max_query, max_key, rng_state, unused = flash_state
    return aten._scaled_dot_product_flash_attention_backward(
        grad_output, query, key, value, output, lse.contiguous(), cumulative_query, cumulative_key, max_query, max_key, 0.0, False,
        rng_state, unused, scale=scale,
    )  # fmt: skip
