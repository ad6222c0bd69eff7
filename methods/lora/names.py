"""One name for a module, whatever the file calls it, and the part of the network that it belongs to.

A canonical name is the diffusers module name with `_` for `.` (the dots cannot be recovered from kohya's spelling, and need not be):
`down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q`. Text encoders begin with `te1_`, `te2_`, `te3_`.
LDM names of UNets with two residual blocks per level (SD 1, SD 2, SDXL) and BFL names of FLUX are translated; architectures
whose original and diffusers names agree need no table. Sketches are seeded by these names: a change needs a new SKETCH_VERSION.
"""

import re
from functools import lru_cache

from .spellings import split_prefix, split_text_encoder

PARTS = ("attention", "feed_forward", "text_encoder", "other")
# Of the files that can hold a LoRA.
SUFFIXES = (".safetensors", ".sft")
SUBNETWORKS = {"all": PARTS, "attention": ("attention",), "feed_forward": ("feed_forward",), "text_encoder": ("text_encoder",)}

_BLOCK = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_FLUX_DOUBLE = {
    "img_attn_proj": "attn_to_out_0",
    "txt_attn_proj": "attn_to_add_out",
    "img_mod_lin": "norm1_linear",
    "txt_mod_lin": "norm1_context_linear",
    "img_mlp_0": "ff_net_0_proj",
    "img_mlp_2": "ff_net_2",
    "txt_mlp_0": "ff_context_net_0_proj",
    "txt_mlp_2": "ff_context_net_2",
}
_FLUX_SINGLE = {"linear2": "proj_out", "modulation_lin": "norm_linear"}
_FLUX_ENDS = {
    "final_layer_linear": "proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed_timestep_embedder_linear_1",
    "time_in_out_layer": "time_text_embed_timestep_embedder_linear_2",
    "vector_in_in_layer": "time_text_embed_text_embedder_linear_1",
    "vector_in_out_layer": "time_text_embed_text_embedder_linear_2",
    "guidance_in_in_layer": "time_text_embed_guidance_embedder_linear_1",
    "guidance_in_out_layer": "time_text_embed_guidance_embedder_linear_2",
}


@lru_cache(maxsize=1 << 16)
def canonical_name(spelling: str) -> str:
    """Canonical name of a module as any known format spells it. Fused projections keep one name: see `fused_rows`."""
    if encoder := split_text_encoder(spelling):
        number, name = encoder
        return f"te{number}_{name.replace('.', '_')}"
    name, _ = split_prefix(spelling)
    name = name.replace(".", "_").replace("_processor_to_", "_to_")
    if name.startswith("text_model_"):
        return f"te1_{name}"
    # The old attention processors call the output projection `to_out`, the module is `to_out.0`.
    name = f"{name}_0" if name.endswith("_to_out") else name
    return _flux_to_diffusers(_ldm_to_diffusers(name))


# Names whose parts hold an underscore of their own: kohya writes every dot as an underscore.
_WORDS = (
    r"(?:up|down|input|output|transformer)_blocks|mid_block|middle_block|to_(?:q|k|v|out)|proj_(?:in|out)|conv_(?:in|out|shortcut)|linear_\d"
    r"|time_emb_proj|(?:time|add|class)_embedding|(?:in|out|emb)_layers|skip_connection|time_embed|label_emb"
)
_KOHYA_WORD = re.compile(rf"(?:{_WORDS}|\d+|[a-z]+\d*)(?=_|$)")


def dotted_name(spelling: str) -> str:
    """`lora_unet_mid_block_attentions_0_proj_in`, `unet.mid_block.attentions.0.proj_in`... to `mid_block.attentions.0.proj_in`.

    For modules of Stable Diffusion's UNets; other names that were written with underscores keep them.
    """
    name, flat = split_prefix(spelling)
    if flat:
        words = _KOHYA_WORD.findall(name)
        return ".".join(words) if "_".join(words) == name else name
    name = name.replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def _ldm_to_diffusers(name: str) -> str:
    if name in _UNET_ENDS:
        return _UNET_ENDS[name]
    if match := re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", name):
        side, block, place, rest = match[1], int(match[2]), int(match[3]), match[4]
        level, index = divmod(block - 1, 3) if side == "input" else divmod(block, 3)
        where = f"{'down' if side == 'input' else 'up'}_blocks_{level}"
        if rest == "op":
            return f"{where}_downsamplers_0_conv"
        if rest == "conv":
            return f"{where}_upsamplers_0_conv"
        return f"{where}_attentions_{index}_{rest}" if place else f"{where}_resnets_{index}_{_BLOCK.get(rest, rest)}"
    if match := re.fullmatch(r"middle_block_([012])_(.+)", name):
        if match[1] == "1":
            return f"mid_block_attentions_0_{match[2]}"
        return f"mid_block_resnets_{int(match[1]) // 2}_{_BLOCK.get(match[2], match[2])}"
    return name


def _flux_to_diffusers(name: str) -> str:
    if name in _FLUX_ENDS:
        return _FLUX_ENDS[name]
    if match := re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", name):
        table, prefix = (_FLUX_DOUBLE, "") if match[1] == "double" else (_FLUX_SINGLE, "single_")
        if match[3] in table:
            return f"{prefix}transformer_blocks_{match[2]}_{table[match[3]]}"
    return name


def fused_rows(name: str, out: int, width: int) -> list[tuple[str, int, int]]:
    """[(canonical name, first row, last row + 1)] of the projections that are stored as one in module `name`.

    out, width: rows and columns of the module. FLUX: qkv of a double block, and linear1 = qkv + mlp of a single block. A module
    that is not fused comes back alone.
    """
    if not name.startswith(("double_blocks_", "single_blocks_")):
        return [(name, 0, out)]
    if (match := re.fullmatch(r"double_blocks_(\d+)_(img|txt)_attn_qkv", name)) and out == 3 * width:
        ends = ("to_q", "to_k", "to_v") if match[2] == "img" else ("add_q_proj", "add_k_proj", "add_v_proj")
        return [(f"transformer_blocks_{match[1]}_attn_{end}", row * width, (row + 1) * width) for row, end in enumerate(ends)]
    if (match := re.fullmatch(r"single_blocks_(\d+)_linear1", name)) and out > 3 * width:
        prefix = f"single_transformer_blocks_{match[1]}"
        heads = [(f"{prefix}_attn_{end}", row * width, (row + 1) * width) for row, end in enumerate(("to_q", "to_k", "to_v"))]
        return [*heads, (f"{prefix}_proj_mlp", 3 * width, out)]
    return [(name, 0, out)]


_ATTENTION = re.compile(r"(?:^|_)(?:attn\d*|self_attn|cross_attn|attention|qkv|to_[qkv]|to_out|add_[qkv]_proj)(?:_|$)")
_FEED_FORWARD = re.compile(r"(?:^|_)(?:ff|ff_context|mlp|proj_mlp|ffn|feed_forward)(?:_|\d|$)")


@lru_cache(maxsize=1 << 16)
def part_of(name: str) -> str:
    """ "attention", "feed_forward", "text_encoder" (all of it) or "other" (convolutions, embeddings, FLUX's shared projections)."""
    if re.match(r"te\d_", name):
        return "text_encoder"
    # `proj_mlp` of a single FLUX block is fused with its attention in one file and alone in another.
    if _FEED_FORWARD.search(name) and not _ATTENTION.search(name):
        return "feed_forward"
    return "attention" if _ATTENTION.search(name) else "other"
