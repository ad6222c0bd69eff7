"""I-LDM on the nano base: its intrinsic VAE, and the LoRA that generates depth, normals, segmentation and lines beside the picture."""

import json
from pathlib import Path

from diffusers import AutoencoderKL
from torch import float16

from ..ildm import IntrinsicVaeConfig, JointConfig, JointSceneData, train_intrinsic_vae, train_joint_lora
from ..loop import LoopConfig, console_report, write_atomically
from ..pairs import SceneData
from .vae import save_record

VAE_SCENES = 4000
VAE_STEPS = 1300
# Of the KL term: the nano VAE's own.
KL = 1e-4
LORA_SCENES = 1500
LORA_STEPS = 1400
RANK = 32
LEARNING_RATE = 2e-3


def vae_config(base: Path, runs: Path) -> IntrinsicVaeConfig:
    """Settings of the bundled intrinsic VAE."""
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
    return IntrinsicVaeConfig(base, loop, JointSceneData(SceneData(count=VAE_SCENES)), batch=2, kl=KL)


def lora_config(base: Path, runs: Path, image_domain: bool = True) -> JointConfig:
    """Settings of the bundled LoRA; image_domain False: of the paper's ablation, which never sees a picture."""
    name = "lora" if image_domain else "lora_without_images"
    loop = LoopConfig(runs / "ildm" / name, steps=LORA_STEPS, learning_rate=LEARNING_RATE, schedule="cosine", warmup=50, ema_decay=0.99)
    return JointConfig(
        base,
        vae_config(base, runs).weights,
        loop,
        JointSceneData(SceneData(count=LORA_SCENES)),
        rank=RANK,
        image_domain=image_domain,
        save_dtype="float16",
    )


def train_lora(base: Path, runs: Path, image_domain: bool = True) -> Path:
    """Train (or resume) one of the two LoRAs; returns its file."""
    config = lora_config(base, runs, image_domain)
    train_joint_lora(config, cache=runs / "ildm" / "latents", report=console_report(config.loop.output.name))
    return config.weights


def train_joint(runs: Path, assets: Path) -> None:
    """Train both parts on `assets/nano` and bundle them: `nano/intrinsic_vae` and `nano_ildm.safetensors`, each with its record."""
    base = assets / "nano"
    vae, lora = vae_config(base, runs), lora_config(base, runs)
    train_intrinsic_vae(vae, report=console_report("intrinsic vae"))
    weights = train_lora(base, runs)
    AutoencoderKL.from_pretrained(vae.weights).to(float16).save_pretrained(base / "intrinsic_vae")
    save_record(base / "intrinsic_vae", _record(vae))
    write_atomically(assets / "nano_ildm.safetensors", lambda path: path.write_bytes(weights.read_bytes()))
    write_atomically(assets / "nano_ildm.json", lambda path: path.write_text(json.dumps(_record(lora), indent=1)))


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
