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
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..intrinsic_lora.lora_file import peft_scales
from .delta import Delta, Kronecker, LowRank, Stack, dense_delta
from .modules import Module, modules_of
from .names import SUBNETWORKS, fused_rows, part_of
from .weight_file import BadFile, Layout, Reader, once_per_layout, spans_of

# What is read before it is used, about.
_BATCH_BYTES = 32 << 20


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
        reader.expect(batch.spans)
        deltas: list[Stack | Delta] = [alike.read(reader) for alike in batch.alike]
        for name, module in batch.others:
            deltas += (piece for piece in _pieces(_delta(name, module, reader)) if part_of(piece.module) in parts)
        yield deltas
        reader.forget()


@dataclass(frozen=True)
class _Plain:
    """A plain LoRA, or the rows of a fused one that are a module of their own (None: all): canonical name, and where it is in the file."""

    name: str
    module: Module
    rows: slice | None
    rank: int


@dataclass(frozen=True)
class _Alike:
    """Plain LoRAs of one size."""

    members: list[_Plain]

    def read(self, reader: Reader) -> Stack:
        down, up = (reader.matrices([member.module.keys[side] for member in self.members]) for side in ("down", "up"))
        return Stack(
            [member.name for member in self.members],
            down,
            [matrix if member.rows is None else matrix[member.rows] for matrix, member in zip(up, self.members, strict=True)],
            [_scale(member.module, reader, member.rank) for member in self.members],
        )


@dataclass(frozen=True)
class _Batch:
    """Modules that are read at once; others: those that need more than copying."""

    spans: Mapping[str, Any]
    alike: list[_Alike]
    others: list[tuple[str, Module]]


@once_per_layout
def _plan(layout: Layout, subnetwork: str) -> list[_Batch]:
    """Modules that the sub-network needs, as they lie in the file, in batches of about _BATCH_BYTES."""
    parts = SUBNETWORKS[subnetwork]
    # linear1 of a single FLUX block is attention and feed-forward in one.
    modules = {name: module for name, module in modules_of(layout).items() if part_of(name) in parts or name.endswith("_linear1")}
    places = {key: _offset(layout, key) for module in modules.values() for key in module.read.values()}
    batches: list[list[tuple[str, Module]]] = [[]]
    size = 0
    for name, module in sorted(modules.items(), key=lambda item: places[item[1].weight]):
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append((name, module))
        size += sum(_bytes(layout, key) for key in module.read.values())
    return [_batch(layout, batch, places, parts) for batch in batches]


def _batch(layout: Layout, modules: Sequence[tuple[str, Module]], places: Mapping[str, int], parts: Sequence[str]) -> _Batch:
    alike: dict[tuple, list[_Plain]] = {}
    others = []
    for name, module in modules:
        if sizes := _plain_sizes(layout, module):
            out, rank, width = sizes
            pieces = fused_rows(name, out, width)
            for piece, start, stop in pieces:
                if (part := part_of(piece)) in parts:
                    member = _Plain(piece, module, None if len(pieces) == 1 else slice(start, stop), rank)
                    alike.setdefault((part, stop - start, rank, width), []).append(member)
        else:
            others.append((name, module))
    keys = [key for _, module in modules for key in module.read.values()]
    spans = spans_of(layout, sorted(keys, key=places.__getitem__))
    return _Batch(spans, [_Alike(members) for members in alike.values()], others)


def _bytes(layout: Layout, key: str) -> int:
    try:
        place = layout.place(key)
    except BadFile:
        # Reading it says so, in its turn.
        return 0
    return place.stop - place.start


def _plain_sizes(layout: Layout, module: Module) -> tuple[int, int, int] | None:
    """(out, rank, in) of a whole plain LoRA; None for anything else, broken ones too: reading them says why."""
    if module.kind != "lora" or "lora_mid" in module.keys:
        return None
    try:
        down, up = (layout.place(module.keys[side]).shape for side in ("down", "up"))
    except BadFile:
        return None
    whole = len(down) >= 2 and len(up) >= 2 and up[1] == down[0] and prod(up[2:]) == 1 and prod(down) and prod(up)
    return (up[0], down[0], prod(down[1:])) if whole else None


def _pieces(delta: Delta) -> list[Delta]:
    rows = fused_rows(delta.module, *delta.shape)
    return [delta] if len(rows) == 1 else [delta.rows(*row) for row in rows]


def _offset(layout: Layout, key: str) -> int:
    place = layout.tensors[key].get("data_offsets")
    return place[0] if isinstance(place, list) and place and isinstance(place[0], int) else 0


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
        return reader.number(module.keys["alpha"]) / rank
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
