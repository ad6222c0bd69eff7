"""IA3 (LyCORIS, peft): factors on the inputs or outputs of the base model's layer. Approximate.

The change is W with its rows or columns multiplied by these; W is not at hand and counts as noise, so that files are compared by their
factors alone: a vector, the module `<module>_of_base`. LyCORIS stores how far they are from 1, peft the factors. ComfyUI reads neither.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from ..delta import Full
from .base import ADAPTER, Format, Sizes, key_pattern


def _missing(roles: Collection[str]) -> Collection[str]:
    return () if {"ia3_l", "ia3_weight"} & set(roles) else ("weight",)


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    shape = shape_of(keys.get("ia3_l") or keys["ia3_weight"])
    return Sizes(1, max(shape[:2]), 1)


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[Full]:
    factors = tensors["ia3_l"] - 1 if "ia3_l" in tensors else tensors["ia3_weight"]
    return [Full(f"{name}_of_base", factors.reshape(-1, 1))]


IA3 = Format(
    name="ia3",
    label="IA3",
    pattern=key_pattern(on_input=r"\.on_input", ia3_l=rf"\.ia3_l{ADAPTER}"),
    marked_by=("ia3_l", "on_input"),
    missing=_missing,
    sizes=_sizes,
    deltas=_deltas,
    flags=("on_input",),
    companions={"ia3_weight": ".weight"},
    approximate=True,
)
