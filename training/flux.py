"""A diffusers FLUX.1 folder as the trainers hold it: tokens, positions, text embeddings, and one prediction of the flow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from einops import rearrange
from torch import Tensor

PATCH = 2
# Captions encoded at once.
_CAPTIONS = 64


def pack(latent_bchw: Tensor) -> Tensor:
    """Latents as FLUX's tokens: 2 x 2 patches, channels first."""
    return rearrange(latent_bchw, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The latents `[b, c, height, width]` of tokens."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // PATCH, w=width // PATCH, p=PATCH, q=PATCH)


def position_ids(height: int, width: int) -> Tensor:
    """FLUX's positions `[tokens, 3]` of a latent of `height` x `width`: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height // PATCH), torch.arange(width // PATCH), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()


@dataclass(frozen=True)
class FluxText:
    """What FLUX is told of n texts: context `[n, token, dim]` (T5) and pooled `[n, dim]` (CLIP)."""

    context: Tensor
    pooled: Tensor

    def rows(self, rows: Tensor) -> "FluxText":
        """A selection, repetitions allowed."""
        return FluxText(self.context[rows], self.pooled[rows])

    def to(self, device: torch.device) -> "FluxText":
        return FluxText(self.context.to(device), self.pooled.to(device))


def predict_velocity(transformer, latent_bchw: Tensor, time_b: Tensor, text: FluxText, guidance: float = 3.5) -> Tensor:
    """The prediction of noise - latent at flow times 0..1, one per row (FLUX.1).

    guidance: told to models that have an embedding for it (FLUX.1-dev), ignored by others.
    """
    height, width = latent_bchw.shape[-2:]
    device, context = latent_bchw.device, text.context
    told = torch.full_like(time_b, guidance) if transformer.config.guidance_embeds else None
    tokens = transformer(
        hidden_states=pack(latent_bchw),
        encoder_hidden_states=context,
        pooled_projections=text.pooled,
        timestep=time_b,
        guidance=told,
        img_ids=position_ids(height, width).to(device),
        txt_ids=torch.zeros(context.shape[1], 3, device=device),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def draw_times(count: int, draw: torch.Generator) -> Tensor:
    """Flow times 0..1, logit-normal (Esser et al. 2024, section 3.1): the middle of the way is seen most."""
    return torch.randn(count, generator=draw).sigmoid()


@dataclass(frozen=True)
class FluxBase:
    """The frozen network and VAE of a diffusers FLUX.1 folder."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL


def load_flux_base(folder: Path, dtype: torch.dtype = torch.float32) -> FluxBase:
    """Read a diffusers FLUX.1 folder, the transformer in `dtype`, the VAE in float32. Raises ValueError for other folders."""
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part} folder: give a FLUX.1 model in diffusers format.")
    kind = FluxTransformer2DModel.load_config(folder / "transformer", local_files_only=True).get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(f"the transformer in {folder} is a {kind}, a FluxTransformer2DModel was expected: give a FLUX.1 model.")
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True, torch_dtype=dtype)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True, torch_dtype=torch.float32)
    for module in (transformer, vae):
        module.requires_grad_(False).eval()
    return FluxBase(transformer, vae)


@torch.no_grad()
def encode_texts(
    folder: Path,
    texts: Sequence[str],
    tokens: int = 512,
    device: torch.device | str = "cpu",
    on_encoded: Callable[[str, int, int], None] | None = None,
) -> FluxText:
    """What the text encoders of a FLUX.1 folder make of `texts`, float32 on the CPU; they are let go afterwards.

    tokens: length of T5's context, less where its tokenizer is made for less. on_encoded: see `intrinsic_lora.latents`.
    """
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", local_files_only=True, torch_dtype=torch.float32).to(device)
    t5 = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2", local_files_only=True, torch_dtype=torch.float32).to(device)
    words = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    pieces = T5TokenizerFast.from_pretrained(folder, subfolder="tokenizer_2", local_files_only=True)
    length = min(tokens, pieces.model_max_length)
    limits = {clip: min(words.model_max_length, clip.config.max_position_embeddings), t5: length}
    context, pooled = [], []
    for start in range(0, len(texts), _CAPTIONS):
        part = list(texts[start : start + _CAPTIONS])
        ids = {
            encoder: tokenizer(part, padding="max_length", max_length=limits[encoder], truncation=True, return_tensors="pt").input_ids
            for encoder, tokenizer in ((clip, words), (t5, pieces))
        }
        pooled.append(clip.eval()(ids[clip].to(device)).pooler_output.float().cpu())
        # Without a mask, as the pipelines do: what follows the text is part of what the model knows.
        context.append(t5.eval()(ids[t5].to(device)).last_hidden_state.float().cpu())
        if on_encoded is not None:
            on_encoded("captions", start + len(part), len(texts))
    return FluxText(torch.cat(context), torch.cat(pooled))
