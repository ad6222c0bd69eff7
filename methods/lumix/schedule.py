"""The noise levels LumiX samples at."""

import math

import torch
from torch import Tensor

# FLUX.1's line through (256 tokens, 0.5) and (4096 tokens, 1.15).
_BASE_TOKENS, _BASE_SHIFT, _MAX_TOKENS, _MAX_SHIFT = 256, 0.5, 4096, 1.15


def shift_by_tokens(image_tokens: float) -> float:
    """FLUX.1's time shift mu for a number of image tokens."""
    return _BASE_SHIFT + (image_tokens - _BASE_TOKENS) * (_MAX_SHIFT - _BASE_SHIFT) / (_MAX_TOKENS - _BASE_TOKENS)


def published_shift(image_tokens: int) -> float:
    """The released LumiX's mu: FLUX.1's line read at 1 / 256 of the latent's pixels (four a token), about 0.46 at every size."""
    return shift_by_tokens(4 * image_tokens // _BASE_TOKENS)


def shifted_sigmas(steps: int, mu: float) -> Tensor:
    """steps + 1 noise levels, 1 down to 0: sigma = e^mu / (e^mu + 1 / t - 1) for t = 1, (steps - 1) / steps, ..., 1 / steps, then 0.

    As FLUX.1's scheduler spaces them. Raises ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed.")
    t = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    sigmas = math.exp(mu) / (math.exp(mu) + 1.0 / t - 1.0)
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
