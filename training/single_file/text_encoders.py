"""CLIP, OpenCLIP and T5 as checkpoint files hold them, and the tokenizers, which no such file holds."""

import importlib.util
import os
import re
from pathlib import Path

from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .checkpoint import Checkpoint, Shapes, count, filled

_CLIP_WEIGHTS = ("embeddings.", "encoder.", "final_layer_norm.")
# Of a head, in all published ones.
_HEAD_WIDTH = 64
_PACK = Path(__file__).resolve().parents[2]
_OPEN_CLIP = {
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.": "self_attn.",
}
_OPEN_CLIP_PATTERN = "|".join(map(re.escape, _OPEN_CLIP))


def load_clip(checkpoint: Checkpoint, prefix: str) -> CLIPTextModel:
    """OpenAI's CLIP, in transformers' layout below `prefix`. Raises ValueError without one."""
    weights = {name.removeprefix("text_model."): weight for name, weight in checkpoint.weights(prefix).items()}
    # Buffers of older files, and what core saves beside them.
    weights = {name: weight for name, weight in weights.items() if name.startswith(_CLIP_WEIGHTS) and not name.endswith("position_ids")}
    return _clip(checkpoint, weights, "quick_gelu", None)


def load_open_clip(checkpoint: Checkpoint, prefix: str, *, without_last: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    """OpenCLIP below `prefix`, with its projection; without_last: SD 2.x's, which hears the last layer but one and has no projection."""
    weights = {}
    for name, weight in checkpoint.weights(prefix).items():
        name = re.sub(_OPEN_CLIP_PATTERN, lambda found: _OPEN_CLIP[found[0]], name)
        if ".in_proj_" in name:
            for which, part in zip("qkv", weight.chunk(3), strict=True):
                weights[name.replace("in_proj_", f"{which}_proj.")] = part
        elif name == "text_projection":
            weights["text_projection.weight"] = weight.T.contiguous()
        elif name != "logit_scale":
            weights[name] = weight
    if not without_last:
        return _clip(checkpoint, weights, "gelu", weights.get("text_projection.weight"))
    last = f"encoder.layers.{count(weights, 'encoder.layers.{}.layer_norm1.weight') - 1}."
    kept = {name: weight for name, weight in weights.items() if not name.startswith((last, "text_projection."))}
    return _clip(checkpoint, kept, "gelu", None)


def _clip(checkpoint: Checkpoint, weights: dict[str, Tensor], activation: str, projection: Tensor | None) -> CLIPTextModel:
    if "embeddings.token_embedding.weight" not in weights:
        raise ValueError(f"{checkpoint.path.name} holds no text encoder: take a whole checkpoint, or the model in diffusers format.")
    vocabulary, width = weights["embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count(weights, "encoder.layers.{}.layer_norm1.weight"),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        max_position_embeddings=weights["embeddings.position_embedding.weight"].shape[0],
        hidden_act=activation,
        projection_dim=width if projection is None else projection.shape[0],
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    with init_empty_weights():
        expected = kind(config).state_dict()
    # transformers' versions differ in whether a plain text model's weights have a prefix.
    prefix = "text_model." if "text_model.final_layer_norm.weight" in expected else ""
    named = {name if name.startswith("text_projection.") else f"{prefix}{name}": weight for name, weight in weights.items()}
    return filled(lambda: kind(config), named, checkpoint.path, "text encoder")


def load_t5(checkpoint: Checkpoint, prefix: str) -> T5EncoderModel:
    """T5's encoder below `prefix`. Raises ValueError without one."""
    weights = checkpoint.weights(prefix)
    if "shared.weight" not in weights:
        raise ValueError(f"{checkpoint.path.name} holds no T5: take a checkpoint with all text encoders, or FLUX.1 in diffusers format.")
    shapes: Shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    (vocabulary, width), first = shapes["shared.weight"], "encoder.block.0.layer"
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        num_layers=count(shapes, "encoder.block.{}.layer.0.layer_norm.weight"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    return filled(lambda: T5EncoderModel(config), weights, checkpoint.path, "T5")


def _comfyui() -> Path:
    """The folder of ComfyUI's package `comfy`, which brings the tokenizers: the ComfyUI around the pack, or COMFYUI_PATH."""
    named = os.environ.get("COMFYUI_PATH")
    found = importlib.util.find_spec("comfy")
    origins = [Path(named) / "comfy"] if named else []
    origins += [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    origins.append(_PACK.parents[1] / "comfy")
    for folder in origins:
        if (folder / "sd1_tokenizer").is_dir():
            return folder
    raise ValueError(
        "a checkpoint file holds no tokenizer and no ComfyUI was found to take it from: set COMFYUI_PATH to ComfyUI's folder, or give the "
        "base in diffusers format."
    )


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's, ComfyUI's copy. pad: what fills a text; OpenCLIP's is "!". Raises ValueError where no ComfyUI is found."""
    return CLIPTokenizer.from_pretrained(_comfyui() / "sd1_tokenizer", model_max_length=77, pad_token=pad, local_files_only=True)


def t5_tokenizer() -> T5TokenizerFast:
    """T5's, ComfyUI's copy. Raises ValueError where no ComfyUI is found."""
    return T5TokenizerFast.from_pretrained(_comfyui() / "text_encoders/t5_tokenizer", model_max_length=512, local_files_only=True)
