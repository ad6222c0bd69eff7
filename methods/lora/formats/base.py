"""What is asked of a format: a file beside this one that ends in a `Format` or a `Refused`, which `__init__.py` lists."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Format:
    """A kind of weights that is read.

    name, label: for the index, and for people. labels: role -> what people call a module that has it, where that is not `label`.
    pattern: its keys, from `key_pattern`.
    marked_by: a module is of this format if it has one of these roles; its dtype is that tensor's.
    missing(roles): what else a module needs.
    rank_and_width(keys, shape_of): rank, and columns of the changed matrix. keys: by role; shape_of(key): of two dimensions or more.
    delta(name, tensors, scale): the exact change, whose `rows` are what fused projections are split by. tensors: by role, float32;
    scale(rank): factor of the product. RuntimeError and IndexError say that shapes do not fit.
    plain_sizes(shapes): (out, rank, in) of a module that is nothing but `down` and `up` as they are stored; such are read side by side.
    """

    name: str
    label: str
    pattern: re.Pattern[str]
    marked_by: tuple[str, ...]
    missing: Callable[[Collection[str]], Collection[str]]
    rank_and_width: Callable[[Mapping[str, str], Callable[[str], Sequence[int]]], tuple[int, int]]
    delta: Callable[[str, Mapping[str, Tensor], Callable[[int], float]], Delta]
    plain_sizes: Callable[[Mapping[str, Sequence[int]]], tuple[int, int, int] | None] = lambda shapes: None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A kind of weights that is not read. pattern: found in its keys. reason: completes "it holds OFT weights, "."""

    label: str
    pattern: re.Pattern[str]
    reason: str


# Of kinds whose change of the weights is no sum of products.
NOT_COMPARABLE = "which do not compare with LoRAs: leave it out, or convert it."
