"""What the trainers ask of a kind of network. Each kind answers in a `Backbone` of its own, in a file beside this one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...methods.lora.layers import LoraLayer
from ...methods.lumix.tensor_lora.layer import Adapter
from ..pairs import OnEncoded

# The timestep of the only forward pass (I-LoRA, single step).
TIMESTEP = 999


@dataclass(frozen=True)
class TextEmbeddings:
    """Of n texts. context [n, token, dim]; where the base has one, mask [n, token] (PixArt) and pooled [n, dim] (SDXL, FLUX.1)."""

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextEmbeddings":
        mask, pooled = (None if part is None else change(part) for part in (self.mask, self.pooled))
        return TextEmbeddings(change(self.context), mask, pooled)

    def rows(self, rows: Tensor) -> "TextEmbeddings":
        """A selection, repetitions allowed."""
        return self._each(lambda part: part[rows])

    def repeated(self, times: int) -> "TextEmbeddings":
        """Every text `times` times, one after the other."""
        return self._each(lambda part: part.repeat_interleave(times, dim=0))

    def to(self, device: torch.device) -> "TextEmbeddings":
        return self._each(lambda part: part.to(device))

    @classmethod
    def joined(cls, parts: Sequence["TextEmbeddings"]) -> "TextEmbeddings":
        """Of all texts of `parts`, float32 on the CPU."""

        def column(tensors: Iterable[Tensor | None]) -> Tensor | None:
            found = [tensor.float().cpu() for tensor in tensors if tensor is not None]
            return torch.cat(found) if found else None

        context = torch.cat([part.context.float().cpu() for part in parts])
        return cls(context, column(part.mask for part in parts), column(part.pooled for part in parts))


@dataclass(frozen=True)
class SingleStepBase:
    """The parts of a base that Intrinsic LoRA's single step needs, in float32; VAE and text encoder frozen.

    embed: text embedding of a prompt, `[1, token, dim]`, float32, on the text encoder's device.
    """

    network: ModelMixin
    vae: AutoencoderKL
    tokenizer: PreTrainedTokenizerBase
    text_encoder: nn.Module
    embed: Callable[[str], Tensor]


@dataclass(frozen=True)
class SingleStep:
    """How Intrinsic LoRA trains on a network, and is judged.

    models: in messages. load: of a base (`bases`), with the network's own weights ("trained") or fresh ones ("random", drawn with a
    seed); raises ValueError for folders that do not fit. map_latent: the latent of the map, for clean latents of pictures and a prompt's
    embedding. layers: regular expressions of the layers that get a LoRA, by kind of adapter (`intrinsic_lora.adapter.KINDS`). denoise: the
    raw output for noisy latents, the timestep of each row, and a prompt's embedding. parts: of how the names of layers begin, by the part
    of the network to which a training may be confined. self_attentions, output: of the self-attentions that a linear probe reads, and the
    name of the last layer, which it replaces.
    """

    models: str
    load: Callable[[Path, str, int], SingleStepBase]
    map_latent: Callable[[nn.Module, Tensor, Tensor], Tensor]
    layers: Mapping[str, str]
    denoise: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    parts: Mapping[str, str]
    self_attentions: str
    output: str


@dataclass(frozen=True)
class JointDenoising:
    """How I-LDM trains on a network that predicts noise or velocity.

    models: in messages. encode: what a pipeline's own text encoders make of some texts. conditions: keyword arguments of the network's
    forward for square pictures of some pixels. self_attentions: regular expression of the projections that get a LoRA. exchange_in: puts
    the joint attention of both domains into the network's self-attentions; rows are then all pictures, then their intrinsics. lora_state:
    a LoRA file's tensors, in keys that ComfyUI's LoraLoader and diffusers or peft read.
    """

    models: str
    encode: Callable[[DiffusionPipeline, list[str]], TextEmbeddings]
    conditions: Callable[[nn.Module, TextEmbeddings, int], dict]
    self_attentions: str
    exchange_in: Callable[[nn.Module], None]
    lora_state: Callable[[Mapping[str, LoraLayer]], dict[str, Tensor]]


@dataclass(frozen=True)
class FlowBase:
    """The frozen network and VAE of a base."""

    transformer: ModelMixin
    vae: AutoencoderKL


@dataclass(frozen=True)
class MapFlow:
    """How LumiX trains on a network that predicts a flow.

    models: in messages. patch: latent pixels along a token's side. load: of a base (`bases`), the network in some dtype. encode_texts:
    of a base, for a number of tokens, on a device. adapter_sizes: width, double and single blocks of the network. join_maps: puts an
    adapter into the network, whose rows are then `(group map)`. predict_velocity: noise - latent, for latents, flow times 0..1, texts and
    guidance.
    """

    models: str
    patch: int
    load: Callable[[Path, torch.dtype], FlowBase]
    encode_texts: Callable[[Path, Sequence[str], int, torch.device, OnEncoded | None], TextEmbeddings]
    adapter_sizes: Callable[[nn.Module], tuple[int, int, int]]
    join_maps: Callable[[nn.Module, Adapter], None]
    predict_velocity: Callable[[nn.Module, Tensor, Tensor, TextEmbeddings, float], Tensor]


@dataclass(frozen=True)
class Backbone:
    """A kind of network, and how each trainer holds on to it; None where a trainer does not know it.

    name: of this file and of the one under `nodes.native.backbones`. part: the subfolder of a diffusers folder that holds
    it. network: its class in diffusers.
    """

    name: str
    part: str
    network: type[nn.Module]
    single_step: SingleStep | None = None
    joint_denoising: JointDenoising | None = None
    map_flow: MapFlow | None = None
