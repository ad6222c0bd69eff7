"""Maps by multi-step sampling on a diffusers UNet: how multi-step adapters are judged, and what the nodes must equal."""

import torch
from diffusers import DPMSolverMultistepScheduler
from einops import rearrange
from torch import Tensor

from ...methods.intrinsic_lora.multi_step import Noise
from ...methods.maps import MAPS
from ..backbones import denoiser_of
from ..backbones.backbone import SingleStepBase
from .latents import model_latents, vae_latents
from .noise import scheduler_of
from .predict import require_whole_cells
from .widened import picture_in


@torch.no_grad()
def predict_maps_in_steps(
    base: SingleStepBase,
    noise: Noise,
    pictures_bchw: Tensor,
    map_name: str,
    *,
    steps: int = 25,
    guidance: float = 3.0,
    rescale: float = 0.7,
    strength: float = 1.0,
    seed: int = 0,
    batch: int = 8,
    prompt: str = "",
) -> Tensor:
    """Map data `bhwc` (float32, CPU; see `methods.maps`) of pictures in 0..1, by DPM-Solver++ (2M). The defaults are upstream's for AUG.

    base: with its adapter; a widened network sees the picture and starts from noise, another starts from the picture's latent. noise: as
    the adapter was trained (`noise_for`). guidance: away from the empty prompt, the picture in both; rescale: how far the guided output is
    brought to the unguided one's deviation. strength: without a widened network, the share of the timesteps that noise is added for, in
    whole steps. seed: of the noise, one for all pictures. prompt: the map's own where empty. Raises ValueError for impossible values and
    sides that are no multiples of the VAE's factor.
    """
    if steps < 1 or batch < 1 or not 0 < strength <= 1:
        raise ValueError(f"{steps} steps, batch {batch} and strength {strength} came: at least 1, at least 1, above 0 and at most 1.")
    network, vae = base.network, base.vae
    require_whole_cells(vae, pictures_bchw)
    denoise, sees_picture = denoiser_of(network), picture_in(network) is not None
    texts = [base.embed(words).to(network.device, network.dtype) for words in (prompt or MAPS[map_name].prompt, "")]
    decoded = []
    for part in pictures_bchw.split(batch):
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler_of(noise).config, algorithm_type="dpmsolver++")
        # Fewer of more steps: the first of them are left out.
        scheduler.set_timesteps(steps if sees_picture else int(steps / strength))
        timesteps = scheduler.timesteps[-steps:]
        scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))
        clean = vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode()
        drawn = torch.randn(clean[:1].shape, generator=torch.Generator().manual_seed(seed)).expand(clean.shape).to(clean)
        latent = drawn if sees_picture else scheduler.add_noise(model_latents(vae, clean), drawn, timesteps[:1].expand(len(clean)))
        for timestep in timesteps:
            seen = torch.cat([latent, clean], dim=1) if sees_picture else latent
            rows = [denoise(network, seen.to(network.dtype), timestep.to(network.device), words) for words in texts[: 1 + (guidance != 1)]]
            latent = scheduler.step(guided(*rows, guidance=guidance, rescale=rescale), timestep, latent).prev_sample
        decoded.append(vae.decode(vae_latents(vae, latent)).sample.float().cpu())
    return MAPS[map_name].from_picture(rearrange(torch.cat(decoded), "b c h w -> b h w c") / 2 + 0.5)


def guided(with_text: Tensor, without: Tensor | None = None, *, guidance: float, rescale: float) -> Tensor:
    """Classifier-free guidance, its deviation in each picture brought back by `rescale` (Lin et al. 2024, section 3.4)."""
    if without is None:
        return with_text
    output = without + guidance * (with_text - without)
    dims = (1, 2, 3)
    ratio = with_text.std(dims, keepdim=True) / output.std(dims, keepdim=True)
    return output * (rescale * ratio + 1 - rescale)
