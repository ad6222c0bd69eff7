"""The diffusers base that a joint LoRA is trained on, and what its text encoders say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, ModelMixin

from ..backbones import joint_denoising_of
from ..backbones.backbone import JointDenoising, TextEmbeddings
from ..bases import base_at
from ..pairs import OnEncoded

# Captions encoded at once.
_CAPTIONS = 16


@dataclass(frozen=True)
class DiffusionBase:
    """network: UNet or transformer; vae: of pictures; scheduler: of the noise the base was trained with; denoising: of its backbone."""

    pipeline: DiffusionPipeline
    network: ModelMixin
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    denoising: JointDenoising


def load_diffusion_base(path: Path) -> DiffusionBase:
    """Read a base in float32, frozen. Raises ValueError for models this method does not support."""
    pipeline = base_at(path).pipeline()
    network: ModelMixin = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    denoising = joint_denoising_of(network, path.name)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"{path.name} predicts {scheduler.config.prediction_type!r}: a base that predicts noise or velocity was expected.")
    return DiffusionBase(pipeline, network, pipeline.vae, scheduler, denoising)


@torch.no_grad()
def encode_captions(base: DiffusionBase, captions: Sequence[str], on_encoded: OnEncoded | None = None) -> TextEmbeddings:
    """What the base's own text encoders make of the captions, float32 on the CPU. on_encoded: see `pairs.OnEncoded`."""
    parts = []
    for start in range(0, len(captions), _CAPTIONS):
        texts = list(captions[start : start + _CAPTIONS])
        parts.append(base.denoising.encode(base.pipeline, texts))
        if on_encoded is not None:
            on_encoded("captions", start + len(texts), len(captions))
    return TextEmbeddings.joined(parts)
