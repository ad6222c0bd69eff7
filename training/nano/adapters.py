"""The four bundled I-LoRAs on the nano base: what they are, and the data they share."""

import json
from pathlib import Path

from ...kernels.machine import machine_and_card
from ..atomic import copy_file, write_text
from ..command_line import console_report
from ..intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
from ..loop import LoopConfig
from ..pairs import SceneData

ADAPTER_DATA = SceneData(count=1500, size=128)
# Attention-only rank 8 (the paper's) is too weak at this scale, as benchmarks/results/scenes_table.md shows.
KIND = "wide"
RANK = 12
BATCH = 4
STEPS = 1000
LEARNING_RATE = 2e-3


def adapter_config(base: Path, runs: Path, map_name: str) -> IntrinsicLoraConfig:
    """Settings of one bundled adapter."""
    loop = LoopConfig(runs / "adapters" / map_name, steps=STEPS, learning_rate=LEARNING_RATE, schedule="cosine", warmup=50, ema_decay=0.99)
    return IntrinsicLoraConfig(
        base=base, map=map_name, loop=loop, data=ADAPTER_DATA, kind=KIND, rank=RANK, batch=BATCH, save_dtype="float16"
    )


def train_adapters(runs: Path, assets: Path, maps: list[str]) -> None:
    """Train the adapters of `maps` on `assets/nano` and put them beside it, with their records."""
    for name in maps:
        config = adapter_config(assets / "nano", runs, name)
        result = train_intrinsic_lora(config, cache=runs / "table" / "latents", report=console_report(name, every=250))
        copy_file(result.weights, assets / f"nano_{name}.safetensors")
        last = result.history.losses[-100:]
        loop = {name: value for name, value in vars(config.loop).items() if name != "output"}
        spent = {"minutes": result.history.seconds / 60, "machine": machine_and_card()}
        record = {"final_loss": sum(last) / len(last)} | spent | {"settings": config.task_settings(), "loop": loop}
        text = json.dumps(record, indent=1)
        write_text(assets / f"nano_{name}.json", text)
