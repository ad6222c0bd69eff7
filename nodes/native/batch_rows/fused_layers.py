"""LoRA layers under ComfyUI's names: what diffusers holds as q, k and v is often one Linear here, and so becomes one LoRA layer."""

from collections.abc import Mapping

import comfy.utils
import torch
from torch import nn

from ....methods.lora.layers import LoraLayer
from ..loading.folder_files import KeyMap
from .row_lora import MapAdapter


def native_layers(layers: Mapping[str, LoraLayer], key_map: KeyMap, network: nn.Module) -> dict[str, LoraLayer]:
    """By native name, LoRA layers by diffusers' names or by native ones, also with `_` for `.`. key_map: of `comfy.utils.*_to_diffusers`.

    Raises ValueError for layers whose widths are not those of the part they change, and for two that change the same.
    """
    native: dict[str, LoraLayer] = {}
    parts: dict[str, list[tuple[LoraLayer, int, int]]] = {}
    known = {key: key.removesuffix(".weight") for key in key_map} | {f"{name}.weight": name for name, _ in network.named_modules()}
    dotted = {name.replace(".", "_"): name for name in known.values()}
    for name, layer in layers.items():
        name = dotted.get(name, name)
        goes_to = key_map.get(f"{name}.weight", name)
        target, span, change = (goes_to, None, None) if isinstance(goes_to, str) else (*goes_to, None)[:3]
        target = target.removesuffix(".weight")
        if change is not None:
            # Of the rows of a weight alone, such as an exchange of halves: of `up` as of the weight.
            layer = LoraLayer(layer.down, change(layer.up), layer.scale)
        if target in native or (span is None and target in parts):
            raise ValueError(f"it changes {target} twice, whole and in parts: export it again.")
        if span is None:
            native[target] = layer
            continue
        _, start, length = span
        if layer.up.shape[0] != length:
            raise ValueError(
                f"its layer {name} has {layer.up.shape[0]} outputs, this model's has {length}: load the base model it was trained on."
            )
        parts.setdefault(target, []).append((layer, start, length))
    return native | {target: _fused(pieces, comfy.utils.get_attr(network, target).out_features) for target, pieces in parts.items()}


def _fused(pieces: list[tuple[LoraLayer, int, int]], outputs: int) -> LoraLayer:
    """Layers on one input whose outputs lie in different rows of one Linear."""
    down = torch.cat([layer.down.float() for layer, _, _ in pieces])
    up = torch.zeros(outputs, down.shape[0])
    rank = 0
    for layer, start, length in pieces:
        up[start : start + length, rank : rank + layer.rank] = layer.up.float() * layer.scale
        rank += layer.rank
    return LoraLayer(down, up)


def bind_layers(network: nn.Module, layers: Mapping[str, LoraLayer], key_map: KeyMap, strength: float, source: str) -> MapAdapter:
    """A LoRA file's layers bound to a network's. Raises ValueError, naming `source`, where they do not fit."""
    try:
        native = native_layers(layers, key_map, network)
    except ValueError as error:
        raise ValueError(f"{source} does not fit: {error}") from None
    return MapAdapter(native, network, {}, strength, source)
