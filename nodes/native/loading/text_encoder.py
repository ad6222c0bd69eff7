"""The text encoders of a diffusers folder (CLIPs, T5, Qwen3, Gemma 2) as a native CLIP, with their own vocabulary if they have one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import torch
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from .folder_files import (
    MOST_LAYERS,
    ModelFolderError,
    describe,
    read_config,
    read_json,
    read_weights,
    require_finite,
    require_numbers,
    require_options,
    require_same_weights,
)

CLIP_VOCABULARY = 49408
T5_VOCABULARY = 32100
# As ComfyUI's own T5 tokenizers: prompts are never cut, and padded to this.
T5_ANY_LENGTH, T5_PADDED_LENGTH = 99999999, 256
CLIP_OPTIONS = {
    "layer_norm_eps": (1e-5,),
    "hidden_act": ("quick_gelu", "gelu", "gelu_pytorch_tanh"),
}
CLIP_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
T5_OPTIONS = {
    "model_type": ("t5",),
    "layer_norm_epsilon": (1e-6,),
    "relative_attention_num_buckets": (32,),
    "relative_attention_max_distance": (128,),
}
T5_SIZES = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size")
QWEN3_OPTIONS = {"hidden_act": ("silu",), "head_dim": (128,), "attention_bias": (False,), "vocab_size": (151936,)}
GEMMA2_OPTIONS = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "head_dim": (256,),
    "query_pre_attn_scalar": (256,),
    "attention_bias": (False,),
}
# Of a tokenizer's sentence pieces, in bytes: Gemma's are 4 MB.
MOST_PIECES = 1 << 26
LANGUAGE_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "num_hidden_layers",
)
# transformers' name -> ComfyUI's name of the same function.
T5_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "relu": "relu"}


@dataclass(frozen=True)
class TextPart:
    """One text encoder: ComfyUI's name for it, and its folders. pieces: the tokenizer's file of sentence pieces, if ComfyUI has none."""

    name: str
    folder: str
    tokenizer: str
    tokenizer_name: str = ""
    pieces: str = ""

    @property
    def is_clip(self) -> bool:
        return self.name.startswith("clip")

    @property
    def is_language_model(self) -> bool:
        return self.name.startswith(("qwen3", "gemma2"))

    @property
    def tokenizer_attribute(self) -> str:
        """Under which name ComfyUI's tokenizer keeps this encoder's one."""
        return self.tokenizer_name or self.name


CLIP_L = TextPart("clip_l", "text_encoder", "tokenizer")


@dataclass(frozen=True)
class TextFamily:
    """The text encoders of a model family, and ComfyUI's tokenizer and model for them.

    fewest_layers: of each encoder, where the model reads it before its last layer.
    """

    parts: tuple[TextPart, ...]
    tokenizer: Callable
    model: Callable[..., nn.Module]
    fewest_layers: int = 1


def _require_sizes(config: dict, sizes: Sequence[str], layers: str, part: str) -> None:
    require_numbers(config, sizes, part)
    require_numbers(config, (layers,), part, MOST_LAYERS, least=0)


def _require_fit(native: dict, weights: dict[str, Tensor], part: TextPart) -> None:
    """Check the sizes of a config against the weights, before memory is taken by what the config says."""
    if part.is_clip:
        wide, positions = native["hidden_size"], native["max_position_embeddings"]
        told = {
            "text_model.embeddings.token_embedding.weight": (native["vocab_size"], wide),
            "text_model.embeddings.position_embedding.weight": (positions, wide),
            "text_model.encoder.layers.0.mlp.fc1.weight": (native["intermediate_size"], wide),
        }
    elif part.is_language_model:
        wide = native["hidden_size"]
        told = {
            "model.embed_tokens.weight": (native["vocab_size"], wide),
            "model.layers.0.mlp.gate_proj.weight": (native["intermediate_size"], wide),
        }
    else:
        wide = native["d_model"]
        told = {
            "shared.weight": (native["vocab_size"], wide),
            "encoder.block.0.layer.0.SelfAttention.q.weight": (native["num_heads"] * native["d_kv"], wide),
            "encoder.block.0.layer.1.DenseReluDense.wo.weight": (wide, native["d_ff"]),
        }
    require_same_weights({name: torch.empty(shape, device="meta") for name, shape in told.items()}, weights, part.folder)


def clip_config(config: dict, part: str) -> dict:
    """The entries of a CLIP text encoder's config.json that ComfyUI reads."""
    require_options(config, CLIP_OPTIONS, part)
    _require_sizes(config, (*CLIP_SIZES, "vocab_size"), "num_hidden_layers", part)
    return {"hidden_act": config.get("hidden_act", "quick_gelu"), **{name: config[name] for name in CLIP_SIZES}}


