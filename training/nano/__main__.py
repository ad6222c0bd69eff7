"""`python -m intrinsic_lab.training.nano further --minutes N`: what is bundled, trained further; what `make nano` does.

Its candidate is judged and put in the place of the bundled weights by `python -m intrinsic_lab.benchmarks.nano_gate`. Any other PART
trains a part of the bundled models from nothing; "all" does so with all of them. Every part resumes where it stopped.
"""

import argparse
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ...kernels.machine import machine_and_card
from ...methods.maps import MAPS
from ..command_line import console_report
from ..generators.nano import train_nano_loras, train_nano_vqgan
from ..loop import LoopConfig, train
from ..scene_pictures import BASE_SEEDS, BUNDLED_MAPS, PicturePool
from .adapters import train_adapters, train_augmented, train_flux_adapters
from .base import BaseTask, LatentCaptions, build_scheduler, build_unet, encode_pictures, tokenize
from .flux import train_flux
from .flux_lumix import train_lumix_adapter
from .further import PARTS as FURTHER
from .further import Sitting, open_candidate, train_further
from .joint import train_joint
from .text import build_text_encoder, write_tokenizer
from .vae import VaeTask, build_vae, reconstruction_psnr, save_record, whiten

VAE = LoopConfig(Path("vae"), steps=1200, learning_rate=1e-3, schedule="cosine", warmup=50, weight_decay=1e-3, checkpoint_every=50)
BASE = LoopConfig(Path("base"), steps=2600, learning_rate=1e-3, schedule="cosine", warmup=100, ema_decay=0.999, checkpoint_every=200)
DECODER = LoopConfig(Path("decoder"), steps=400, learning_rate=3e-4, schedule="cosine", warmup=50, weight_decay=1e-3, checkpoint_every=50)
VAE_SCENES = 2400
BASE_SCENES = 6000
BASE_BATCH = 16


def _record(config: LoopConfig, history, **more) -> dict:
    last = history.losses[-100:]
    spent = {"minutes": history.seconds / 60, "machine": machine_and_card()}
    return {"config": vars(config)} | spent | {"final_loss": sum(last) / len(last)} | more


def train_vae(runs: Path, steps: int | None) -> None:
    """Encoder and decoder together, then the latents are whitened: the encoder is final after this."""
    torch.manual_seed(0)
    pool = PicturePool.render(BASE_SEEDS[:VAE_SCENES], 128)
    vae = build_vae().to(memory_format=torch.channels_last)
    config = replace(VAE, output=runs / "vae", steps=steps or VAE.steps)
    history = train(VaeTask(vae, pool), config, report=console_report("vae"))
    whiten(vae, torch.cat([pool.latents_input(kind, slice(0, 64)) for kind in range(len(pool.pictures))]))
    vae.save_pretrained(runs / "vae" / "vae")
    psnr = reconstruction_psnr(vae, pool)
    logging.info("vae PSNR %s", psnr)
    save_record(runs / "vae", _record(config, history, psnr=psnr))


def train_decoder(runs: Path, steps: int | None) -> None:
    """The decoder alone goes on learning: the latents, and all that was trained on them, stay as they are."""
    from diffusers import AutoencoderKL

    pool = PicturePool.render(BASE_SEEDS[VAE_SCENES : 2 * VAE_SCENES], 128)
    vae = AutoencoderKL.from_pretrained(runs / "vae" / "vae").to(memory_format=torch.channels_last)
    config = replace(DECODER, output=runs / "decoder", steps=steps or DECODER.steps)
    history = train(VaeTask(vae, pool, decoder_only=True), config, report=console_report("decoder"))
    psnr = reconstruction_psnr(vae, pool)
    logging.info("decoder PSNR %s", psnr)
    save_record(runs / "decoder", _record(config, history, psnr=psnr))


