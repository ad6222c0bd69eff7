"""`python -m intrinsic_lab.training.nano {vae,base,decoder,export}`: the parts of `make nano`, in that order; each resumes where it stopped."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from ..loop import LoopConfig, console_report, train
from .data import BASE_SEEDS, PicturePool
from .vae import VaeTask, build_vae, reconstruction_psnr, save_record, whiten

VAE_CONFIG = LoopConfig(Path("vae"), steps=1500, learning_rate=1e-3, schedule="cosine", warmup=50, weight_decay=1e-3, checkpoint_every=100)


def train_vae(runs: Path, steps: int, scenes: int) -> None:
    """Encoder and decoder together, then the latents are whitened: the encoder is final after this."""
    torch.manual_seed(0)
    pool = PicturePool.render(BASE_SEEDS[:scenes], 128)
    vae = build_vae().to(memory_format=torch.channels_last)
    config = replace(VAE_CONFIG, output=runs / "vae", steps=steps)
    history = train(VaeTask(vae, pool), config, report=console_report("vae"))
    whiten(vae, torch.cat([pool.latents_input(kind, slice(0, 64)) for kind in range(len(pool.pictures))]))
    vae.save_pretrained(runs / "vae" / "vae")
    psnr = reconstruction_psnr(vae, pool)
    logging.info("vae PSNR %s", psnr)
    save_record(runs / "vae", {"config": vars(config), "minutes": history.seconds / 60, "final_loss": history.losses[-1], "psnr": psnr})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.nano", description=__doc__)
    parser.add_argument("part", choices=("vae",))
    parser.add_argument("--runs", type=Path, default=Path("runs/nano"), help="folder of checkpoints and results")
    parser.add_argument("--steps", type=int, default=VAE_CONFIG.steps)
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    train_vae(arguments.runs, arguments.steps, arguments.scenes)


if __name__ == "__main__":
    main()
