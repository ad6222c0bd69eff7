"""The transformers of 2026: loaded natively they are diffusers' own, and Intrinsic LoRA's single step on them is its trainer's."""

import pytest
import torch
from intrinsic_lab.tests.nodes import flow_world
from intrinsic_lab.tests.nodes.conftest import largest_difference


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """Each tiny network by its name: diffusers' and the MODEL, made when asked for."""
    made = {}

    def find(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("flows") / name
            folder.mkdir()
            made[name] = flow_world.build(name, folder), flow_world.load(name, folder)
        return made[name]

    return find


@pytest.mark.parametrize("name", flow_world.TINY)
@torch.no_grad()
def test_native_transformers_equal_diffusers(name, flows):
    network, model = flows(name)
    latent, context, pooled = flow_world.inputs(name)
    for time in (0.0, 0.3, 1.0):
        times = torch.full((2,), time)
        expected = flow_world.TINY[name].velocity(network, latent, times, context, pooled)
        native = flow_world.native_velocity(name, model, latent, times, context, pooled)
        assert expected.std() > 0.01
        assert largest_difference(native, expected) <= 1e-5
