"""Losses against values worked out by hand."""

import math

import pytest
import torch
from einops import rearrange
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.methods.maps.losses import normal_loss
from intrinsic_lab.training.losses import latent_loss, picture_loss


def image(*pixels) -> torch.Tensor:
    """`[1, 3, 1, n]` of the given vectors."""
    return rearrange(torch.tensor(pixels), "w c -> 1 c 1 w")


def test_latent_loss_is_the_mean_square():
    assert latent_loss(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 4.0, 1.0])).item() == pytest.approx((0 + 4 + 16) / 3)


def test_normal_loss_adds_one_minus_cosine_and_l1():
    target = image([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    # The first is right but half as long; the second is turned by 60 degrees.
    prediction = image([0.0, 0.0, 0.5], [0.5, math.sqrt(0.75), 0.0])
    cosine = (0 + 0.5) / 2
    l1 = (0.5 + 0.5 + math.sqrt(0.75)) / 6
    assert normal_loss(prediction, target).item() == pytest.approx(cosine + l1, abs=1e-6)
    assert normal_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    assert normal_loss(-target, target).item() == pytest.approx(2 + 4 / 6, abs=1e-6)


def test_picture_loss_is_the_normal_loss_for_normals_and_mse_for_other_maps():
    prediction, target = torch.rand(2, 3, 4, 5) * 2 - 1, torch.rand(2, 3, 4, 5) * 2 - 1
    assert picture_loss("normal", prediction, target) == normal_loss(prediction, target)
    for name in MAPS.keys() - {"normal"}:
        assert picture_loss(name, prediction, target).item() == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-5)


def test_losses_are_float32_in_half_precision():
    half = torch.full((1, 3, 2, 2), 300.0, dtype=torch.float16)
    # 300 squared overflows float16.
    assert latent_loss(half, torch.zeros_like(half)).item() == 90_000
