"""A look at a LumiX adapter while it is trained: the maps that are sampled for a scene's caption, above those of the scene."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from einops import rearrange

from ...methods.lumix.design import KINDS, Design
from ...methods.lumix.schedule import published_shift, shifted_sigmas
from ..backbones.backbone import TextEmbeddings
from ..intrinsic_lora.latents import vae_latents
from ..look import Sample, looked_at, true_pictures
from ..pairs import CaptionedSource
from .network import MapDenoiser
from .sample import sample_maps

# Enough to see what is learnt: a look shall cost little.
STEPS = 8


def maps_look(
    denoiser: MapDenoiser, design: Design, vae: AutoencoderKL, shown: CaptionedSource, latent_shape: torch.Size, text: TextEmbeddings
) -> Callable[[], Sample]:
    """What shows the maps.

    shown: whose row 0 is shown (`look.shown_source`). latent_shape: c, h, w. text: of its caption, n = 1. The VAE is on the network's
    device only while it decodes.
    """
    device = next(denoiser.parameters()).device
    true = true_pictures(shown, [KINDS[name] for name in design.maps])
    tokens = latent_shape[1] * latent_shape[2] // denoiser.flow.patch**2

    def look() -> Sample:
        noise = torch.randn(1, *latent_shape, generator=torch.Generator().manual_seed(0)).to(device)
        [latents] = sample_maps(denoiser, design, noise, text.to(device), shifted_sigmas(STEPS, published_shift(tokens)))
        vae.to(device)
        decoded = [vae.decode(vae_latents(vae, latent)).sample.float().cpu() for latent in latents.split(1)]
        vae.to("cpu")
        pictures = [rearrange(one, "b c h w -> b h w c") / 2 + 0.5 for one in decoded]
        learnt = {f"{name} so far": looked_at(KINDS[name], one) for name, one in zip(design.maps, pictures, strict=True)}
        return [learnt, {f"true {name}": true[KINDS[name]] for name in design.maps}]

    return look
