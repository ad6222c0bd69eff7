"""Plain LoRA: alpha / rank * up @ down. Kohya, peft, diffusers, its old attention processors; LoCon's convolutions with a Tucker core.

A core [r, s, kh, kw] between up and down is folded into down, exactly.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..delta import LowRank
from ..header import BadFile
from .base import ADAPTER, Format, key_pattern

_PEFT_ADAPTER = r"(?:\.(?!weight$)[^.]+)?"


def _side(side: str, peft: str) -> str:
    return rf"(?:\.lora_{side}|[._]lora\.{side}|\.lora_linear_layer\.{side}|\.lora_{peft}{_PEFT_ADAPTER})(?:\.weight)?"


def _missing(roles: Collection[str]) -> Collection[str]:
    return () if "up" in roles else ("up",)


def _rank_and_width(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> tuple[int, int]:
    shape = shape_of(keys["down"])
    return shape[0], shape[1]


def _delta(name: str, tensors: Mapping[str, Tensor], scale: Callable[[int], float]) -> LowRank:
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if up.ndim < 2 or prod(up.shape[2:]) != 1 or up.shape[1] != rank:
        raise BadFile(f"module {name} has shapes {tuple(down.shape)} and {tuple(up.shape)}, wanted [rank, in] and [out, rank].")
    if "lora_mid" in tensors:
        down = torch.einsum("rs...,si->ri...", tensors["lora_mid"], down.flatten(1))
    return LowRank(name, down if down.ndim == 2 else down.flatten(1), up if up.ndim == 2 else up.flatten(1), scale(rank))


def _plain_sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int] | None:
    if "lora_mid" in shapes or not shapes.keys() >= {"down", "up"}:
        return None
    down, up = shapes["down"], shapes["up"]
    whole = len(down) >= 2 and len(up) >= 2 and up[1] == down[0] and prod(up[2:]) == 1
    if not whole or 0 in (*down, *up):
        return None
    return up[0], down[0], prod(down[1:])


LORA = Format(
    name="lora",
    label="LoRA",
    pattern=key_pattern(down=_side("down", "A"), up=_side("up", "B"), lora_mid=rf"\.lora_mid{ADAPTER}"),
    marked_by=("down",),
    missing=_missing,
    rank_and_width=_rank_and_width,
    delta=_delta,
    plain_sizes=_plain_sizes,
    labels={"lora_mid": "Tucker-decomposed LoRA"},
)
