"""What every node of the pack checks before and after it works: that what comes is of its kind, and that results are numbers."""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from torch import Tensor

from .node_text import show_on_node
from .paths import without_roots

_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}
# Choices with inputs of their own.
_NESTED = "COMFY_"
_WRITTEN = {"STRING": str, "COLOR": str, "COMBO": str, "BOOLEAN": bool | int, "INT": int | float, "FLOAT": int | float}
# A checkpoint may hold none of them.
_PARTS = ("MODEL", "CLIP", "VAE")
# What core hands over as plain containers and tensors.
_TENSORS, _MAPPINGS, _LISTS = ("IMAGE", "MASK", "SIGMAS"), ("LATENT",), ("CONDITIONING",)


class Node(io.ComfyNode):
    """A node whose `execute` is only called with inputs of the kinds that it declares, and tells of results that are no numbers."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("execute")
        # Core clones a node's class for every run, with all that it has.
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(own.__func__))


def _checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        schema = cls.SCHEMA or cls.GET_SCHEMA()
        given = signature.bind(cls, *args, **kwargs).arguments
        # Those that a node takes by `**`.
        given |= next(
            (given.pop(name) for name, kind in signature.parameters.items() if kind.kind is kind.VAR_KEYWORD and name in given), {}
        )
        for declared in schema.inputs:
            values = given.get(declared.id)
            if values is None and declared.id in given and declared.get_io_type() in _PARTS and not declared.optional:
                kind = declared.get_io_type()
                raise ValueError(f"There is no {kind}: the checkpoint it should come from holds none. Load one with a {kind} loader.")
            for value in values if schema.is_input_list and isinstance(values, list) else [values]:
                is_link = declared.rawLink and isinstance(value, list) and len(value) == 2
                if value is not None and not is_link:
                    require_kind(declared.id, declared.get_io_type(), value)
        try:
            output = execute(cls, *args, **kwargs)
        except Exception as error:
            _shorten(error)
            raise
        _tell_of_broken(schema, output)
        return output

    return checked


def require_kind(name: str, kind: str, value: Any) -> None:
    """Raise ValueError unless an input's value can be of one of the kinds that ComfyUI calls so. Numbers must be finite."""
    if kind.startswith(_NESTED) and isinstance(value, Mapping):
        for inside, part in value.items():
            if isinstance(part, float):
                require_kind(inside, "FLOAT", part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}: {_NUMBERS.get(kind, 'a number')} is wanted; mend the node that it comes from.")
    elif not any(_fits(one, value) for one in kind.split(",")):
        wanted = f"{_NUMBERS.get(kind, 'a text')} is wanted: connect an output of that kind." if kind in _WRITTEN else ""
        raise ValueError(
            f"{name} came as {_in_words(value)}" + (f", {wanted}" if wanted else f": connect an output of the kind {kind} to it.")
        )


def _fits(kind: str, value: Any) -> bool:
    if kind in _WRITTEN:
        return isinstance(value, _WRITTEN[kind])
    if kind in _TENSORS:
        return isinstance(value, Tensor)
    if kind in _MAPPINGS:
        return isinstance(value, Mapping) and hasattr(value.get("samples"), "shape")
    if kind in _LISTS:
        return isinstance(value, list)
    # What other packs hand over may be a container; a text or a number stands where a link belongs.
    never = str | bytes | int | float | list | tuple | dict | Tensor if kind in _PARTS else str | bytes | int | float
    return kind == "*" or not isinstance(value, never)


def _in_words(value: Any) -> str:
    return (
        f"the text {value[:40]!r}"
        if isinstance(value, str)
        else f"{value}"
        if isinstance(value, int | float)
        else f"a {type(value).__name__}"
    )


def _shorten(error: BaseException) -> None:
    """Whoever looks at the graph need not learn where the server's folders lie."""
    error.args = tuple(without_roots(part) if isinstance(part, str) else part for part in error.args)
    for name in ("strerror", "filename", "filename2"):
        if isinstance(path := getattr(error, name, None), str):
            setattr(error, name, without_roots(path))


def _tell_of_broken(schema: io.Schema, output: Any) -> None:
    """A warning, in the log and on the node, for outputs that hold NaN or infinity."""
    if not isinstance(output, io.NodeOutput) or output.expand is not None:
        return
    for declared, value in zip(schema.outputs, output.args, strict=False):
        for tensor in _tensors(value):
            if broken := int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0:
                name = declared.display_name or declared.id or declared.get_io_type()
                told = f"{name} holds {broken} of {tensor.numel()} values that are NaN or infinite: its inputs, model or LoRA are broken."
                logging.warning("%s: %s", schema.display_name, told)
                context = get_executing_context()
                show_on_node(told, context.node_id if context else None)


def _tensors(value: Any) -> Iterator[Tensor]:
    samples = value.get("samples") if isinstance(value, Mapping) else value
    if isinstance(samples, Tensor) and samples.layout == torch.strided:
        yield samples
