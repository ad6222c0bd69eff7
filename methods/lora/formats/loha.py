"""LoHa (LyCORIS): alpha / rank * (w1_a w1_b) * (w2_a w2_b), element by element.

Of small rank r it is one product of rank r^2, by the row-wise Khatri-Rao product, exactly; else a `Hadamard`, never formed whole.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..delta import Delta, Full, Hadamard, LowRank, check_numbers
from .base import ADAPTER, Format, Sizes, key_pattern, scale_of

_MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")
# Of the one product: what it takes is that of a plain LoRA.
_LARGEST_RANK = 256


def _missing(roles: Collection[str]) -> set[str]:
    wanted = {*_MATRICES, *_CORES} if any(core in roles for core in _CORES) else set(_MATRICES)
    return wanted - set(roles)


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    # Beside a core the first factor is [rank, out].
    out = shape_of(keys["hada_w1_a"])["hada_t1" in keys]
    rank, width, *_ = shape_of(keys["hada_w1_b"])
    return Sizes(rank, out, width)


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[Delta]:
    a1, b1, a2, b2 = (tensors[role] for role in _MATRICES)
    scale = scale_of(alpha, b1.shape[0])
    if "hada_t1" in tensors:
        first, second = (tucker(name, tensors[core], b, a) for core, a, b in zip(_CORES, (a1, a2), (b1, b2), strict=True))
        return [Full(name, first.mul_(second).flatten(1), scale)]
    rank, (out, width) = b1.shape[0] * b2.shape[0], (len(a1), b1.shape[1])
    if rank * (out + width) >= out * width or rank > _LARGEST_RANK:
        return [Hadamard(name, LowRank(name, b1, a1), LowRank(name, b2, a2), scale)]
    up = torch.einsum("or,os->ors", a1, a2).flatten(1)
    down = torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
    return [LowRank(name, down, up, scale)]


def tucker(name: str, core: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """LyCORIS's rebuilding of a convolution [out, in, kh, kw] from its core [r, r, kh, kw], b [r, in] and a [r, out]. Raises BadFile where
    it is too large."""
    check_numbers(name, core[0, 0].numel() * b.shape[1] * max(a.shape[1], core.shape[0]))
    return torch.einsum("ij...,jr,ip->pr...", core, b, a)


LOHA = Format(
    name="loha",
    label="LoHa",
    pattern=key_pattern(**{role: rf"\.{role}{ADAPTER}" for role in (*_MATRICES, *_CORES)}),
    marked_by=("hada_w1_a",),
    missing=_missing,
    sizes=_sizes,
    deltas=_deltas,
)
