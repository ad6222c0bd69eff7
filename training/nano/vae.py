"""The nano VAE: 8 times smaller latents of 16 channels, trained on pictures and on maps."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...methods.maps import MAPS
from ..atomic import write_json
from ..autoencoder import reconstruction_loss, start_near_linear
from ..scene_pictures import PicturePool

LATENT_CHANNELS = 16


def build_vae():
    """AutoencoderKL of 0.8 M parameters, with random weights.

    One width throughout, so that the encoder needs no residual blocks at the large sizes: it is three strided convolutions
    and a middle block, which makes it several times cheaper than the usual one. 64 channels at least, because 32 groups of
    one channel would lose global colour.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 64, 64, 64),
        layers_per_block=0,
        latent_channels=LATENT_CHANNELS,
        sample_size=128,
        scaling_factor=1.0,
    )
    start_near_linear(vae)
    return vae


class VaeTask:
    """Reconstruction of random crops: L1, L1 of gradients (edges) and of 8 x 8 means (colour), and a weak KL term."""

    def __init__(self, vae, pool: PicturePool, batch: int = 8, crop: int = 64, decoder_only: bool = False):
        self.module, self.pool, self.batch, self.crop = vae, pool, batch, crop
        self.decoder_only = decoder_only
        if decoder_only:
            for part in (vae.encoder, vae.quant_conv):
                part.requires_grad_(False)

    def _crops(self, draw: torch.Generator) -> Tensor:
        kinds, scenes, _, height, width = self.pool.pictures.shape
        crops = []
        for row in range(self.batch):
            # Two rows in five are pictures, the others maps.
            kind = 0 if row * 5 < self.batch * 2 else int(torch.randint(1, kinds, (1,), generator=draw))
            scene = int(torch.randint(scenes, (1,), generator=draw))
            top = int(torch.randint(height - self.crop + 1, (1,), generator=draw))
            left = int(torch.randint(width - self.crop + 1, (1,), generator=draw))
            crop = self.pool.pictures[kind, scene, :, top : top + self.crop, left : left + self.crop]
            crops.append(crop.flip(-1) if torch.rand(1, generator=draw) < 0.5 else crop)
        return torch.stack(crops).float() / 127.5 - 1

    def loss(self, module: Any, draw: torch.Generator) -> Tensor:
        target = self._crops(draw).contiguous(memory_format=torch.channels_last)
        posterior = module.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw)
        output = module.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return reconstruction_loss(output, target) + (0 if self.decoder_only else 1e-4) * kl

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder / "vae")


@torch.no_grad()
def whiten(vae, pictures_bchw: Tensor) -> None:
    """Give the latents of `pictures_bchw` mean 0 and deviation 1 per channel, exactly undone before decoding.

    The change lives in the two 1 x 1 convolutions around the latent, so that the model needs no extra settings.
    """
    mean, deviation = _statistics(vae, pictures_bchw)
    channels = vae.config.latent_channels
    vae.quant_conv.weight[:channels] /= deviation[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / deviation
    # The second half are log variances of the same latents.
    vae.quant_conv.bias[channels:] -= 2 * deviation.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= deviation[None, :, None, None]


def _statistics(vae, pictures_bchw: Tensor) -> tuple[Tensor, Tensor]:
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures_bchw.split(16)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def reconstruction_psnr(vae, pool: PicturePool, scenes: int = 32) -> dict[str, float]:
    """Peak signal-to-noise ratio (dB) of the decoded mode, per kind of picture of the pool's first scenes."""
    names = ("image", *MAPS)
    result = {}
    for kind in range(len(pool.pictures)):
        target = pool.latents_input(kind, slice(0, scenes))
        output = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in target.split(8)])
        mse = ((output - target) / 2).square().mean()
        result[names[kind]] = float(-10 * mse.log10())
    return result


def save_record(folder: Path, record: dict) -> None:
    """Write `record.json` beside the weights."""
    write_json(folder / "record.json", record)
