"""Two short vectors per part of a LoRA that keep its angles to every other LoRA: linear time, no collection needed.

With D a module's change [out, in], P [k, out] and Q [in, k] random signs shared by all modules of that size, Y = P D:

- two-sided sketch  Y Q          keeps <D1, D2>: LoRAs that move the same directions the same way;
- output sketch     Y Y^T / |Y|  keeps <D1 D1^T, D2 D2^T>: LoRAs that write into the same directions, wherever they read from.
  It finds LoRAs trained from different random A, whose D are almost orthogonal (every trainer draws A anew).

A module's k * k numbers are added, with random signs, to random places of a vector of SKETCH_SIZE (count sketch), so files with
other modules, ranks or numbers of modules stay comparable. Both sketches depend on D alone, so no refactorisation B R, R^-1 A
changes them, and both grow in proportion to D.

All randomness comes from Philox counters keyed by names (`random_raw`, the same on every machine and numpy version).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch
from torch import Tensor

from .delta import Delta, LowRank
from .names import PARTS, SUBNETWORKS, part_of
from .weight_file import BadFile

SKETCH_VERSION = 1
SKETCH_SIZE = 1024
SIDE = 16
KINDS = ("two_sided", "output")
# Numbers of LoRAs that are projected together, 8 MB in float32: few calls, because readers side by side wait for each other at each.
_TOGETHER = 1 << 21

Sketches = dict[str, dict[str, numpy.ndarray]]
"""part -> kind -> float32 [SKETCH_SIZE]; only the parts that the file has."""


def _bits(label: str, count: int) -> numpy.ndarray:
    """`count` random uint64 that depend on the label alone."""
    key = hashlib.blake2b(f"lora space {SKETCH_VERSION} {label}".encode(), digest_size=16).digest()
    return numpy.random.Philox(key=numpy.frombuffer(key, "<u8")).random_raw(count)


@lru_cache(maxsize=256)
def _signs(side: str, size: int) -> Tensor:
    """Random signs [SIDE, size]; `side` "left" meets a change's rows, "right" its columns."""
    return torch.from_numpy(1.0 - 2.0 * (_bits(f"{side} {size}", SIDE * size) >> 63).astype(numpy.float32)).reshape(SIDE, size)


@lru_cache(maxsize=1 << 14)
def _places(kind: str, module: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Where in the vector the SIDE * SIDE numbers of a module go, and with which signs."""
    bits = _bits(f"{kind} {module}", SIDE * SIDE)
    return (bits % SKETCH_SIZE).astype(numpy.int32), 1.0 - 2.0 * (bits >> 63).astype(numpy.float32)


def sketch(deltas: Iterable[Delta]) -> Sketches:
    """Both sketches of every part. Raises BadFile for values that are not finite, and for a LoRA that changes nothing."""
    return sketch_batches([list(deltas)])


def sketch_batches(batches: Iterable[Sequence[Delta]]) -> Sketches:
    """`sketch` of all changes; factors of a `LowRank` may have any dtype. A batch is not looked at any more once the next is asked for."""
    squares: dict[str, list[_Squares]] = {}
    for batch in batches:
        for part, found in _all_squares(batch):
            squares.setdefault(part, []).append(found)
    sketches = {part: {kind: _added(kind, found) for kind in KINDS} for part, found in squares.items()}
    if not any(vector.any() for kinds in sketches.values() for vector in kinds.values()):
        raise BadFile("all its weights are zero, it changes nothing: it was saved before its training, delete it.")
    return {part: sketches[part] for part in PARTS if part in sketches}


@dataclass(frozen=True)
class _Squares:
    """Two-sided and output squares [n, SIDE, SIDE] of n modules."""

    modules: list[str]
    two_sided: Tensor
    output: Tensor

    @classmethod
    def of(cls, modules: list[str], two_sided: Tensor, square: Tensor) -> "_Squares":
        """square: Y Y^T. Raises BadFile for values that are not finite."""
        lengths = square.diagonal(dim1=1, dim2=2).sum(-1).sqrt()
        if broken := [module for module, finite in zip(modules, lengths.isfinite().tolist(), strict=True) if not finite]:
            raise BadFile(f"module {broken[0]} holds NaN or infinite values: its training diverged, use an earlier checkpoint.")
        return cls(modules, two_sided, square / torch.where(lengths > 0, lengths, 1)[:, None, None])


def _all_squares(deltas: Iterable[Delta]) -> Iterator[tuple[str, _Squares]]:
    """(part, squares) of all modules; LoRAs of one size together, because a file has hundreds of small ones."""
    alike: dict[tuple, list[LowRank]] = {}
    for delta in deltas:
        part = part_of(delta.module)
        if isinstance(delta, LowRank):
            alike.setdefault((part, delta.up.shape, delta.down.shape), []).append(delta)
        else:
            projected = delta.times_left(_signs("left", delta.shape[0])).unsqueeze(0)
            yield part, _Squares.of([delta.module], *_products(projected, _signs("right", delta.shape[1])))
    for (part, up, down), group in alike.items():
        at_once = max(1, _TOGETHER // (up.numel() + down.numel()))
        yield from ((part, _squares_of(group[start : start + at_once])) for start in range(0, len(group), at_once))


def _squares_of(group: Sequence[LowRank]) -> _Squares:
    """Of LoRAs of one size."""
    left, right = (_signs(side, size) for side, size in zip(("left", "right"), group[0].shape, strict=True))
    up, down = (_together(factors) for factors in zip(*((delta.up, delta.down) for delta in group), strict=True))
    rows = left @ up * torch.tensor([delta.scale for delta in group])[:, None, None]
    modules = [delta.module for delta in group]
    # A rank up to SIDE is contracted before the rows are: the long dimension is then passed twice, not three times.
    if down.shape[1] <= SIDE:
        return _Squares.of(modules, rows @ (down @ right.T), rows @ (down @ down.mT) @ rows.mT)
    return _Squares.of(modules, *_products(rows @ down, right))


def _products(projected: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return projected @ right.T, projected @ projected.mT


def _together(matrices: Sequence[Tensor]) -> Tensor:
    """[n, ...] float32 of matrices of one shape, in one pass over them."""
    together = torch.empty(len(matrices), *matrices[0].shape)
    torch._foreach_copy_(list(together.unbind()), list(matrices))
    return together


def _added(kind: str, squares: Sequence[_Squares]) -> numpy.ndarray:
    """[SKETCH_SIZE] of the modules' squares; in double precision, so that the order of the modules does not show."""
    places = [_places(kind, module) for found in squares for module in found.modules]
    values = torch.cat([getattr(found, kind) for found in squares]).numpy().reshape(len(places), -1)
    where, signs = (numpy.concatenate(column) for column in zip(*places, strict=True))
    return numpy.bincount(where, values.ravel() * signs, SKETCH_SIZE).astype(numpy.float32)


def unit(vectors: numpy.ndarray) -> numpy.ndarray:
    """Rows of length 1 (rows of zeros stay), so that a LoRA's strength does not count."""
    lengths = numpy.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / numpy.where(lengths > 0, lengths, 1)


def subnetwork_vectors(sketches: Mapping[str, Mapping[str, numpy.ndarray]], subnetwork: str) -> dict[str, numpy.ndarray] | None:
    """kind -> unit vector of a sub-network: the sum of its parts' sketches. None if the file has none of them."""
    parts = [sketches[part] for part in SUBNETWORKS[subnetwork] if part in sketches]
    if not parts:
        return None
    return {kind: unit(numpy.sum([part[kind] for part in parts], axis=0, dtype=numpy.float32)) for kind in KINDS}
