"""Stable Diffusion's UNet in its authors' layout (`model.diffusion_model.input_blocks...`)."""

import re
from typing import Any

from diffusers import UNet2DConditionModel

from .checkpoint import Checkpoint, Shapes, count, filled

PREFIX = "model.diffusion_model."
# Of a head: what SD 2.x and SDXL fix. SD 1.x fixes the number of heads.
_HEAD_WIDTH, _HEADS = 64, 8
_SDXL_TIME_WIDTH = 256
_OUTSIDE_BLOCKS = {
    "input_blocks.0.0.": "conv_in.",
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_IN_RESNETS = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}


def _levels(shapes: Shapes) -> list[list[int]]:
    """The numbers of the input blocks with layers, level by level; a level but the last ends with the block that halves the picture."""
    levels: list[list[int]] = [[]]
    number = 1
    while any(name.startswith(f"input_blocks.{number}.") for name in shapes):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(number)
        number += 1
    return levels


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """diffusers' config of a UNet with these weights."""
    levels = _levels(shapes)
    widths = [shapes[f"input_blocks.{blocks[0]}.0.in_layers.2.weight"][0] for blocks in levels]
    depths = [count(shapes, f"input_blocks.{blocks[0]}.1.transformer_blocks.{{}}.norm1.weight") for blocks in levels]
    middle = count(shapes, "middle_block.1.transformer_blocks.{}.norm1.weight")
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        # diffusers takes the last level's depth for the middle too.
        "transformer_layers_per_block": (*(max(1, depth) for depth in depths[:-1]), depths[-1] or middle),
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        # So diffusers calls the number of heads.
        "attention_head_dim": tuple(max(1, width // _HEAD_WIDTH) for width in widths) if linear else _HEADS,
        "use_linear_projection": linear,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SDXL_TIME_WIDTH,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config


def _places(shapes: Shapes) -> dict[str, str]:
    """Prefixes in the file -> prefixes in diffusers."""
    levels = _levels(shapes)
    places = dict(_OUTSIDE_BLOCKS)
    for level, blocks in enumerate(levels):
        for layer, number in enumerate(blocks):
            places[f"input_blocks.{number}.0."] = f"down_blocks.{level}.resnets.{layer}."
            places[f"input_blocks.{number}.1."] = f"down_blocks.{level}.attentions.{layer}."
        places[f"input_blocks.{blocks[-1] + 1}.0.op."] = f"down_blocks.{level}.downsamplers.0.conv."
    layers = len(levels[0]) + 1
    for number in range(len(levels) * layers):
        block, layer = divmod(number, layers)
        places[f"output_blocks.{number}.0."] = f"up_blocks.{block}.resnets.{layer}."
        places[f"output_blocks.{number}.1."] = f"up_blocks.{block}.attentions.{layer}."
        # Behind the attention, where there is one.
        for upsampler in (f"output_blocks.{number}.1.conv.", f"output_blocks.{number}.2.conv."):
            places[upsampler] = f"up_blocks.{block}.upsamplers.0.conv."
    return places


def load_unet(checkpoint: Checkpoint) -> UNet2DConditionModel:
    """The checkpoint's UNet. Raises ValueError for one that is not whole."""
    shapes = checkpoint.below(PREFIX)
    try:
        config, places = unet_config(shapes), _places(shapes)
    except (KeyError, IndexError) as error:
        raise ValueError(f"the UNet in {checkpoint.path.name} lacks {error}: it is damaged or of another kind.") from None

    def renamed(name: str) -> str:
        place = max((prefix for prefix in places if name.startswith(prefix)), key=len, default="")
        name = places.get(place, "") + name.removeprefix(place)
        return re.sub("|".join(map(re.escape, _IN_RESNETS)), lambda found: _IN_RESNETS[found[0]], name) if ".resnets." in name else name

    weights = {renamed(name): weight for name, weight in checkpoint.weights(PREFIX).items()}
    return filled(lambda: UNet2DConditionModel(**config), weights, checkpoint.path, "UNet")
