"""I-LDM on the nano base: its intrinsic VAE, and the LoRA that generates depth, normals, segmentation and lines beside the picture."""

import json
from dataclasses import replace
from pathlib import Path

from diffusers import AutoencoderKL
from torch import float16

from ..atomic import copy_file, write_text
from ..command_line import console_report
from ..ildm import IntrinsicVaeConfig, JointConfig, JointSceneData, train_intrinsic_vae, train_joint_lora
from ..loop import LoopConfig
from ..pairs import SceneData
from .vae import save_record

VAE_SCENES = 4000
VAE_STEPS = 1300
# Of the KL term: the nano VAE's own.
KL = 1e-4
# Lines come out only in the second stage, which trains the decoder alone: its latents are final after the first.
DECODER_STEPS = 200
LINES = 4.0
LORA_SCENES = 1500
LORA_STEPS = 3000
RANK = 32
LEARNING_RATE = 2e-3


def vae_config(base: Path, runs: Path) -> IntrinsicVaeConfig:
    """Settings of the intrinsic VAE's first stage: encoder and decoder together."""
    loop = LoopConfig(
        runs / "ildm" / "vae",
        steps=VAE_STEPS,
        learning_rate=1e-3,
        schedule="cosine",
        warmup=50,
        weight_decay=1e-3,
        ema_decay=0.99,
        checkpoint_every=100,
    )
    return IntrinsicVaeConfig(base, loop, JointSceneData(SceneData(count=VAE_SCENES)), batch=2, kl=KL, lines=0.0)


def decoder_config(base: Path, runs: Path) -> IntrinsicVaeConfig:
    """Settings of its second stage."""
    first = vae_config(base, runs)
    loop = replace(first.loop, output=runs / "ildm" / "decoder", steps=DECODER_STEPS)
    return replace(first, loop=loop, lines=LINES, decoder_of=first.weights)


def lora_config(base: Path, runs: Path, image_domain: bool = True, intrinsic_vae: Path | None = None) -> JointConfig:
    """Settings of the bundled LoRA; image_domain False: of the paper's ablation, which never sees a picture.

    intrinsic_vae: folder of a trained one (the first stage's in `runs` by default); both stages have the same latents.
    """
    name = "lora" if image_domain else "lora_without_images"
    loop = LoopConfig(runs / "ildm" / name, steps=LORA_STEPS, learning_rate=LEARNING_RATE, schedule="cosine", warmup=50, ema_decay=0.99)
    return JointConfig(
        base,
        intrinsic_vae or vae_config(base, runs).weights,
        loop,
        JointSceneData(SceneData(count=LORA_SCENES)),
        rank=RANK,
        image_domain=image_domain,
        save_dtype="float16",
    )


def train_lora(base: Path, runs: Path, image_domain: bool = True, intrinsic_vae: Path | None = None) -> Path:
    """Train (or resume) one of the two LoRAs (see `lora_config`); returns its file."""
    config = lora_config(base, runs, image_domain, intrinsic_vae)
    train_joint_lora(config, cache=runs / "ildm" / "latents", report=console_report(config.loop.output.name))
    return config.weights


def train_joint(runs: Path, assets: Path) -> None:
    """Train both parts on `assets/nano` and bundle them: `nano/intrinsic_vae` and `nano_ildm.safetensors`, each with its record."""
    base = assets / "nano"
    stages, lora = (vae_config(base, runs), decoder_config(base, runs)), lora_config(base, runs)
    for stage in stages:
        train_intrinsic_vae(stage, report=console_report(f"intrinsic {stage.loop.output.name}"))
    weights = train_lora(base, runs)
    AutoencoderKL.from_pretrained(stages[-1].weights).to(float16).save_pretrained(base / "intrinsic_vae")
    save_record(base / "intrinsic_vae", {stage.loop.output.name: _record(stage) for stage in stages})
    copy_file(weights, assets / "nano_ildm.safetensors")
    write_text(assets / "nano_ildm.json", json.dumps(_record(lora), indent=1))


def _record(config: IntrinsicVaeConfig | JointConfig) -> dict:
    history = json.loads((config.loop.output / "loss.json").read_text())
    loop = {name: value for name, value in vars(config.loop).items() if name != "output"}
    last = history["losses"][-100:]
    return {
        "final_loss": sum(last) / len(last),
        "minutes": history["seconds"] / 60,
        "loop": loop,
        "settings": config.task_settings(),
    }
