"""The bundled models trained further from where they are, for as many minutes as there are; `make nano BUDGET=minutes`.

A sitting works on a candidate: a copy of `assets` in its runs folder. Each part reads from the candidate, trains at a constant rate
with an average of the weights (so that it may end anywhere), and writes the averaged weights back. Checkpoints make a later call go on
exactly; `benchmarks/nano_gate` compares the candidate with what is bundled and puts it in its place.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ...kernels.machine import machine_and_card
from ..atomic import copy_file, write_text
from ..command_line import console_report
from ..history import History
from ..intrinsic_lora import train_intrinsic_lora
from ..intrinsic_lora.latents import encode_kinds
from ..loop import LoopConfig, train
from ..lumix import train_lumix
from ..pairs import IMAGE, JoinedData, SceneData, VariedSceneData
from ..scene_pictures import ADAPTER_SEEDS, BASE_SEEDS, BUNDLED_MAPS, PicturePool
from .adapters import adapter_config
from .base import BaseTask, LatentCaptions, encode_pictures, tokenize
from .decoder import DecoderPairs, DecoderTask
from .flux_lumix import nano_config
from .joint import lora_config as joint_lora_config
from .text import extend_tokenizer

HISTORY = "history.json"
# Kinds of scenes that training draws from, each with the same number of scenes.
KINDS = ("room", "world")
# No run comes so far: its minutes end it.
UNLIMITED = 10**9


@dataclass(frozen=True)
class Sitting:
    """assets: the candidate, read and written; runs: checkpoints and latents. scenes: of each kind, for every part's data.

    first: place of the first scene in the seeds of its split, so that later sittings can see other scenes.
    """

    assets: Path
    runs: Path
    scenes: int = 3000
    first: int = 0
    maps: tuple[str, ...] = BUNDLED_MAPS

    @property
    def on_gpu(self) -> bool:
        return torch.cuda.is_available()

    def batch(self, usual: int) -> int:
        """Samples a step: a graphics card wants more at once."""
        return usual * (16 if self.on_gpu else 1)

    def loop(self, name: str, minutes: float, learning_rate: float, ema_decay: float, **options) -> LoopConfig:
        """A run that ends by the clock. It belongs to its candidate, so its folder lies beside it."""
        return LoopConfig(
            self.runs / name,
            UNLIMITED,
            learning_rate=learning_rate,
            warmup=100,
            ema_decay=ema_decay,
            checkpoint_every=500,
            mixed_precision="bf16" if self.on_gpu else "no",
            minutes=minutes,
            **options,
        )

    def remember(self, part: str, history: History, batch: int) -> None:
        """Write what a part's run has done so far into the candidate's `history.json`, in the place of its own last entry."""
        path = self.assets / HISTORY
        entries = json.loads(path.read_text()) if path.exists() else []
        run = f"{part} from scene {self.first}"
        last = history.losses[-300:]
        entry = {"part": part, "run": run, "steps": history.steps, "batch": batch, "samples": history.steps * batch}
        entry |= {"scenes": {kind: self.scenes for kind in KINDS}, "minutes": round(history.seconds / 60, 1)}
        entry |= {"final_loss": sum(last) / max(1, len(last)), "machine": machine_and_card()}
        entries = [kept for kept in entries if kept["run"] != run] + [entry]
        write_text(path, json.dumps(entries, indent=1))

    def pools(self, kinds: tuple[str, ...] = ("image", *BUNDLED_MAPS)) -> Iterator[tuple[str, PicturePool]]:
        """The pictures that VAEs learn from, by kind of scene."""
        seeds = BASE_SEEDS[self.first : self.first + self.scenes]
        for kind in KINDS:
            yield kind, PicturePool.render(seeds, 128, kinds, kind)

    def pairs(self) -> JoinedData:
        """The pairs that adapters learn from."""
        first = ADAPTER_SEEDS[self.first]
        return JoinedData((SceneData(first, self.scenes), VariedSceneData(first, self.scenes)))


def _vae(folder: Path) -> nn.Module:
    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device, memory_format=torch.channels_last)


def _save_half(model, folder: Path) -> None:
    """Write a model as fp16 safetensors into its folder of the candidate; the model stays as it is."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.float16).save_pretrained(partial)
    for path in sorted(partial.iterdir()):
        copy_file(path, folder / path.name)
    shutil.rmtree(partial)


