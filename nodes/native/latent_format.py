"""How a model's latents relate to its VAE's: number of channels, scale and shift, and colours for previews."""

import comfy.latent_formats
import comfy.sd
import torch
from comfy.latent_formats import LatentFormat
from torch import Tensor

PUBLISHED = (comfy.latent_formats.SD15, comfy.latent_formats.SDXL, comfy.latent_formats.Flux)
PROBE_SIZE = 4


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


def latent_format_of(vae_config: dict, vae: comfy.sd.VAE) -> LatentFormat:
    """The latent format of an AutoencoderKL: the published one that fits (with its preview colours), else one measured on `vae`."""
    channels = vae_config.get("latent_channels", 4)
    scale = vae_config.get("scaling_factor") or 1.0
    shift = vae_config.get("shift_factor") or 0.0
    downscale = 2 ** (len(vae_config["block_out_channels"]) - 1)
    for published in PUBLISHED:
        known = published()
        if (channels, scale, shift, downscale) == (known.latent_channels, known.scale_factor, getattr(known, "shift_factor", 0.0), 8):
            return known
    latent_format = AnyLatent(channels, scale, shift, downscale)
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = preview_colors(latent_format, vae)
    return latent_format


@torch.no_grad()
def preview_colors(latent_format: LatentFormat, vae: comfy.sd.VAE) -> tuple[list[list[float]], list[float]]:
    """Colour, -1 to 1, per unit of each latent channel (`[channels][3]`) and of a zero latent (`[3]`): the decoder's own central differences."""
    unit = torch.eye(latent_format.latent_channels)
    probes = torch.cat([torch.zeros_like(unit[:1]), unit, -unit])[:, :, None, None].expand(-1, -1, PROBE_SIZE, PROBE_SIZE)
    colors = vae.decode(latent_format.process_out(probes)).float().mean(dim=(1, 2))
    zero, plus, minus = colors[0], *colors[1:].chunk(2)
    return (plus - minus).tolist(), (2 * zero - 1).tolist()
