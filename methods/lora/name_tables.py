"""How architectures' original names of modules and diffusers' correspond, with `_` for `.`; one canonical name for both.

Checked against the key maps of ComfyUI's loader (`tests/methods/test_lora_names.py`). A name that no table has is the same in both.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Modules outside the blocks: original or another's name -> canonical.
ENDS = {
    # FLUX
    "final_layer_linear": "proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed_timestep_embedder_linear_1",
    "time_in_out_layer": "time_text_embed_timestep_embedder_linear_2",
    "vector_in_in_layer": "time_text_embed_text_embedder_linear_1",
    "vector_in_out_layer": "time_text_embed_text_embedder_linear_2",
    "guidance_in_in_layer": "time_text_embed_guidance_embedder_linear_1",
    "guidance_in_out_layer": "time_text_embed_guidance_embedder_linear_2",
    "controlnet_x_embedder": "pos_embed_input",
    # SD 3, PixArt
    "x_embedder_proj": "pos_embed_proj",
    "t_embedder_mlp_0": "time_text_embed_timestep_embedder_linear_1",
    "t_embedder_mlp_2": "time_text_embed_timestep_embedder_linear_2",
    "y_embedder_mlp_0": "time_text_embed_text_embedder_linear_1",
    "y_embedder_mlp_2": "time_text_embed_text_embedder_linear_2",
    "adaln_single_emb_timestep_embedder_linear_1": "time_text_embed_timestep_embedder_linear_1",
    "adaln_single_emb_timestep_embedder_linear_2": "time_text_embed_timestep_embedder_linear_2",
    "csize_embedder_mlp_0": "adaln_single_emb_resolution_embedder_linear_1",
    "csize_embedder_mlp_2": "adaln_single_emb_resolution_embedder_linear_2",
    "ar_embedder_mlp_0": "adaln_single_emb_aspect_ratio_embedder_linear_1",
    "ar_embedder_mlp_2": "adaln_single_emb_aspect_ratio_embedder_linear_2",
    "y_embedder_y_proj_fc1": "caption_projection_linear_1",
    "y_embedder_y_proj_fc2": "caption_projection_linear_2",
    "t_block_1": "adaln_single_linear",
    # AuraFlow
    "time_step_proj_linear_1": "time_text_embed_timestep_embedder_linear_1",
    "time_step_proj_linear_2": "time_text_embed_timestep_embedder_linear_2",
    "cond_seq_linear": "context_embedder",
    "init_x_linear": "pos_embed_proj",
    "final_linear": "proj_out",
    # Krea 2
    "first": "x_embedder",
    "last_linear": "proj_out",
    "tmlp_0": "time_embed_linear_1",
    "tmlp_2": "time_embed_linear_2",
    "tproj_1": "time_mod_proj",
    "txtmlp_1": "txt_in_linear_1",
    "txtmlp_3": "txt_in_linear_2",
    "txtfusion_projector": "text_fusion_projector",
    # Z-Image, Lumina 2
    "all_final_layer_2-1_linear": "proj_out",
    "all_final_layer_2-1_adaLN_modulation_1": "final_layer_adaLN_modulation_1",
    "all_x_embedder_2-1": "x_embedder",
    # Wan
    "condition_embedder_text_embedder_linear_1": "text_embedding_0",
    "condition_embedder_text_embedder_linear_2": "text_embedding_2",
    "condition_embedder_time_embedder_linear_1": "time_embedding_0",
    "condition_embedder_time_embedder_linear_2": "time_embedding_2",
    "condition_embedder_time_proj": "time_projection_1",
    "condition_embedder_image_embedder_ff_net_0_proj": "img_emb_proj_1",
    "condition_embedder_image_embedder_ff_net_2": "img_emb_proj_3",
    # SDXL
    "class_embedding_linear_1": "add_embedding_linear_1",
    "class_embedding_linear_2": "add_embedding_linear_2",
}

_FLUX_STREAM = {"mlp_0": "_net_0_proj", "mlp_2": "_net_2", "mlp_fc1": "_net_0_proj", "mlp_fc2": "_net_2"}
_KREA = {
    "attn_wq": "attn_to_q",
    "attn_wk": "attn_to_k",
    "attn_wv": "attn_to_v",
    "attn_wo": "attn_to_out_0",
    "attn_gate": "attn_to_gate",
    "mlp_gate": "ff_gate",
    "mlp_up": "ff_up",
    "mlp_down": "ff_down",
}
_AURA_MLP = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
_SD3_CONTEXT = {"attn_proj": "attn_to_add_out", "mlp_fc1": "ff_context_net_0_proj", "mlp_fc2": "ff_context_net_2"}

# (of a block's module: all before its end; what stands there in the canonical name; end -> canonical end).
BLOCKS: tuple[tuple[re.Pattern[str], str, Mapping[str, str]], ...] = tuple(
    (re.compile(f"{pattern}_"), name, ends)
    for pattern, name, ends in (
        # FLUX, Chroma, HunyuanVideo; XLabs' processors; FLUX.2 in diffusers
        (
            r"double_blocks_(\d+)",
            r"transformer_blocks_\1_",
            {
                "img_attn_proj": "attn_to_out_0",
                "txt_attn_proj": "attn_to_add_out",
                "img_mod_lin": "norm1_linear",
                "txt_mod_lin": "norm1_context_linear",
                "img_mod_linear": "norm1_linear",
                "txt_mod_linear": "norm1_context_linear",
                "processor_proj_lora1": "attn_to_out_0",
                "processor_proj_lora2": "attn_to_add_out",
            }
            | {f"img_{end}": f"ff{name}" for end, name in _FLUX_STREAM.items()}
            | {f"txt_{end}": f"ff_context{name}" for end, name in _FLUX_STREAM.items()},
        ),
        (
            r"double_blocks_(\d+)_processor",
            r"double_blocks_\1_",
            {"qkv_lora1": "img_attn_qkv", "qkv_lora2": "txt_attn_qkv"},
        ),
        (
            r"single_blocks_(\d+)",
            r"single_transformer_blocks_\1_",
            {"linear2": "proj_out", "modulation_lin": "norm_linear", "modulation_linear": "norm_linear", "processor_proj": "proj_out"},
        ),
        (r"single_blocks_(\d+)", r"single_blocks_\1_", {"processor_qkv": "linear1_qkv"}),
        (r"single_transformer_blocks_(\d+)_attn", r"single_blocks_\1_", {"to_qkv_mlp_proj": "linear1"}),
        (r"single_transformer_blocks_(\d+)_attn", r"single_transformer_blocks_\1_", {"to_out_0": "proj_out"}),
        (r"transformer_blocks_(\d+)_ff", r"transformer_blocks_\1_ff_", {"linear_in": "net_0_proj", "linear_out": "net_2"}),
        (r"transformer_blocks_(\d+)_ff_context", r"transformer_blocks_\1_ff_context_", {"linear_in": "net_0_proj", "linear_out": "net_2"}),
        (r"txt_in_individual_token_refiner_blocks_(\d+)_mlp", r"txt_in_individual_token_refiner_blocks_\1_mlp_", {"fc1": "0", "fc2": "2"}),
        (
            r"txt_in_individual_token_refiner_blocks_(\d+)_adaLN_modulation",
            r"txt_in_individual_token_refiner_blocks_\1_adaLN_modulation_",
            {"linear": "1"},
        ),
        # SD 3
        (
            r"joint_blocks_(\d+)_x_block",
            r"transformer_blocks_\1_",
            {
                "attn_proj": "attn_to_out_0",
                "attn2_proj": "attn2_to_out_0",
                "mlp_fc1": "ff_net_0_proj",
                "mlp_fc2": "ff_net_2",
                "adaLN_modulation_1": "norm1_linear",
            },
        ),
        (r"joint_blocks_(\d+)_context_block", r"transformer_blocks_\1_", _SD3_CONTEXT),
        # AuraFlow
        (
            r"double_layers_(\d+)",
            r"joint_transformer_blocks_\1_",
            {f"attn_w2{side}": f"attn_to_{side}" for side in "qkv"}
            | {f"attn_w1{side}": f"attn_add_{side}_proj" for side in "qkv"}
            | {"attn_w2o": "attn_to_out_0", "attn_w1o": "attn_to_add_out", "modX_1": "norm1_linear", "modC_1": "norm1_context_linear"}
            | {f"mlpX_{end}": f"ff_{name}" for end, name in _AURA_MLP.items()}
            | {f"mlpC_{end}": f"ff_context_{name}" for end, name in _AURA_MLP.items()},
        ),
        (
            r"single_layers_(\d+)",
            r"single_transformer_blocks_\1_",
            {f"attn_w1{side}": f"attn_to_{side}" for side in "qkv"}
            | {"attn_w1o": "proj_out", "modCX_1": "norm1_linear"}
            | {f"mlp_{end}": f"ff_{name}" for end, name in _AURA_MLP.items()},
        ),
        # PixArt
        (
            r"blocks_(\d+)",
            r"transformer_blocks_\1_",
            {
                "attn_proj": "attn1_to_out_0",
                "cross_attn_q_linear": "attn2_to_q",
                "cross_attn_proj": "attn2_to_out_0",
                "mlp_fc1": "ff_net_0_proj",
                "mlp_fc2": "ff_net_2",
            }
            | _KREA,
        ),
        # Krea 2
        (r"txtfusion_(layerwise|refiner)_blocks_(\d+)", r"text_fusion_\1_blocks_\2_", _KREA),
        # Z-Image, Lumina 2
        (
            r"(layers|noise_refiner|context_refiner)_(\d+)_attention",
            r"\1_\2_attention_",
            {"out": "to_out_0", "q_norm": "norm_q", "k_norm": "norm_k"},
        ),
        # Lumina 2 in diffusers, OmniGen 2
        (
            r"(layers|noise_refiner|context_refiner)_(\d+)_attn",
            r"\1_\2_attention_",
            {end: end for end in ("to_q", "to_k", "to_v", "to_out_0", "norm_q", "norm_k")},
        ),
        (
            r"(layers|noise_refiner|context_refiner)_(\d+)",
            r"\1_\2_",
            {f"feed_forward_linear_{number}": f"feed_forward_w{number}" for number in (1, 2, 3)} | {"norm1_linear": "adaLN_modulation_1"},
        ),
        # Wan: the original's names are the canonical ones
        (
            r"blocks_(\d+)_attn1",
            r"blocks_\1_self_attn_",
            {f"to_{side}": side for side in "qkv"} | {"to_out_0": "o", "norm_q": "norm_q", "norm_k": "norm_k"},
        ),
        (
            r"blocks_(\d+)_attn2",
            r"blocks_\1_cross_attn_",
            {f"to_{side}": side for side in "qkv"}
            | {"to_out_0": "o", "add_k_proj": "k_img", "add_v_proj": "v_img", "norm_q": "norm_q", "norm_k": "norm_k"},
        ),
        (r"blocks_(\d+)_ffn_net", r"blocks_\1_ffn_", {"0_proj": "0", "2": "2"}),
    )
)


class Fused(NamedTuple):
    """Modules stored as one. pieces: their canonical names, in the order of the rows; `own`: the first has as many rows as the module has
    columns, the others share the rest. like: rows over columns that it must have, None for any."""

    pattern: re.Pattern[str]
    pieces: Sequence[str]
    own: bool = False
    like: int | None = None


_QKV, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _each(prefix: str, ends: Sequence[str]) -> list[str]:
    return [prefix + end for end in ends]


FUSED = tuple(
    Fused(re.compile(pattern), *rest)
    for pattern, *rest in (
        (r"double_blocks_(\d+)_img_attn_qkv", _each(r"transformer_blocks_\1_attn_", _QKV), False, 3),
        (r"double_blocks_(\d+)_txt_attn_qkv", _each(r"transformer_blocks_\1_attn_", _ADDED), False, 3),
        (r"single_blocks_(\d+)_linear1_qkv", _each(r"single_transformer_blocks_\1_attn_", _QKV), False, 3),
        (r"joint_blocks_(\d+)_x_block_attn(2?)_qkv", _each(r"transformer_blocks_\1_attn\2_", _QKV), False, 3),
        (r"joint_blocks_(\d+)_context_block_attn_qkv", _each(r"transformer_blocks_\1_attn_", _ADDED), False, 3),
        (r"blocks_(\d+)_attn_qkv", _each(r"transformer_blocks_\1_attn1_", _QKV), False, 3),
        (r"blocks_(\d+)_cross_attn_kv_linear", _each(r"transformer_blocks_\1_attn2_", _QKV[1:]), False, 2),
        # Lumina 2 has fewer keys and values than queries.
        (r"(layers|noise_refiner|context_refiner)_(\d+)_attention_qkv", _each(r"\1_\2_attention_", _QKV), True),
        # The original has shift before scale, diffusers scale before shift; SD 3's last block has no more than these.
        (r"(?:final_layer_adaLN_modulation|modF)_1", ["norm_out_linear_shift", "norm_out_linear_scale"], False, 2),
        (r"norm_out_linear", ["norm_out_linear_scale", "norm_out_linear_shift"], False, 2),
        (
            r"joint_blocks_(\d+)_context_block_adaLN_modulation_1",
            _each(r"transformer_blocks_\1_norm1_context_linear_", ("shift", "scale")),
            False,
            2,
        ),
        (
            r"transformer_blocks_(\d+)_norm1_context_linear",
            _each(r"transformer_blocks_\1_norm1_context_linear_", ("scale", "shift")),
            False,
            2,
        ),
        (r"joint_blocks_(\d+)_context_block_adaLN_modulation_1", [r"transformer_blocks_\1_norm1_context_linear"]),
    )
)
# Queries, keys, values and the MLP's first layer of a single block, whatever the width of the last.
LINEAR1 = re.compile(r"single_blocks_(\d+)_linear1")
LINEAR1_PIECES = (*_each(r"single_transformer_blocks_\1_attn_", _QKV), r"single_transformer_blocks_\1_proj_mlp")