def t5_config(config: dict, part: str) -> dict:
    """The entries of a T5 encoder's config.json that ComfyUI reads."""
    require_options(config, T5_OPTIONS, part)
    _require_sizes(config, T5_SIZES, "num_layers", part)
    projection = config.get("feed_forward_proj", "relu")
    gated = config.get("is_gated_act", projection.startswith("gated"))
    activation = config.get("dense_act_fn") or ("gelu_new" if projection == "gated-gelu" else projection.split("-")[-1])
    if activation not in T5_ACTIVATIONS:
        raise ModelFolderError(f"The {part} uses {activation}; {' or '.join(T5_ACTIVATIONS)} was expected: it cannot be loaded natively.")
    sizes = {name: config[name] for name in T5_SIZES}
    return {"dense_act_fn": T5_ACTIVATIONS[activation], "is_gated_act": bool(gated), "model_type": "t5", **sizes}


def language_config(config: dict, part: TextPart) -> dict:
    """The entries of a Qwen3's or Gemma 2's config.json that ComfyUI reads."""
    is_qwen = part.name.startswith("qwen3")
    require_options(config, QWEN3_OPTIONS if is_qwen else GEMMA2_OPTIONS, part.folder)
    _require_sizes(config, (*LANGUAGE_SIZES[:-1], "vocab_size"), "num_hidden_layers", part.folder)
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    numbers = {"rms_norm_eps": config.get("rms_norm_eps", 1e-6), "rope_theta": theta or (1_000_000.0 if is_qwen else 10_000.0)}
    require_finite(numbers, numbers, part.folder)
    return {name: config[name] for name in LANGUAGE_SIZES} | numbers


def _native_weights(weights: dict[str, Tensor], part: TextPart) -> dict[str, Tensor]:
    """Weights under ComfyUI's names, which are transformers' up to version 4."""
    if part.is_language_model:
        # What says the next word is not asked.
        return {f"model.{name.removeprefix('model.')}": weight for name, weight in weights.items() if name != "lm_head.weight"}
    if not part.is_clip:
        return {name: weight for name, weight in weights.items() if name != "encoder.embed_tokens.weight"}
    if any(name.startswith("embeddings.") for name in weights):
        weights = {name if name.startswith("text_projection.") else f"text_model.{name}": weight for name, weight in weights.items()}
    return {name: weight for name, weight in weights.items() if not name.endswith("position_ids")}


def own_tokenizer(folder: Path, part: TextPart, config: dict, embeddings: list[str]) -> comfy.sd1_clip.SDTokenizer:
    """Tokenizer of a CLIP with a vocabulary of its own, from the folder's vocab.json and merges.txt (CLIP's byte-pair encoding)."""
    path = folder / part.tokenizer
    if not ((path / "vocab.json").is_file() and (path / "merges.txt").is_file()):
        raise ModelFolderError(
            f"{part.folder} has a vocabulary of {config['vocab_size']} tokens, not CLIP's {CLIP_VOCABULARY}, so "
            f"{folder.name}/{part.tokenizer} must hold its own vocab.json and merges.txt: copy the folder again."
        )
    tokenizer = comfy.sd1_clip.SDTokenizer(
        str(path),
        max_length=config["max_position_embeddings"],
        embedding_directory=embeddings,
        embedding_size=config["hidden_size"],
        embedding_key=part.name,
        tokenizer_args={"local_files_only": True},
    )
    _require_known(tokenizer, folder, part, config)
    if tokenizer.tokenizer.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.tokenizer.pad_token_id
    return tokenizer


