"""A safetensors file opened without trust: its header checked against its size, its tensors read one by one.

The `safetensors` package maps the whole file and needs 2.3 ms to open one; a shelf of 10,000 files needs the header in 0.2 ms, and
a mapped file that another program cuts short ends the process. Format: 8 bytes (little-endian length), JSON, data.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

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


class Reader:
    """An open safetensors file; use in a `with`. Raises BadFile as `read_header` does."""

    def __init__(self, path: str | Path) -> None:
        try:
            # Unbuffered: tensors are large and read once, straight into their own memory.
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise BadFile(f"it cannot be opened ({error.strerror}): check the link, or who may read it.") from None
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored. Raises BadFile if its entry or its data are broken."""
        dtype, shape, start, stop = self._place(name)
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(self.header.data_start + start)
        if stop > start:
            self._fill(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        return tensor

    def _place(self, name: str) -> tuple[torch.dtype, list[int], int, int]:
        entry = self.header.tensors[name]
        try:
            kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = not {type(value) for value in (*shape, start, stop)} - {int} and min(*shape, start, stop) >= 0
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole or not start <= stop <= self.header.size - self.header.data_start:
            raise BadFile(f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again.")
        if kind not in DTYPES:
            raise BadFile(f"{name} is stored as {kind}, floating point weights were expected: export it as fp16.")
        if stop - start != prod(shape) * DTYPES[kind].itemsize:
            raise BadFile(f"{name} has {stop - start} bytes for shape {shape} in {kind}: it is damaged, download it again.")
        return DTYPES[kind], shape, start, stop

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
