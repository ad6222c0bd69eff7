"""The single-step recipe on a diffusers network: how a trained adapter is judged, and what the nodes must equal."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin
from einops import rearrange
from torch import Tensor, nn

from ...methods.intrinsic_lora.recipe import RAW, READINGS
from ...methods.maps import MAPS
from ..backbones import single_step_in, single_step_of
from ..backbones.backbone import SingleStepBase, TextEmbeddings
from .latents import downscale, model_latents, vae_latents


def load_base(folder: Path, init: str = "trained", seed: int = 0) -> SingleStepBase:
    """Read a base (`bases`) in float32; init "random" gives the network fresh weights drawn with `seed`. Raises ValueError."""
    return single_step_in(folder).load(folder, init, seed)


def map_latent(network: nn.Module, latent_bchw: Tensor, text: TextEmbeddings, reading: str = RAW) -> Tensor:
    """The latent of the map, read (by one of READINGS) from the network's raw output for clean latents."""
    return READINGS[reading](single_step_of(network).raw_output(network, latent_bchw, text), latent_bchw)


def require_whole_cells(vae: AutoencoderKL, pictures_bchw: Tensor, patch: int = 1) -> None:
    """Raises ValueError if the pictures' sides are no multiples of the VAE's factor, times `patch` latents along a network's token."""
    factor = downscale(vae) * patch
    height, width = pictures_bchw.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"pictures of {width} x {height} pixels came, both sides must be multiples of {factor}: crop or resize them.")


@torch.no_grad()
def predict_maps(
    network: ModelMixin,
    vae: AutoencoderKL,
    text: TextEmbeddings,
    pictures_bchw: Tensor,
    map_name: str,
    batch: int = 8,
    reading: str = RAW,
) -> Tensor:
    """Map data `bhwc` (float32, CPU; see `methods.maps`) of pictures in 0..1.

    text: embedding of MAPS[map_name].prompt (`SingleStepBase.embed`). reading: one of READINGS. Raises ValueError if the sides are no
    multiples of the VAE's factor: the nodes bring other sizes there and back.
    """
    require_whole_cells(vae, pictures_bchw, single_step_of(network).patch)
    text = text.to(network.device, network.dtype)
    decoded = []
    for part in pictures_bchw.split(batch):
        latent = model_latents(vae, vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode())
        predicted = map_latent(network, latent.to(network.device, network.dtype), text, reading)
        decoded.append(vae.decode(vae_latents(vae, predicted.to(vae.device))).sample.float().cpu())
    pictures = rearrange(torch.cat(decoded), "b c h w -> b h w c") / 2 + 0.5
    return MAPS[map_name].from_picture(pictures)
