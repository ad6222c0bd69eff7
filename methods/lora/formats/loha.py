"""LoHa (LyCORIS): alpha / rank * (w1_a w1_b) * (w2_a w2_b), element by element; of rank r^2 by the row-wise Khatri-Rao product, exactly."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..delta import LowRank, dense_delta
from .base import ADAPTER, Format, key_pattern

_MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


def _missing(roles: Collection[str]) -> set[str]:
    wanted = {*_MATRICES, *_CORES} if any(core in roles for core in _CORES) else set(_MATRICES)
    return wanted - set(roles)


def _rank_and_width(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    shape = shape_of(keys["hada_w1_b"])
    return shape[0], shape[1]


def _delta(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> LowRank:
    a1, b1, a2, b2 = (tensors[role] for role in _MATRICES)
    rank = b1.shape[0]
    if "hada_t1" in tensors:
        first, second = (tucker(tensors[core], b, a) for core, a, b in zip(_CORES, (a1, a2), (b1, b2), strict=True))
        return dense_delta(name, (first * second).flatten(1), scale(rank))
    if rank * b2.shape[0] >= min(len(a1), b1.shape[1]):
        return dense_delta(name, (a1 @ b1) * (a2 @ b2), scale(rank))
    up = torch.einsum("or,os->ors", a1, a2).flatten(1)
    down = torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
    return LowRank(name, down, up, scale(rank))


def tucker(core: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """LyCORIS's rebuilding of a convolution [out, in, kh, kw] from its core [r, r, kh, kw], b [r, in] and a [r, out]."""
    return torch.einsum("ij...,jr,ip->pr...", core, b, a)


LOHA = Format(
    name="loha",
    label="LoHa",
    pattern=key_pattern(**{role: rf"\.{role}{ADAPTER}" for role in (*_MATRICES, *_CORES)}),
    marked_by=("hada_w1_a",),
    missing=_missing,
    rank_and_width=_rank_and_width,
    delta=_delta,
)
