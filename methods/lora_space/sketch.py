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
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy
import torch
from torch import Tensor

from .delta import Delta
from .names import PARTS, SUBNETWORKS, part_of
from .weight_file import BadFile

SKETCH_VERSION = 1
SKETCH_SIZE = 1024
SIDE = 16
KINDS = ("two_sided", "output")

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
    squares: dict[str, list[tuple[str, Tensor, Tensor]]] = {}
    for delta in deltas:
        out, width = delta.shape
        projected = delta.times_left(_signs("left", out))
        two_sided, square = projected @ _signs("right", width).T, projected @ projected.T
        length = float(square.trace()) ** 0.5
        if not math.isfinite(length):
            raise BadFile(f"module {delta.module} holds NaN or infinite values: its training diverged, use an earlier checkpoint.")
        squares.setdefault(part_of(delta.module), []).append((delta.module, two_sided, square / length if length else square))
    sketches = {part: {kind: _added(kind, found) for kind in KINDS} for part, found in squares.items()}
    if not any(vector.any() for kinds in sketches.values() for vector in kinds.values()):
        raise BadFile("all its weights are zero, it changes nothing: it was saved before its training, delete it.")
    return {part: sketches[part] for part in PARTS if part in sketches}


def _added(kind: str, squares: Sequence[tuple[str, Tensor, Tensor]]) -> numpy.ndarray:
    """[SKETCH_SIZE] of (module, two-sided, output) squares; in double precision, so that the order of the modules does not show."""
    places = [_places(kind, module) for module, *_ in squares]
    values = torch.stack([pair[KINDS.index(kind)] for _, *pair in squares]).numpy().reshape(len(squares), -1)
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
