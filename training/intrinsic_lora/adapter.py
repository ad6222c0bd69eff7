"""What learns: LoRA layers of a diffusers network, or all of it; and the file they are written to."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer

from ...methods.intrinsic_lora.multi_step import PICTURE_KEY
from ...methods.lora.layers import LoraFile, LoraLayer
from ..atomic import write_tensors
from ..backbones import single_step_of
from .probe import add_probe
from .widened import lora_name, picture_in, widen

KINDS = ("attention", "transformer", "wide", "full", "probe")
ALL = "all"
LAYERS = (ALL, "up", "mid", "down", "self", "cross")


def add_adapter(network: ModelMixin, kind: str, rank: int, seed: int, layers: str = ALL) -> None:
    """Freeze `network` and give it trainable LoRA layers, in place; they change nothing until trained.

    kind: "attention" (q, k, v, out of self- and cross-attention: the paper's), "transformer" (also feed-forward), "wide" (also
    projections and convolutions), "full" (no LoRA: every parameter trains) or "probe" (`add_probe`: nothing of the network trains). seed:
    of the layers' random halves. layers: only those of the up, mid or down blocks, or of self- or cross-attention; all of them. Raises
    ValueError, also for networks that Intrinsic LoRA does not know.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of adapter {kind!r} is unknown: choose {', '.join(KINDS)}.")
    if layers not in LAYERS:
        raise ValueError(f"layers is {layers!r}: choose {', '.join(LAYERS)}.")
    single_step = single_step_of(network)
    network.requires_grad_(False)
    if kind == "probe":
        add_probe(network, single_step)
        return
    if layers != ALL and layers not in single_step.parts:
        raise ValueError(f"layers is {layers!r}, a part of a UNet; {single_step.models} came: choose {ALL}.")
    begins = "" if layers == ALL else single_step.parts[layers]
    if kind == "full":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(re.match(begins, name) is not None)
        return
    if rank < 1:
        raise ValueError(f"the rank is {rank}: it must be at least 1.")
    wanted = f"(?={begins})(?:{single_step.layers[kind]})"
    if not any(re.fullmatch(wanted, name) for name, _ in network.named_modules()):
        raise ValueError(f"this base has no layer of {layers!r} that a LoRA of kind {kind!r} changes: choose other layers.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=wanted, init_lora_weights=True))


def load_adapter(network: ModelMixin, file: LoraFile) -> None:
    """Put the weights of a LoRA file into the layers that `add_adapter` made; the network is widened where the file's was. Raises
    ValueError where the two do not fit.
    """
    if file.picture_in is not None:
        widen(network, file.picture_in)
    modules = {lora_name(name): module for name, module in network.named_modules() if isinstance(module, PeftLayer)}
    if modules.keys() != file.layers.keys():
        odd = sorted(modules.keys() ^ file.layers.keys())
        raise ValueError(
            f"the LoRA file changes other layers than this adapter ({odd[0]} and {len(odd) - 1} more): start with its own kind."
        )
    for name, layer in file.layers.items():
        (adapter,) = modules[name].lora_A.keys()
        down, up = modules[name].lora_A[adapter].weight, modules[name].lora_B[adapter].weight
        if down.shape != layer.down.shape or up.numel() != layer.up.numel():
            raise ValueError(f"the LoRA file has rank {layer.rank} at {name}, this adapter {down.shape[0]}: start with its own rank.")
        down.data.copy_(layer.down)
        up.data.copy_(layer.up.reshape(up.shape) * (layer.scale / modules[name].scaling[adapter]))


def lora_layers(network: ModelMixin) -> dict[str, LoraLayer]:
    """The LoRA layers of `network` by module name, as float32 on the CPU."""
    layers = {}
    for name, module in network.named_modules():
        if isinstance(module, PeftLayer):
            (adapter,) = module.lora_A.keys()
            down, up = (half[adapter].weight.detach().float().cpu() for half in (module.lora_A, module.lora_B))
            layers[lora_name(name)] = LoraLayer(down, up, module.scaling[adapter])
    return layers


def save_lora(network: ModelMixin, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA layers so that ComfyUI's LoraLoader and diffusers both load them, atomically.

    Of a widened network also the weight by which the picture comes in, which both leave alone.
    """
    state = {key: tensor.to(dtype) for key, tensor in single_step_of(network).lora_state(lora_layers(network)).items()}
    if (weight := picture_in(network)) is not None:
        state[PICTURE_KEY] = weight.detach().to("cpu", dtype).contiguous()
    write_tensors(path, state, metadata)
