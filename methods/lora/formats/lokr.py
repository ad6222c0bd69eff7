"""LoKr (LyCORIS): kron(w1, w2), each whole or the product of an a and a b; a `Kronecker`, never formed for a sketch.

alpha counts only where a side is factored; the rank is then that side's (the second's, if both are).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from ..delta import Kronecker
from .base import ADAPTER, Format, key_pattern
from .loha import tucker

_SIDES = ("lokr_w1", "lokr_w2")
_ROLES = (*_SIDES, *(f"{side}_{factor}" for side in _SIDES for factor in "ab"), "lokr_t2")


def _missing(roles: Collection[str]) -> set[str]:
    factors = {f"{side}_{factor}" for side in _SIDES if side not in roles for factor in "ab"}
    return factors - set(roles)


def _rank_and_width(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    first, second = (shape_of(keys.get(side) or keys[f"{side}_b"]) for side in _SIDES)
    ranks = [shape_of(keys[f"{side}_b"])[0] for side in _SIDES if f"{side}_b" in keys]
    return min(ranks, default=min(second[:2])), first[1] * second[1]


def _delta(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> Kronecker:
    rank = None
    if "lokr_w1" in tensors:
        left = tensors["lokr_w1"]
    else:
        left, rank = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"], tensors["lokr_w1_b"].shape[0]
    if "lokr_w2" in tensors:
        right = tensors["lokr_w2"]
    else:
        a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        right = tucker(tensors["lokr_t2"], b, a) if "lokr_t2" in tensors else a @ b.flatten(1)
        rank = b.shape[0]
    # A convolution's kernel is flattened into the second factor's columns, and stays innermost in the product's.
    return Kronecker(name, left.flatten(1), right.flatten(1), 1.0 if rank is None else scale(rank))


LOKR = Format(
    name="lokr",
    label="LoKr",
    pattern=key_pattern(**{role: rf"\.{role}{ADAPTER}" for role in _ROLES}),
    marked_by=("lokr_w1", "lokr_w1_a"),
    missing=_missing,
    rank_and_width=_rank_and_width,
    delta=_delta,
)
