"""Losses of the trainers: a prediction and its target to one mean value, in float32 whatever the autocast; and where a flow is asked."""

import torch
from torch import Tensor
from torch.nn import functional

from ..methods.maps import map_kind


def latent_loss(prediction_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Mean squared error of latents (I-LoRA, section 3: used for every map of a latent diffusion model)."""
    return functional.mse_loss(prediction_bchw.float(), target_bchw.float())


def picture_loss(map_name: str, prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """Loss of a decoded map in the VAE's range, -1..1 (I-LoRA, section 3): the one that the map's entry names."""
    return map_kind(map_name).picture_loss(prediction_b3hw, target_b3hw)


def draw_times(count: int, draw: torch.Generator) -> Tensor:
    """Flow times 0..1, logit-normal (Esser et al. 2024, section 3.1): the middle of the flow is seen most."""
    return torch.randn(count, generator=draw).sigmoid()
