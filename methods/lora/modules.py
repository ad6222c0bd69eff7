"""What the header of a LoRA file says: its modules, each named as in every other file, and facts about the whole."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple

from .families import base_family
from .formats import MAGNITUDES, Format, format_of, refused_by, split_key
from .header import BadFile, Header, Layout, once_per_layout, text_of
from .names import canonical_name

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


class Module(NamedTuple):
    """One module of a file: its spelling there, its format, and role ("down", "hada_w1_a"...) -> key."""

    spelling: str
    format: Format
    keys: dict[str, str]

    @property
    def read(self) -> dict[str, str]:
        """The keys that are read: a DoRA's without its magnitudes."""
        return {role: key for role, key in self.keys.items() if role not in MAGNITUDES}

    @property
    def weight(self) -> str:
        """Key of a weight: alpha may be stored in another dtype."""
        return next(self.keys[role] for role in self.format.marked_by if role in self.keys)


@lru_cache(maxsize=1 << 16)
def _parse_key(key: str) -> tuple[str, str, str] | None:
    """(canonical name, role, spelling of the module). Files of one family share their keys, so each is parsed once."""
    found = split_key(key)
    return found and (canonical_name(found[0]), found[1], found[0])


@once_per_layout
def modules_of(layout: Layout) -> Mapping[str, Module]:
    """Canonical name -> module. Raises BadFile where a module is incomplete, or nothing in the file is a LoRA's."""
    found: dict[str, dict[str, str]] = {}
    spellings: dict[str, str] = {}
    for key in layout.tensors:
        if parsed := _parse_key(key):
            name, role, spelling = parsed
            spellings.setdefault(name, spelling)
            keys = found.setdefault(name, {})
            if role in keys:
                raise BadFile(f"it holds {name} twice ({keys[role]} and {key}): export it again.")
            keys[role] = key
    modules = {}
    for name, keys in found.items():
        if form := format_of(keys):
            if missing := form.missing(keys):
                raise BadFile(f"module {name} lacks {' and '.join(sorted(missing))}: the file is incomplete, export it again.")
            modules[name] = Module(spellings[name], form, keys)
    if not modules:
        raise BadFile(_not_a_lora(layout, bool(found)))
    return MappingProxyType(modules)


def _not_a_lora(layout: Layout, halves: bool) -> str:
    if not layout.tensors:
        return "it holds no tensors: export it again."
    first = next(iter(layout.tensors))
    if found := refused_by(layout.tensors):
        refused, key = found
        return f"it holds {refused.label} weights ({key}), {refused.reason}"
    if halves:
        return f"it holds halves of LoRA weights only ({first}): export it again."
    return f"it holds no LoRA weights (first key: {first}): move checkpoints and other models out of the LoRA folder."


def _shape(layout: Layout, key: str) -> Sequence[int]:
    shape = layout.shape(key)
    if not isinstance(shape, tuple) and (not isinstance(shape, list) or set(map(type, shape)) - {int}):
        raise BadFile(f"{key} has no shape in the header: the file is damaged.")
    if len(shape) < 2:
        raise BadFile(f"{key} has shape {list(shape)}, a matrix or a convolution was expected: export it again.")
    return shape


def describe(header: Header) -> Facts:
    """Family, ranks, format and tags of a LoRA, from its header. Raises BadFile if it is none, or incomplete."""
    widths, facts = _facts(header.layout)
    return replace(facts, family=base_family(widths, header.metadata), tags=_tags(header.metadata))


@once_per_layout
def _facts(layout: Layout) -> tuple[Mapping[str, int], Facts]:
    """(canonical name -> width of the module's input, all that the metadata has no part in)."""
    modules = modules_of(layout)
    shape_of = partial(_shape, layout)
    sizes = {name: module.format.rank_and_width(module.keys, shape_of) for name, module in modules.items()}
    for name, (rank, _) in sizes.items():
        if rank < 1:
            raise BadFile(f"module {name} has rank 0: the file is empty, export it again.")
    ranks = [rank for rank, _ in sizes.values()]
    dtypes = Counter(layout.dtype(module.weight) for module in modules.values())
    return {name: width for name, (_, width) in sizes.items()}, Facts(
        family="",
        format="+".join(sorted({module.format.name for module in modules.values()})),
        rank_min=min(ranks),
        rank_max=max(ranks),
        dtype=dtypes.most_common(1)[0][0],
        modules=len(modules),
        approximate=any(role in module.keys for module in modules.values() for role in MAGNITUDES),
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
