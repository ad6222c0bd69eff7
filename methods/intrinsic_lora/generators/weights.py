"""What a file must hold to be a network's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def require_same_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str, otherwise: str) -> None:
    """Raises ValueError, naming `source`, for weights that `network` does not have or lacks, of other shapes, or not finite.

    otherwise: what that means, to complete the message.
    """
    expected = network.state_dict()
    if wrong := sorted(expected.keys() ^ weights.keys()):
        missing = sum(name in expected for name in wrong)
        raise ValueError(
            f"{source} lacks {missing} weights and has {len(wrong) - missing} that its config does not call for "
            f"(first: {wrong[0]}): {otherwise}."
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise ValueError(f"{source}: {name} is {list(weight.shape)}, {list(expected[name].shape)} was expected: {otherwise}.")
        if not weight.is_floating_point() or not torch.isfinite(weight.float()).all():
            raise ValueError(f"{source}: {name} is not finite floating point: the training diverged, or it is damaged.")