def further_decoder(sitting: Sitting, minutes: float) -> None:
    """The VAE's decoder; the encoder, and with it every latent, stays."""
    vae = _vae(sitting.assets / "nano" / "vae")
    config = sitting.loop("decoder", minutes, 5e-4, 0.998, weight_decay=1e-3)
    kept = config.output / f"latents-{sitting.first}-{sitting.scenes}"
    pairs = [DecoderPairs.encode(vae, pool, kept / f"{kind}.safetensors") for kind, pool in sitting.pools()]
    task = DecoderTask(vae, pairs, sitting.batch(3))
    history = train(task, config, report=console_report("decoder"), settings=_data_settings(sitting))
    for folder in (sitting.assets / "nano" / "vae", sitting.assets / "nano_flux" / "vae"):
        _save_half(vae, folder)
    sitting.remember("decoder", history, task.batch)


def further_base(sitting: Sitting, minutes: float) -> None:
    """UNet and text encoder, whose vocabulary grows with what the captions name."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    nano = sitting.assets / "nano"
    config = sitting.loop("base", minutes, 5e-4, 0.999)
    text_encoder = CLIPTextModel.from_pretrained(nano / "text_encoder", torch_dtype=torch.float32)
    # The candidate's own files change when the weights do: a kill leaves both as they were.
    words = config.output / "tokenizer"
    extend_tokenizer(nano / "tokenizer", words, text_encoder, KINDS)
    tokenizer = CLIPTokenizer.from_pretrained(words)
    vae, seeds = _vae(nano / "vae"), BASE_SEEDS[sitting.first : sitting.first + sitting.scenes]
    kept = config.output / f"latents-{sitting.first}-{sitting.scenes}"
    latents, captions = zip(*(encode_pictures(vae, seeds, kept / f"{kind}.safetensors", kind=kind) for kind in KINDS), strict=True)
    tokens = tokenize(tokenizer, [caption for part in captions for caption in part])
    data = LatentCaptions(torch.cat(latents), tokens, tokenize(tokenizer, [""])[0])
    unet = UNet2DConditionModel.from_pretrained(nano / "unet", torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    unet.train()
    if sitting.on_gpu:
        unet.compile()
    task = BaseTask(unet, text_encoder.train(), data, sitting.batch(16))
    history = train(task, config, report=console_report("base", every=200), settings=_data_settings(sitting))
    _save_half(unet, nano / "unet")
    _save_half(text_encoder, nano / "text_encoder")
    shutil.copytree(words, nano / "tokenizer", dirs_exist_ok=True)
    sitting.remember("base", history, task.batch)


def further_adapters(sitting: Sitting, minutes: float) -> None:
    """The I-LoRAs, each for an equal share of the time."""
    vae = _vae(sitting.assets / "nano" / "vae")
    encode_kinds(vae, sitting.pairs().source(IMAGE), (IMAGE, *sitting.maps), sitting.runs / "latents")
    for name in sitting.maps:
        target = sitting.assets / f"nano_{name}.safetensors"
        loop = sitting.loop(f"adapter_{name}", minutes / len(sitting.maps), 1e-3, 0.998)
        config = replace(
            adapter_config(sitting.assets / "nano", sitting.runs, name), loop=loop, data=sitting.pairs(), batch=sitting.batch(8)
        )
        start = target if target.exists() else None
        result = train_intrinsic_lora(config, start=start, cache=sitting.runs / "latents", report=console_report(name, every=200))
        copy_file(result.weights, target)
        sitting.remember(f"adapter {name}", result.history, config.batch)


def further_joint(sitting: Sitting, minutes: float) -> None:
    """I-LDM's LoRA."""
    from ..ildm import JointSceneData, train_joint_lora

    nano, target = sitting.assets / "nano", sitting.assets / "nano_ildm.safetensors"
    loop = sitting.loop("joint", minutes, 1e-3, 0.998)
    data = JointSceneData(SceneData(ADAPTER_SEEDS[sitting.first], sitting.scenes))
    config = replace(
        joint_lora_config(nano, sitting.runs, intrinsic_vae=nano / "intrinsic_vae"), loop=loop, data=data, batch=sitting.batch(8)
    )
    trained = train_joint_lora(config, start=target, cache=sitting.runs / "latents", report=console_report("joint", every=100))
    copy_file(trained.weights, target)
    sitting.remember("joint", trained.history, config.batch)