def train_base(runs: Path, steps: int | None) -> None:
    """UNet and text encoder on the latents of pictures."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(runs / "vae" / "vae").to(memory_format=torch.channels_last)
    config = replace(BASE, output=runs / "base", steps=steps or BASE.steps)
    write_tokenizer(config.output / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(config.output / "tokenizer")
    latents, captions = encode_pictures(vae, BASE_SEEDS[:BASE_SCENES], config.output / "latents.safetensors")
    logging.info("latents: mean %.3f deviation %.3f", latents.mean(), latents.std())
    data = LatentCaptions(latents, tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0])
    torch.manual_seed(0)
    task = BaseTask(build_unet().to(memory_format=torch.channels_last), build_text_encoder(len(tokenizer)), data, BASE_BATCH)
    history = train(task, config, report=console_report("base"))
    save_record(config.output, _record(config, history, batch=BASE_BATCH, scenes=BASE_SCENES))


def export(runs: Path, assets: Path) -> None:
    """Write the trained parts as one diffusers folder of fp16 safetensors, with the record of how they were made."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    decoder = runs / "decoder" / "vae"
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(decoder if decoder.exists() else runs / "vae" / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(runs / "base" / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(runs / "base" / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(runs / "base" / "unet"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(assets / "nano")
    shutil.copytree(runs / "base" / "tokenizer", assets / "nano" / "tokenizer", dirs_exist_ok=True)
    records = {
        part: json.loads((runs / part / "record.json").read_text())
        for part in ("vae", "base", "decoder")
        if (runs / part / "record.json").exists()
    }
    save_record(assets / "nano", records)


PARTS = ("vae", "base", "decoder", "export", "adapters", "augmented", "joint", "flux", "flux_adapters", "lumix", "vqgan")


def run_part(part: str, arguments: argparse.Namespace) -> None:
    """One part of the recipe."""
    if part == "export":
        export(arguments.runs, arguments.assets)
    elif part == "adapters":
        train_adapters(arguments.runs, arguments.assets, arguments.maps)
    elif part == "augmented":
        train_augmented(arguments.runs, arguments.assets, arguments.steps)
    elif part == "joint":
        train_joint(arguments.runs, arguments.assets)
    elif part == "flux":
        train_flux(arguments.runs, arguments.assets, arguments.steps)
    elif part == "flux_adapters":
        train_flux_adapters(arguments.runs, arguments.assets, arguments.maps, arguments.steps)
    elif part == "lumix":
        train_lumix_adapter(arguments.runs, arguments.assets, arguments.steps)
    elif part == "vqgan":
        train_nano_vqgan(arguments.runs / "generators", arguments.assets)
        train_nano_loras(arguments.runs / "generators", arguments.assets, arguments.maps)
    else:
        {"vae": train_vae, "base": train_base, "decoder": train_decoder}[part](arguments.runs, arguments.steps)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.nano", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("further", "all", *PARTS), default="further")
    parser.add_argument("--minutes", type=float, default=60.0, help="of `further`: time for all its parts together (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(FURTHER), default=list(FURTHER), help="of `further`: which parts")
    parser.add_argument("--scenes", type=int, default=3000, help="of `further`: scenes of each kind to learn from (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="of `further`: place of the first scene, to see other scenes than before")
    parser.add_argument("--runs", type=Path, default=Path("runs/nano"), help="folder of checkpoints and results")
    parser.add_argument("--assets", type=Path, default=Path("assets"), help="where export writes")
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=list(BUNDLED_MAPS), help="which adapters (%(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        help="optimiser steps of vae, base, decoder, augmented, flux (also its adapters) and lumix, if not the recipe's",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.part == "further":
        candidate = open_candidate(arguments.assets, arguments.runs / "further")
        sitting = Sitting(candidate, arguments.runs / "further", arguments.scenes, arguments.first, tuple(arguments.maps))
        train_further(sitting, arguments.minutes, tuple(arguments.parts))
        logging.info("the candidate is in %s: python -m intrinsic_lab.benchmarks.nano_gate judges it", candidate)
        return
    for part in PARTS if arguments.part == "all" else (arguments.part,):
        run_part(part, arguments)


if __name__ == "__main__":
    main()
