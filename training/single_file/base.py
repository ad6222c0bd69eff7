"""A checkpoint file as a base: which kind it is, and its parts by the names they have in a diffusers folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase

from . import flux, unet
from .autoencoder import load_autoencoder
from .checkpoint import Checkpoint, open_checkpoint
from .text_encoders import clip_tokenizer, load_clip, load_open_clip, load_t5, t5_tokenizer

SD, SD2, SDXL, FLUX = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL", "FLUX.1"
Loader = Callable[[Checkpoint], nn.Module]
_FIRST = "model.diffusion_model."
_OPEN_CLIP = "cond_stage_model.model."
# SD 2.x's files do not say what they predict; in those that predict velocity these biases lie far apart (ComfyUI tells them so too).
_TELLING, _VELOCITY = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


def _autoencoder(scaling: float, shift: float | None = None) -> Loader:
    """scaling, shift: of the latents, which are fixed for a family and not in its files."""
    return partial(load_autoencoder, scaling=scaling, shift=shift)


# What a family's files hold, by the names of a diffusers folder.
_PARTS: dict[str, dict[str, Loader]] = {
    SD: {
        "unet": unet.load_unet,
        "vae": _autoencoder(0.18215),
        "text_encoder": partial(load_clip, prefix="cond_stage_model.transformer."),
    },
    SD2: {
        "unet": unet.load_unet,
        "vae": _autoencoder(0.18215),
        "text_encoder": partial(load_open_clip, prefix=_OPEN_CLIP, without_last=True),
    },
    SDXL: {
        "unet": unet.load_unet,
        "vae": _autoencoder(0.13025),
        "text_encoder": partial(load_clip, prefix="conditioner.embedders.0.transformer."),
        "text_encoder_2": partial(load_open_clip, prefix="conditioner.embedders.1.model."),
    },
    FLUX: {
        "transformer": flux.load_transformer,
        "vae": _autoencoder(0.3611, 0.1159),
        "text_encoder": partial(load_clip, prefix="text_encoders.clip_l.transformer."),
        "text_encoder_2": partial(load_t5, prefix="text_encoders.t5xxl.transformer."),
    },
}


def family_of(checkpoint: Checkpoint) -> str:
    """Which of the families that trainers take a file holds. Raises ValueError for others."""
    shapes = checkpoint.below(_FIRST)
    if any(name.endswith((".scale_weight", ".weight_scale", ".comfy_quant")) for name in shapes):
        raise ValueError(f"{checkpoint.path.name} holds quantised weights with scales: take the bf16 or fp16 checkpoint to train on.")
    if "input_blocks.0.0.weight" in shapes:
        if "label_emb.0.0.weight" in shapes:
            return SDXL
        return SD2 if checkpoint.below(_OPEN_CLIP) else SD
    if {"double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"} <= shapes.keys():
        return FLUX
    if "double_blocks.0.img_attn.qkv.weight" in checkpoint.shapes:
        raise ValueError(
            f"{checkpoint.path.name} holds a transformer alone: a checkpoint with VAE, CLIP and T5 is wanted, or FLUX.1 in diffusers "
            "format."
        )
    raise ValueError(
        f"{checkpoint.path.name} is no checkpoint of {', '.join(_PARTS)} (its first weight is {min(checkpoint.shapes, default='none')}): "
        "choose another file, or a model in diffusers format."
    )


class SingleFile:
    """A `bases.Base` of a file in models/checkpoints. Raises ValueError for a file that trainers cannot use."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.path)

    @cached_property
    def family(self) -> str:
        return family_of(self._checkpoint)

    def network_class(self, part: str) -> str | None:
        own, kind = ("transformer", "FluxTransformer2DModel") if self.family == FLUX else ("unet", "UNet2DConditionModel")
        return kind if part == own else None

    def module(self, kind: Any, part: str, dtype: torch.dtype = torch.float32) -> Any:
        """unet, transformer, vae, text_encoder or text_encoder_2 (kind: its class, which the file fixes)."""
        loader = _PARTS[self.family].get(part)
        if loader is None:
            raise ValueError(f"{self.path.name} is a {self.family} checkpoint, which has no {part}: choose another base.")
        return loader(replace(self._checkpoint, dtype=dtype))

    def tokenizer(self, kind: Any, part: str) -> PreTrainedTokenizerBase:
        """ComfyUI's copy of the family's tokenizer. Raises ValueError where there is no ComfyUI."""
        if part == "tokenizer_2" and self.family == FLUX:
            return t5_tokenizer()
        return clip_tokenizer("!") if self.family == SD2 or part == "tokenizer_2" else clip_tokenizer()

    def scheduler(self) -> DDPMScheduler:
        """The noise that the family was trained with, and what it predicts."""
        velocity = "v_pred" in self._checkpoint.shapes
        if self.family == SD2 and _TELLING in self._checkpoint.shapes:
            velocity |= float(self._checkpoint.weights(_TELLING)[""].std(correction=0)) > _VELOCITY
        return DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction" if velocity else "epsilon",
            rescale_betas_zero_snr="ztsnr" in self._checkpoint.shapes,
        )

    def pipeline(self) -> DiffusionPipeline:
        """Of a file with a UNet."""

        def module(part: str) -> Any:
            return self.module(None, part)

        parts = {name: module(name) for name in ("vae", "text_encoder", "unet")}
        parts |= {"tokenizer": self.tokenizer(None, "tokenizer"), "scheduler": self.scheduler()}
        if self.family == SDXL:
            second = {"text_encoder_2": module("text_encoder_2"), "tokenizer_2": self.tokenizer(None, "tokenizer_2")}
            return StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
        return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
