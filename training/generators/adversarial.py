"""Two players in one loss, so that one loop and one optimiser train both: each player's parameters see only its own term."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


def discriminator_loss(discriminator: nn.Module, made_bchw: Tensor, real_bchw: Tensor) -> Tensor:
    """Logistic loss of the discriminator (Goodfellow et al. 2014, eq. 1); no gradient for what made the pictures."""
    made, real = discriminator(made_bchw.detach()), discriminator(real_bchw)
    return functional.softplus(made).mean() + functional.softplus(-real).mean()


def generator_loss(discriminator: nn.Module, made_bchw: Tensor) -> Tensor:
    """Non-saturating loss of the generator (Goodfellow et al. 2014, section 3); no gradient for the discriminator."""
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return functional.softplus(-functional_call(discriminator, frozen, (made_bchw,))).mean()


def both_players(discriminator: nn.Module, made_bchw: Tensor, real_bchw: Tensor) -> Tensor:
    """Sum of both losses: simultaneous gradient steps."""
    return discriminator_loss(discriminator, made_bchw, real_bchw) + generator_loss(discriminator, made_bchw)


def gradient_penalty(discriminator: nn.Module, real_bchw: Tensor) -> Tensor:
    """R1: mean squared gradient of the discriminator on real pictures (Mescheder et al. 2018, eq. 9, without gamma / 2)."""
    real = real_bchw.detach().requires_grad_(True)
    [gradient] = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


class PatchDiscriminator(nn.Sequential):
    """A score for each patch of 22 x 22 pixels (Isola et al. 2017, in small)."""

    def __init__(self, width: int = 32):
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 1, 1),
        )
