"""OFT and BOFT (LyCORIS): W' = R W with a rotation R made of blocks. Approximate.

R = (I + Q)(I - Q)^-1, for OFT transposed, as in ComfyUI; Q = B - B^T for each block B, made smaller where it is longer than alpha. W is
not at hand: files are compared by R - I, as if W were noise, which keeps angles on average: the blocks one above the other, as the module
`<module>_of_base`. Of BOFT's product of several R, which differ in how they are permuted, the first order counts: their R - I one above
the other.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..delta import Full
from ..header import BadFile
from .base import NOT_COMPARABLE, Format, Refused, Sizes, key_pattern

# Inverses take the third power of it.
_LARGEST_BLOCK = 1024


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    *blocks, size, _ = shape_of(keys["oft_blocks"])
    return Sizes(size, (blocks[-1] if blocks else 1) * size, size)


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[Full]:
    blocks = tensors["oft_blocks"]
    size = blocks.shape[-1]
    if blocks.ndim not in (3, 4) or blocks.shape[-2] != size or size > _LARGEST_BLOCK:
        raise BadFile(
            f"module {name} has blocks of shape {tuple(blocks.shape)}, square ones of at most {_LARGEST_BLOCK} were expected: "
            "export it again."
        )
    skew = blocks - blocks.transpose(-1, -2)
    length = skew.norm()
    # 0 is no bound.
    if alpha and length > alpha:
        skew *= alpha / length
    one = torch.eye(size)
    rotation = (one + skew) @ torch.linalg.inv(one - skew)
    if blocks.ndim == 3:
        rotation = rotation.mT
    return [Full(f"{name}_of_base", (rotation - one).reshape(prod(blocks.shape[:-1]), size))]


OFT = Format(
    name="oft",
    label="OFT",
    pattern=key_pattern(oft_blocks=r"\.oft_blocks"),
    marked_by=("oft_blocks",),
    missing=lambda roles: (),
    sizes=_sizes,
    deltas=_deltas,
    approximate=True,
)
PEFT_OFT = Refused("peft's OFT", re.compile(r"\.oft_[rR]"), NOT_COMPARABLE)
PEFT_BOFT = Refused("peft's BOFT", re.compile(r"\.boft_"), NOT_COMPARABLE)
