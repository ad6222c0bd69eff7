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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ..intrinsic_lora.lora_file import peft_scales, split_key
from .delta import Delta, Kronecker, LowRank, dense_delta
from .families import base_family
from .names import SUBNETWORKS, canonical_name, fused_rows, part_of
from .weight_file import BadFile, Header, Reader, text_of

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


_KINDS = (("down", "lora"), ("hada_w1_a", "loha"), ("lokr_w1", "lokr"), ("lokr_w1_a", "lokr"))


@dataclass(frozen=True)
class _Module:
    """One module of a file: its spelling there, and role ("down", "hada_w1_a"...) -> key."""

    spelling: str
    keys: dict[str, str]

    @cached_property
    def kind(self) -> str:
        return next((kind for role, kind in _KINDS if role in self.keys), "none")

    @cached_property
    def read(self) -> dict[str, str]:
        """Role -> key of what is read: a DoRA's magnitudes are not."""
        return {role: key for role, key in self.keys.items() if role not in ("dora_scale", "lora_magnitude_vector")}

    @cached_property
    def weight(self) -> str:
        """Key of a weight."""
        return next(self.keys[role] for role, _ in _KINDS if role in self.keys)


@lru_cache(maxsize=1 << 16)
def _parse_key(key: str) -> tuple[str, str, str] | None:
    """(canonical name, role, spelling of the module). Files of one family share their keys, so each is parsed once."""
    found = split_key(key)
    if found is None and (match := _LYCORIS.match(key)):
        found = match["module"], match["role"]
    return None if found is None else (canonical_name(found[0]), found[1], found[0])


def _modules(header: Header) -> Mapping[str, _Module]:
    """Canonical name -> module. Raises BadFile where a module is incomplete, or nothing in the file is a LoRA's."""
    found, halves = _grouped(tuple(header.tensors))
    if not found:
        raise BadFile(_not_a_lora(header, halves))
    return found


@lru_cache(maxsize=64)
def _grouped(keys: tuple[str, ...]) -> tuple[Mapping[str, _Module], bool]:
    """(modules, whether there are parts of modules at all). Most files of a shelf share their list of keys with others."""
    modules: dict[str, _Module] = {}
    for key in keys:
        if parsed := _parse_key(key):
            name, role, spelling = parsed
            module = modules.setdefault(name, _Module(spelling, {}))
            if role in module.keys:
                raise BadFile(f"it holds {name} twice ({module.keys[role]} and {key}): export it again.")
            module.keys[role] = key
    found = {name: module for name, module in modules.items() if module.kind != "none"}
    for name, module in found.items():
        if missing := _wanted(module.keys) - module.keys.keys():
            raise BadFile(f"module {name} lacks {' and '.join(sorted(missing))}: the file is incomplete, export it again.")
    return MappingProxyType(found), bool(modules)


def _wanted(roles: Mapping[str, str]) -> set[str]:
    if "down" in roles:
        return {"up"}
    if "hada_w1_a" in roles:
        return {"hada_w1_b", "hada_w2_a", "hada_w2_b"} | ({"hada_t1", "hada_t2"} if {"hada_t1", "hada_t2"} & roles.keys() else set())
    left = set() if "lokr_w1" in roles else {"lokr_w1_a", "lokr_w1_b"}
    return left | (set() if "lokr_w2" in roles else {"lokr_w2_a", "lokr_w2_b"})


def _not_a_lora(header: Header, halves: bool) -> str:
    if not header.tensors:
        return "it holds no tensors: export it again."
    first = next(iter(header.tensors))
    for key in header.tensors:
        if kind := next((kind for mark, kind in _OTHER_KINDS.items() if mark in key), None):
            return f"it holds {kind} weights ({key}), which do not compare with LoRAs: leave it out, or convert it."
    if halves:
        return f"it holds halves of LoRA weights only ({first}): export it again."
    return f"it holds no LoRA weights (first key: {first}): move checkpoints and other models out of the LoRA folder."


def _shape(header: Header, key: str) -> list[int]:
    entry = header.tensors[key]
    shape = entry.get("shape")
    if type(shape) is not list or set(map(type, shape)) - {int}:
        raise BadFile(f"{key} has no shape in the header: the file is damaged.")
    if len(shape) < 2:
        raise BadFile(f"{key} has shape {shape}, a matrix or a convolution was expected: export it again.")
    return shape


def _rank_and_width(header: Header, module: _Module) -> tuple[int, int]:
    keys = module.keys
    if "down" in keys:
        shape = _shape(header, keys["down"])
        return shape[0], shape[1]
    if "hada_w1_b" in keys:
        shape = _shape(header, keys["hada_w1_b"])
        return shape[0], shape[1]
    sides = [_shape(header, keys.get(f"lokr_{side}") or keys[f"lokr_{side}_b"]) for side in ("w1", "w2")]
    ranks = [_shape(header, keys[f"lokr_{side}_b"])[0] for side in ("w1", "w2") if f"lokr_{side}_b" in keys]
    return min(ranks, default=min(sides[1][:2])), sides[0][1] * sides[1][1]


