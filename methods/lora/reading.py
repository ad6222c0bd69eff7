"""Any LoRA file as the changes that it makes: a `Delta` per target module, named the same whatever the file's spelling.

What each kind of weights is, and how its change is made, is in `formats`. Projections that are stored as one (FLUX's qkv, linear1) are
split by their rows, exactly. Pickles are never opened.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import ReadCache
from .delta import Delta, Stack
from .formats import ALPHA
from .formats.base import Sizes, scale_of
from .header import BadFile, Layout, TensorInfo, once_per_layout
from .modules import Module, modules_of, sizes_of
from .names import SUBNETWORKS, fused_rows, part_of
from .weight_file import Reader, Region, region_of

# What is read before it is used, about; no module may take more than the second, which the largest layers of today do not.
_BATCH_BYTES, _MODULE_BYTES = 48 << 20, 400 << 20


def read_deltas(path: str | Path, subnetwork: str = "all", cache: ReadCache | None = None) -> Iterator[Delta]:
    """Changes of the weights in float32, about in the order of the file; only what `subnetwork` needs is read.

    Raises BadFile, saying what is wrong, at the first module that cannot be used.
    """
    with Reader(path, cache) as reader:
        yield from deltas_of(reader, subnetwork)


def deltas_of(reader: Reader, subnetwork: str = "all") -> Iterator[Delta]:
    """`read_deltas` of an open file."""
    for batch in _batches(reader, subnetwork, reuse=False):
        # What has been given is let go before more is read: a module may have 400 MB.
        while batch:
            one = batch.pop(0)
            yield from one.each() if isinstance(one, Stack) else [one]
            del one


def batches_of(reader: Reader, subnetwork: str = "all") -> Iterator[list[Stack | Delta]]:
    """`deltas_of` many modules at a time; plain LoRAs of one size side by side, in the dtype of the file. A batch is good until the next is
    asked for, of this file or of another that shares the reader's cache."""
    return _batches(reader, subnetwork, reuse=True)


def module_deltas(reader: Reader, name: str) -> list[Delta]:
    """`deltas_of` one module of `modules_of`, read by itself."""
    return [piece for delta in _deltas(name, modules_of(reader.header.layout)[name], reader) for piece in _pieces(delta)]


@once_per_layout
def repeated_modules(layout: Layout) -> frozenset[str]:
    """Modules that have several deltas, which add up: of a fused projection, and of a part of it."""
    pieces = Counter(piece for name, size in sizes_of(layout).items() for piece, *_ in fused_rows(name, size.out, size.width))
    return frozenset(name for name, count in pieces.items() if count > 1)


def _batches(reader: Reader, subnetwork: str, reuse: bool) -> Iterator[list[Stack | Delta]]:
    if subnetwork not in SUBNETWORKS:
        raise ValueError(f"there is no sub-network {subnetwork!r}: choose one of {', '.join(SUBNETWORKS)}.")
    parts = SUBNETWORKS[subnetwork]
    for batch in _plan(reader.header.layout, subnetwork):
        with reader.room(batch.region.size):
            reader.load(batch.region, reuse)
            views = reader.views(lambda: [alike.views(reader) for alike in batch.alike])  # noqa: B023
            yield [alike.stack(*looks) for alike, looks in zip(batch.alike, views, strict=True)]
            # One at a time: some are multiplied out.
            for name in batch.others:
                yield [piece for piece in module_deltas(reader, name) if part_of(piece.module) in parts]


