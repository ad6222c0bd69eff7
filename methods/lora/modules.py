"""What the header of a LoRA file says: its modules, each named as in every other file, and facts about the whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple

from .families import base_family, variant_of
from .formats import ALPHA, MAGNITUDES, SUFFIXES, Format, format_of, refused_by, split_key
from .formats.base import Sizes
from .header import BadFile, Header, Layout, once_per_layout
from .loading import loading
from .names import canonical_name
from .spellings import precedence
from .training_facts import caption_tags

# The largest layers of models, embeddings of 262,144 words, have as much.
_LARGEST_SIDE, _LARGEST_MATRIX = 1 << 19, 1 << 31
_BESIDE = (ALPHA, *MAGNITUDES)
# Of what `describe` says: raised where it says other things of the same header, so that indexes ask again.
FACTS_VERSION = 2


@dataclass(frozen=True)
class Facts:
    """What the header alone says of a LoRA.

    format: "lora", "loha", "lokr"..., joined by "+" where a file mixes them. approximate: it holds weights that are not read, such as a
    DoRA's magnitudes, or some whose change depends on the base model's.
    tags: the most frequent tags of its training captions, at most 20. variant: of the base model within its family, such as "pony".
    loading: what ComfyUI's loader does not take of it, and why; "" where it takes all.
    """

    family: str
    format: str
    rank_min: int
    rank_max: int
    dtype: str
    modules: int
    approximate: bool
    tags: tuple[str, ...]
    variant: str = ""
    loading: str = ""


class Module(NamedTuple):
    """One module of a file: its spelling there, its format, and role ("down", "hada_w1_a"...) -> key."""

    spelling: str
    format: Format
    keys: dict[str, str]

    @property
    def read(self) -> dict[str, str]:
        """The keys that are read: a DoRA's without its magnitudes."""
        return {role: key for role, key in self.keys.items() if role not in MAGNITUDES and role not in self.format.flags}

    @property
    def approximate(self) -> bool:
        """Whether its change is not read to the end, or not known."""
        return self.format.approximate or any(role in self.keys for role in MAGNITUDES)

    @property
    def weight(self) -> str:
        """Key of a weight: alpha may be stored in another dtype."""
        return next(key for role, key in self.read.items() if role != ALPHA)


@lru_cache(maxsize=1 << 16)
def _parse_key(key: str) -> tuple[str, str, str] | None:
    """(canonical name, role, spelling of the module). Files of one family share their keys, so each is parsed once."""
    found = split_key(key)
    return found and (canonical_name(found[0]) + SUFFIXES.get(found[1], ""), found[1], found[0])


@once_per_layout
def modules_of(layout: Layout) -> Mapping[str, Module]:
    """Canonical name -> module. Of a module that is spelt twice, what ComfyUI loads.

    Raises BadFile where a module is incomplete, or nothing in the file is a LoRA's."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for key in layout.tensors:
        if parsed := _parse_key(key):
            name, role, spelling = parsed
            keys = found.setdefault(name, {}).setdefault(spelling, {})
            if role in keys:
                raise BadFile(f"it holds {name} twice ({keys[role]} and {key}): export it again.")
            keys[role] = key
    modules = {}
    for name, spellings in found.items():
        told = [(spelling, form, keys) for spelling, keys in spellings.items() if (form := format_of(keys))]
        if told:
            spelling, form, keys = max(told, key=lambda one: precedence(one[0]))
            beside = {role: spelling + ending for role, ending in form.companions.items() if spelling + ending in layout.tensors}
            keys = {role: key for role, key in keys.items() if role in form.pattern.groupindex or role in _BESIDE} | beside
            if missing := form.missing(keys):
                raise BadFile(f"module {name} lacks {' and '.join(sorted(missing))}: the file is incomplete, export it again.")
            modules[name] = Module(spelling, form, keys)
    if not modules:
        raise BadFile(_not_a_lora(layout, bool(found)))
    return MappingProxyType(modules)


@once_per_layout
def sizes_of(layout: Layout) -> Mapping[str, Sizes]:
    """Canonical name -> size of the module. Raises BadFile where a header's shapes are none, or larger than any model's."""
    shape_of = partial(_shape, layout)
    sizes = {}
    for name, module in modules_of(layout).items():
        try:
            sizes[name] = rank, out, width = module.format.sizes(module.keys, shape_of)
        except (LookupError, TypeError):
            raise BadFile(f"the shapes of module {name} do not fit together: export it again.") from None
        if rank < 1:
            raise BadFile(f"module {name} has rank 0: the file is empty, export it again.")
        if max(out, width) > _LARGEST_SIDE or out * width > _LARGEST_MATRIX:
            raise BadFile(f"module {name} changes a matrix of {out:,} x {width:,}, no model has such a layer: the file is damaged.")
    return MappingProxyType(sizes)


@once_per_layout
def unread(layout: Layout) -> tuple[str, ...]:
    """Keys of tensors that belong to no module: of other kinds of weights, or of none. Without what another spelling overrules."""
    modules = modules_of(layout)
    read = {key for module in modules.values() for key in module.keys.values()}
    others = [(key, _parse_key(key)) for key in layout.tensors if key not in read]
    return tuple(key for key, parsed in others if parsed is None or (parsed[0] not in modules and parsed[1] != ALPHA))


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
    return shape if len(shape) > 1 else (*shape, 1, 1)[:2]


def describe(header: Header) -> Facts:
    """Family, ranks, format and tags of a LoRA, from its header. Raises BadFile if it is none, or incomplete."""
    facts = _facts(header.layout)
    family = base_family(sizes_of(header.layout), header.metadata)
    return replace(
        facts,
        family=family,
        tags=caption_tags(header.metadata),
        variant=variant_of(header.metadata),
        loading=loading(header.layout, family),
    )


@once_per_layout
def _facts(layout: Layout) -> Facts:
    """All that the metadata has no part in, without the family."""
    modules, sizes = modules_of(layout), sizes_of(layout)
    # Of what has a rank by choice, where anything has: norms and biases beside it have none.
    ranks = [sizes[name].rank for name, module in modules.items() if module.format.widened] or [size.rank for size in sizes.values()]
    dtypes = Counter(layout.dtype(module.weight) for module in modules.values())
    return Facts(
        family="",
        format="+".join(sorted({module.format.name for module in modules.values()})),
        rank_min=min(ranks),
        rank_max=max(ranks),
        dtype=dtypes.most_common(1)[0][0],
        modules=len(modules),
        approximate=bool(unread(layout)) or any(module.approximate for module in modules.values()),
        tags=(),
    )
