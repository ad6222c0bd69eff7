"""LoKr (LyCORIS): kron(w1, w2), each whole or the product of an a and a b; a `Kronecker`, never formed.

Where its second side is the product of so thin factors that kron(w1, a) kron(1, b) is smaller than that side, it is this product.

alpha counts only where a side is factored; the rank is then that side's (the second's, if both are).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..delta import Kronecker, LowRank, check_numbers
from .base import ADAPTER, Format, Sizes, key_pattern, scale_of
from .loha import tucker

_SIDES = ("lokr_w1", "lokr_w2")
_ROLES = (*_SIDES, *(f"{side}_{factor}" for side in _SIDES for factor in "ab"), "lokr_t2")


def _missing(roles: Collection[str]) -> set[str]:
    factors = {f"{side}_{factor}" for side in _SIDES if side not in roles for factor in "ab"}
    return factors - set(roles)


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    widths = [shape_of(keys.get(side) or keys[f"{side}_b"])[1] for side in _SIDES]
    # Beside a core the second side's first factor is [rank, out].
    transposed = {"lokr_w2_a"} if "lokr_t2" in keys else set()
    outs = [shape_of(keys[first])[first in transposed] for first in (side if side in keys else f"{side}_a" for side in _SIDES)]
    ranks = [shape_of(keys[f"{side}_b"])[0] for side in _SIDES if f"{side}_b" in keys]
    return Sizes(min(ranks, default=min(outs[1], widths[1])), outs[0] * outs[1], widths[0] * widths[1])


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[Kronecker | LowRank]:
    rank = None
    if "lokr_w1" in tensors:
        left = tensors["lokr_w1"].flatten(1)
    else:
        a, b = tensors["lokr_w1_a"], tensors["lokr_w1_b"]
        check_numbers(name, len(a) * b.shape[1])
        left, rank = a @ b, b.shape[0]
    if "lokr_w2" in tensors:
        return [Kronecker(name, left, tensors["lokr_w2"].flatten(1), 1.0 if rank is None else scale_of(alpha, rank))]
    a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
    rank = b.shape[0]
    scale = scale_of(alpha, rank)
    if "lokr_t2" in tensors:
        # A convolution's kernel is flattened into the second factor's columns, and stays innermost in the product's.
        return [Kronecker(name, left, tucker(name, tensors["lokr_t2"], b, a).flatten(1), scale)]
    b = b.flatten(1)
    numbers = len(a) * b.shape[1]
    if (thin := left.shape[1] * rank * (len(left) * len(a) + left.shape[1] * b.shape[1])) < numbers:
        check_numbers(name, thin)
        return [LowRank(name, torch.kron(torch.eye(left.shape[1]), b), torch.kron(left, a), scale)]
    check_numbers(name, numbers)
    return [Kronecker(name, left, a @ b, scale)]


LOKR = Format(
    name="lokr",
    label="LoKr",
    pattern=key_pattern(**{role: rf"\.{role}{ADAPTER}" for role in _ROLES}),
    marked_by=("lokr_w1", "lokr_w1_a"),
    missing=_missing,
    sizes=_sizes,
    deltas=_deltas,
)
