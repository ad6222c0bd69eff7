"""What is asked of a format: a file beside this one that ends in a `Format` or a `Refused`, which `__init__.py` lists."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..delta import Delta

# What may follow a tensor's role: the name of a peft adapter, `.weight`.
ADAPTER = r"(?:\.[^.]+)?(?:\.weight)?"


def key_pattern(**endings: str) -> re.Pattern[str]:
    """Matches whole keys: a module, then the ending (a regular expression without named groups) of one of these roles.

    Of a match, `["module"]` is the module as the file spells it and `lastgroup` the role.
    """
    roles = "|".join(f"(?P<{role}>{ending})" for role, ending in endings.items())
    return re.compile(f"^(?P<module>.+?)(?:{roles})$")


class Sizes(NamedTuple):
    """Of a module: rank of its change, rows and columns of the changed matrix; a convolution's without its kernel."""

    rank: int
    out: int
    width: int


@dataclass(frozen=True)
class Format:
    """A kind of weights that is read.

    name, label: for the index, and for people. labels: role -> what people call a module that has it, where that is not `label`.
    pattern: its keys, from `key_pattern`. companions: role -> ending of keys that mean something only beside those.
    suffixes: role -> what the module's name is followed by, where the tensor changes something beside the weight, such as "_bias".
    marked_by: a module is of this format if it has one of these roles. flags: roles whose values are not read.
    missing(roles): what else a module needs.
    sizes(keys, shape_of): from the header. keys: by role; shape_of(key): of two dimensions or more, those of a vector of n are (n, 1).
    deltas(name, tensors, alpha): the exact changes, whose `rows` are what fused projections are split by. tensors: by role, float32
    (as stored where not `widened`); alpha: None where the file has none. RuntimeError and LookupError say that shapes do not fit.
    approximate: its changes depend on the base model's weights, or are exact only up to that.
    plain_sizes(shapes): of a module that is nothing but `down` and `up` as they are stored; such are read side by side.
    """

    name: str
    label: str
    pattern: re.Pattern[str]
    marked_by: tuple[str, ...]
    missing: Callable[[Collection[str]], Collection[str]]
    sizes: Callable[[Mapping[str, str], Callable[[str], Sequence[int]]], Sizes]
    deltas: Callable[[str, Mapping[str, Tensor], float | None], Sequence[Delta]]
    plain_sizes: Callable[[Mapping[str, Sequence[int]]], Sizes | None] = lambda shapes: None
    labels: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, str] = field(default_factory=dict)
    suffixes: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    widened: bool = True
    approximate: bool = False


@dataclass(frozen=True)
class Refused:
    """A kind of weights that is not read. pattern: found in its keys. reason: completes "it holds OFT weights, "."""

    label: str
    pattern: re.Pattern[str]
    reason: str


# Of kinds whose change of the weights is no sum of products.
NOT_COMPARABLE = "which do not compare with LoRAs: leave it out, or convert it."


def scale_of(alpha: float | None, rank: int) -> float:
    """Factor of a product; without alpha 1, whatever peft's config in the header says: so does ComfyUI."""
    return 1.0 if alpha is None else alpha / rank
