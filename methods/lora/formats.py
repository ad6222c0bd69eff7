"""Any LoRA file in one canonical form: a `Delta` per target module, named the same whatever the file's spelling.

| format | change of the weight | here |
| --- | --- | --- |
| kohya, peft, diffusers, old attention processors | alpha / rank * up down | as it is |
| LoCon with a Tucker core | up (core down) | core folded into down, exact |
| LoHa | (a1 b1) * (a2 b2), element by element | rank r^2 by the row-wise Khatri-Rao product, exact |
| LoKr | kron(w1, w2) | `Kronecker`, never formed for a sketch |
| DoRA | the direction of the above, rescaled per column by the base weights | B A without the rescaling, marked approximate |
| fused projections (FLUX qkv, linear1) | one matrix for three or four modules | split by rows, exact |

Pickles are never opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .delta import Delta, Kronecker, LowRank, Stack, dense_delta
from .layout import BadFile, Layout, Place, once_per_layout
from .lora_file import peft_scales
from .modules import Module, modules_of
from .names import SUBNETWORKS, fused_rows, part_of
from .weight_file import Reader, Region, region_of

# What is read before it is used, about.
_BATCH_BYTES = 48 << 20


def read_deltas(path: str | Path, subnetwork: str = "all") -> Iterator[Delta]:
    """Changes of the weights in float32, about in the order of the file; only what `subnetwork` needs is read.

    Raises BadFile, saying what is wrong, at the first module that cannot be used.
    """
    with Reader(path) as reader:
        yield from deltas_of(reader, subnetwork)


def deltas_of(reader: Reader, subnetwork: str = "all") -> Iterator[Delta]:
    """`read_deltas` of an open file."""
    for batch in batches_of(reader, subnetwork):
        for one in batch:
            yield from one.each() if isinstance(one, Stack) else [one]


def batches_of(reader: Reader, subnetwork: str = "all") -> Iterator[list[Stack | Delta]]:
    """`deltas_of` many modules at a time; plain LoRAs of one size side by side, in the dtype of the file. Where the reader has memory of
    its own, a batch is good until the next is asked for."""
    if subnetwork not in SUBNETWORKS:
        raise ValueError(f"there is no sub-network {subnetwork!r}: choose one of {', '.join(SUBNETWORKS)}.")
    parts = SUBNETWORKS[subnetwork]
    for batch in _plan(reader.header.layout, subnetwork):
        reader.load(batch.region)
        views = reader.views(lambda: [alike.views(reader) for alike in batch.alike])  # noqa: B023
        deltas: list[Stack | Delta] = [alike.stack(reader, *looks) for alike, looks in zip(batch.alike, views, strict=True)]
        for name, module in batch.others:
            deltas += (piece for piece in _pieces(_delta(name, module, reader)) if part_of(piece.module) in parts)
        yield deltas


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
        return down, up, [reader.number(module.keys["alpha"]) for module in self.modules] if self.with_alpha else []

    def stack(self, reader: Reader, down: list[Tensor], up: list[Tensor], alphas: list[Tensor]) -> Stack:
        if not self.with_alpha:
            return Stack(self.names, down, up, [_scale(module, reader, self.rank) for module in self.modules])
        numbers = torch.empty(len(alphas), dtype=torch.float64)
        torch._foreach_copy_(list(numbers.unbind()), alphas)
        return Stack(self.names, down, up, (numbers / self.rank).tolist())


@dataclass(frozen=True)
class _Batch:
    """Modules that are read at once; others: those that need more than copying."""

    region: Region
    alike: list[_Alike]
    others: list[tuple[str, Module]]


class _Placed(NamedTuple):
    """places: role -> where it is; a role is missing if its tensor is broken."""

    name: str
    module: Module
    places: Mapping[str, Place]

    @property
    def start(self) -> int:
        return min((place.start for place in self.places.values()), default=0)

    @property
    def size(self) -> int:
        return sum(place.stop - place.start for place in self.places.values())

    def plain_sizes(self) -> tuple[int, int, int] | None:
        """(out, rank, in) of a whole plain LoRA; None for anything else, broken ones too: reading them says why."""
        if self.module.kind != "lora" or "lora_mid" in self.module.keys or not self.places.keys() >= {"down", "up"}:
            return None
        down, up = self.places["down"].form, self.places["up"].form
        whole = len(down.shape) >= 2 and len(up.shape) >= 2 and up.shape[1] == down.shape[0] and up.matrix[1] == up.shape[1]
        return (up.shape[0], *down.matrix) if whole and down.size and up.size else None


@once_per_layout
def _plan(layout: Layout, subnetwork: str) -> list[_Batch]:
    """Modules that the sub-network needs, as they lie in the file, in batches of about _BATCH_BYTES."""
    parts = SUBNETWORKS[subnetwork]
    placed = [
        _Placed(name, module, layout.places(module.read))
        for name, module in modules_of(layout).items()
        # linear1 of a single FLUX block is attention and feed-forward in one.
        if part_of(name) in parts or name.endswith("_linear1")
    ]
    batches: list[list[_Placed]] = [[]]
    size = 0
    for one in sorted(placed, key=lambda one: one.start):
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += one.size
    return [_batch(batch, parts) for batch in batches]


def _batch(placed: Sequence[_Placed], parts: Sequence[str]) -> _Batch:
    alike: dict[tuple, _Alike] = {}
    others = []
    for one in placed:
        if sizes := one.plain_sizes():
            out, rank, width = sizes
            with_alpha = "alpha" in one.module.keys
            pieces = fused_rows(one.name, out, width)
            for piece, start, stop in pieces:
                if (part := part_of(piece)) in parts:
                    group = alike.setdefault((part, stop - start, rank, width, with_alpha), _Alike(rank, with_alpha))
                    group.add(piece, one.module, None if len(pieces) == 1 else slice(start, stop))
        else:
            others.append((one.name, one.module))
    places = {one.module.read[role]: place for one in placed for role, place in one.places.items()}
    return _Batch(region_of(places), list(alike.values()), others)


def _pieces(delta: Delta) -> list[Delta]:
    rows = fused_rows(delta.module, *delta.shape)
    return [delta] if len(rows) == 1 else [delta.rows(*row) for row in rows]


def _delta(name: str, module: Module, reader: Reader) -> Delta:
    tensors = {role: reader.tensor(key).float() for role, key in module.read.items() if role != "alpha"}
    try:
        make = {"lora": _lora, "loha": _loha, "lokr": _lokr}[module.kind]
        delta = make(name, tensors, lambda rank: _scale(module, reader, rank))
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in tensors.items())
        raise BadFile(f"the shapes of module {name} do not fit together ({shapes}): export it again.") from None
    if not all(map(Tensor.numel, tensors.values())):
        raise BadFile(f"module {name} holds no numbers: the file is empty, export it again.")
    return delta


def _scale(module: Module, reader: Reader, rank: int) -> float:
    """Factor of the product."""
    if "alpha" in module.keys:
        return float(reader.number(module.keys["alpha"])) / rank
    component, _, rest = module.spelling.partition(".")
    try:
        return peft_scales(reader.header.metadata, component)(rest.removeprefix("base_model.model."), rank)
    except ValueError as error:
        raise BadFile(str(error)) from None


def _lora(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> LowRank:
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if up.ndim < 2 or prod(up.shape[2:]) != 1 or up.shape[1] != rank:
        raise BadFile(f"module {name} has shapes {tuple(down.shape)} and {tuple(up.shape)}, wanted [rank, in] and [out, rank].")
    if "lora_mid" in tensors:
        down = torch.einsum("rs...,si->ri...", tensors["lora_mid"], down.flatten(1))
    return LowRank(name, down if down.ndim == 2 else down.flatten(1), up if up.ndim == 2 else up.flatten(1), scale(rank))


def _loha(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> LowRank:
    a1, b1, a2, b2 = (tensors[f"hada_{role}"] for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    rank = b1.shape[0]
    if "hada_t1" in tensors:
        first, second = (_tucker(tensors[f"hada_{core}"], b, a) for core, a, b in (("t1", a1, b1), ("t2", a2, b2)))
        return dense_delta(name, (first * second).flatten(1), scale(rank))
    if rank * b2.shape[0] >= min(len(a1), b1.shape[1]):
        return dense_delta(name, (a1 @ b1) * (a2 @ b2), scale(rank))
    up = torch.einsum("or,os->ors", a1, a2).flatten(1)
    down = torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
    return LowRank(name, down, up, scale(rank))


def _tucker(core: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """LyCORIS's rebuilding of a convolution [out, in, kh, kw] from its core [r, r, kh, kw], b [r, in] and a [r, out]."""
    return torch.einsum("ij...,jr,ip->pr...", core, b, a)


def _lokr(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> Kronecker:
    """LyCORIS: alpha counts only where a side is factored; the rank is then that side's (the second's, if both are)."""
    rank = None
    if "lokr_w1" in tensors:
        left = tensors["lokr_w1"]
    else:
        left, rank = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"], tensors["lokr_w1_b"].shape[0]
    if "lokr_w2" in tensors:
        right = tensors["lokr_w2"]
    else:
        a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        right = _tucker(tensors["lokr_t2"], b, a) if "lokr_t2" in tensors else a @ b.flatten(1)
        rank = b.shape[0]
    # A convolution's kernel is flattened into the second factor's columns, and stays innermost in the product's.
    return Kronecker(name, left.flatten(1), right.flatten(1), 1.0 if rank is None else scale(rank))
