"""Losses of a decoded map, `[b, 3, h, w]` in the VAE's range -1..1, to one mean value. In float32 whatever the autocast."""

from torch import Tensor
from torch.nn import functional


def mean_squared(prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """What I-LoRA (section 3) trains every map with that is not made of directions."""
    return functional.mse_loss(prediction_b3hw.float(), target_b3hw.float())


def normal_loss(prediction_b3hw: Tensor, target_b3hw: Tensor) -> Tensor:
    """`1 - cos + L1` (I-LoRA, eq. 2) of vectors in -1..1, averaged over pixels (and, for L1, over xyz).

    The prediction need not be of unit length: its direction counts in the cosine, its length in L1.
    """
    prediction, target = prediction_b3hw.float(), target_b3hw.float()
    return 1 - functional.cosine_similarity(prediction, target, dim=1).mean() + functional.l1_loss(prediction, target)
