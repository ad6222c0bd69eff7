"""The diffusers base that a joint LoRA is trained on: SD 1.x / 2.x, SDXL or PixArt-alpha, and what its text encoders say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor

# Captions encoded at once.
_CAPTIONS = 16


@dataclass(frozen=True)
class TextEmbeddings:
    """Of n texts. context [n, token, dim]; mask [n, token] where the base has one (PixArt); pooled [n, dim] where it has one (SDXL)."""

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def rows(self, rows: Tensor) -> "TextEmbeddings":
        """A selection, repetitions allowed."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> "TextEmbeddings":
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextEmbeddings":
        mask, pooled = (None if part is None else change(part) for part in (self.mask, self.pooled))
        return TextEmbeddings(change(self.context), mask, pooled)


@dataclass(frozen=True)
class DiffusionBase:
    """network: UNet or PixArt transformer; vae: of pictures; scheduler: the noise schedule the base was trained with."""

    pipeline: DiffusionPipeline
    network: UNet2DConditionModel | PixArtTransformer2DModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler


def load_diffusion_base(folder: Path) -> DiffusionBase:
    """Read a diffusers folder in float32, frozen. Raises ValueError for models this method does not support."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} has no model_index.json: give a model in diffusers format (SD 1.x, SD 2.x, SDXL or PixArt-alpha).")
    files = [path.name for path in folder.glob("*/diffusion_pytorch_model*.safetensors")]
    only_half = bool(files) and all(".fp16." in name for name in files)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, variant="fp16" if only_half else None).to(torch.float32)
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, (UNet2DConditionModel, PixArtTransformer2DModel)):
        raise ValueError(f"{folder.name} is a {type(pipeline).__name__}: SD 1.x, SD 2.x, SDXL or PixArt-alpha was expected.")
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{folder.name} predicts {scheduler.config.prediction_type!r}: a base that predicts noise or velocity was expected."
        )
    return DiffusionBase(pipeline, network, pipeline.vae, scheduler)


@torch.no_grad()
def encode_captions(
    pipeline: DiffusionPipeline, captions: Sequence[str], on_encoded: Callable[[str, int, int], None] | None = None
) -> TextEmbeddings:
    """What the pipeline's own text encoders make of the captions, float32 on the CPU. on_encoded: see `intrinsic_lora.latents`."""
    contexts, masks, pooleds = [], [], []
    for start in range(0, len(captions), _CAPTIONS):
        texts = list(captions[start : start + _CAPTIONS])
        encoded = pipeline.encode_prompt(texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
        name = type(pipeline).__name__
        if name.startswith("StableDiffusionXL"):
            context, _, pooled, _ = encoded
            pooleds.append(pooled)
        elif name.startswith("PixArt"):
            context, mask, *_ = encoded
            masks.append(mask)
        else:
            context, *_ = encoded
        contexts.append(context)
        if on_encoded is not None:
            on_encoded("captions", start + len(texts), len(captions))

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.float().cpu() for part in parts])

    return TextEmbeddings(joined(contexts), joined(masks) if masks else None, joined(pooleds) if pooleds else None)


def conditions(network: UNet2DConditionModel | PixArtTransformer2DModel, text: TextEmbeddings, size: int) -> dict:
    """Keyword arguments of the network's forward for square pictures of `size` pixels."""
    context = text.context
    rows = context.shape[0]
    if isinstance(network, PixArtTransformer2DModel):
        extra = {"resolution": None, "aspect_ratio": None}
        if network.config.use_additional_conditions or (
            network.config.use_additional_conditions is None and network.config.sample_size == 128
        ):
            extra = {"resolution": context.new_full((rows, 2), size), "aspect_ratio": context.new_ones(rows, 1)}
        return {"encoder_hidden_states": context, "encoder_attention_mask": text.mask, "added_cond_kwargs": extra}
    if network.config.addition_embed_type == "text_time":
        time_ids = context.new_tensor([size, size, 0, 0, size, size]).expand(rows, -1)
        return {"encoder_hidden_states": context, "added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": time_ids}}
    return {"encoder_hidden_states": context}
