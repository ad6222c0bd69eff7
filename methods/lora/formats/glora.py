"""GLoRA (LyCORIS): W' = W + W P + Q with the base model's W, P and Q products of two factors each. Approximate.

Q is exact. W is not at hand: its part is compared by P, as if W were noise of variance 1 / in, which keeps the angles between W P on
average and makes |W P| = sqrt(out / in) |P|. It is a module of its own, `<module>_of_base`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from ..delta import LowRank
from .base import Format, Sizes, key_pattern, scale_of

_ROLES = ("a1", "a2", "b1", "b2")


def _missing(roles: Collection[str]) -> set[str]:
    return {f"glora_{role}" for role in _ROLES} - set(roles)


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    a1, a2, b1, b2 = (shape_of(keys[f"glora_{role}"]) for role in _ROLES)
    return Sizes(b1[0], b2[0], b1[1]) if _is_old(a1, a2, b1, b2) else Sizes(b1[1], b1[0], b2[1])


def _is_old(a1: Sequence[int], a2: Sequence[int], b1: Sequence[int], b2: Sequence[int]) -> bool:
    """Whether the second factors stand on the left, as LyCORIS wrote them first."""
    return b2[1] == b1[0] == a1[0] == a2[1] and not b2[0] == b1[1] == a1[1] == a2[0]


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[LowRank]:
    a1, a2, b1, b2 = (tensors[f"glora_{role}"].flatten(1) for role in _ROLES)
    if _is_old(a1.shape, a2.shape, b1.shape, b2.shape):
        a1, a2, b1, b2 = a2, a1, b2, b1
    scale = scale_of(alpha, b1.shape[1])
    length = (b1.shape[0] / b2.shape[1]) ** 0.5
    return [LowRank(name, b2, b1, scale), LowRank(f"{name}_of_base", a2, a1, scale * length)]


GLORA = Format(
    name="glora",
    label="GLoRA",
    pattern=key_pattern(**{f"glora_{role}": rf"\.{role}\.weight" for role in _ROLES}),
    marked_by=("glora_a1",),
    missing=_missing,
    sizes=_sizes,
    deltas=_deltas,
    approximate=True,
)