def own_t5_tokenizer(folder: Path, part: TextPart, config: dict, embeddings: list[str]) -> comfy.sd1_clip.SDTokenizer:
    """Tokenizer of a T5 with a vocabulary of its own, from the folder's tokenizer.json; prompts are padded to its model_max_length
    where that is less than ComfyUI's."""
    from transformers import T5TokenizerFast

    path = folder / part.tokenizer
    if not (path / "tokenizer.json").is_file():
        raise ModelFolderError(
            f"{part.folder} has a vocabulary of {config['vocab_size']} tokens, fewer than T5's {T5_VOCABULARY}, so "
            f"{folder.name}/{part.tokenizer} must hold its own tokenizer.json: copy the folder again."
        )
    tokenizer = comfy.sd1_clip.SDTokenizer(
        str(path),
        max_length=T5_ANY_LENGTH,
        min_length=min(T5_PADDED_LENGTH, read_json(path / "tokenizer_config.json").get("model_max_length", T5_PADDED_LENGTH)),
        pad_with_end=False,
        has_start_token=False,
        pad_to_max_length=False,
        embedding_directory=embeddings,
        embedding_size=config["d_model"],
        embedding_key=part.name,
        tokenizer_class=T5TokenizerFast,
        tokenizer_args={"local_files_only": True},
    )
    _require_known(tokenizer, folder, part, config)
    return tokenizer


