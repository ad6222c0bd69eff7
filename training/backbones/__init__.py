"""Every kind of network that trainers work on, one file each, and the one way to ask which kind a network or a folder is."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from ..bases import base_at
from .backbone import Backbone, Denoiser, JointDenoising, MapFlow, SingleStep
from .flux import FLUX
from .flux2 import FLUX2
from .lumina2 import LUMINA2
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .unet import UNET
from .z_image import Z_IMAGE

BACKBONES: tuple[Backbone, ...] = (UNET, PIXART, FLUX, SD3, QWEN_IMAGE, Z_IMAGE, FLUX2, LUMINA2)


class _Trainable(Protocol):
    @property
    def models(self) -> str: ...


Answer = TypeVar("Answer", bound=_Trainable)


def single_step_of(network: nn.Module, name: str = "the base") -> SingleStep:
    """How Intrinsic LoRA trains on a network. name: of its model, for errors. Raises ValueError for networks it does not know."""
    return _of(network, name, lambda backbone: backbone.single_step)


def single_step_in(folder: Path) -> SingleStep:
    """How Intrinsic LoRA trains on the network of a base (`bases`). Raises ValueError for networks it does not know."""
    return _in(folder, lambda backbone: backbone.single_step)


def denoiser_of(network: nn.Module) -> Denoiser:
    """How Intrinsic LoRA denoises in many steps. Raises ValueError for networks that it knows in a single step only."""
    single_step = single_step_of(network)
    if single_step.denoise is None:
        raise ValueError(f"{single_step.models} came, which are known in a single step only: choose the method single, or a UNet.")
    return single_step.denoise


def single_step_part(folder: Path) -> str:
    """The subfolder of a base's network (unet, transformer). Raises ValueError for networks that Intrinsic LoRA does not know."""
    single_step = single_step_in(folder)
    return next(backbone.part for backbone in BACKBONES if backbone.single_step is single_step)


def joint_denoising_of(network: nn.Module, name: str = "the base") -> JointDenoising:
    """How I-LDM trains on a network. name: of its model, for errors. Raises ValueError for networks it does not know."""
    return _of(network, name, lambda backbone: backbone.joint_denoising)


def map_flow_of(network: nn.Module, name: str = "the base") -> MapFlow:
    """How LumiX trains on a network. name: of its model, for errors. Raises ValueError for networks it does not know."""
    return _of(network, name, lambda backbone: backbone.map_flow)


def map_flow_in(folder: Path) -> MapFlow:
    """How LumiX trains on the network of a base (`bases`). Raises ValueError for networks it does not know."""
    return _in(folder, lambda backbone: backbone.map_flow)


def _able(ability: Callable[[Backbone], Answer | None]) -> list[tuple[Backbone, Answer]]:
    return [(backbone, answer) for backbone in BACKBONES if (answer := ability(backbone)) is not None]


def _of(network: nn.Module, name: str, ability: Callable[[Backbone], Answer | None]) -> Answer:
    able = _able(ability)
    for backbone, answer in able:
        if isinstance(network, backbone.network):
            return answer
    raise ValueError(f"{name} is a {type(network).__name__}: {_models(able)} was expected.")


def _in(folder: Path, ability: Callable[[Backbone], Answer | None]) -> Answer:
    able, found = _able(ability), base_at(folder)
    parts = list(dict.fromkeys(backbone.part for backbone, _ in able))
    for part in parts:
        if kind := found.network_class(part):
            for backbone, answer in able:
                if (backbone.part, backbone.network.__name__) == (part, kind):
                    return answer
            wanted = " or ".join(backbone.network.__name__ for backbone, _ in able)
            raise ValueError(f"the {part} in {folder} is a {kind}, a {wanted} was expected: give a {_models(able)} model.")
    missing = " or ".join(parts) + ("" if folder.is_file() else " folder")
    raise ValueError(f"{folder} has no {missing}: give a {_models(able)} model in diffusers format, or its checkpoint file.")


def _models(able: list[tuple[Backbone, Answer]]) -> str:
    """What can be used, in words."""
    *most, last = (answer.models for _, answer in able)
    return " or ".join(part for part in (", ".join(most), last) if part)
