"""The I-LoRA trainer: it learns, and what it writes is what diffusers reads."""

from pathlib import Path

import pytest
from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, LatentPairs, load_base, train_intrinsic_lora
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.pairs import SceneData

SCENES = SceneData(count=12, size=32)


def config_of(base: Path, output: Path, *, steps: int = 3, loop: dict | None = None, **options) -> IntrinsicLoraConfig:
    settings = {"map": "normal", "data": SCENES, "rank": 4, "batch": 2} | options
    return IntrinsicLoraConfig(base, loop=LoopConfig(output, steps, **{"learning_rate": 1e-3} | (loop or {})), **settings)


@pytest.fixture(scope="module")
def pairs(tiny_base):
    return LatentPairs.encode(load_base(tiny_base).vae, SCENES, "normal")


@pytest.mark.parametrize(("kind", "loss"), [("attention", "latent"), ("wide", "latent"), ("full", "latent"), ("wide", "decoded")])
def test_training_lowers_the_loss(tiny_base, pairs, tmp_path, kind, loss):
    config = config_of(tiny_base, tmp_path, steps=25, kind=kind, loss=loss, loop={"learning_rate": 3e-3})
    losses = train_intrinsic_lora(config, pairs=pairs).history.losses
    assert len(losses) == 25
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
