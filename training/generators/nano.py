"""A nano VQGAN of `scenes` and its LoRAs: the recipe of the bundled ones, small enough for one CPU core."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..atomic import copy_file, write_json
from ..command_line import console_report
from ..loop import LoopConfig, Report, train
from ..pairs import SceneData
from ..scene_pictures import BASE_SEEDS, HELD_OUT_SEEDS, PicturePool
from .vqgan import VqganTask, build_vqgan, codebook_from_latents, reconstruction_report
from .vqgan_lora import VqganLoraConfig, train_vqgan_lora

SIZE = 64
SCENES = 3000
BATCH = 4
AUTOENCODER = LoopConfig(Path("autoencoder"), steps=900, learning_rate=2e-3, schedule="cosine", warmup=30, weight_decay=1e-3)
VQGAN = LoopConfig(Path("vqgan"), steps=1400, learning_rate=1e-3, schedule="cosine", warmup=30, weight_decay=1e-3)
LORA = LoopConfig(Path("lora"), steps=600, learning_rate=5e-3, schedule="cosine", warmup=30, weight_decay=0.0, ema_decay=0.98)
LORA_DATA = SceneData(count=4000, size=SIZE)
NAME = "nano_vqgan"
TARGETS = "wide"
# (targets, init) of what the bundled LoRAs are compared with.
CONTROLS = ((TARGETS, "random"), ("attention", "trained"), ("attention", "random"))


def train_nano_vqgan(runs: Path, assets: Path, report: Callable[[str], Report] = console_report) -> None:
    """An autoencoder, a codebook out of its latents, then everything together; written to `assets/nano_vqgan` in float16.

    report: makes the report of a training from its name.
    """
    torch.manual_seed(0)
    pool = PicturePool.render(BASE_SEEDS[:SCENES], SIZE, kinds=("image",))
    vqgan = build_vqgan()
    first = train(
        VqganTask(vqgan, pool, BATCH, quantise=False),
        replace(AUTOENCODER, output=runs / "autoencoder"),
        report=report("autoencoder"),
    )
    codebook_from_latents(vqgan, pool.latents_input(0, slice(0, 512)))
    torch.manual_seed(1)
    second = train(VqganTask(vqgan, pool, BATCH, quantise=True), replace(VQGAN, output=runs / "vqgan"), report=report("vqgan"))
    held_out = PicturePool.render(HELD_OUT_SEEDS[:200], SIZE, kinds=("image",)).latents_input(0, slice(None))
    record = {
        "held_out": reconstruction_report(vqgan, held_out),
        "minutes": (first.seconds + second.seconds) / 60,
        "scenes": SCENES,
        "batch": BATCH,
        "autoencoder": vars(AUTOENCODER),
        "vqgan": vars(VQGAN),
    }
    logging.info("vqgan %s", record["held_out"])
    vqgan.half().save_pretrained(assets / NAME)
    write_json(assets / NAME / "record.json", record)


def lora_run(runs: Path, map_name: str, targets: str, init: str) -> Path:
    """Folder in which a LoRA is trained."""
    return runs / f"{map_name}-{targets}-{init}"


def lora_config(runs: Path, assets: Path, map_name: str, targets: str = TARGETS, init: str = "trained") -> VqganLoraConfig:
    """Settings of one LoRA, or of one that it is compared with."""
    loop = replace(LORA, output=lora_run(runs, map_name, targets, init))
    return VqganLoraConfig(assets / NAME, map_name, loop, LORA_DATA, batch=BATCH, init=init, targets=targets)


def train_nano_loras(
    runs: Path,
    assets: Path,
    maps: list[str],
    targets: str = TARGETS,
    init: str = "trained",
    report: Callable[[str], Report] = console_report,
) -> None:
    """The LoRAs of `maps`; those that are no controls go to `assets`, with their records. report: as `train_nano_vqgan`."""
    for name in maps:
        config = lora_config(runs, assets, name, targets, init)
        history = train_vqgan_lora(config, report(f"{name} {targets} {init}"))
        if (targets, init) not in CONTROLS:
            target = assets / f"{NAME}_{name}.safetensors"
            copy_file(config.weights, target)
            # A file that travels names no machine's folders.
            settings = config.task_settings() | {"base": NAME}
            record = {"final_loss": history.final_loss(), "minutes": history.seconds / 60, "settings": settings}
            write_json(target.with_suffix(".json"), record)
