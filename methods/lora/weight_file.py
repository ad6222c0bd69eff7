"""A safetensors file opened without trust: its header checked against its size, its tensors read one by one.

The `safetensors` package maps the whole file and needs 2.3 ms to open one; a collection of 10,000 needs the header in 0.2 ms, and
a mapped file that another program cuts short ends the process. Format: 8 bytes (little-endian length), JSON, data.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .cache import ReadCache, Viewed
from .header import NUMPY_DTYPES, BadFile, Header, TensorInfo, parse_header

# Ten times the largest LoRA's: what a header says takes some thirty times its length in memory.
MAX_HEADER_BYTES = 20_000_000
_SAMPLES, _SAMPLE_BYTES = 16, 4096
# One read, about; a tensor that is larger is read alone.
_SPAN_BYTES, _ALIGNMENT = 4 << 20, 64


def read_header(path: str | Path) -> Header:
    """Header of the file `path`. Raises BadFile if it cannot be opened or is no whole safetensors file."""
    with Reader(path) as reader:
        return reader.header


class _Span(NamedTuple):
    """Bytes start..stop of the data, read at once to `offset` of the memory."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True, eq=False)
class Region:
    """Tensors of a layout that are read together. offsets: name -> where it lies in the memory, which has `size` bytes."""

    spans: Sequence[_Span]
    offsets: Mapping[str, int]
    size: int


def region_of(infos: Mapping[str, TensorInfo]) -> Region:
    """These tensors: neighbours in one read, and no byte that is not theirs."""
    spans: list[_Span] = []
    offsets: dict[str, int] = {}
    # Of the span that is not closed yet: bytes first..last of the data, at `offset` of the memory.
    first = last = offset = 0
    for name, (start, stop, form) in sorted(infos.items(), key=lambda item: item[1].start):
        if start != last or last - first > _SPAN_BYTES or (start - first) % form.stored.itemsize:
            spans.append(_Span(first, last, offset))
            offset += last - first
            offset += -offset % _ALIGNMENT
            first = start
        offsets[name] = offset + start - first
        last = stop
    spans.append(_Span(first, last, offset))
    return Region([span for span in spans if span.start < span.stop], offsets, offset + last - first)


class Reader:
    """An open safetensors file; use in a `with`. Raises BadFile as `read_header` does.

    cache: of the run that this file is one of.
    """

    def __init__(self, path: str | Path, cache: ReadCache | None = None) -> None:
        try:
            # Unbuffered: spans are large and read once, straight into their own memory.
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise BadFile(f"it cannot be opened ({error.strerror}): check the link, or who may read it.") from None
        self._cache = cache or ReadCache()
        self._region, self._data = Region((), {}, 0), numpy.empty(0, numpy.uint8)
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def load(self, region: Region, reuse: bool = False) -> None:
        """Reads these tensors. reuse: into the cache's memory, so that what this thread loaded like this before is good no longer."""
        # What was loaded before goes first.
        self._region, self._data = Region((), {}, 0), numpy.empty(0, numpy.uint8)
        data = self._cache.memory(region.size) if reuse else numpy.empty(region.size, numpy.uint8)
        for start, stop, offset in region.spans:
            self._read(start, data[offset : offset + stop - start])
        self._region, self._data = region, data

    def room(self, size: int) -> AbstractContextManager:
        """To be held while so many bytes are in memory: one reader of a run at a time has very many."""
        return self._cache.room(size)

    def views(self, make: Callable[[], Viewed]) -> Viewed:
        """`make()`, which does nothing but look at loaded tensors; made once for files that share a layout, while memory lasts."""
        return self._cache.views(self._region, self._data, make) if self.header.layout.shared else make()

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored. Raises BadFile if its entry or its data are broken."""
        info = self.header.layout.info(name)
        return self._view(name, info, info.form.shape)

    def stored(self, name: str) -> Iterator[bytes]:
        """The bytes of `name`, whatever they mean, a few megabytes at a time. Raises BadFile where its place in the file is none."""
        for start, stop in self.header.layout.blocks(name, _SPAN_BYTES):
            data = numpy.empty(stop - start, numpy.uint8)
            self._read(start, data)
            yield data.tobytes()

    def matrices(self, names: Iterable[str]) -> list[Tensor]:
        """These tensors, each as a matrix [first, rest]; all have two dimensions or more."""
        infos = [(name, self.header.layout.info(name)) for name in names]
        return [self._view(name, info, info.form.matrix) for name, info in infos]

    def number(self, name: str) -> Tensor:
        """The only value of `name`, without dimensions. Raises BadFile as `tensor` does, and where it has another number of values."""
        info = self.header.layout.info(name, integers=True)
        if (size := prod(info.form.shape)) != 1:
            raise BadFile(f"{name} has {size} values, one was expected: export it again.")
        return self._view(name, info, ())

    def _view(self, name: str, info: TensorInfo, shape: Sequence[int]) -> Tensor:
        """Of a loaded tensor; any other is read alone."""
        data, offset = self._data, self._region.offsets.get(name)
        if offset is None:
            data, offset = numpy.empty(info.stop - info.start, numpy.uint8), 0
            self._read(info.start, data)
        # Views are numpy's: torch hands over to other threads at each of its own, which costs more than the view.
        values = torch.from_numpy(numpy.ndarray(shape, info.form.stored, data, offset))
        return values if info.form.dtype in NUMPY_DTYPES else values.view(info.form.dtype)

    def _read(self, start: int, data: numpy.ndarray) -> None:
        self._file.seek(self.header.data_start + start)
        self._fill(data.data)

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
            layout, metadata = parse_header(text.decode(), self._cache.layout)
            whole = 8 + length + layout.end <= size
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            raise BadFile("its header is not that of a safetensors file: it is damaged or of another kind.") from None
        if not whole:
            raise BadFile(f"it has {size} bytes, its header describes {8 + length + layout.end}: it is truncated, download it again.")
        return Header(layout, metadata, 8 + length, size, self._fingerprint(bytes(text), 8 + length, size))

    def _fingerprint(self, header: bytes, start: int, size: int) -> bytes:
        digest = hashlib.blake2b(header, digest_size=16)
        room = max(0, size - start - _SAMPLE_BYTES)
        for position in sorted({start + room * step // (_SAMPLES - 1) for step in range(_SAMPLES)}):
            self._file.seek(position)
            digest.update(self._file.read(_SAMPLE_BYTES))
        return digest.digest()
