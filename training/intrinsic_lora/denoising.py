"""The loss of multi-step Intrinsic LoRAs: the map's latent is denoised, by the augmented method with the picture's beside it."""

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from ...methods.intrinsic_lora.multi_step import Noise
from ..backbones import denoiser_of
from ..backbones.backbone import TextEmbeddings
from ..losses import latent_loss
from .latents import LatentPairs, vae_latents
from .noise import scheduler_of
from .widened import picture_in


class Denoising:
    """What a network learns under a process of noise; a widened one sees the picture."""

    def __init__(self, network: ModelMixin, vae: AutoencoderKL, noise: Noise):
        self.denoise, self.vae, self.scheduler = denoiser_of(network), vae, scheduler_of(noise)
        self.sees_picture = picture_in(network) is not None

    def loss(self, module: nn.Module, pairs: LatentPairs, batch: int, text: TextEmbeddings, draw: torch.Generator) -> Tensor:
        """module: the network, wrapped for the devices in use. Timesteps are drawn evenly, noise and pairs with the same `draw`."""
        rows, picture, clean = pairs.draw(batch, draw)
        noise = torch.randn(clean.shape, generator=draw)
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (batch,), generator=draw)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        predicts_noise = self.scheduler.config.prediction_type == "epsilon"
        target = noise if predicts_noise else self.scheduler.get_velocity(clean, noise, timestep)
        if self.sees_picture:
            noisy = torch.cat([noisy, vae_latents(self.vae, picture)], dim=1)
        device = text.context.device
        predicted = self.denoise(module, noisy.to(device), timestep.to(device), text)
        return latent_loss(predicted, target.to(device), None if pairs.mask_b1hw is None else pairs.mask_b1hw[rows].to(device))
