"""How a model's latents relate to its VAE's: number of channels, scale and shift, and colours for previews."""

from collections.abc import Iterable

import comfy.sd
import torch
from comfy.latent_formats import LatentFormat
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from .vae import latent_channels, pixels_per_latent

PROBES = 8
PROBE_SIZE = 8


class AnyLatent(LatentFormat):
    """Latents of any VAE: model latent = (VAE latent - shift) * scale."""

    def __init__(self, channels: int, scale: float, shift: float, downscale: int):
        self.latent_channels = channels
        self.scale_factor = scale
        self.shift_factor = shift
        self.spacial_downscale_ratio = downscale

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor


def latent_format_of(vae_config: dict, vae: comfy.sd.VAE, published_formats: Iterable[type[LatentFormat]]) -> LatentFormat:
    """The latent format of a VAE: the published one that fits (with its preview colours), else one measured on `vae`."""
    channels, downscale = latent_channels(vae_config), pixels_per_latent(vae_config)
    scale = vae_config.get("scaling_factor") or 1.0
    shift = vae_config.get("shift_factor") or 0.0
    for published in published_formats:
        known = published()
        of_known = known.latent_channels, known.scale_factor, getattr(known, "shift_factor", 0.0), known.spacial_downscale_ratio
        if (channels, scale, shift, downscale) == of_known:
            return known
    latent_format = AnyLatent(channels, scale, shift, downscale)
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = preview_colors(latent_format, vae)
    return latent_format


@torch.no_grad()
def preview_colors(latent_format: LatentFormat, vae: comfy.sd.VAE) -> tuple[list[list[float]], list[float]]:
    """Colours, -1 to 1, that a preview draws: `[channels][3]` per unit of each latent channel, and `[3]` of a zero latent.

    Least squares over what the decoder itself makes of smooth random latents, which have about the statistics of a model's.
    """
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(PROBES, latent_format.latent_channels, PROBE_SIZE // 2, PROBE_SIZE // 2, generator=draw)
    probes = functional.interpolate(coarse, scale_factor=2, mode="bilinear") + 0.5 * torch.randn(
        PROBES, latent_format.latent_channels, PROBE_SIZE, PROBE_SIZE, generator=draw
    )
    pictures = vae.decode(latent_format.process_out(probes)).float().cpu()
    colors = reduce(pictures, "b (h p) (w q) rgb -> (b h w) rgb", "mean", h=PROBE_SIZE, w=PROBE_SIZE) * 2 - 1
    latents = rearrange(probes, "b c h w -> (b h w) c")
    solution = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], dim=1), colors).solution
    return solution[:-1].tolist(), solution[-1].tolist()
