"""Where the exchange of I-LDM holds PixArt: the forward of each block's self-attention module, as object patches."""

from collections.abc import Callable, Mapping

import torch
from comfy.ldm.modules import attention
from comfy.ldm.pixart.blocks import AttentionKVCompress
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from comfy.utils import pixart_to_diffusers
from einops import rearrange
from torch import Tensor

from ....methods.ildm.joint_forward import CURRENT, exchange
from ....methods.ildm.schedules import Block, transformer_blocks
from ....methods.lora.lora_file import LoraLayer


def attach(clone: ModelPatcher, transformer: PixArtMS) -> tuple[Block, ...]:
    """Puts the exchange into every self-attention of `clone`; returns their blocks. Raises ValueError where another patch sits."""
    blocks = transformer_blocks(len(transformer.blocks))
    for block in blocks:
        name = f"diffusion_model.blocks.{block.index}.attn"
        if taken := [patched for patched in clone.object_patches if patched.startswith(name)]:
            raise ValueError(f"Another node already patches {taken[0]} of this MODEL, and the two cannot both do so: remove one of them.")
        clone.add_object_patch(f"{name}.forward", _forward(clone.get_model_object(name), block))
    return blocks


def _forward(attn: AttentionKVCompress, block: Block) -> Callable:
    """`AttentionKVCompress.forward` with the exchange in the place of its attention."""

    def own_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        by_head = [rearrange(x, "row token (head dim) -> row head token dim", head=attn.num_heads) for x in (query, key, value)]
        return attention.optimized_attention(*by_head, attn.num_heads, mask=None, skip_reshape=True)

    def forward(x: Tensor, mask: Tensor | None = None, HW: tuple[int, int] | None = None, block_id: int | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("PixArt's self-attention got a mask, which ComfyUI's PixArt never gives it: update ComfyUI or this pack.")
        query, key, value = rearrange(attn.qkv(x), "row token (part c) -> part row token c", part=3)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if attn.sr_ratio > 1:
            height, width = HW or (int(x.shape[1] ** 0.5),) * 2
            key, _ = attn.downsample_2d(key, height, width, attn.sr_ratio, sampling=attn.sampling)
            value, _ = attn.downsample_2d(value, height, width, attn.sr_ratio, sampling=attn.sampling)
        return attn.proj(exchange(CURRENT.get(), block, query, key, value, attn.num_heads, own_attention))

    return forward


def native_layers(layers: Mapping[str, LoraLayer], transformer_config: Mapping) -> dict[str, LoraLayer]:
    """LoRA layers under ComfyUI's names: what diffusers holds as q, k and v is one Linear here, and so becomes one LoRA layer.

    Raises ValueError for cross-attention keys and values, which ComfyUI computes for all rows together.
    """
    places = pixart_to_diffusers(transformer_config)
    parts: dict[str, list[tuple[LoraLayer, int, int]]] = {}
    native: dict[str, LoraLayer] = {}
    for name, layer in layers.items():
        place = places.get(f"{name}.weight", name)
        if isinstance(place, str):
            native[place.removesuffix(".weight")] = layer
            continue
        key, (_, start, length) = place[:2]
        if "cross_attn" in key:
            raise ValueError(
                f"it changes {name}, which PixArt computes for all rows together: only LoRA on other layers can be kept to some rows."
            )
        if layer.up.shape[0] != length:
            raise ValueError(
                f"its layer {name} has {layer.up.shape[0]} outputs, this model's has {length}: load the base model it was trained on."
            )
        parts.setdefault(key.removesuffix(".weight"), []).append((layer, start, length))
    total = 3 * transformer_config["hidden_size"]
    return native | {key: _fused(pieces, total) for key, pieces in parts.items()}


def _fused(pieces: list[tuple[LoraLayer, int, int]], outputs: int) -> LoraLayer:
    """Layers on one input whose outputs lie in different rows of one Linear."""
    down = torch.cat([layer.down.float() for layer, _, _ in pieces])
    up = torch.zeros(outputs, down.shape[0])
    rank = 0
    for layer, start, length in pieces:
        up[start : start + length, rank : rank + layer.rank] = layer.up.float() * layer.scale
        rank += layer.rank
    return LoraLayer(down, up)
