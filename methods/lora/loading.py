"""What ComfyUI's loader takes of a LoRA file, from its header: names by `known_names.json`, made of its key maps, and the endings it has.

    python -m intrinsic_lab.benchmarks.lora_formats_table --structures      makes the table anew

Nothing here imports ComfyUI; `tests/methods/test_lora_loading.py` holds it against the loader itself.
"""

import json
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from .formats import label_of, split_key
from .header import Layout, once_per_layout
from .spellings import split_text_encoder

# Longest first: every name begins with the last.
PREFIXES = (
    "unet.base_model.model.", "base_model.model.", "diffusion_model.", "transformer.", "unet.", "lora_prior_unet_", "lora_unet_",
    "lora_transformer_", "lycoris_", "text_encoders.", "text_encoder_2.", "text_encoder.", "lora_prior_te_", "lora_te1_", "lora_te2_",
    "lora_te3_", "lora_te_", "",
)  # fmt: skip
TEXT_ENCODERS = "text encoders"
_ENDINGS = (
    r"\.lora_(?:up|down|mid)\.weight|_lora\.(?:up|down)\.weight|\.lora_[AB](?:(?:\.default)?\.weight)?|\.lora\.(?:up|down)\.weight"
    r"|\.lora_linear_layer\.(?:up|down)\.weight|\.hada_w[12]_[ab]|\.hada_t[12]|\.lokr_w[12](?:_[ab])?|\.lokr_t2|\.[ab][12]\.weight"
    r"|\.oft_blocks|\.rescale|\.diff|\.diff_b|\.w_norm|\.b_norm|\.set_weight|\.reshape_weight|\.alpha|\.dora_scale"
)
_KEY = re.compile(rf"^(.+?)(?:{_ENDINGS})$")
_CONTROL = ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale")
_WAN_FUN = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
_USO = ("single_blocks.37.processor.qkv_lora.up.weight", "double_blocks.18.processor.qkv_lora2.up.weight")
_OF_USO = re.compile(r"^(?:double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]|single_blocks\.\d+\.processor\.(?:qkv|proj)_lora)\.")


def pattern_of(name: str) -> str:
    """A name whatever the numbers inside it, which are of blocks; one at its end is a layer's of its own."""
    return re.sub(r"\d+(?=[._])", "N", name)


@lru_cache(maxsize=1)
def known_names() -> dict[str, list[dict[str, list[str]]]]:
    """Family -> [{"prefixes", "names" that may stand behind any of them, of the first block of each stack}]."""
    return json.loads((Path(__file__).parent / "known_names.json").read_text(encoding="utf-8"))


def like_family(family: str) -> str:
    """The family whose names a base model has: UNets of any width have those of SD 1, the refiner SDXL's; "" where it is not known."""
    like = "sd1" if family.startswith("unet-") else "sdxl" if family == "sdxl-refiner" else family
    return like if like in known_names() else ""


@lru_cache(maxsize=64)
def _patterns(family: str) -> frozenset[str]:
    groups = (group for one in (like_family(family), TEXT_ENCODERS) for group in known_names()[one])
    return frozenset(pattern_of(prefix + name) for group in groups for prefix in group["prefixes"] for name in group["names"])


@lru_cache(maxsize=1 << 16)
def is_known(spelling: str, family: str) -> bool:
    """Whether ComfyUI's loader knows a module, or a tensor, of a family by this name."""
    return pattern_of(spelling) in _patterns(family)


@lru_cache(maxsize=1 << 16)
def _spelling(key: str) -> str | None:
    match = _KEY.match(key)
    return match and match[1]


@once_per_layout
def left_out(layout: Layout, family: str) -> tuple[str, ...]:
    """Keys that ComfyUI's loader takes nothing from; none where it is not known what it knows of the family."""
    if not like_family(family):
        return ()
    keys = layout.tensors
    converted = _converter(keys)

    def taken(key: str) -> bool:
        name = _spelling(converted(key))
        # A norm's bias is looked for where its weight is.
        return name is not None and is_known(name, family) and (not key.endswith(".b_norm") or f"{name}.w_norm" in keys)

    return tuple(key for key in keys if not taken(key))


def _converter(keys: Collection[str]):
    """key -> what the loader makes of it first, of the three kinds of files that it translates."""
    if all(key in keys for key in _CONTROL):
        return lambda key: f"diffusion_model.{key.replace('.lora_B.bias', '.diff_b').replace('_norm.scale', '_norm.set_weight')}"
    if _WAN_FUN in keys:
        return lambda key: key.replace("lora_unet__", "lora_unet_", 1)
    if all(key in keys for key in _USO):
        return lambda key: _OF_USO.sub("diffusion_model.single_blocks.0.linear2.lora_", key)
    return lambda key: key


@once_per_layout
def loading(layout: Layout, family: str) -> str:
    """What ComfyUI's loader does not take of a file, and why, for a person; "" where it takes all, or that is not known."""
    left = left_out(layout, family)
    if not left:
        return ""
    first = next((key for key in left if label_of(key)), left[0])
    weights = [key for key in layout.tensors if not key.endswith(".alpha")]
    all_left = set(weights) <= set(left)
    if _spelling(first):
        kind = "the text encoder" if split_text_encoder(first) else family
        why = f"its loader knows no module of {kind} by the name in {first}; Convert LoRA writes names that it knows"
    elif split_key(first):
        why = f"its loader does not look for {label_of(first) or 'such'} weights under {first}"
    else:
        why = f"its loader does not know what {first} is"
    if all_left:
        return f"ComfyUI cannot load this file, because {why}."
    return f"ComfyUI leaves out {len(left)} of its {len(layout.tensors)} tensors, because {why}."
