"""Losses of the trainers: a prediction and its target to one mean value. Computed in float32 whatever the autocast."""

from torch import Tensor
from torch.nn import functional


def latent_loss(prediction_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Mean squared error of latents (I-LoRA, section 3: used for every map of a latent diffusion model)."""
    return functional.mse_loss(prediction_bchw.float(), target_bchw.float())


def normal_loss(prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """`1 - cos + L1` (I-LoRA, eq. 2) of vectors in -1..1, averaged over pixels (and, for L1, over xyz).

    The prediction need not be of unit length: its direction counts in the cosine, its length in L1.
    """
    prediction, target = prediction_b3hw.float(), target_b3hw.float()
    return 1 - functional.cosine_similarity(prediction, target, dim=1).mean() + functional.l1_loss(prediction, target)


def picture_loss(map_name: str, prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """Loss of a decoded map in the VAE's range, -1..1 (I-LoRA, section 3): `normal_loss` for normals, else MSE."""
    if map_name == "normal":
        return normal_loss(prediction_b3hw, target_b3hw)
    return functional.mse_loss(prediction_b3hw.float(), target_b3hw.float())
