"""What the trainers ask of a kind of network. Each kind answers in a `Backbone` of its own, in a file beside this one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor, nn

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

    def expanded(self, rows: int) -> "TextEmbeddings":
        """One text for every row."""
        return self._each(lambda part: part.expand(rows, *part.shape[1:]))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "TextEmbeddings":
        """On a device, as numbers of a dtype; what counts or masks tokens keeps its own."""
        return self._each(lambda part: part.to(device, dtype if part.is_floating_point() else None))

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
    """The parts of a base that Intrinsic LoRA's single step needs, in float32; the VAE and what encodes text frozen.

    embed: what the base's text encoders make of a prompt, one row of float32. tokenizer, text_encoder: of a UNet, where they stay loaded;
    a transformer's are read for a prompt and let go.
    """

    network: ModelMixin
    vae: AutoencoderKL
    embed: Callable[[str], TextEmbeddings]
    tokenizer: Any = None
    text_encoder: Any = None

    def to(self, device: torch.device) -> "SingleStepBase":
        """Brings all parts to a device, in place."""
        for module in (self.network, self.vae, self.text_encoder):
            if module is not None:
                module.to(device)
        return self


def randomly_initialised(network: ModelMixin, seed: int) -> Any:
    """A network of the same architecture with fresh random weights (the paper's control: knowledge, or only architecture?)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(network).from_config(network.config)


# The network, noisy latents, the timestep of each row, a prompt's embedding -> the raw output.
Denoiser = Callable[[nn.Module, Tensor, Tensor, TextEmbeddings], Tensor]


@dataclass(frozen=True)
class Probe:
    """What a linear probe reads, by a regular expression of self-attentions' names, and the name of the last layer, which it replaces."""

    self_attentions: str
    output: str


@dataclass(frozen=True)
class SingleStep:
    """How Intrinsic LoRA trains on a network, and is judged.

    models: in messages. load: of a base (`bases`), with the network's own weights ("trained") or fresh ones ("random", drawn with a
    seed); raises ValueError for folders that do not fit. raw_output: at the noise end of time, for clean latents of pictures and a
    prompt's embedding; `methods.intrinsic_lora.recipe.READINGS` make the map's latent of it. layers: regular expressions of the layers
    that get a LoRA, by kind of adapter (`intrinsic_lora.adapter.KINDS`). lora_state: a LoRA file's tensors, in keys that ComfyUI's
    LoraLoader and diffusers read. patch: latents along a token's side. denoise: the raw output for noisy latents, the timestep of each
    row, and a prompt's embedding; None where many steps are not known. parts: of how the names of layers begin, by the part of the
    network to which a training may be confined. probe: what a linear probe reads and replaces, None where there is none.
    """

    models: str
    load: Callable[[Path, str, int], SingleStepBase]
    raw_output: Callable[[nn.Module, Tensor, TextEmbeddings], Tensor]
    layers: Mapping[str, str]
    lora_state: Callable[[Mapping[str, LoraLayer]], dict[str, Tensor]]
    patch: int = 1
    denoise: Denoiser | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    probe: Probe | None = None


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

    name: of the backbone under `nodes.native.backbones` that takes its files. part: the subfolder of a diffusers folder that holds
    it. network: its class in diffusers.
    """

    name: str
    part: str
    network: type[nn.Module]
    single_step: SingleStep | None = None
    joint_denoising: JointDenoising | None = None
    map_flow: MapFlow | None = None
