"""Intrinsic LoRA's trainer on a transformer that predicts a flow: the bundled FLUX."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.methods.maps.losses import normal_loss
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, IntrinsicLoraTask, LatentPairs, add_adapter, load_base
from intrinsic_lab.training.intrinsic_lora.run import train_intrinsic_lora
from intrinsic_lab.training.loop import LoopConfig, step_generator
from intrinsic_lab.training.pairs import SceneData

BASE = Path(__file__).parents[2] / "assets" / "nano_flux"
SCENES = SceneData(count=4, size=32)


def config_of(folder, **changes) -> IntrinsicLoraConfig:
    settings = {"data": SCENES, "kind": "wide", "rank": 2, "batch": 2} | changes
    return IntrinsicLoraConfig(BASE, "normal", LoopConfig(folder, 2, 1e-2), **settings)


@pytest.fixture(scope="module")
def base():
    return load_base(BASE)


@pytest.fixture(scope="module")
def pairs(base):
    return LatentPairs.encode(base.vae, SCENES, "normal")


def test_losses_are_of_the_velocity_at_the_noise_end_read_as_the_recipe_says(base, pairs, tmp_path):
    text = base.embed(MAPS["normal"].prompt)
    rows, picture, target = pairs.draw(2, step_generator(0, 3))
    tokens = picture.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 4, 64)
    ids = torch.tensor([[0.0, row, column] for row in (0, 1) for column in (0, 1)])
    with torch.no_grad():
        out = base.network(
            tokens, text.context.expand(2, -1, -1), text.pooled.expand(2, -1), torch.ones(2), ids, torch.zeros(text.context.shape[1], 3)
        ).sample
        velocity = out.reshape(2, 2, 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 16, 4, 4)
        latents = {"raw": velocity, "negative": -velocity, "data": picture - velocity}
        for reading, latent in latents.items():
            task = IntrinsicLoraTask(config_of(tmp_path, reading=reading), base.network, base.vae, text, pairs)
            assert task.loss(base.network, step_generator(0, 3)).item() == pytest.approx((latent - target).square().mean().item(), rel=1e-4)
        decoded = IntrinsicLoraTask(config_of(tmp_path, reading="data", loss="decoded"), base.network, base.vae, text, pairs)
        exact = 2 * SCENES.source("normal").read("normal", rows) - 1
        wanted = normal_loss(base.vae.decode(latents["data"]).sample, exact)
        assert decoded.loss(base.network, step_generator(0, 3)).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_run_writes_a_file_that_says_how_it_is_read_and_a_full_one_the_transformer(pairs, tmp_path):
    trained = train_intrinsic_lora(config_of(tmp_path / "lora", reading="negative"), pairs=pairs)
    file = read_lora(trained.weights)
    assert file.metadata["intrinsic_lab.reading"] == "negative" and "single_transformer_blocks.3.attn.to_q" in file.layers
    assert trained.weights.name == "normal.safetensors" and all(layer.up.any() for layer in file.layers.values())
    full = train_intrinsic_lora(config_of(tmp_path / "full", kind="full"), pairs=pairs)
    assert full.weights == tmp_path / "full/transformer"
    again, before = FluxTransformer2DModel.from_pretrained(full.weights), load_base(BASE).network
    assert not torch.equal(again.proj_out.weight, before.proj_out.weight)
    assert torch.equal(again.proj_out.weight, full.base.network.proj_out.weight)


def test_what_a_transformer_cannot_do_is_told_in_words(pairs, tmp_path):
    for changes, told in (
        ({"kind": "probe"}, "a linear probe reads a UNet's self-attentions, FLUX.1 came"),
        ({"layers": "mid"}, "layers is 'mid', a part of a UNet; FLUX.1 came"),
        ({"method": "multi"}, "FLUX.1 came, which are known in a single step only"),
        ({"method": "augmented"}, "FLUX.1 came, which are known in a single step only"),
        ({"data": replace(SCENES, size=24)}, "is 24 pixels, this base needs a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=told):
            train_intrinsic_lora(config_of(tmp_path, **changes), pairs=pairs)
    with pytest.raises(ValueError, match="reading is 'upside down': choose raw, negative, data"):
        config_of(tmp_path, reading="upside down")
    with pytest.raises(ValueError, match="the reading 'data' came for the method 'multi'"):
        config_of(tmp_path, reading="data", method="multi")
    fresh = load_base(BASE, "random", 3).network
    assert not torch.equal(fresh.proj_out.weight, load_base(BASE).network.proj_out.weight)
    add_adapter(fresh, "attention", 2, 0)
