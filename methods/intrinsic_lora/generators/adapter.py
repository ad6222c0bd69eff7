"""A LoRA on a generator that is never changed: the network is called with other weights for its few adapted layers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...lora.layers import LoraLayer
from ...maps import MAPS
from ..generator_kinds import KIND_NAMES

_ATTENTION = r"attentions\.\d+\.to_(?:q|k|v|out\.0)"
_CONVOLUTIONS = r"conv_in|conv_out|resnets\.\d+\.(?:conv1|conv2|conv_shortcut)|upsamplers\.\d+\.conv"
# What the paper adapts (section 3) comes first: a VQGAN decoder's attention, a style-based generator's affine layers from w to s. The
# last may adapt all that the others do.
TARGETS = {
    "vqgan": {
        "attention": re.compile(rf"decoder\.(?:.*\.)?{_ATTENTION}"),
        "wide": re.compile(rf"decoder\.(?:.*\.)?(?:{_ATTENTION}|{_CONVOLUTIONS})"),
    },
    "gan": {"affine": re.compile(r"(?:.*\.)?affine")},
}
_HEADER = "intrinsic_lab."


@dataclass(frozen=True)
class GeneratorLora:
    """A LoRA of one map. layers: by module name of the whole generator. resolution: pixels it was trained at, None where unknown."""

    layers: dict[str, LoraLayer]
    resolution: int | None = None


def target_names(generator: nn.Module, kind: str, targets: str = "") -> list[str]:
    """Names of the layers of `generator` that a LoRA of this kind ("vqgan" or "gan") adapts, in the network's order.

    targets: a key of TARGETS[kind]; the paper's without it.
    """
    pattern = TARGETS[kind][targets or next(iter(TARGETS[kind]))]
    return [name for name, module in generator.named_modules() if isinstance(module, nn.Linear | nn.Conv2d) and pattern.fullmatch(name)]


def fit(generator: nn.Module, kind: str, layers: Mapping[str, LoraLayer], source: str) -> None:
    """Raises ValueError, naming `source`, for layers that this generator does not have, that are no targets, or of another width."""
    targets = set(target_names(generator, kind, [*TARGETS[kind]][-1]))
    if unknown := [name for name in layers if name not in targets]:
        raise ValueError(
            f"{source} was made for another model: {len(unknown)} of its {len(layers)} layers are no layers that a LoRA on this "
            f"{KIND_NAMES[kind]} may change (first: {unknown[0]}). Load the model it was trained on."
        )
    for name, layer in layers.items():
        wanted = tuple(generator.get_parameter(f"{name}.weight").shape)
        if (came := (layer.up.shape[0], *layer.down.shape[1:])) != wanted:
            raise ValueError(
                f"{source} was made for a model of another width: {name} is {' x '.join(map(str, came))}, the model's layer is "
                f"{' x '.join(map(str, wanted))}. Load the model it was trained on."
            )


def adapted_weights(module: nn.Module, layers: Mapping[str, LoraLayer], strength: float = 1.0) -> dict[str, Tensor]:
    """`weight + strength scale up down` (Intrinsic LoRA, eq. 3) of the adapted layers, by parameter name.

    Nothing at strength 0, so that the module's own weights are used bit for bit. Differentiable in the layers.
    """
    if not strength:
        return {}
    weights = {}
    for name, layer in layers.items():
        weight = module.get_parameter(f"{name}.weight")
        up, down = (half.to(weight.device, torch.float32).flatten(1) for half in (layer.up, layer.down))
        weights[f"{name}.weight"] = (weight.detach().float() + strength * layer.scale * (up @ down).view_as(weight)).to(weight.dtype)
    return weights


def run_adapted(module: nn.Module, layers: Mapping[str, LoraLayer], inputs: Sequence[Any], strength: float = 1.0) -> Tensor:
    """`module(*inputs)` with the adapted weights; the module itself stays as it is. layers: by name inside `module`."""
    weights = adapted_weights(module, layers, strength)
    return functional_call(module, weights, tuple(inputs)) if weights else module(*inputs)


def read_generator_lora(path: Path, kind: str, map_name: str) -> GeneratorLora:
    """The LoRA file of one map for a generator of a kind.

    Raises ValueError for files that cannot be read, and for those whose header says that they make another map or belong to a
    generator of another kind. Files without such a header are taken as what they are used for.
    """
    from ...lora.lora_file import read_lora

    lora = read_lora(path)
    header = {key.removeprefix(_HEADER): value for key, value in lora.metadata.items() if key.startswith(_HEADER)}
    if (says := header.get("generator", kind if header.get("map") is None else "diffusion model")) != kind:
        raise ValueError(f"{path.name} is a LoRA for a {KIND_NAMES.get(says, says)}, one for a {KIND_NAMES[kind]} was expected.")
    if (says := header.get("map", map_name)) != map_name:
        where = f"choose it as '{says}'" if says in MAPS else "choose another file"
        raise ValueError(f"{path.name} makes the map '{says}', it was chosen for '{map_name}': {where}.")
    own = MAPS[map_name].files.own
    if (says := header.get("convention", own)) != own:
        raise ValueError(
            f"{path.name} has learnt {map_name} as '{says}', a generator's LoRA must have learnt '{own}': train it on such maps."
        )
    resolution = header.get("resolution")
    if resolution is not None and not (resolution.isdecimal() and 8 <= int(resolution) <= 8192):
        raise ValueError(f"{path.name} has '{resolution}' as its resolution, 8 to 8192 pixels were expected: export it again.")
    return GeneratorLora(lora.layers, None if resolution is None else int(resolution))


def generator_header(kind: str, map_name: str, resolution: int, base: str) -> dict[str, str]:
    """What `read_generator_lora` reads from a file's header, and the name of the base."""
    entries = {"generator": kind, "map": map_name, "resolution": str(resolution), "base": base} | MAPS[map_name].files.header
    return {f"{_HEADER}{key}": value for key, value in entries.items()}


def peft_state_dict(layers: Mapping[str, LoraLayer], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keys as peft writes them (`NAME.lora_A.weight`, `NAME.lora_B.weight`), with the scale multiplied into B."""
    state = {}
    for name, layer in layers.items():
        state[f"{name}.lora_A.weight"] = layer.down.detach().to("cpu", dtype).contiguous()
        state[f"{name}.lora_B.weight"] = (layer.scale * layer.up.detach().float()).to("cpu", dtype).contiguous()
    return state
