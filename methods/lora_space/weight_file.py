"""A safetensors file opened without trust: its header checked against its size, its tensors read one by one.

The `safetensors` package maps the whole file and needs 2.3 ms to open one; a shelf of 10,000 files needs the header in 0.2 ms, and
a mapped file that another program cuts short ends the process. Format: 8 bytes (little-endian length), JSON, data.
"""

import gc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# The limit of the safetensors package.
MAX_HEADER_BYTES = 100_000_000
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_NUMPY_DTYPES = {torch.float64: "f8", torch.float32: "f4", torch.float16: "f2"}
# Integers of the same size for those that numpy does not have.
_STORED = {dtype: numpy.dtype(_NUMPY_DTYPES.get(dtype, f"i{dtype.itemsize}")) for dtype in DTYPES.values()}
# Neighbouring tensors that are read together; a tensor that is larger is read alone.
_SPAN_BYTES = 4 << 20
# Where nearly every writer puts the metadata.
_METADATA_FIRST = re.compile(r'\s*\{\s*"__metadata__"\s*:\s*')
# Layouts that are remembered, and the text of the longest; some 2 MB of objects each.
_LAYOUTS, _LAYOUT_CHARACTERS, _MET = 32, 2 << 20, 100_000


class BadFile(ValueError):
    """A file that cannot be used; the message says what is wrong with it and what to do."""