def sentence_pieces(folder: Path, part: TextPart, config: dict) -> Tensor:
    """A tokenizer's file of sentence pieces as bytes. Raises ModelFolderError where it is missing, damaged or of another encoder."""
    import sentencepiece

    path = folder / part.tokenizer / part.pieces
    if not path.is_file() or not 0 < path.stat().st_size <= MOST_PIECES:
        raise ModelFolderError(f"{folder.name}/{part.tokenizer} has no {part.pieces} of a usual size: copy the folder again.")
    data = path.read_bytes()
    try:
        count = sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size()
    except RuntimeError as error:
        raise ModelFolderError(f"{describe(path)} is damaged ({str(error)[:80]}): copy the folder again.") from None
    if count > config["vocab_size"]:
        raise ModelFolderError(
            f"{folder.name}/{part.tokenizer} knows {count} tokens, {part.folder} knows {config['vocab_size']}: they do not belong together."
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _require_known(tokenizer: comfy.sd1_clip.SDTokenizer, folder: Path, part: TextPart, config: dict) -> None:
    if max(tokenizer.inv_vocab) >= config["vocab_size"]:
        raise ModelFolderError(
            f"{folder.name}/{part.tokenizer} has token {max(tokenizer.inv_vocab)}, {part.folder} knows {config['vocab_size']}: "
            "they do not belong together."
        )


def _fit_clip(
    encoder: comfy.sd1_clip.SDClipModel, config: dict, projection: Tensor | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Resize the two layers of ComfyUI's CLIP whose size it does not read from the config."""
    transformer, make = encoder.transformer, encoder.operations
    if config["vocab_size"] != CLIP_VOCABULARY:
        transformer.set_input_embeddings(make.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device))
    if projection is not None and projection.shape[0] != config["hidden_size"]:
        transformer.text_projection = make.Linear(config["hidden_size"], projection.shape[0], bias=False, dtype=dtype, device=device)
    transformer.requires_grad_(False)


def load_clip(
    folder: Path, title: str, text: TextFamily, embeddings: list[str], dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """CLIP from a model folder. title: of the model family, for errors; embeddings: folders of textual inversions.

    dtype: in which the weights are kept; None leaves the choice to ComfyUI (half precision; it always computes in float32).
    """
    configs, weights, tokenizers, pieces = {}, {}, {}, {}
    for part in text.parts:
        config = read_config(folder / part.folder)
        if part.is_language_model:
            native = language_config(config, part)
        else:
            native = (clip_config if part.is_clip else t5_config)(config, part.folder)
        configs[part] = {**native, "vocab_size": config.get("vocab_size", CLIP_VOCABULARY)}
        weights[part] = _native_weights(read_weights(folder / part.folder), part)
        if part.is_clip and configs[part]["vocab_size"] != CLIP_VOCABULARY:
            tokenizers[part] = own_tokenizer(folder, part, configs[part], embeddings)
        if part.name == "t5xxl" and configs[part]["vocab_size"] < T5_VOCABULARY:
            tokenizers[part] = own_t5_tokenizer(folder, part, configs[part], embeddings)
        if part.pieces:
            pieces["spiece_model"] = sentence_pieces(folder, part, configs[part])
        _require_fit(configs[part], weights[part], part)
    # A T5 is read after its last layer, whatever the others.
    if text.fewest_layers > min(config.get("num_hidden_layers", text.fewest_layers) for config in configs.values()):
        raise ModelFolderError(
            f"{title} reads its text encoders before their last layer: each must have {text.fewest_layers} layers or more."
        )

    def build_tokenizer(embedding_directory=None, tokenizer_data=None):
        tokenizer = text.tokenizer(embedding_directory=embedding_directory, tokenizer_data={**pieces, **(tokenizer_data or {})})
        for part in text.parts:
            if part in tokenizers:
                setattr(tokenizer, part.tokenizer_attribute, tokenizers[part])
            else:
                getattr(tokenizer, part.tokenizer_attribute).embedding_size = configs[part].get("hidden_size") or configs[part]["d_model"]
        return tokenizer

    def build_model(device="cpu", dtype=None, model_options=None):
        model = text.model(device=device, dtype=dtype, model_options=model_options or {})
        for part in text.parts:
            encoder = getattr(model, part.name)
            if part.is_clip:
                _fit_clip(encoder, configs[part], weights[part].get("text_projection.weight"), dtype, device)
            if part.is_clip and part in tokenizers:
                own = tokenizers[part]
                encoder.special_tokens = {"start": own.start_token, "end": own.end_token, "pad": own.pad_token}
        return model

    options: dict[str, Any] = {f"{part.name}_model_config": config for part, config in configs.items()}
    if dtype is not None:
        options["dtype"] = dtype
    target = ClipTarget(build_tokenizer, build_model)
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options, disable_dynamic=disable_dynamic)
    for module in clip.cond_stage_model.modules():
        module.can_assign_sd = clip.patcher.is_dynamic()
    for part in text.parts:
        _load_weights(getattr(clip.cond_stage_model, part.name), weights[part], part)
    return clip


def _load_weights(encoder: comfy.sd1_clip.SDClipModel, weights: dict[str, Tensor], part: TextPart) -> None:
    expected = encoder.transformer.state_dict()
    unknown = [name for name in weights if name not in expected]
    if unknown:
        raise ModelFolderError(
            f"{part.folder} holds {len(unknown)} weights that ComfyUI's {part.name} does not have, such as {unknown[0]}: "
            "config.json and the weights do not belong together, or it is another kind of text encoder."
        )
    projection = "text_projection.weight"
    if part.is_clip and projection not in weights:
        # An encoder saved without projection: its pooled output is the plain one.
        weights[projection] = torch.eye(expected[projection].shape[0], dtype=expected[projection].dtype)
    require_same_weights(expected, weights, part.folder)
    encoder.load_sd(weights)
