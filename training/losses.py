"""Losses of the trainers: a prediction and its target to one mean value. Computed in float32 whatever the autocast."""

from torch import Tensor
from torch.nn import functional

from ..methods.maps import map_kind


def latent_loss(prediction_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Mean squared error of latents (I-LoRA, section 3: used for every map of a latent diffusion model)."""
    return functional.mse_loss(prediction_bchw.float(), target_bchw.float())


def picture_loss(map_name: str, prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """Loss of a decoded map in the VAE's range, -1..1 (I-LoRA, section 3): the one that the map's entry names."""
    return map_kind(map_name).picture_loss(prediction_b3hw, target_b3hw)
