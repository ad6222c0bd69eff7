"""Plain LoRA: alpha / rank * up @ down. Kohya, peft, diffusers, its old attention processors, XLabs'; LoCon's convolutions with a core.

A core [r, s, kh, kw] between up and down is folded into down, exactly.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..delta import LowRank, check_numbers
from ..header import BadFile
from .base import ADAPTER, Format, Sizes, key_pattern, scale_of

_PEFT_ADAPTER = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"


def _side(side: str, peft: str) -> str:
    # The processors of FLUX's double blocks have a LoRA of each stream, whose number belongs to the module.
    endings = rf"\.lora_{side}|[._]lora\.{side}|(?<=_lora[12])\.{side}|\.lora_linear_layer\.{side}|\.lora_{peft}{_PEFT_ADAPTER}"
    return rf"(?:{endings})(?:\.weight)?"


def _missing(roles: Collection[str]) -> Collection[str]:
    return () if "up" in roles else ("up",)


def _sizes(keys: Mapping[str, str], shape_of: Callable[[str], Sequence[int]]) -> Sizes:
    rank, width, *_ = shape_of(keys["down"])
    return Sizes(rank, shape_of(keys["up"])[0], width)


def _deltas(name: str, tensors: Mapping[str, Tensor], alpha: float | None) -> list[LowRank]:
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if up.ndim < 2 or prod(up.shape[2:]) != 1 or up.shape[1] != rank:
        raise BadFile(f"module {name} has shapes {tuple(down.shape)} and {tuple(up.shape)}, wanted [rank, in] and [out, rank].")
    if "lora_mid" in tensors:
        core = tensors["lora_mid"]
        check_numbers(name, core[:, 0].numel() * down[0].numel())
        down = torch.einsum("rs...,si->ri...", core, down.flatten(1))
    return [LowRank(name, down if down.ndim == 2 else down.flatten(1), up if up.ndim == 2 else up.flatten(1), scale_of(alpha, rank))]


def _plain_sizes(shapes: Mapping[str, Sequence[int]]) -> Sizes | None:
    if "lora_mid" in shapes or not shapes.keys() >= {"down", "up"}:
        return None
    down, up = shapes["down"], shapes["up"]
    whole = len(down) >= 2 and len(up) >= 2 and up[1] == down[0] and prod(up[2:]) == 1
    if not whole or 0 in (*down, *up):
        return None
    return Sizes(down[0], up[0], prod(down[1:]))


LORA = Format(
    name="lora",
    label="LoRA",
    pattern=key_pattern(down=_side("down", "A"), up=_side("up", "B"), lora_mid=rf"\.lora_mid{ADAPTER}"),
    marked_by=("down",),
    missing=_missing,
    sizes=_sizes,
    deltas=_deltas,
    plain_sizes=_plain_sizes,
    labels={"lora_mid": "Tucker-decomposed LoRA"},
)
