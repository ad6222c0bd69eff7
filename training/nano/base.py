"""The nano UNet and text encoder, trained together as a latent diffusion model of the pictures of `scenes` (never of their maps)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..atomic import write_atomically
from ..scene_pictures import ROOM, PicturePool
from .vae import LATENT_CHANNELS

EMPTY_PROMPT_SHARE = 0.1


def build_unet():
    """UNet2DConditionModel of 6.9 M parameters, 3 levels with attention.

    Residual branches and the output begin at zero, as in Rombach et al. 2022.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=64,
        attention_head_dim=2,
    )
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def build_scheduler():
    """Stable Diffusion 1's noise schedule, noise prediction."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


@dataclass(frozen=True)
class LatentCaptions:
    """Latents `[n, c, h, w]` of pictures and the token ids `[n, 77]` of their captions; `empty_tokens` `[77]`."""

    latents: Tensor
    tokens: Tensor
    empty_tokens: Tensor


@torch.no_grad()
def encode_pictures(vae, seeds: Sequence[int], cache: Path, size: int = 128, kind: str = ROOM) -> tuple[Tensor, list[str]]:
    """Latents (mode) of the pictures of `seeds`, kept in `cache` so that a resumed run does not encode twice; and their captions.

    Latents of other scenes, such as an earlier version of a kind drew them, are encoded again.
    """
    from ...scenes import sample_scenes

    captions = list(sample_scenes(seeds, kind=kind).captions)
    drawn = {"captions": hashlib.sha256("\n".join(captions).encode()).hexdigest()}
    if cache.exists():
        with safe_open(cache, "pt") as kept:
            if kept.metadata() == drawn:
                return kept.get_tensor("latents"), captions
    parts = []
    for start in range(0, len(seeds), 64):
        pool = PicturePool.render(seeds[start : start + 64], size, ("image",), kind)
        pictures = pool.latents_input(0, slice(None)).contiguous(memory_format=torch.channels_last)
        parts += [vae.encode(part.to(vae.device)).latent_dist.mode().cpu() for part in pictures.split(16)]
    latents = torch.cat(parts).contiguous()
    write_atomically(cache, lambda path: save_file({"latents": latents}, path, drawn))
    return latents, captions


def tokenize(tokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids `[n, 77]`, padded with the end token as Stable Diffusion does."""
    return tokenizer(list(texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


class NoisePrediction(nn.Module):
    """UNet and text encoder as one module, so that one optimiser trains both."""

    def __init__(self, unet, text_encoder):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy_bchw: Tensor, timestep_b: Tensor, tokens: Tensor) -> Tensor:
        context = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy_bchw, timestep_b, context).sample


class BaseTask:
    """Noise mean squared error (Ho et al. 2020, eq. 14) with prompts left out one time in ten."""

    first_timestep = 0

    def __init__(self, unet, text_encoder, data: LatentCaptions, batch: int):
        self.module = NoisePrediction(unet, text_encoder)
        self.data, self.batch, self.scheduler = data, batch, build_scheduler()

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.data.latents), (self.batch,), generator=draw)
        latents, tokens = self.data.latents[rows], self.data.tokens[rows]
        empty = torch.rand(self.batch, generator=draw) < EMPTY_PROMPT_SHARE
        tokens = torch.where(empty[:, None], self.data.empty_tokens, tokens)
        timestep = torch.randint(self.first_timestep, 1000, (self.batch,), generator=draw)
        noise = torch.randn(latents.shape, generator=draw)
        device = next(module.parameters()).device
        latents, tokens, timestep, noise = (values.to(device) for values in (latents, tokens, timestep, noise))
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        return functional.mse_loss(module(noisy, timestep, tokens).float(), noise)

    def save(self, folder: Path) -> None:
        self.module.unet.save_pretrained(folder / "unet")
        self.module.text_encoder.save_pretrained(folder / "text_encoder")
