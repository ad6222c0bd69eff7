"""The single-step recipe on a diffusers UNet: how a trained adapter is judged, and what the nodes must equal."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn

from ...methods.maps import MAPS
from .config import TIMESTEP
from .latents import downscale, model_latents, vae_latents


def map_latent(unet: nn.Module, latent_bchw: Tensor, text_1td: Tensor) -> Tensor:
    """The UNet's raw output for clean latents at t = 999: the latent of the map."""
    return unet(latent_bchw, TIMESTEP, encoder_hidden_states=text_1td.expand(len(latent_bchw), -1, -1)).sample


@torch.no_grad()
def predict_maps(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_1td: Tensor, pictures_bchw: Tensor, map_name: str, batch: int = 8
) -> Tensor:
    """Map data `bhwc` (float32, CPU; see `methods.maps`) of pictures in 0..1.

    text_1td: embedding of MAPS[map_name].prompt (`Base.embed`). Raises ValueError if the sides are no multiples of the VAE's
    factor: the nodes bring other sizes there and back.
    """
    factor = downscale(vae)
    height, width = pictures_bchw.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"pictures of {width} x {height} pixels came, both sides must be multiples of {factor}: crop or resize them.")
    text_1td = text_1td.to(unet.device, unet.dtype)
    decoded = []
    for part in pictures_bchw.split(batch):
        latent = model_latents(vae, vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode())
        predicted = map_latent(unet, latent.to(unet.device, unet.dtype), text_1td)
        decoded.append(vae.decode(vae_latents(vae, predicted.to(vae.device))).sample.float().cpu())
    pictures = rearrange(torch.cat(decoded), "b c h w -> b h w c") / 2 + 0.5
    return MAPS[map_name].from_picture(pictures)