def further_lumix(sitting: Sitting, minutes: float) -> None:
    """LumiX's adapter on the nano FLUX."""
    target = sitting.assets / "nano_lumix.safetensors"
    data = SceneData(ADAPTER_SEEDS[sitting.first], sitting.scenes)
    config = nano_config(sitting.assets / "nano_flux", sitting.runs / "lumix")
    config = replace(
        config, loop=sitting.loop("lumix", minutes, 2e-3, 0.998, weight_decay=0.0), data=data, batch=sitting.batch(config.batch)
    )
    trained = train_lumix(config, start=target, cache=sitting.runs / "latents", report=console_report("lumix", every=100))
    copy_file(trained.weights, target)
    sitting.remember("lumix", trained.history, config.batch)


def further_flux(sitting: Sitting, minutes: float) -> None:
    """The nano FLUX: transformer and T5."""
    from .flux import further

    config = sitting.loop("flux", minutes, 5e-4, 0.999, betas=(0.9, 0.99))
    seeds, batch = BASE_SEEDS[sitting.first : sitting.first + sitting.scenes], sitting.batch(16)
    transformer, text_encoder, history = further(sitting.assets / "nano_flux", config, seeds, KINDS, batch, _data_settings(sitting))
    _save_half(transformer, sitting.assets / "nano_flux" / "transformer")
    _save_half(text_encoder, sitting.assets / "nano_flux" / "text_encoder_2")
    shutil.copytree(config.output / "tokenizer_2", sitting.assets / "nano_flux" / "tokenizer_2", dirs_exist_ok=True)
    sitting.remember("flux", history, batch)


@dataclass(frozen=True)
class Part:
    """share: of the sitting's minutes, beside the shares of the other parts that were asked for."""

    share: float
    train: Callable[[Sitting, float], None]


PARTS: dict[str, Part] = {
    "decoder": Part(0.15, further_decoder),
    "base": Part(0.3, further_base),
    "adapters": Part(0.25, further_adapters),
    "joint": Part(0.1, further_joint),
    "flux": Part(0.1, further_flux),
    "lumix": Part(0.1, further_lumix),
}


def open_candidate(assets: Path, runs: Path) -> Path:
    """The folder that a sitting works on: the one of an unfinished sitting, or a fresh copy of `assets`."""
    candidate = runs / "candidate"
    if not candidate.exists():
        fresh = runs / ".candidate.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(
            assets, fresh, ignore=shutil.ignore_patterns("loras", "diode", "nano_vqgan*", "nano_*_augmented*", "*.png", "*.jpg", "*.md")
        )
        fresh.rename(candidate)
    return candidate


def train_further(sitting: Sitting, minutes: float, parts: tuple[str, ...] = tuple(PARTS)) -> None:
    """Give each of `parts` its share of the minutes, in the order in which they build on one another."""
    whole = sum(PARTS[name].share for name in parts)
    for name in (name for name in PARTS if name in parts):
        own = minutes * PARTS[name].share / whole
        logging.info("%s: %.1f minutes", name, own)
        PARTS[name].train(sitting, own)


def _data_settings(sitting: Sitting) -> dict:
    return {"kinds": list(KINDS), "scenes": sitting.scenes, "first": sitting.first}