class Place(NamedTuple):
    """Where a tensor lies (bytes of the data), and how: shape as stored and as a matrix [first, rest], `stored` the dtype for numpy."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    matrix: tuple[int, int]
    stored: numpy.dtype


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file holds, and where. Files that agree in it share one object from the second on, until `forget_layouts`: most of a shelf
    come from a few trainers, and reading a header of 2,000 tensors takes longer than using it.

    tensors: name -> {"dtype", "shape", "data_offsets"}, not yet checked one by one (`place` does). end: bytes of data. metadata: empty
    where it came before the tensors. derived: see `once_per_layout`.
    """

    tensors: dict[str, dict[str, Any]]
    end: int
    metadata: dict[str, str]
    derived: dict[Any, Any] = field(default_factory=dict)
    _places: dict[str, Place] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        """Of a tensor, checked. Raises BadFile."""
        if found := self._places.get(name):
            return found
        entry = self.tensors[name]
        try:
            kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = set(map(type, (*shape, start, stop))) == {int} and min(*shape, start, stop) >= 0
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole or not start <= stop <= self.end:
            raise BadFile(f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again.")
        if kind not in DTYPES:
            raise BadFile(f"{name} is stored as {kind}, floating point weights were expected: export it as fp16.")
        if stop - start != prod(shape) * DTYPES[kind].itemsize:
            raise BadFile(f"{name} has {stop - start} bytes for shape {shape} in {kind}: it is damaged, download it again.")
        shape = tuple(shape)
        matrix = shape if len(shape) == 2 else (shape[0] if shape else 1, prod(shape[1:]))
        self._places[name] = place = Place(DTYPES[kind], shape, start, stop, matrix, _STORED[DTYPES[kind]])
        return place


def once_per_layout(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `function(layout, *hashable)`: the result is kept as long as the layout is."""

    @wraps(function)
    def remembered(layout: Layout, *arguments: Any) -> Any:
        key = function, arguments
        if key not in layout.derived:
            with _many_objects():
                layout.derived[key] = function(layout, *arguments)
        return layout.derived[key]

    return remembered


@contextmanager
def _many_objects() -> Iterator[None]:
    """No garbage collection while thousands of objects are made that are no garbage: it would take longer than making them.

    In several threads at once the first that ends allows it again for all; it never stays off.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parsed(text: str) -> Layout:
    with _many_objects():
        return _parse(text)


def _parse(text: str) -> Layout:
    tensors = json.loads(text)
    metadata = tensors.pop("__metadata__", None) or {}
    if not all(isinstance(entry, dict) for entry in tensors.values()):
        raise TypeError
    return Layout(tensors, max((entry["data_offsets"][1] for entry in tensors.values()), default=0), metadata)


_remembered = lru_cache(maxsize=_LAYOUTS)(_parsed)
# Hashes of texts met so far. One that comes again is remembered; thousands of objects that live on make every garbage collection longer.
_met: set[int] = set()


def _layout(text: str) -> Layout:
    if len(text) > _LAYOUT_CHARACTERS:
        return _parsed(text)
    if hash(text) in _met:
        return _remembered(text)
    if len(_met) < _MET:
        _met.add(hash(text))
    return _parsed(text)


def forget_layouts() -> None:
    """Frees what is remembered of the headers read so far."""
    _remembered.cache_clear()
    _met.clear()


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


@dataclass(frozen=True)
class Header:
    """What the head of a safetensors file says.

    data_start, size: bytes. fingerprint: 16 bytes over the header and samples of the data, the same for a file under another name.
    """

    layout: Layout
    metadata: dict[str, str]
    data_start: int
    size: int
    fingerprint: bytes


def read_header(path: str | Path) -> Header:
    """Header of the file `path`. Raises BadFile if it cannot be opened or is no whole safetensors file."""
    with Reader(path) as reader:
        return reader.header


@dataclass(eq=False)
class _Span:
    """Bytes of one dtype, read at once."""

    dtype: torch.dtype
    start: int
    stop: int


def _view(dtype: torch.dtype, values: numpy.ndarray) -> Tensor:
    # Views are numpy's: torch hands over to other threads at each of its own, which costs more than the view.
    return torch.from_numpy(values) if dtype in _NUMPY_DTYPES else torch.from_numpy(values).view(dtype)


def spans_of(layout: Layout, names: Iterable[str]) -> dict[str, _Span]:
    """What to read for each of these tensors, in the order of the file: neighbours at once, and no byte that is not theirs."""
    spans, span = {}, _Span(torch.uint8, 0, 0)
    for name in names:
        try:
            place = layout.place(name)
        except BadFile:
            # `Reader.tensor` says so, in its turn.
            continue
        if place.dtype != span.dtype or place.start != span.stop or place.stop - span.start > _SPAN_BYTES:
            span = _Span(place.dtype, place.start, place.stop)
        span.stop = place.stop
        spans[name] = span
    return spans


class Memory:
    """Memory that is used file after file: what is new to a process costs it ten times as long as reading a cached file into it."""

    def __init__(self) -> None:
        self._free: list[numpy.ndarray] = []
        self._taken: list[numpy.ndarray] = []

    def take(self, size: int) -> numpy.ndarray:
        """At least `size` bytes."""
        fits = self._free and len(self._free[-1]) >= size
        memory = self._free.pop() if fits else numpy.empty(max(size, _SPAN_BYTES), numpy.uint8)
        self._taken.append(memory)
        return memory

    def give_back(self) -> None:
        """All that was taken is free again; what was larger than a span is not kept."""
        self._free += [memory for memory in self._taken if len(memory) == _SPAN_BYTES]
        self._taken = []


class Reader:
    """An open safetensors file; use in a `with`. Raises BadFile as `read_header` does.

    memory: what is read goes there, and is good until `forget`; without it tensors own their memory, and are read again after it.
    """

    def __init__(self, path: str | Path, memory: "Memory | None" = None) -> None:
        try:
            # Unbuffered: spans are large and read once, straight into their own memory.
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise BadFile(f"it cannot be opened ({error.strerror}): check the link, or who may read it.") from None
        self._spans: Mapping[str, _Span] = {}
        self._held: dict[_Span, numpy.ndarray] = {}
        self._memory = memory
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def expect(self, spans: Mapping[str, _Span]) -> None:
        """Tensors that will be asked for, about in their order in the file (`spans_of`): neighbours are read at once."""
        self._spans = spans

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored. Raises BadFile if its entry or its data are broken."""
        place = self.header.layout.place(name)
        return _view(place.dtype, self._values(name, place, place.shape))

    def matrices(self, names: Iterable[str]) -> list[Tensor]:
        """These tensors, each as a matrix [first, rest]; all have two dimensions or more."""
        places = [(name, self.header.layout.place(name)) for name in names]
        return [_view(place.dtype, self._values(name, place, place.matrix)) for name, place in places]

    def number(self, name: str) -> float:
        """The only value of `name`. Raises BadFile as `tensor` does, and where it has another number of values."""
        place = self.header.layout.place(name)
        values = self._values(name, place, place.shape)
        if values.size != 1:
            raise BadFile(f"{name} has {values.size} values, one was expected: export it again.")
        # numpy reads a number without handing over to other threads.
        return float(values.item() if place.dtype in _NUMPY_DTYPES else _view(place.dtype, values))

    def _values(self, name: str, place: Place, shape: Sequence[int]) -> numpy.ndarray:
        """View of what was read, in the file's dtype, or in integers where numpy has none like it."""
        span = self._spans.get(name)
        if span is None:
            span = _Span(place.dtype, place.start, place.stop)
        data = self._held.get(span)
        if data is None:
            data = self._held[span] = self._read(span)
        return numpy.ndarray(shape, place.stored, data, place.start - span.start)

    def _read(self, span: _Span) -> numpy.ndarray:
        size = span.stop - span.start
        data = numpy.empty(size, numpy.uint8) if self._memory is None else self._memory.take(size)
        self._file.seek(self.header.data_start + span.start)
        self._fill(memoryview(data[:size]))
        return data

    def forget(self) -> None:
        """What was read is not looked at any more: its memory is used for what comes."""
        self._held.clear()
        if self._memory is not None:
            self._memory.give_back()

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = self._file.readinto(view[done:])
            except OSError as error:
                raise BadFile(f"it cannot be read ({error.strerror}): check the disk.") from None
            if not count:
                raise BadFile("it ends in the middle of its data: it is truncated, download it again.")
            done += count

    def _read_header(self) -> Header:
        size = os.fstat(self._file.fileno()).st_size
        if size == 0:
            raise BadFile("it is empty: download it again.")
        if size < 10:
            raise BadFile("it is too short for a safetensors file: download it again.")
        head = bytearray(8)
        self._fill(memoryview(head))
        if head[:1] in (b"\x80", b"P") and (head[:1] == b"\x80" or head[:2] == b"PK"):
            length = int.from_bytes(head, "little")
            if length > size - 8:
                raise BadFile("it is a pickle under another name, which could run code, so it was not opened: ask for safetensors.")
        length = int.from_bytes(head, "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise BadFile(f"its header claims {length} bytes in a file of {size}: it is truncated or no safetensors file.")
        text = bytearray(length)
        self._fill(memoryview(text))
        try:
            metadata, rest = _split(text.decode())
            layout = _layout(rest)
            metadata = metadata or layout.metadata
            if not isinstance(metadata, dict):
                raise TypeError
            whole = isinstance(layout.end, int) and 8 + length + layout.end <= size
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            raise BadFile("its header is not that of a safetensors file: it is damaged or of another kind.") from None
        if not whole:
            raise BadFile(f"it has {size} bytes, its header describes {8 + length + layout.end}: it is truncated, download it again.")
        return Header(layout, metadata, 8 + length, size, self._fingerprint(bytes(text), 8 + length, size))

    def _fingerprint(self, header: bytes, start: int, size: int) -> bytes:
        digest = hashlib.blake2b(header, digest_size=16)
        room = max(0, size - start - _SAMPLE_BYTES)
        for place in sorted({start + room * step // (_SAMPLES - 1) for step in range(_SAMPLES)}):
            self._file.seek(place)
            digest.update(self._file.read(_SAMPLE_BYTES))
        return digest.digest()


def text_of(metadata: Mapping[str, Any], key: str) -> str:
    """A value of the header's metadata as text; "" where there is none."""
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""