def describe(header: Header) -> Facts:
    """Family, ranks, format and tags of a LoRA, from its header. Raises BadFile if it is none, or incomplete."""
    modules = _modules(header)
    sizes = {name: _rank_and_width(header, module) for name, module in modules.items()}
    for name, (rank, _) in sizes.items():
        if rank < 1:
            raise BadFile(f"module {name} has rank 0: the file is empty, export it again.")
    ranks = [rank for rank, _ in sizes.values()]
    # Every module's first weight: alpha may be stored otherwise.
    dtypes = Counter(str(header.tensors[module.weight].get("dtype")) for module in modules.values())
    return Facts(
        family=base_family({name: width for name, (_, width) in sizes.items()}, header.metadata),
        format="+".join(sorted({module.kind for module in modules.values()})),
        rank_min=min(ranks),
        rank_max=max(ranks),
        dtype=dtypes.most_common(1)[0][0],
        modules=len(modules),
        approximate=any({"dora_scale", "lora_magnitude_vector"} & module.keys.keys() for module in modules.values()),
        tags=_tags(header.metadata),
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
    """Changes of the weights, module by module in the order of the file; only what `subnetwork` needs is read.

    Raises BadFile, saying what is wrong, at the first module that cannot be used.
    """
    with Reader(path) as reader:
        yield from deltas_of(reader, subnetwork)


def deltas_of(reader: Reader, subnetwork: str = "all") -> Iterator[Delta]:
    """`read_deltas` of an open file."""
    if subnetwork not in SUBNETWORKS:
        raise ValueError(f"there is no sub-network {subnetwork!r}: choose one of {', '.join(SUBNETWORKS)}.")
    parts = SUBNETWORKS[subnetwork]
    # linear1 of a single FLUX block is attention and feed-forward in one.
    modules = {name: module for name, module in _modules(reader.header).items() if part_of(name) in parts or name.endswith("_linear1")}
    for name, module in _in_order(modules, reader):
        yield from (piece for piece in _pieces(_delta(name, module, reader, widen=True)) if part_of(piece.module) in parts)


def batches_of(reader: Reader) -> Iterator[list[Delta]]:
    """`deltas_of` all modules, many at a time; the factors of plain LoRAs stay in the dtype of the file. A batch is good until the next
    is asked for, because the reader's memory is then used again."""
    batch = []
    for name, module in _in_order(_modules(reader.header), reader):
        batch += _pieces(_delta(name, module, reader, widen=False))
        if reader.held_bytes >= _BATCH_BYTES:
            yield batch
            reader.forget()
            batch = []
    yield batch
    reader.forget()


def _in_order(modules: Mapping[str, _Module], reader: Reader) -> list[tuple[str, _Module]]:
    """As they lie in the file, which the reader is told."""
    places = {key: _offset(reader.header, key) for module in modules.values() for key in module.read.values()}
    reader.expect(sorted(places, key=places.__getitem__))
    return sorted(modules.items(), key=lambda item: places[item[1].weight])


def _pieces(delta: Delta) -> list[Delta]:
    rows = fused_rows(delta.module, *delta.shape)
    return [delta] if len(rows) == 1 else [delta.rows(*row) for row in rows]


def _offset(header: Header, key: str) -> int:
    place = header.tensors[key].get("data_offsets")
    return place[0] if isinstance(place, list) and place and isinstance(place[0], int) else 0


def _delta(name: str, module: _Module, reader: Reader, widen: bool) -> Delta:
    tensors = {role: reader.tensor(key) for role, key in module.read.items()}
    alpha = tensors.pop("alpha", None)
    if widen or module.kind != "lora" or "lora_mid" in tensors:
        tensors = {role: tensor.float() for role, tensor in tensors.items()}
    if alpha is not None and alpha.numel() != 1:
        raise BadFile(f"alpha of {name} has {alpha.numel()} values, one was expected: export it again.")
    try:
        make = {"lora": _lora, "loha": _loha, "lokr": _lokr}[module.kind]
        scale = _scale_rule(module, reader.header.metadata, None if alpha is None else float(alpha))
        delta = make(name, tensors, scale)
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in tensors.items())
        raise BadFile(f"the shapes of module {name} do not fit together ({shapes}): export it again.") from None
    if delta.shape[0] == 0 or delta.shape[1] == 0 or any(tensor.numel() == 0 for tensor in tensors.values()):
        raise BadFile(f"module {name} holds no numbers: the file is empty, export it again.")
    return delta


def _scale_rule(module: _Module, metadata: Mapping[str, str], alpha: float | None) -> Callable[[int], float]:
    """Rank -> factor of the product."""
    if alpha is not None:
        return lambda rank: alpha / rank
    component, _, rest = module.spelling.partition(".")
    try:
        scales = peft_scales(metadata, component)
    except ValueError as error:
        raise BadFile(str(error)) from None
    return lambda rank: scales(rest.removeprefix("base_model.model."), rank)


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
