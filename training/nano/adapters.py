"""The bundled I-LoRAs on the nano base: what they are, and the data they share."""

import json
from pathlib import Path

from ...kernels.machine import machine_and_card
from ...methods.intrinsic_lora.multi_step import AUGMENTED
from ..atomic import copy_file, write_text
from ..command_line import console_report
from ..intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
from ..loop import LoopConfig
from ..pairs import JoinedData, SceneData, VariedSceneData
from ..scene_pictures import ADAPTER_SEEDS

ADAPTER_DATA = SceneData(count=1500, size=128)
MULTI_STEP_DATA = JoinedData((SceneData(ADAPTER_SEEDS[1200], 2000), VariedSceneData(ADAPTER_SEEDS[1200], 2000)))
# Attention-only rank 8 (the paper's) is too weak at this scale, as benchmarks/results/scenes_table.md shows.
KIND = "wide"
RANK = 12
BATCH = 4
STEPS = 1000
AUGMENTED_STEPS = 1250
LEARNING_RATE = 2e-3
# Of the adapters on nano FLUX: as many pictures as the rows of benchmarks/scenes_table.py that compare networks. Their maps are the
# output's negative, which is ahead for three maps of four in benchmarks/results/readings_table.md.
FLUX_STEPS, FLUX_BATCH, FLUX_LEARNING_RATE = 1000, 1, 1e-3
FLUX_READING = "negative"


def adapter_config(base: Path, runs: Path, map_name: str) -> IntrinsicLoraConfig:
    """Settings of one bundled adapter."""
    loop = LoopConfig(runs / "adapters" / map_name, steps=STEPS, learning_rate=LEARNING_RATE, schedule="cosine", warmup=50, ema_decay=0.99)
    return IntrinsicLoraConfig(
        base=base, map=map_name, loop=loop, data=ADAPTER_DATA, kind=KIND, rank=RANK, batch=BATCH, save_dtype="float16"
    )


def flux_config(base: Path, output: Path, map_name: str, reading: str = FLUX_READING, steps: int = FLUX_STEPS) -> IntrinsicLoraConfig:
    """Settings of one adapter on nano FLUX; the step at which it ends changes no step before."""
    loop = LoopConfig(output, steps=steps, learning_rate=FLUX_LEARNING_RATE, warmup=50, ema_decay=0.99)
    return IntrinsicLoraConfig(
        base=base,
        map=map_name,
        loop=loop,
        data=ADAPTER_DATA,
        kind=KIND,
        rank=RANK,
        batch=FLUX_BATCH,
        save_dtype="float16",
        reading=reading,
    )


def train_flux_adapters(runs: Path, assets: Path, maps: list[str], steps: int | None) -> None:
    """Train the adapters of `maps` on `assets/nano_flux` and put them beside it, with their records."""
    for name in maps:
        output = runs / "adapters" / f"flux_{name}"
        config = flux_config(assets / "nano_flux", output, name, steps=steps or FLUX_STEPS)
        _train_and_bundle(config, runs / "table" / "latents", assets / f"nano_flux_{name}.safetensors")


def train_adapters(runs: Path, assets: Path, maps: list[str]) -> None:
    """Train the adapters of `maps` on `assets/nano` and put them beside it, with their records."""
    for name in maps:
        _train_and_bundle(adapter_config(assets / "nano", runs, name), runs / "table" / "latents", assets / f"nano_{name}.safetensors")


def multi_step_config(base: Path, runs: Path, method: str, steps: int) -> IntrinsicLoraConfig:
    """Settings of a multi-step adapter for normals; the augmented one is bundled."""
    loop = LoopConfig(runs / "adapters" / method, steps=steps, learning_rate=LEARNING_RATE, schedule="cosine", warmup=50, ema_decay=0.99)
    return IntrinsicLoraConfig(
        base=base, map="normal", loop=loop, data=MULTI_STEP_DATA, kind=KIND, rank=RANK, batch=BATCH, save_dtype="float16", method=method
    )


def train_augmented(runs: Path, assets: Path, steps: int | None) -> None:
    """Train the augmented adapter for normals on `assets/nano` and put it beside it, with its record."""
    config = multi_step_config(assets / "nano", runs, AUGMENTED, steps or AUGMENTED_STEPS)
    _train_and_bundle(config, runs / "latents", assets / "nano_normal_augmented.safetensors")


def _train_and_bundle(config: IntrinsicLoraConfig, cache: Path, bundled: Path) -> None:
    result = train_intrinsic_lora(config, cache=cache, report=console_report(bundled.stem, every=250))
    copy_file(result.weights, bundled)
    last = result.history.losses[-100:]
    loop = {name: value for name, value in vars(config.loop).items() if name != "output"}
    spent = {"minutes": result.history.seconds / 60, "machine": machine_and_card()}
    record = {"final_loss": sum(last) / len(last)} | spent | {"settings": config.task_settings(), "loop": loop}
    write_text(bundled.with_suffix(".json"), json.dumps(record, indent=1, default=str))
