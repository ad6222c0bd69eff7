"""Losses of the trainers: a prediction and its target to one mean value, in float32 whatever the autocast; and where a flow is asked."""

import torch
from torch import Tensor
from torch.nn import functional

from ..methods.maps import map_kind


def latent_loss(prediction_bchw: Tensor, target_bchw: Tensor, mask_b1hw: Tensor | None = None) -> Tensor:
    """Mean squared error of latents (I-LoRA, section 3: used for every map of a latent diffusion model), over the mask's."""
    if mask_b1hw is None:
        return functional.mse_loss(prediction_bchw.float(), target_bchw.float())
    squared = (prediction_bchw.float() - target_bchw.float()) ** 2
    return (squared.mean(1, keepdim=True) * mask_b1hw).sum() / mask_b1hw.sum().clamp(min=1)


def picture_loss(map_name: str, prediction_b3hw: Tensor, target_b3hw: Tensor, mask_b1hw: Tensor | None = None) -> Tensor:
    """Loss of a decoded map in the VAE's range, -1..1 (I-LoRA, section 3): the one that the map's entry names, over the mask's pixels."""
    loss = map_kind(map_name).picture_loss
    if mask_b1hw is None:
        return loss(prediction_b3hw, target_b3hw)
    # Pixels that equal their target add nothing to any of the losses' means; a vector of length 0 would.
    target = torch.where(mask_b1hw, target_b3hw, 1.0)
    return loss(torch.where(mask_b1hw, prediction_b3hw, target), target) / mask_b1hw.float().mean().clamp(min=1e-6)


def draw_times(count: int, draw: torch.Generator) -> Tensor:
    """Flow times 0..1, logit-normal (Esser et al. 2024, section 3.1): the middle of the flow is seen most."""
    return torch.randn(count, generator=draw).sigmoid()
