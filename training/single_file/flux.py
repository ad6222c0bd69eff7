"""FLUX.1's transformer in its authors' layout (`double_blocks...`, `single_blocks...`)."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .checkpoint import Checkpoint, Shapes, count, filled

PREFIX = "model.diffusion_model."
_AXES = (16, 56, 56)
_OUTSIDE_BLOCKS = {
    "img_in.": "x_embedder.",
    "txt_in.": "context_embedder.",
    "time_in.in_layer.": "time_text_embed.timestep_embedder.linear_1.",
    "time_in.out_layer.": "time_text_embed.timestep_embedder.linear_2.",
    "vector_in.in_layer.": "time_text_embed.text_embedder.linear_1.",
    "vector_in.out_layer.": "time_text_embed.text_embedder.linear_2.",
    "guidance_in.in_layer.": "time_text_embed.guidance_embedder.linear_1.",
    "guidance_in.out_layer.": "time_text_embed.guidance_embedder.linear_2.",
    "final_layer.linear.": "proj_out.",
    "final_layer.adaLN_modulation.1.": "norm_out.linear.",
}
# Fused projections become several.
_IN_DOUBLE_BLOCKS: dict[str, tuple[str, ...]] = {
    "img_mod.lin.": ("norm1.linear.",),
    "txt_mod.lin.": ("norm1_context.linear.",),
    "img_attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
    "txt_attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
    "img_attn.norm.query_norm.": ("attn.norm_q.",),
    "img_attn.norm.key_norm.": ("attn.norm_k.",),
    "txt_attn.norm.query_norm.": ("attn.norm_added_q.",),
    "txt_attn.norm.key_norm.": ("attn.norm_added_k.",),
    "img_attn.proj.": ("attn.to_out.0.",),
    "txt_attn.proj.": ("attn.to_add_out.",),
    "img_mlp.0.": ("ff.net.0.proj.",),
    "img_mlp.2.": ("ff.net.2.",),
    "txt_mlp.0.": ("ff_context.net.0.proj.",),
    "txt_mlp.2.": ("ff_context.net.2.",),
}
_IN_SINGLE_BLOCKS: dict[str, tuple[str, ...]] = {
    "modulation.lin.": ("norm.linear.",),
    "linear1.": ("attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp."),
    "linear2.": ("proj_out.",),
    "norm.query_norm.": ("attn.norm_q.",),
    "norm.key_norm.": ("attn.norm_k.",),
}


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """diffusers' config of a FLUX.1 transformer with these weights."""
    width, head = shapes["img_in.weight"][0], sum(_AXES)
    return {
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": _AXES,
    }


def load_transformer(checkpoint: Checkpoint) -> FluxTransformer2DModel:
    """The checkpoint's transformer. Raises ValueError for one that is not whole."""
    try:
        config = transformer_config(checkpoint.below(PREFIX))
    except KeyError as error:
        raise ValueError(f"the transformer in {checkpoint.path.name} lacks {error}: it is damaged or of another kind.") from None
    width = config["num_attention_heads"] * config["attention_head_dim"]
    weights: dict[str, Tensor] = {}
    for name, weight in checkpoint.weights(PREFIX).items():
        weights |= _renamed(name, weight, width)
    return filled(lambda: FluxTransformer2DModel(**config), weights, checkpoint.path, "transformer")


def _renamed(name: str, weight: Tensor, width: int) -> dict[str, Tensor]:
    """The weight, or the weights that it fuses, under diffusers' names."""
    for blocks, places, own in (
        ("double_blocks.", _IN_DOUBLE_BLOCKS, "transformer_blocks."),
        ("single_blocks.", _IN_SINGLE_BLOCKS, "single_transformer_blocks."),
    ):
        if name.startswith(blocks):
            number, inside = name.removeprefix(blocks).split(".", 1)
            inside = f"{inside.removesuffix('scale')}weight" if inside.endswith("norm.scale") else inside
            prefix = next((prefix for prefix in places if inside.startswith(prefix)), None)
            if prefix is None:
                return {name: weight}
            targets, ending = places[prefix], inside.removeprefix(prefix)
            sizes = [width] * (len(targets) - 1)
            parts = weight.split([*sizes, len(weight) - sum(sizes)])
            return {f"{own}{number}.{target}{ending}": part for target, part in zip(targets, parts, strict=True)}
    prefix = next((prefix for prefix in _OUTSIDE_BLOCKS if name.startswith(prefix)), "")
    if prefix.startswith("final_layer.adaLN"):
        # diffusers takes the scale first, the authors the shift.
        weight = torch.cat(weight.chunk(2)[::-1])
    return {_OUTSIDE_BLOCKS.get(prefix, "") + name.removeprefix(prefix): weight}
