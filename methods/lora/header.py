"""The header of a safetensors file as text: which tensors there are, and where."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from math import prod
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
# Of single numbers beside the weights: sd-scripts' merges write alpha so.
INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NUMPY_DTYPES = {torch.float64: "f8", torch.float32: "f4", torch.float16: "f2", torch.uint8: "u1", torch.bool: "?"}
NUMPY_DTYPES |= {dtype: f"i{dtype.itemsize}" for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)}
# Integers of the same size for those that numpy does not have.
_STORED = {dtype: numpy.dtype(NUMPY_DTYPES.get(dtype, f"i{dtype.itemsize}")) for dtype in (*DTYPES.values(), *INTEGERS.values())}
# Where nearly every writer puts the metadata.
_METADATA_FIRST = re.compile(r'\s*\{\s*"__metadata__"\s*:\s*')


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


class TensorInfo(NamedTuple):
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
    dtype = DTYPES.get(kind) or INTEGERS[kind]
    matrix = shape if len(shape) == 2 else (shape[0] if shape else 1, prod(shape[1:]))
    return Form(kind, dtype, shape, matrix, _STORED[dtype], prod(shape) * dtype.itemsize)


def _tensor_info(entry: dict[str, Any]) -> TensorInfo | dict[str, Any]:
    """From a tensor's entry in the header; anything else is left as it is."""
    try:
        (start, stop), form = entry["data_offsets"], _form(entry["dtype"], tuple(entry["shape"]))
        whole = type(start) is type(stop) is int and start >= 0 and stop - start == form.size
    except (LookupError, TypeError, ValueError):
        return entry
    return TensorInfo(start, stop, form) if whole else entry


def _not_floating(name: str, kind: Any) -> str:
    return f"{name} is stored as {kind}, floating point weights were expected: export it as fp16."


def _what_is_wrong(name: str, entry: dict[str, Any]) -> str:
    """With an entry that `_tensor_info` could not read."""
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 else []
    if set(map(type, numbers)) != {int} or min(numbers) < 0 or numbers[-2] > numbers[-1]:
        return f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again."
    if not isinstance(kind, str) or kind not in DTYPES:
        return _not_floating(name, kind)
    return f"{name} has {numbers[-1] - numbers[-2]} bytes for shape {shape} in {kind}: it is damaged, download it again."


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file holds, and where. Files of one trainer agree in it, and share it by `ReadCache`.

    tensors: name -> info, or the entry as it is where that says none. end: bytes of data. metadata: empty where it came before the
    tensors. shared: more files of it are to be expected. derived: see `once_per_layout`.
    """

    tensors: dict[str, TensorInfo | dict[str, Any]]
    end: int
    metadata: dict[str, str]
    shared: bool = False
    derived: dict[Any, Any] = field(default_factory=dict)

    def info(self, name: str, integers: bool = False) -> TensorInfo:
        """Of a tensor of floating point numbers; integers: of any numbers. Raises BadFile."""
        found = self.tensors[name]
        if not isinstance(found, TensorInfo):
            raise BadFile(_what_is_wrong(name, found))
        if not integers and found.form.kind not in DTYPES:
            raise BadFile(_not_floating(name, found.form.kind))
        return found

    def infos(self, names: Mapping[str, str]) -> dict[str, TensorInfo]:
        """Of the tensors that these keys name, key -> info, without the broken ones: `Reader.tensor` says what is wrong, in its turn."""
        return {key: info for key, name in names.items() if isinstance(info := self.tensors[name], TensorInfo)}

    def shape(self, name: str) -> Any:
        """What the header says: a tuple, or of a broken entry anything that JSON has."""
        found = self.tensors[name]
        return found.form.shape if isinstance(found, TensorInfo) else found.get("shape")

    def blocks(self, name: str, size: int) -> list[tuple[int, int]]:
        """[(start, stop)] in the data of `name`, whatever it is, at most `size` bytes each. Raises BadFile where it has no place."""
        found = self.tensors[name]
        start, stop = (found.start, found.stop) if isinstance(found, TensorInfo) else (found["data_offsets"] + [None, None])[:2]
        if not (type(start) is type(stop) is int and 0 <= start <= stop):
            raise BadFile(f"the place of {name} does not lie inside the file: it is truncated or damaged, download it again.")
        return [(place, min(place + size, stop)) for place in range(start, stop, size)]

    def dtype(self, name: str) -> str:
        """What the header says."""
        found = self.tensors[name]
        return found.form.kind if isinstance(found, TensorInfo) else str(found.get("dtype"))


def once_per_layout(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `function(layout, *hashable)`: the result is kept as long as the layout is. Threads may make it twice."""

    @wraps(function)
    def remembered(layout: Layout, *arguments: Any) -> Any:
        key = function, arguments
        if key not in layout.derived:
            layout.derived[key] = function(layout, *arguments)
        return layout.derived[key]

    return remembered


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


def parse_layout(text: str, shared: bool = False) -> Layout:
    """Raises ValueError, TypeError, LookupError, AttributeError or RecursionError where `text` is no header."""
    tensors = json.loads(text, object_hook=_tensor_info)
    metadata = tensors.pop("__metadata__", None) or {}
    if not all(isinstance(found, (TensorInfo, dict)) for found in tensors.values()):
        raise TypeError
    ends = (found.stop if isinstance(found, TensorInfo) else found["data_offsets"][1] for found in tensors.values())
    return Layout(tensors, max(ends, default=0), metadata, shared)


def parse_header(text: str, parse: Callable[[str], Layout] = parse_layout) -> tuple[Layout, dict[str, str]]:
    """(layout, metadata) of a header. parse: `parse_layout`, or what remembers its results. Raises as that does."""
    metadata, rest = _split(text)
    layout = parse(rest)
    metadata = metadata or layout.metadata
    if not isinstance(metadata, dict) or not isinstance(layout.end, int):
        raise TypeError
    # Escapes can write halves of letters, which no database and no socket takes. Raises ValueError for names of tensors that hold one.
    if "\\u" in rest:
        "".join(layout.tensors).encode()
    # Texts alone are metadata; what else stands there says nothing.
    return layout, {_whole(key): _whole(value) for key, value in metadata.items() if isinstance(value, str)}


def _whole(text: str) -> str:
    """Halves of letters become question marks."""
    return text.encode("utf-8", "replace").decode()


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


def text_of(metadata: Mapping[str, Any], key: str) -> str:
    """A value of the header's metadata as text; "" where there is none."""
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""
