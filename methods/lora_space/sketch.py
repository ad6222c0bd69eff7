"""Two short vectors per part of a LoRA that keep its angles to every other LoRA: linear time, no collection needed.

With D a module's change [out, in], its core is C = P D Q [ROWS, COLUMNS]. P adds the rows of D with random signs, row i to row i mod
ROWS, and Q does so with the columns: both look at each number once, however many are kept. Every module flips the signs of rows and
columns of its core in its own way, so that cores can be added up and different modules still do not meet:

- two-sided sketch  sum of C           keeps <D1, D2>: LoRAs that move the same directions the same way;
- output sketch     sum of C C^T / |C| keeps <D1 D1^T, D2 D2^T>: LoRAs that write into the same directions, wherever they read from.
  It finds LoRAs trained from different random A, whose D are almost orthogonal (every trainer draws A anew). Its diagonal, which no
  signs could tell apart and which is alike in all LoRAs, is left out.

Files with other modules, ranks or numbers of modules stay comparable. Both sketches depend on D alone, so no refactorisation B R, R^-1 A
changes them, and both grow in proportion to D.

All randomness comes from Philox counters keyed by names (`random_raw`, the same on every machine and numpy version).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy
import torch
from torch import Tensor

from ..lora.cache import ReadCache
from ..lora.delta import Blockwise, Delta, Kronecker, LowRank, Stack
from ..lora.header import BadFile
from ..lora.names import PARTS, SUBNETWORKS, part_of

SKETCH_VERSION = 4
# Of the random signs, which stay where names alone have changed.
_SIGNS_VERSION = 3
ROWS, COLUMNS = 64, 32
SKETCH_SIZE = ROWS * COLUMNS
KINDS = ("two_sided", "output")
# Numbers that are added up together, 8 MB: few calls, because readers side by side wait for each other at each.
SCRATCH_SIZE = 1 << 21
# Above the diagonal; fewer than SKETCH_SIZE.
_PAIRS = numpy.triu_indices(ROWS, 1)
_LARGEST = 32767

Sketches = dict[str, dict[str, numpy.ndarray]]
"""part -> kind -> float32 [SKETCH_SIZE]; only the parts that the file has."""


def _signs(label: str, count: int) -> numpy.ndarray:
    """`count` random signs that depend on the label alone, float32."""
    key = hashlib.blake2b(f"lora space {_SIGNS_VERSION} {label}".encode(), digest_size=16).digest()
    words = numpy.random.Philox(key=numpy.frombuffer(key, "<u8")).random_raw(-(-count // 64)).astype("<u8")
    return 1 - 2 * numpy.unpackbits(words.view(numpy.uint8), count=count).astype(numpy.float32)


# Of so many lengths, each at most 2 MB.
@lru_cache(maxsize=128)
def _side_signs(side: str, size: int) -> Tensor:
    """[size, 1] for the rows of a change, `side` "left"; [size] for its columns, "right"."""
    signs = torch.from_numpy(_signs(f"{side} {size}", size))
    return signs.unsqueeze(1) if side == "left" else signs


@lru_cache(maxsize=1 << 14)
def _module_signs(module: str) -> numpy.ndarray:
    """[ROWS + COLUMNS]."""
    return _signs(f"module {module}", ROWS + COLUMNS)


def sketch(deltas: Iterable[Delta]) -> Sketches:
    """Both sketches of every part. Raises BadFile for values that are not finite, and for a LoRA that changes nothing."""
    alike: dict[tuple, list[LowRank]] = {}
    found: list[Stack | Delta] = []
    for delta in deltas:
        if isinstance(delta, LowRank):
            alike.setdefault((part_of(delta.module), delta.down.shape, delta.up.shape), []).append(delta)
        else:
            found.append(delta)
    for group in alike.values():
        columns = zip(*((delta.module, delta.down, delta.up, delta.scale) for delta in group), strict=True)
        found.append(Stack(*columns))
    return sketch_batches([found])


def sketch_batches(batches: Iterable[Sequence[Stack | Delta]], cache: ReadCache | None = None) -> Sketches:
    """`sketch` of all changes; all of a stack are of one part. A batch is not looked at any more once the next is asked for.

    cache: of a run over many files; new memory to add up in costs a twentieth of a file's time.
    """
    scratch = torch.empty(SCRATCH_SIZE) if cache is None else torch.from_numpy(cache.numbers(SCRATCH_SIZE))
    sums: dict[str, _Sums] = {}
    for batch in batches:
        for one in batch:
            for modules, cores in _cores(one, scratch):
                sums.setdefault(part_of(modules[0]), _Sums()).add(modules, cores)
    if not any(one.two_sided.any() or one.output.any() for one in sums.values()):
        raise BadFile("all its weights are zero, it changes nothing: it was saved before its training, delete it.")
    return {part: sums[part].vectors() for part in PARTS if part in sums}


class _Sums:
    """Both sums of one part; in double precision, so that the order of the modules does not show."""

    def __init__(self) -> None:
        self.two_sided, self.output = torch.zeros(ROWS, COLUMNS, dtype=torch.float64), torch.zeros(ROWS, ROWS, dtype=torch.float64)

    def add(self, modules: Sequence[str], cores: Tensor) -> None:
        """cores [n, ROWS, COLUMNS] of the modules. Raises BadFile for values that are not finite."""
        signs = torch.from_numpy(numpy.stack([_module_signs(module) for module in modules]))
        cores = cores.mul_(signs[:, :ROWS, None]).mul_(signs[:, None, ROWS:])
        lengths = cores.flatten(1).norm(dim=1)
        if broken := [module for module, finite in zip(modules, lengths.isfinite().tolist(), strict=True) if not finite]:
            raise BadFile(f"module {broken[0]} holds NaN or infinite values: its training diverged, use an earlier checkpoint.")
        self.two_sided += cores.sum(0)
        roots = (cores / torch.where(lengths > 0, lengths, 1).sqrt()[:, None, None]).transpose(0, 1).flatten(1)
        self.output += roots @ roots.T

    def vectors(self) -> dict[str, numpy.ndarray]:
        """kind -> [SKETCH_SIZE]."""
        pairs = self.output.numpy()[_PAIRS]
        both = self.two_sided.numpy().ravel(), numpy.pad(pairs, (0, SKETCH_SIZE - len(pairs)))
        return {kind: vector.astype(numpy.float32) for kind, vector in zip(KINDS, both, strict=True)}


def _cores(one: Stack | Delta, scratch: Tensor) -> Iterator[tuple[Sequence[str], Tensor]]:
    """Some modules at a time, with their n changes folded: [n, ROWS, COLUMNS], before the signs of the modules."""
    if isinstance(one, Kronecker):
        rows = one.shape[0]
        left = torch.zeros(ROWS, rows).index_put_((torch.arange(rows) % ROWS, torch.arange(rows)), _side_signs("left", rows).squeeze(1))
        yield [one.module], _folded([one.times_left(left)], "right", COLUMNS, scratch)
        return
    if isinstance(one, Blockwise):
        core, signs = torch.zeros(ROWS, COLUMNS), _side_signs("left", one.shape[0])
        for start, rows in one.blocks():
            places = torch.arange(start, start + len(rows))
            core.index_add_(0, places % ROWS, _folded([rows], "right", COLUMNS, scratch)[0] * signs[places])
        yield [one.module], core.unsqueeze(0)
        return
    if isinstance(one, LowRank):
        one = Stack([one.module], [one.down], [one.up], [one.scale])
    at_once = max(1, len(scratch) // max(one.up[0].numel(), one.down[0].numel()))
    for start in range(0, len(one.modules), at_once):
        some = slice(start, start + at_once)
        down = _folded(one.down[some], "right", COLUMNS, scratch).mul_(torch.tensor(one.scales[some])[:, None, None])
        yield one.modules[some], _folded(one.up[some], "left", ROWS, scratch) @ down


def _folded(matrices: Sequence[Tensor], side: str, count: int, scratch: Tensor) -> Tensor:
    """P times matrices of one shape [out, w], or such [w, in] times Q: [n, ROWS, w] or [n, w, COLUMNS], float32."""
    axis = 1 if side == "left" else 2
    shape = [len(matrices), *matrices[0].shape]
    size = shape[axis]
    shape[axis] += -size % count
    whole = scratch[: prod(shape)].view(shape) if prod(shape) <= len(scratch) else torch.empty(shape)
    whole.narrow(axis, size, shape[axis] - size).zero_()
    together = whole.narrow(axis, 0, size)
    # One pass that widens them, wherever they lie.
    torch._foreach_copy_(list(together.unbind()), list(matrices))
    together.mul_(_side_signs(side, size))
    return whole.unflatten(axis, (-1, count)).sum(axis)


def packed(kinds: Mapping[str, numpy.ndarray]) -> bytes:
    """Both sketches in two bytes a number, with an error of 1 / 65,000 of the largest: a hundredth of what random signs leave."""
    parts = []
    for kind in KINDS:
        step = numpy.float32(numpy.abs(kinds[kind]).max() / _LARGEST)
        parts += [step.astype("<f4").tobytes(), numpy.rint(kinds[kind] / (step or 1)).astype("<i2").tobytes()]
    return b"".join(parts)


def unpacked(data: bytes) -> numpy.ndarray:
    """[n, kinds, SKETCH_SIZE] of what `packed` made of n, joined."""
    rows = numpy.frombuffer(data, [("step", "<f4"), ("numbers", "<i2", SKETCH_SIZE)])
    return (rows["numbers"] * rows["step"][:, None]).reshape(-1, len(KINDS), SKETCH_SIZE)


def unit(vectors: numpy.ndarray) -> numpy.ndarray:
    """Rows of length 1 (rows of zeros stay), so that a LoRA's strength does not count."""
    lengths = numpy.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / numpy.where(lengths > 0, lengths, 1)


def subnetwork_vectors(sketches: Mapping[str, Mapping[str, numpy.ndarray]], subnetwork: str) -> dict[str, numpy.ndarray] | None:
    """kind -> unit vector of a sub-network: the sum of its parts' sketches. None if the file has none of them."""
    parts = [sketches[part] for part in SUBNETWORKS[subnetwork] if part in sketches]
    if not parts:
        return None
    return {kind: unit(numpy.stack([part[kind] for part in parts]).sum(0, dtype=numpy.float32)) for kind in KINDS}
