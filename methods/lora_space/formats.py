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

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..intrinsic_lora.lora_file import peft_scales, split_key
from .delta import Delta, Kronecker, LowRank, Stack, dense_delta
from .families import base_family
from .names import SUBNETWORKS, canonical_name, fused_rows, part_of
from .weight_file import BadFile, Header, Layout, Reader, once_per_layout, spans_of, text_of

_LYCORIS = re.compile(
    r"^(?P<module>.+?)\.(?P<role>alpha|dora_scale|lora_magnitude_vector|lora_mid|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r"(?:\.[^.]+)?(?:\.weight)?$"
)
_OTHER_KINDS = {
    ".oft_": "OFT",
    ".boft": "BOFT",
    ".diff": "full-difference",
    ".glora": "GLoRA",
    "lora_embedding": "embedding LoRA",
    "tt_lora": "Tensor LoRA",
}
MAX_TAGS = 20
# What is read before it is used, at most.
_BATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class Facts:
    """What the header alone says of a LoRA.

    format: "lora", "loha", "lokr", joined by "+" where a file mixes them. approximate: it is a DoRA, whose magnitudes are not indexed.
    tags: the most frequent tags of its training captions, at most 20.
    """

    family: str
    format: str
    rank_min: int
    rank_max: int
    dtype: str
    modules: int
    approximate: bool
    tags: tuple[str, ...]


# A DoRA's.
_MAGNITUDES = {"dora_scale", "lora_magnitude_vector"}
_KINDS = (("down", "lora"), ("hada_w1_a", "loha"), ("lokr_w1", "lokr"), ("lokr_w1_a", "lokr"))


@dataclass(frozen=True)
class _Module:
    """One module of a file: its spelling there, and role ("down", "hada_w1_a"...) -> key.

    read: those that are read, so a DoRA's without its magnitudes. weight: key of a weight.
    """

    spelling: str
    keys: dict[str, str]
    kind: str
    read: dict[str, str]
    weight: str


@lru_cache(maxsize=1 << 16)
def _parse_key(key: str) -> tuple[str, str, str] | None:
    """(canonical name, role, spelling of the module). Files of one family share their keys, so each is parsed once."""
    found = split_key(key)
    if found is None and (match := _LYCORIS.match(key)):
        found = match["module"], match["role"]
    return None if found is None else (canonical_name(found[0]), found[1], found[0])


@once_per_layout
def _modules(layout: Layout) -> Mapping[str, _Module]:
    """Canonical name -> module. Raises BadFile where a module is incomplete, or nothing in the file is a LoRA's."""
    spelled: dict[str, tuple[str, dict[str, str]]] = {}
    for key in layout.tensors:
        if parsed := _parse_key(key):
            name, role, spelling = parsed
            _, keys = spelled.setdefault(name, (spelling, {}))
            if role in keys:
                raise BadFile(f"it holds {name} twice ({keys[role]} and {key}): export it again.")
            keys[role] = key
    modules = {}
    for name, (spelling, keys) in spelled.items():
        if found := next(((role, kind) for role, kind in _KINDS if role in keys), None):
            if missing := _wanted(keys) - keys.keys():
                raise BadFile(f"module {name} lacks {' and '.join(sorted(missing))}: the file is incomplete, export it again.")
            read = {role: key for role, key in keys.items() if role not in _MAGNITUDES} if _MAGNITUDES & keys.keys() else keys
            modules[name] = _Module(spelling, keys, found[1], read, keys[found[0]])
    if not modules:
        raise BadFile(_not_a_lora(layout, bool(spelled)))
    return MappingProxyType(modules)


def _wanted(roles: Mapping[str, str]) -> set[str]:
    if "down" in roles:
        return {"up"}
    if "hada_w1_a" in roles:
        return {"hada_w1_b", "hada_w2_a", "hada_w2_b"} | ({"hada_t1", "hada_t2"} if {"hada_t1", "hada_t2"} & roles.keys() else set())
    left = set() if "lokr_w1" in roles else {"lokr_w1_a", "lokr_w1_b"}
    return left | (set() if "lokr_w2" in roles else {"lokr_w2_a", "lokr_w2_b"})


