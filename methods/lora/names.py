"""One name for a module, whatever the file calls it, and the part of the network that it belongs to.

A canonical name is the diffusers module name with `_` for `.` (the dots cannot be recovered from kohya's spelling, and need not be):
`down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q`. Text encoders begin with `te1_`, `te2_`
(CLIP), `te3_` (T5) or `te4_` (language models).
LDM names of UNets with two residual blocks per level (SD 1, SD 2, SDXL) are translated here, transformers' by `name_tables`; architectures
whose original and diffusers names agree need no table. Sketches are seeded by these names: a change needs a new SKETCH_VERSION.
"""

import re
from functools import lru_cache
from itertools import accumulate

from .name_tables import BLOCKS, ENDS, FUSED, LINEAR1, LINEAR1_PIECES
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
# ACE-Step 1.5 trains its decoder, and leaves out that it is one.
_ACE_DECODER, _BIAS = "decoder_", "_bias"
_LANGUAGE_MODEL = re.compile(r"(?:(?:model|language_model)_)*(?=(?:layers_\d|embed_tokens|norm$))")


@lru_cache(maxsize=1 << 16)
def canonical_name(spelling: str) -> str:
    """Canonical name of a module as any known format spells it. Fused projections keep one name: see `fused_rows`."""
    if encoder := split_text_encoder(spelling):
        number, name = encoder
        name = name.replace(".", "_")
        # Told by their names, because files number them otherwise: T5, then language models.
        if re.match(r"encoder_block_|encoder_final_layer_norm$|shared$", name):
            return f"te3_{name}"
        if match := _LANGUAGE_MODEL.match(name):
            return f"te4_{name[match.end() :]}"
        return f"te{number}_{name.removeprefix('bert_')}"
    name, _ = split_prefix(spelling)
    name = name.replace(".", "_").replace("_processor_to_", "_to_")
    if name.startswith("text_model_"):
        return f"te1_{name}"
    # The old attention processors call the output projection `to_out`, the module is `to_out.0`.
    name = f"{name}_0" if name.endswith("_to_out") else name
    return _in_tables(_ldm_to_diffusers(name.removeprefix(_ACE_DECODER)))


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


def _in_tables(name: str) -> str:
    if name in ENDS:
        return ENDS[name]
    for pattern, start, ends in BLOCKS:
        if (match := pattern.match(name)) and (end := name[match.end() :]) in ends:
            return match.expand(start) + ends[end]
    return name


def fused_rows(name: str, out: int, width: int) -> list[tuple[str, int, int]]:
    """[(canonical name, first row, last row + 1)] of the projections that are stored as one in module `name`, such as qkv.

    out, width: rows and columns of the module. A module that is not fused comes back alone.
    """
    if name.endswith(_BIAS):
        return [(piece + _BIAS, start, stop) for piece, start, stop in _cut(name.removesuffix(_BIAS), out, None)]
    return _cut(name, out, width)


def _cut(name: str, out: int, width: int | None) -> list[tuple[str, int, int]]:
    """width: None for a bias, whose rows are shared alike or not at all."""
    pieces, sizes = _fused(name, out, width)
    ends = list(accumulate(sizes))
    return [(piece, end - size, end) for piece, size, end in zip(pieces, sizes, ends, strict=True)]


def _fused(name: str, out: int, width: int | None) -> tuple[list[str], list[int]]:
    """(canonical names, rows of each)."""
    for pattern, pieces, own, like in FUSED:
        if match := pattern.fullmatch(name):
            first = width if own and width is not None else out // len(pieces)
            others, left = len(pieces) - 1, out - first
            if (like is None or width is None or out == like * width) and left >= 0 and left == others * (left // max(others, 1)):
                return [match.expand(piece) for piece in pieces], [first, *[left // max(others, 1)] * others]
    if (match := LINEAR1.fullmatch(name)) and width is not None and out > 3 * width:
        return [match.expand(piece) for piece in LINEAR1_PIECES], [width, width, width, out - 3 * width]
    return [name], [out]


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
