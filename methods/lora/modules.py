"""What the header of a LoRA file says: its modules, each named as in every other file, and facts about the whole."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from .families import base_family
from .layout import BadFile, Layout, once_per_layout
from .lora_file import split_key
from .names import canonical_name
from .weight_file import Header, text_of

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


class Module(NamedTuple):
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
def modules_of(layout: Layout) -> Mapping[str, Module]:
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
            modules[name] = Module(spelling, keys, found[1], read, keys[found[0]])
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
    shape = layout.shape(key)
    if type(shape) is not list or set(map(type, shape)) - {int}:
        raise BadFile(f"{key} has no shape in the header: the file is damaged.")
    if len(shape) < 2:
        raise BadFile(f"{key} has shape {shape}, a matrix or a convolution was expected: export it again.")
    return shape


def _rank_and_width(layout: Layout, module: Module) -> tuple[int, int]:
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
    modules = modules_of(layout)
    sizes = {name: _rank_and_width(layout, module) for name, module in modules.items()}
    for name, (rank, _) in sizes.items():
        if rank < 1:
            raise BadFile(f"module {name} has rank 0: the file is empty, export it again.")
    ranks = [rank for rank, _ in sizes.values()]
    # Every module's first weight: alpha may be stored otherwise.
    dtypes = Counter(layout.dtype(module.weight) for module in modules.values())
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
