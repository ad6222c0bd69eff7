"""What the pack asks of a kind of network. Each kind answers in a `Backbone` of its own, in a file (or folder) beside this one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....methods.ildm.schedules import Block
from ....methods.lora.layers import LoraLayer
from ....methods.lumix.intrinsix import RowAdapter
from ....methods.lumix.tensor_lora.layer import Adapter
from ..batch_rows.attention_calls import AttentionPlace
from ..batch_rows.row_lora import MapAdapter
from ..loading.text_encoder import TextFamily

# What trains on a family's diffusers folders.
TRAINERS = INTRINSIC_LORA, JOINT_LORA, TENSOR_LORA = "intrinsic LoRA", "joint LoRA", "tensor LoRA"


@dataclass(frozen=True)
class Family:
    """A published line of models on one backbone, as diffusers folders hold it.

    text: its text encoders, None for those that ComfyUI's own loader has to read. trainers: those of TRAINERS that take it as a base.
    """

    name: str
    title: str
    text: TextFamily | None
    trainers: tuple[str, ...]


@dataclass(frozen=True)
class LoadRequest:
    """The diffusers folder whose network is to be loaded as a MODEL; dtype and disable_dynamic as `patcher.build_patcher` says."""

    folder: Path
    family: Family
    latent_format: LatentFormat
    dtype: torch.dtype | None = None
    disable_dynamic: bool = False


# Where, in `transformer_options`, the forward that runs has its `methods.intrinsic_lora.anchor.AnchoredForward`.
ANCHOR = "intrinsic_lab.anchor"

# LoRA layers by the file's names, strength, the file's name for errors -> the layers bound to a MODEL's network. Raises ValueError.
BindLora = Callable[[ModelPatcher, Mapping[str, LoraLayer], float, str], MapAdapter]


@dataclass(frozen=True)
class SingleStep:
    """What Intrinsic LoRA's one forward needs of a network.

    check: raises ValueError for a MODEL that cannot run it. model_sampling: the object by which the network gets its input unscaled and
    its raw output comes back. noise_levels: core's sigmas of timesteps 0..999 under that object. context_width: numbers that the MODEL
    takes for a text token, None where it does not say. joint_text: whether text tokens meet the picture's in one attention, where
    repeating them would change what they say. attach_anchor: lets every self-attention of a clone read an anchor frame's keys, by
    ANCHOR; raises ValueError where another patch sits; None where it is not known.
    """

    check: Callable[[ModelPatcher], None]
    model_sampling: Callable[[ModelPatcher], nn.Module]
    noise_levels: Callable[[ModelPatcher, Tensor], Tensor]
    context_width: Callable[[ModelPatcher], int | None]
    bind_lora: BindLora
    joint_text: bool = False
    attach_anchor: Callable[[ModelPatcher], None] | None = None


@dataclass(frozen=True)
class MultiStep:
    """How the augmented Intrinsic LoRA brings the picture's latent into a network.

    entry: native name of the convolution that latents come in by. check: raises ValueError, naming a file, for a MODEL whose channels do
    not fit the weight by which the file takes the picture (None: the MODEL has to have it). is_widened: whether the MODEL has it.
    """

    entry: str
    check: Callable[[ModelPatcher, Tensor | None, str], None]
    is_widened: Callable[[ModelPatcher], bool]


@dataclass(frozen=True)
class CrossDomain:
    """Where I-LDM's exchange between picture and intrinsic rows sits.

    attach: puts it into every self-attention of a clone and returns their blocks in order of execution; raises ValueError where another
    patch sits. timestep: 0..999 of a schedule, for a MODEL's `model_sampling` and a sigma.
    """

    attach: Callable[[ModelPatcher], tuple[Block, ...]]
    bind_lora: BindLora
    timestep: Callable[[Any, Tensor], Tensor] = lambda sampling, sigma: sampling.timestep(sigma)


@dataclass(frozen=True)
class MapAttention:
    """How the maps of one picture meet in self-attention (LumiX).

    attach: makes them meet in every block of a clone, by one of `methods.lumix.design.ATTENTIONS`; raises ValueError where another patch
    sits. sigmas: noise levels to sample these maps at, for a LATENT and a number of steps; None for those of core's "normal" scheduler.
    """

    attach: Callable[[ModelPatcher, str], None]
    sigmas: Callable[[tuple[str, ...], dict, int], Tensor] | None = None


@dataclass(frozen=True)
class TensorLora:
    """An adapter of LumiX or IntrinsiX and the blocks of a network that it changes; None for all blocks of a kind.

    name: the file's, for errors. attention: of `methods.lumix.design.ATTENTIONS`, or IMAGE_SHARING.
    """

    name: str
    adapter: Adapter | RowAdapter
    attention: str
    strength: float
    double_blocks: Collection[int] | None
    single_blocks: Collection[int] | None


@dataclass(frozen=True)
class Backbone:
    """A kind of network, and how each method holds on to it; None where a method does not know it.

    name: of this file and of the one under `training.backbones`. title: in messages. matches: whether a MODEL's network is of this kind.
    part: the subfolder of a diffusers folder that holds it. family_of: the name of the family that its config.json belongs to, None for
    other networks. layouts: self-attentions of published models, by the name that schedule previews show.
    attentions: of a transformer's network, in order of execution.
    attach_tensor_lora: puts a LumiX adapter into a clone; raises ValueError for widths, depths and numbers of blocks that do not fit.
    """

    name: str
    title: str
    matches: Callable[[nn.Module], bool]
    part: str
    family_of: Callable[[Mapping], str | None]
    families: tuple[Family, ...]
    load: Callable[[LoadRequest], ModelPatcher]
    latent_formats: tuple[type[LatentFormat], ...]
    layouts: Mapping[str, tuple[Block, ...]]
    single_step: SingleStep | None = None
    cross_domain: CrossDomain | None = None
    map_attention: MapAttention | None = None
    attach_tensor_lora: Callable[[ModelPatcher, TensorLora], None] | None = None
    multi_step: MultiStep | None = None
    attentions: Callable[[Any], tuple[AttentionPlace, ...]] | None = None
