"""The header of a safetensors file as text: which tensors there are, and where. What files of one trainer share is made once."""

import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from math import prod
from threading import RLock
from typing import Any, NamedTuple

import numpy
import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NUMPY_DTYPES = {torch.float64: "f8", torch.float32: "f4", torch.float16: "f2"}
# Integers of the same size for those that numpy does not have.
_STORED = {dtype: numpy.dtype(NUMPY_DTYPES.get(dtype, f"i{dtype.itemsize}")) for dtype in DTYPES.values()}
# Where nearly every writer puts the metadata.
_METADATA_FIRST = re.compile(r'\s*\{\s*"__metadata__"\s*:\s*')
# Layouts that are remembered, and the text of the longest; some 2 MB of objects each.
_LAYOUTS, _LAYOUT_CHARACTERS, _MET = 32, 2 << 20, 100_000


class BadFile(ValueError):
    """A file that cannot be used; the message says what is wrong with it and what to do."""


class Form(NamedTuple):
    """What a tensor is: dtype as named in the header and as torch's, shape as stored and as a matrix [first, rest], `stored` the dtype for
    numpy, bytes."""

    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    stored: numpy.dtype
    size: int


class Place(NamedTuple):
    """Where a tensor lies in the data, in bytes, and what it is."""

    start: int
    stop: int
    form: Form


@lru_cache(maxsize=1 << 14)
def _form(kind: str, shape: tuple[int, ...]) -> Form:
    """Raises LookupError for a dtype that is not read, TypeError and ValueError for what is no shape. Tensors by the thousand have few."""
    if set(map(type, shape)) - {int}:
        raise TypeError
    if shape and min(shape) < 0:
        raise ValueError
    dtype = DTYPES[kind]
    matrix = shape if len(shape) == 2 else (shape[0] if shape else 1, prod(shape[1:]))
    return Form(kind, dtype, shape, matrix, _STORED[dtype], prod(shape) * dtype.itemsize)


def _place(entry: dict[str, Any]) -> Place | dict[str, Any]:
    """Of a tensor, from its entry in the header; anything else is left as it is."""
    try:
        (start, stop), form = entry["data_offsets"], _form(entry["dtype"], tuple(entry["shape"]))
        whole = type(start) is type(stop) is int and start >= 0 and stop - start == form.size
    except (LookupError, TypeError, ValueError):
        return entry
    return Place(start, stop, form) if whole else entry


def _what_is_wrong(name: str, entry: dict[str, Any]) -> str:
    """With an entry that says no place."""
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    whole = lists and set(map(type, (*shape, *offsets))) == {int} and min(*shape, *offsets) >= 0 and offsets[0] <= offsets[1]
    if not whole:
        return f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again."
    if not isinstance(kind, str) or kind not in DTYPES:
        return f"{name} is stored as {kind}, floating point weights were expected: export it as fp16."
    return f"{name} has {offsets[1] - offsets[0]} bytes for shape {shape} in {kind}: it is damaged, download it again."


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file holds, and where. Files that agree in it share one object from the second on, until `forget_layouts`: most of a shelf
    come from a few trainers, and reading a header of 2,000 tensors takes longer than using it.

    tensors: name -> place, or the entry as it is where that says none. end: bytes of data. metadata: empty where it came before the
    tensors. shared: more files of it are to be expected. derived: see `once_per_layout`.
    """

    tensors: dict[str, Place | dict[str, Any]]
    end: int
    metadata: dict[str, str]
    shared: bool
    derived: dict[Any, Any] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        """Of a tensor. Raises BadFile."""
        found = self.tensors[name]
        if isinstance(found, Place):
            return found
        raise BadFile(_what_is_wrong(name, found))

    def places(self, names: Mapping[str, str]) -> dict[str, Place]:
        """Of the tensors that these keys name, key -> place, without the broken ones: `Reader.tensor` says what is wrong, in its turn."""
        return {key: place for key, name in names.items() if isinstance(place := self.tensors[name], Place)}

    def shape(self, name: str) -> Any:
        """What the header says, whether it makes sense or not."""
        found = self.tensors[name]
        return list(found.form.shape) if isinstance(found, Place) else found.get("shape")

    def dtype(self, name: str) -> str:
        """What the header says."""
        found = self.tensors[name]
        return found.form.kind if isinstance(found, Place) else str(found.get("dtype"))


def once_per_layout(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `function(layout, *hashable)`: the result is kept as long as the layout is."""

    @wraps(function)
    def remembered(layout: Layout, *arguments: Any) -> Any:
        key = function, arguments
        if key not in layout.derived:
            with _many_objects():
                # Another thread may have made it meanwhile.
                if key not in layout.derived:
                    layout.derived[key] = function(layout, *arguments)
        return layout.derived[key]

    return remembered


_one_at_a_time = RLock()


@contextmanager
def _many_objects() -> Iterator[None]:
    """One thread at a time, and no garbage collection while it makes thousands of objects that are no garbage: that would take longer than
    making them."""
    with _one_at_a_time:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


def _parse(text: str, shared: bool) -> Layout:
    tensors = json.loads(text, object_hook=_place)
    metadata = tensors.pop("__metadata__", None) or {}
    if not all(isinstance(found, (Place, dict)) for found in tensors.values()):
        raise TypeError
    ends = (found.stop if isinstance(found, Place) else found["data_offsets"][1] for found in tensors.values())
    return Layout(tensors, max(ends, default=0), metadata, shared)


_remembered = lru_cache(maxsize=_LAYOUTS)(partial(_parse, shared=True))
# Hashes of texts met so far. One that comes again is remembered; thousands of objects that live on make every garbage collection longer.
_met: set[int] = set()


def _layout(text: str) -> Layout:
    with _many_objects():
        if len(text) <= _LAYOUT_CHARACTERS:
            if hash(text) in _met:
                return _remembered(text)
            if len(_met) < _MET:
                _met.add(hash(text))
        return _parse(text, shared=False)


def forget_layouts() -> None:
    """Frees what is remembered of the headers read so far."""
    _remembered.cache_clear()
    _met.clear()


def layout_of(text: str) -> tuple[Layout, dict[str, str]]:
    """(layout, metadata) of a header. Raises ValueError, TypeError, LookupError, AttributeError or RecursionError where it is none."""
    metadata, rest = _split(text)
    layout = _layout(rest)
    metadata = metadata or layout.metadata
    if not isinstance(metadata, dict) or not isinstance(layout.end, int):
        raise TypeError
    return layout, metadata


def _split(text: str) -> tuple[dict[str, str], str]:
    """(metadata, the other tensors as an object of their own) of a header that begins with its metadata, else ({}, text)."""
    # Padded with spaces to a length that the metadata decides.
    text = text.rstrip()
    if not (first := _METADATA_FIRST.match(text)):
        return {}, text
    metadata, stop = json.JSONDecoder().raw_decode(text, first.end())
    rest = text[stop:].lstrip()
    if rest[:1] not in (",", "}"):
        raise ValueError
    return metadata or {}, "{" + rest.removeprefix(",")
