"""Full differences (ComfyUI's extraction and merges, trained biases and norms): what is added to a weight or a bias, as it is.

A vector of n, such as a bias or the scales of a norm, is a matrix [n, 1]. A bias is a module of its own, `<module>_bias`.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..delta import Full
from .base import Format, Sizes, key_pattern

# Where a module has several, the last counts, as in ComfyUI.
_ROLES = ("w_norm", "diff", "lora_bias", "b_norm", "diff_b")


def _chosen(found: Mapping[str, object]) -> str:
    return [role for role in _ROLES if role in found][-1]


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    out, width, *_ = shape_of(keys[_chosen(keys)])
    return Sizes(min(out, width), out, width)


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[Full]:
    tensor = tensors[_chosen(tensors)]
    return [Full(name, tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(-1, 1))]


FULL_DIFFERENCE = Format(
    name="diff",
    label="full-difference",
    pattern=key_pattern(
        diff=r"\.diff", diff_b=r"\.diff_b", w_norm=r"\.w_norm", b_norm=r"\.b_norm", lora_bias=r"\.lora_B(?:\.[^.]+)?\.bias"
    ),
    marked_by=_ROLES,
    missing=lambda roles: (),
    sizes=_sizes,
    deltas=_deltas,
    labels={"w_norm": "norm", "b_norm": "norm", "lora_bias": "bias"},
    suffixes=dict.fromkeys(("lora_bias", "b_norm", "diff_b"), "_bias"),
    widened=False,
)
