"""Tensors out of pickles, whose code is never run: PyTorch's files, old and new, with training states, and pickled modules.

`pickletools` splits a pickle into opcodes without following them. Here they build plain containers and, in the place of every function and
class and of all that these would have made, a `Made`: a name with its arguments. No name is looked up, imported or called. Those that stand
for tensors become tensors when they are asked for; the rest of a file stays names, and is not read.
"""

import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# First object of PyTorch's files before they were zip archives.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PERSISTENT = "persistent"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_STORAGE_IN_BYTES = "torch.storage._load_from_bytes"
_BYTES = "_codecs.encode"
_DICTS = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")
_DEEPEST_MODULE = 16
# What reading a file comes to that was cut off, damaged or made up.
_DAMAGED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    OverflowError,
    MemoryError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
)


@dataclass(eq=False)
class Made:
    """What a pickle asks for: a function or class (args None), or what it would have made of `args`, and then been given.

    state: as to `__setstate__`. items: as to a list or a dict.
    """

    name: str
    args: tuple | None = None
    state: Any = None
    items: list = field(default_factory=list)


@dataclass(frozen=True)
class Pickled:
    """content: containers, numbers, texts and `Made`s. storage(key, dtype, numbers): the numbers a file keeps under a key."""

    content: Any
    storage: Callable[[Any, torch.dtype, int], Tensor]
    _storages: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def tensor(self, value: Any) -> Tensor:
        """The tensor or parameter that a `Made` stands for. Raises ValueError for anything else.

        Tensors share the numbers that they share in the file, so that many names cost no more than the file holds.
        """
        while isinstance(value, Made) and value.name == _PARAMETER and value.args:
            value = value.args[0]
        match value:
            case Made(name=name, args=(stored, int(offset), tuple(size), tuple(stride), *_)) if name == _TENSOR:
                try:
                    return _view(self._storage(stored), offset, size, stride)
                except _DAMAGED as error:
                    raise ValueError(f"a tensor cannot be read ({error}): the file is truncated or damaged.") from None
        raise ValueError(f"{_called(value)} stands where a tensor was expected: it is damaged or of another kind.")

    def plain(self, value: Any) -> Any:
        """Containers of the file with tensors in the place of what stands for them. Raises ValueError as `tensor` does."""
        match value:
            case Made():
                return self.tensor(value)
            case dict():
                return {key: self.plain(part) for key, part in value.items()}
            case list() | tuple():
                return type(value)(map(self.plain, value))
        return value

    def tensors(self, state: Any) -> dict[str, Tensor]:
        """A state dict's tensors. Raises ValueError for what is none."""
        if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
            raise ValueError(f"{_called(state)} stands where named weights were expected: it is damaged or of another kind.")
        return {key: self.tensor(value) for key, value in state.items()}

    def named_tensors(self) -> dict[str, Tensor]:
        """`tensors` of the whole file, or of the innermost `state_dict` in it. Raises ValueError as `tensors` does."""
        state = self.content
        while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        return self.tensors(state)

    def module_tensors(self, module: Any) -> dict[str, Tensor]:
        """Parameters and buffers of a pickled `torch.nn.Module`, by their names in its state dict, whatever its class is.

        Also of modules that a function rebuilds from a dictionary with their state. Raises ValueError for anything else, and for modules
        that stand in two places.
        """
        found: dict[str, Tensor] = {}
        for prefix, state in _modules(module, "", set()):
            own = [*_pairs(state["_parameters"]), *_pairs(state.get("_buffers"))]
            found |= {f"{prefix}{name}": self.tensor(value) for name, value in own if value is not None}
        return found

    def _storage(self, stored: Any) -> Tensor:
        if id(stored) not in self._storages:
            self._storages[id(stored)] = self._read_storage(stored)
        return self._storages[id(stored)]

    def _read_storage(self, stored: Any) -> Tensor:
        match stored:
            case Made(name=name, args=(bytes(raw),)) if name == _STORAGE_IN_BYTES:
                inner = _read(BytesIO(raw))
                match inner.content:
                    case Made(name=kind) if kind == _PERSISTENT:
                        return inner._storage(inner.content)
            case Made(name=name, args=("storage", Made(name=kind), key, _, int(numbers), *view)) if name == _PERSISTENT and not any(view):
                return self.storage(key, _dtype(kind), numbers)
        raise ValueError(f"{_called(stored)} stands where numbers were expected")


