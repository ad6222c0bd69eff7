"""The bundled LumiX adapter on the nano FLUX base."""

import json
from pathlib import Path
from typing import Any

from ..atomic import copy_file, write_text
from ..command_line import console_report
from ..loop import LoopConfig
from ..lumix import LumixConfig, train_lumix
from .adapters import ADAPTER_DATA

STEPS = 2000
BATCH = 4
LEARNING_RATE = 4e-3
# Maps given clean in training, so that the few steps of a nano run also teach decomposition; the paper's share is 0.
CLEAN_SHARE = 0.25


def nano_config(base: Path, output: Path, steps: int = STEPS, **options) -> LumixConfig:
    """Settings of the bundled adapter; `options` of `LumixConfig` make another one of the same recipe."""
    loop = LoopConfig(
        output, steps, learning_rate=LEARNING_RATE, schedule="cosine", warmup=30, weight_decay=0.0, ema_decay=0.99, checkpoint_every=50
    )
    return LumixConfig(base, loop, ADAPTER_DATA, batch=BATCH, clean_share=CLEAN_SHARE, save_dtype="float16", **options)


def train_lumix_adapter(runs: Path, assets: Path, steps: int | None = None) -> None:
    """Train the adapter on `assets/nano_flux` and put it beside it, with its record."""
    config = nano_config(assets / "nano_flux", runs / "lumix", steps or STEPS)
    trained = train_lumix(config, cache=runs / "table" / "latents", report=console_report("lumix"))
    last = trained.history.losses[-100:]
    record: dict[str, Any] = {"final_loss": sum(last) / len(last), "minutes": trained.history.seconds / 60}
    record |= {"steps": config.loop.steps, "learning_rate": LEARNING_RATE, "settings": config.task_settings()}
    text = json.dumps(record, indent=1)
    copy_file(trained.weights, assets / "nano_lumix.safetensors")
    write_text(assets / "nano_lumix.json", text)
