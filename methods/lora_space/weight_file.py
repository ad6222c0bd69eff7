"""A safetensors file opened without trust: its header checked against its size, its tensors read one by one.

The `safetensors` package maps the whole file and needs 2.3 ms to open one; a shelf of 10,000 files needs the header in 0.2 ms, and
a mapped file that another program cuts short ends the process. Format: 8 bytes (little-endian length), JSON, data.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

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
# Neighbouring tensors that are read together; a tensor that is larger is read alone.
_SPAN_BYTES, _SPANS_HELD = 4 << 20, 4


class BadFile(ValueError):
    """A file that cannot be used; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Header:
    """What the head of a safetensors file says.

    tensors: name -> {"dtype", "shape", "data_offsets"}, not yet checked one by one (`Reader.tensor` does). data_start, size: bytes.
    fingerprint: 16 bytes over the header and samples of the data, the same for a file under another name.
    """

    tensors: dict[str, dict[str, Any]]
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

    memory: what is read goes there, and is good until `forget`; without it tensors own their memory.
    """

    def __init__(self, path: str | Path, memory: "Memory | None" = None) -> None:
        try:
            # Unbuffered: spans are large and read once, straight into their own memory.
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise BadFile(f"it cannot be opened ({error.strerror}): check the link, or who may read it.") from None
        self._places: dict[str, tuple[torch.dtype, list[int], int, int]] = {}
        self._spans: dict[str, _Span] = {}
        self._held: dict[_Span, numpy.ndarray] = {}
        self._memory = memory
        # Read since the last `forget`.
        self.held_bytes = 0
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def expect(self, names: Iterable[str]) -> None:
        """These tensors will be asked for, about in this order: neighbours are read at once, and no byte that is not theirs."""
        span = _Span(torch.uint8, 0, 0)
        for name in names:
            try:
                dtype, _, start, stop = self._place(name)
            except BadFile:
                # `tensor` says so, in its turn.
                continue
            if dtype != span.dtype or start != span.stop or stop - span.start > _SPAN_BYTES:
                span = _Span(dtype, start, stop)
            span.stop = stop
            self._spans[name] = span

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored. Raises BadFile if its entry or its data are broken."""
        dtype, shape, start, stop = self._place(name)
        span = self._spans.get(name) or _Span(dtype, start, stop)
        data = self._held.pop(span, None)
        if data is None:
            if self._memory is None and len(self._held) == _SPANS_HELD:
                del self._held[next(iter(self._held))]
            size = span.stop - span.start
            data = numpy.empty(size, numpy.uint8) if self._memory is None else self._memory.take(size)
            self._file.seek(self.header.data_start + span.start)
            self._fill(memoryview(data[:size]))
            self.held_bytes += size
        # Spans asked for last are let go last: alphas lie together, far from most modules' weights.
        self._held[span] = data
        # Views are numpy's: torch hands over to other threads at each of them, which costs more than the view.
        known = _NUMPY_DTYPES.get(dtype)
        values = torch.from_numpy(numpy.ndarray(shape, known or f"i{dtype.itemsize}", data, start - span.start))
        return values if known else values.view(dtype)

    def forget(self) -> None:
        """What was read is not looked at any more: its memory is used for what comes."""
        self._held.clear()
        self.held_bytes = 0
        if self._memory is not None:
            self._memory.give_back()

    def _place(self, name: str) -> tuple[torch.dtype, list[int], int, int]:
        """(dtype, shape, start, stop) of a tensor, checked against the file. Raises BadFile."""
        if name in self._places:
            return self._places[name]
        entry = self.header.tensors[name]
        try:
            kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = set(map(type, (*shape, start, stop))) == {int} and min(*shape, start, stop) >= 0
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole or not start <= stop <= self.header.size - self.header.data_start:
            raise BadFile(f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again.")
        if kind not in DTYPES:
            raise BadFile(f"{name} is stored as {kind}, floating point weights were expected: export it as fp16.")
        if stop - start != prod(shape) * DTYPES[kind].itemsize:
            raise BadFile(f"{name} has {stop - start} bytes for shape {shape} in {kind}: it is damaged, download it again.")
        self._places[name] = place = DTYPES[kind], shape, start, stop
        return place

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
            tensors = json.loads(bytes(text))
            metadata = tensors.pop("__metadata__", None) or {}
            if not isinstance(metadata, dict) or not all(isinstance(entry, dict) for entry in tensors.values()):
                raise TypeError
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            whole = isinstance(end, int) and 8 + length + end <= size
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            raise BadFile("its header is not that of a safetensors file: it is damaged or of another kind.") from None
        if not whole:
            raise BadFile(f"it has {size} bytes, its header describes {8 + length + end}: it is truncated, download it again.")
        return Header(tensors, metadata, 8 + length, size, self._fingerprint(bytes(text), 8 + length, size))

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