def read_pickled(path: Path) -> Pickled:
    """A file of `torch.save` or `pickle.dump`; nothing in it is run. Raises ValueError, naming the file, what is wrong with it."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        return _read_zip(path) if zipfile.is_zipfile(path) else _read(BytesIO(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror}): check that the file is there and readable.") from None
    except _DAMAGED as error:
        raise ValueError(f"{path.name} is no whole pickle ({error}): it is truncated, damaged or of another kind.") from None


def _read_zip(path: Path) -> Pickled:
    archive = zipfile.ZipFile(path)
    [prefix] = [name.removesuffix("data.pkl") for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]

    def entry(name: str) -> bytes:
        info = archive.getinfo(prefix + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which PyTorch never does")
        return archive.read(info)

    if f"{prefix}byteorder" in archive.namelist() and entry("byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    content, _ = parse_pickle(BytesIO(entry("data.pkl")))
    return Pickled(content, lru_cache(None)(lambda key, dtype, numbers: _numbers(entry(f"data/{key}"), dtype, numbers)))


def _read(stream: BytesIO) -> Pickled:
    """A plain pickle, or PyTorch's old format: three headers, the pickle, its storages' keys, and their numbers one after the other."""
    content, _ = parse_pickle(stream)
    if content != _LEGACY_MAGIC:
        return Pickled(content, _no_storage)
    parse_pickle(stream), parse_pickle(stream)
    content, persistent = parse_pickle(stream)
    sizes = {key: _dtype(kind.name).itemsize for _, kind, key, *_ in persistent}
    keys, _ = parse_pickle(stream)
    data, places = stream.getbuffer(), {}
    start = stream.tell()
    for key in keys:
        stop = start + 8 + int.from_bytes(data[start : start + 8], "little") * sizes[key]
        places[key] = slice(start + 8, stop)
        start = stop
    return Pickled(content, lru_cache(None)(lambda key, dtype, numbers: _numbers(data[places[key]], dtype, numbers)))


def _no_storage(key: Any, dtype: torch.dtype, numbers: int) -> NoReturn:
    raise ValueError("its numbers are kept outside of it")


def _dtype(kind: str) -> torch.dtype:
    return _DTYPES[kind.rpartition(".")[2]]


def _numbers(raw: bytes | memoryview, dtype: torch.dtype, count: int) -> Tensor:
    if len(raw) != count * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes were found for {count} numbers of {dtype}")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _view(storage: Tensor, offset: int, size: tuple, stride: tuple) -> Tensor:
    numbers = (offset, *size, *stride)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if not all(type(number) is int and number >= 0 for number in numbers) or max(last + 1, prod(size)) > len(storage):
        raise ValueError(f"a tensor of size {size} does not lie inside its {len(storage)} numbers")
    return storage.as_strided(size, stride, offset)


def module_settings(module: Any) -> dict[str, Any]:
    """Texts, numbers, truth values and lists of these that a pickled `torch.nn.Module` and its parts keep as attributes, by their names.

    Raises ValueError as `module_tensors` does.
    """
    return {
        f"{prefix}{name}": value
        for prefix, state in _modules(module, "", set())
        for name, value in _pairs(state)
        if all(isinstance(part, str | int | float | None) for part in (value if isinstance(value, list) else [value]))
    }


def _modules(module: Any, prefix: str, met: set) -> Iterator[tuple[str, Mapping]]:
    """(what names begin with, state) of a module and of all its parts."""
    state = module.state if isinstance(module, Made) else None
    if state is None and isinstance(module, Made) and module.args and isinstance(module.args[0], Mapping):
        state = module.args[0].get("state")
    if not isinstance(state, Mapping) or "_parameters" not in state or module in met or prefix.count(".") > _DEEPEST_MODULE:
        raise ValueError(f"{_called(module)} stands where a PyTorch module was expected: it is damaged or of another kind.")
    met.add(module)
    yield prefix, state
    for name, part in _pairs(state.get("_modules")):
        yield from _modules(part, f"{prefix}{name}.", met)


def _pairs(state: Any) -> list[tuple[Any, Any]]:
    return list(state.items()) if isinstance(state, Mapping) else []


def _called(value: Any) -> str:
    return value.name if isinstance(value, Made) else type(value).__name__


def parse_pickle(stream: BytesIO) -> tuple[Any, list[tuple]]:
    """(what the next pickle of a stream holds, the persistent ids in it). Errors of every kind say that it is damaged."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    persistent: list[tuple] = []
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(stream)

    def since_mark() -> list:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, argument, _ in opcodes:
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), persistent
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE" as name:
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                length = int(name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "DICT":
                stack.append(_with_pairs({}, since_mark()))
            case "APPEND":
                value = stack.pop()
                _items(stack[-1]).append(value)
            case "APPENDS" | "ADDITEMS":
                values = since_mark()
                _items(stack[-1]).extend(values)
            case "SETITEM":
                values = [stack.pop(-2), stack.pop()]
                _with_pairs(stack[-1], values)
            case "SETITEMS":
                values = since_mark()
                _with_pairs(stack[-1], values)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GLOBAL":
                stack.append(Made(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(Made(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(_made(function, args))
            case "NEWOBJ_EX":
                named, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_made(function, (*args, named)))
            case "OBJ":
                function, *args = since_mark()
                stack.append(_made(function, tuple(args)))
            case "INST":
                stack.append(_made(Made(argument.replace(" ", ".")), tuple(since_mark())))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Made):
                    stack[-1].state = state
            case "BINPERSID":
                persistent.append(stack.pop())
                stack.append(Made(_PERSISTENT, persistent[-1]))
            case _ if argument is not None and not opcode.name.startswith(("EXT", "PERSID")):
                stack.append(argument)
            case _:
                raise ValueError(f"{opcode.name} is an opcode that weights never need")
    raise ValueError("it has no end")


def _made(function: Any, args: Any) -> Any:
    if not isinstance(function, Made) or not isinstance(args, tuple):
        raise TypeError("it calls what is no function")
    if function.name in _DICTS:
        return _with_pairs({}, [part for pair in (args[0] if args else ()) for part in pair])
    if function.name == _BYTES and args[1:] == ("latin1",):
        # How the second protocol writes bytes.
        return args[0].encode("latin1")
    return Made(function.name, args)


def _items(target: Any) -> list:
    return target.items if isinstance(target, Made) else target


def _with_pairs(target: Any, values: list) -> Any:
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, Made):
        target.items.extend(pairs)
    else:
        # A tuple of tuples may take for ever to hash: a key that is no plain value becomes one that equals nothing.
        target.update(
            (key if isinstance(key, str | int | float | bytes | None | Made) else Made("key", (key,)), value) for key, value in pairs
        )
    return target
