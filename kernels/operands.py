"""Checks, gradients and facts about the processor that every operation shares."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Given = TypeVar("Given", Tensor, Tensor | None)


def _cpu_product_dtypes() -> frozenset[torch.dtype]:
    """Dtypes that this CPU has instructions to multiply; without them torch's products are 5 to 20 times slower than converting."""
    probes = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    native = {torch.float32, torch.float64}
    if torch.backends.mkldnn.is_available():
        native |= {dtype for dtype, name in probes.items() if hasattr(torch.ops.mkldnn, name) and getattr(torch.ops.mkldnn, name)()}
    return frozenset(native)


# Asked once, here: torch.compile cannot trace the question.
CPU_PRODUCT_DTYPES = _cpu_product_dtypes()


def positive_scale(scale: float | None, head_dim: int) -> float:
    """`scale`, or head_dim ** -0.5 for None; ValueError unless positive and finite."""
    scale = head_dim**-0.5 if scale is None else float(scale)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}: give a positive finite number, or None for dim ** -0.5.")
    return scale


def check_same_kind(**tensors: Tensor | None) -> None:
    """ValueError unless all tensors are floating point and share one dtype and device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    kinds = {(tensor.dtype, tensor.device) for tensor in given.values()}
    if len(kinds) != 1 or not next(iter(kinds))[0].is_floating_point:
        found = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(f"Expected floating-point tensors of one dtype on one device, got {found}.")


def as_under_autocast(*tensors: Given) -> tuple[Given, ...]:
    """The tensors as `scaled_dot_product_attention` would take them: under autocast in its dtype (norms leave float32 behind, projections
    do not), float64 as it is; outside autocast unchanged."""
    device = next(tensor for tensor in tensors if tensor is not None).device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    narrows = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(tensor.to(dtype) if tensor is not None and tensor.dtype in narrows else tensor for tensor in tensors)


def any_requires_grad(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a backward may follow a call on `tensors`."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _TorchBackward(torch.autograd.Function):
    """Forward by one function; backward through another, equal one, run again on the saved operands."""

    @staticmethod
    def forward(ctx, fast: Callable, differentiable: Callable, *operands: Tensor | None) -> Tensor:
        ctx.differentiable = differentiable
        ctx.save_for_backward(*operands)
        return fast(*operands)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        operands: list[Any] = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
        wanted = [index for index, tensor in enumerate(operands) if tensor is not None and tensor.requires_grad]
        with torch.enable_grad():
            output = ctx.differentiable(*operands)
        gradients = torch.autograd.grad(output, [operands[index] for index in wanted], grad_output)
        result: list[Tensor | None] = [None] * len(operands)
        for index, gradient in zip(wanted, gradients, strict=True):
            result[index] = gradient
        return None, None, *result


def forward_only(fast: Callable[..., Tensor], differentiable: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`fast`, whose gradient is that of `differentiable`: a kernel without a backward in training, at the price of a second forward.

    Both take tensors (or None) first, then settings.
    """

    def path(*arguments):
        operands = [argument for argument in arguments if argument is None or isinstance(argument, Tensor)]
        settings = arguments[len(operands) :]
        if not any_requires_grad(operands):
            return fast(*arguments)
        return _TorchBackward.apply(lambda *o: fast(*o, *settings), lambda *o: differentiable(*o, *settings), *operands)

    return path