def _not_a_lora(layout: Layout, halves: bool) -> str:
    if not layout.tensors:
        return "it holds no tensors: export it again."
    first = next(iter(layout.tensors))
    for key in layout.tensors:
        if kind := next((kind for mark, kind in _OTHER_KINDS.items() if mark in key), None):
            return f"it holds {kind} weights ({key}), which do not compare with LoRAs: leave it out, or convert it."
    if halves:
        return f"it holds halves of LoRA weights only ({first}): export it again."
    return f"it holds no LoRA weights (first key: {first}): move checkpoints and other models out of the LoRA folder."


def _shape(layout: Layout, key: str) -> list[int]:
    entry = layout.tensors[key]
    shape = entry.get("shape")
    if type(shape) is not list or set(map(type, shape)) - {int}:
        raise BadFile(f"{key} has no shape in the header: the file is damaged.")
    if len(shape) < 2:
        raise BadFile(f"{key} has shape {shape}, a matrix or a convolution was expected: export it again.")
    return shape


def _rank_and_width(layout: Layout, module: _Module) -> tuple[int, int]:
    keys = module.keys
    if "down" in keys:
        shape = _shape(layout, keys["down"])
        return shape[0], shape[1]
    if "hada_w1_b" in keys:
        shape = _shape(layout, keys["hada_w1_b"])
        return shape[0], shape[1]
    sides = [_shape(layout, keys.get(f"lokr_{side}") or keys[f"lokr_{side}_b"]) for side in ("w1", "w2")]
    ranks = [_shape(layout, keys[f"lokr_{side}_b"])[0] for side in ("w1", "w2") if f"lokr_{side}_b" in keys]
    return min(ranks, default=min(sides[1][:2])), sides[0][1] * sides[1][1]


def describe(header: Header) -> Facts:
    """Family, ranks, format and tags of a LoRA, from its header. Raises BadFile if it is none, or incomplete."""
    widths, facts = _facts(header.layout)
    return replace(facts, family=base_family(widths, header.metadata), tags=_tags(header.metadata))


@once_per_layout
def _facts(layout: Layout) -> tuple[Mapping[str, int], Facts]:
    """(canonical name -> width of the module's input, all that the metadata has no part in)."""
    modules = _modules(layout)
    sizes = {name: _rank_and_width(layout, module) for name, module in modules.items()}
    for name, (rank, _) in sizes.items():
        if rank < 1:
            raise BadFile(f"module {name} has rank 0: the file is empty, export it again.")
    ranks = [rank for rank, _ in sizes.values()]
    # Every module's first weight: alpha may be stored otherwise.
    dtypes = Counter(str(layout.tensors[module.weight].get("dtype")) for module in modules.values())
    return {name: width for name, (_, width) in sizes.items()}, Facts(
        family="",
        format="+".join(sorted({module.kind for module in modules.values()})),
        rank_min=min(ranks),
        rank_max=max(ranks),
        dtype=dtypes.most_common(1)[0][0],
        modules=len(modules),
        approximate=any(_MAGNITUDES & module.keys.keys() for module in modules.values()),
        tags=(),
    )


def _tags(metadata: Mapping[str, str]) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    try:
        for folder in json.loads(text_of(metadata, "ss_tag_frequency") or "{}").values():
            counts.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(tag for tag, _ in counts.most_common(MAX_TAGS) if tag)


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
    module: _Module
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
    others: list[tuple[str, _Module]]


@once_per_layout
def _plan(layout: Layout, subnetwork: str) -> list[_Batch]:
    """Modules that the sub-network needs, as they lie in the file, in batches of about _BATCH_BYTES."""
    parts = SUBNETWORKS[subnetwork]
    # linear1 of a single FLUX block is attention and feed-forward in one.
    modules = {name: module for name, module in _modules(layout).items() if part_of(name) in parts or name.endswith("_linear1")}
    places = {key: _offset(layout, key) for module in modules.values() for key in module.read.values()}
    batches: list[list[tuple[str, _Module]]] = [[]]
    size = 0
    for name, module in sorted(modules.items(), key=lambda item: places[item[1].weight]):
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append((name, module))
        size += sum(_bytes(layout, key) for key in module.read.values())
    return [_batch(layout, batch, places, parts) for batch in batches]


def _batch(layout: Layout, modules: Sequence[tuple[str, _Module]], places: Mapping[str, int], parts: Sequence[str]) -> _Batch:
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


def _plain_sizes(layout: Layout, module: _Module) -> tuple[int, int, int] | None:
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


def _delta(name: str, module: _Module, reader: Reader) -> Delta:
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


def _scale(module: _Module, reader: Reader, rank: int) -> float:
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
