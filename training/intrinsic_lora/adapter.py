"""What learns: LoRA layers of a diffusers UNet, or all of it; and the file they are written to."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import save_file

from ...methods.lora.lora_file import LoraFile, LoraLayer, kohya_state_dict
from ..atomic import write_atomically

_ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
# Full names, because peft's suffix "proj" would also match time_proj, which has no weights.
_WIDE = (
    rf"(?:.*\.)?(?:{_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|conv1|conv2|conv_shortcut|time_emb_proj"
    r"|downsamplers\.0\.conv|upsamplers\.0\.conv)|conv_in|conv_out"
)
_TRANSFORMER = rf".*\.(?:{_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2)"
TARGETS = {"attention": rf".*\.{_ATTENTION}", "transformer": _TRANSFORMER, "wide": _WIDE}
KINDS = (*TARGETS, "full")


def add_adapter(unet: UNet2DConditionModel, kind: str, rank: int, seed: int) -> None:
    """Freeze `unet` and give it trainable LoRA layers, in place; they change nothing until trained.

    kind: "attention" (q, k, v, out of self- and cross-attention: the paper's), "transformer" (also feed-forward), "wide" (also
    projections and convolutions), or "full" (no LoRA: every parameter trains). seed: of the layers' random halves. Raises ValueError.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of adapter {kind!r} is unknown: choose {', '.join(KINDS)}.")
    if kind == "full":
        unet.requires_grad_(True)
        return
    if rank < 1:
        raise ValueError(f"the rank is {rank}: it must be at least 1.")
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS[kind], init_lora_weights=True))


def load_adapter(unet: UNet2DConditionModel, file: LoraFile) -> None:
    """Put the weights of a LoRA file into the layers that `add_adapter` made. Raises ValueError where the two do not fit."""
    modules = {name: module for name, module in unet.named_modules() if isinstance(module, PeftLayer)}
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


def randomly_initialised(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """A UNet of the same architecture with fresh random weights (the paper's control: knowledge, or only architecture?)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(unet.config)


def lora_layers(unet: UNet2DConditionModel) -> dict[str, LoraLayer]:
    """The LoRA layers of `unet` by module name, as float32 on the CPU."""
    layers = {}
    for name, module in unet.named_modules():
        if isinstance(module, PeftLayer):
            (adapter,) = module.lora_A.keys()
            down, up = (half[adapter].weight.detach().float().cpu() for half in (module.lora_A, module.lora_B))
            layers[name] = LoraLayer(down, up, module.scaling[adapter])
    return layers


def save_lora(unet: UNet2DConditionModel, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA layers so that ComfyUI's LoraLoader and diffusers both load them (kohya's spelling), atomically."""
    state = {key: tensor.to(dtype) for key, tensor in kohya_state_dict(lora_layers(unet)).items()}
    write_atomically(path, lambda partial: save_file(state, partial, dict(metadata)))