@dataclass(frozen=True)
class _Alike:
    """Plain LoRAs of one size and rank, all with an alpha or none: canonical names, and where each is in the file. A fused one is there
    with those of its rows that are a module of their own (None: all)."""

    rank: int
    with_alpha: bool
    names: list[str] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    rows: list[slice | None] = field(default_factory=list)

    def add(self, name: str, module: Module, rows: slice | None) -> None:
        self.names.append(name)
        self.modules.append(module)
        self.rows.append(rows)

    def views(self, reader: Reader) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(down, up, alpha) of each, as they lie in memory."""
        down, up = (reader.matrices([module.keys[side] for module in self.modules]) for side in ("down", "up"))
        up = [matrix if rows is None else matrix[rows] for matrix, rows in zip(up, self.rows, strict=True)]
        return down, up, [reader.number(module.keys[ALPHA]) for module in self.modules] if self.with_alpha else []

    def stack(self, down: list[Tensor], up: list[Tensor], alphas: list[Tensor]) -> Stack:
        if not self.with_alpha:
            return Stack(self.names, down, up, [scale_of(None, self.rank)] * len(self.names))
        numbers = torch.empty(len(alphas), dtype=torch.float64)
        torch._foreach_copy_(list(numbers.unbind()), alphas)
        return Stack(self.names, down, up, (numbers / self.rank).tolist())


@dataclass(frozen=True)
class _Batch:
    """Modules that are read at once; others: those that need more than copying."""

    region: Region
    alike: list[_Alike]
    others: list[str]


class _Located(NamedTuple):
    """infos: by role, of what is read; a role is missing if its tensor is broken."""

    name: str
    module: Module
    infos: Mapping[str, TensorInfo]

    @property
    def start(self) -> int:
        return min((info.start for info in self.infos.values()), default=0)

    @property
    def size(self) -> int:
        return sum(info.stop - info.start for info in self.infos.values())

    @property
    def taken(self) -> int:
        """Bytes in memory: as it is stored, or in float32."""
        return max(self.size, 4 * sum(prod(info.form.shape) for info in self.infos.values()) if self.module.format.widened else 0)

    def plain_sizes(self) -> Sizes | None:
        """Of a whole plain LoRA; None for anything else, broken ones too: reading them says why."""
        if len(self.infos) < len(self.module.read):
            return None
        return self.module.format.plain_sizes({role: info.form.shape for role, info in self.infos.items()})


@once_per_layout
def _plan(layout: Layout, subnetwork: str) -> list[_Batch]:
    """Modules that the sub-network needs, as they lie in the file, in batches of about _BATCH_BYTES."""
    parts = SUBNETWORKS[subnetwork]
    sizes = sizes_of(layout)
    located = [
        _Located(name, module, layout.infos(module.read))
        for name, module in modules_of(layout).items()
        # linear1 of a single FLUX block is attention and feed-forward in one.
        if any(part_of(piece) in parts for piece, *_ in fused_rows(name, sizes[name].out, sizes[name].width))
    ]
    batches: list[list[_Located]] = [[]]
    size = 0
    for one in sorted(located, key=lambda one: one.start):
        if one.taken > _MODULE_BYTES:
            raise BadFile(f"module {one.name} takes {one.taken >> 20} MB of memory, at most {_MODULE_BYTES >> 20} are used: leave it out.")
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += one.size
    return [_batch(batch, parts) for batch in batches]


def _batch(located: Sequence[_Located], parts: Sequence[str]) -> _Batch:
    alike: dict[tuple, _Alike] = {}
    others = []
    for one in located:
        if sizes := one.plain_sizes():
            rank, out, width = sizes
            with_alpha = ALPHA in one.module.keys
            pieces = fused_rows(one.name, out, width)
            for piece, start, stop in pieces:
                if (part := part_of(piece)) in parts:
                    group = alike.setdefault((part, stop - start, rank, width, with_alpha), _Alike(rank, with_alpha))
                    group.add(piece, one.module, None if len(pieces) == 1 else slice(start, stop))
        else:
            others.append(one.name)
    infos = {one.module.read[role]: info for one in located for role, info in one.infos.items()}
    return _Batch(region_of(infos), list(alike.values()), others)


def _pieces(delta: Delta) -> list[Delta]:
    rows = fused_rows(delta.module, *delta.shape)
    return [delta.rows(*row) for row in rows] if rows != [(delta.module, 0, delta.shape[0])] else [delta]


def _deltas(name: str, module: Module, reader: Reader) -> Sequence[Delta]:
    tensors = {role: reader.tensor(key) for role, key in module.read.items() if role != ALPHA}
    if not all(map(Tensor.numel, tensors.values())):
        raise BadFile(f"module {name} holds no numbers: the file is empty, export it again.")
    if module.format.widened:
        tensors = {role: tensor.float() for role, tensor in tensors.items()}
    alpha = float(reader.number(module.keys[ALPHA])) if ALPHA in module.keys else None
    try:
        return module.format.deltas(name, tensors, alpha)
    except (RuntimeError, LookupError):
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in tensors.items())
        raise BadFile(f"the shapes of module {name} do not fit together ({shapes}): export it again.") from None
