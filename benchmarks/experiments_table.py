"""The experiments of the Intrinsic LoRA paper on the bundled base, small: what docs/experiments.md takes its figures from.

    OMP_NUM_THREADS=1 python -m intrinsic_lab.benchmarks.experiments_table [NAME ...] [--seeds N] [--runs DIR]

Each is `python -m intrinsic_lab.training.experiments NAME` with few steps; runs that were finished before are not done again. Tables and
plots go to benchmarks/results/experiments. `bases` compares the bundled base with two that were trained for a small part of its time, and
with none.
"""

import argparse
import logging
import shutil
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from ..training.atomic import copy_file
from ..training.command_line import console_report
from ..training.experiments.__main__ import build_parser, experiment_from
from ..training.experiments.report import write_report
from ..training.experiments.run import run_experiment
from ..training.intrinsic_lora import load_base
from ..training.loop import LoopConfig, train
from ..training.nano.base import BaseTask, LatentCaptions, build_unet, encode_pictures, tokenize
from ..training.scene_pictures import BASE_SEEDS

ROOT = Path(__file__).resolve().parents[1]
NANO, RESULTS = ROOT / "assets" / "nano", ROOT / "benchmarks" / "results" / "experiments"
SHARED = "--steps 150 --batch 1 --learning-rate 1e-3 --warmup 15 --ema-decay 0.95 --scenes 128 --size 128 --judged 24 --map normal"
# The paper's LoRA, of attention alone, is too weak for so small a base (scenes_table); where layers are compared it is the question.
WIDE = "--kind wide --rank 8"
# A multi-step model learns every level of noise, which takes long: the bundled one is judged.
BUNDLED = f"--method augmented --lora {NANO.with_name('nano_normal_augmented.safetensors')} --seeds 2 --judged 8"
OPTIONS = {
    "control": f"{WIDE} --seeds 3",
    "ranks": "--kind wide --seeds 2",
    "layers": "--kind attention --seeds 2",
    "labels": f"{WIDE} --values 8 32 128 --seeds 2",
    "bases": f"{WIDE} --seeds 2",
    "steps": f"{BUNDLED} --values 2 5 10 25",
    "guidance": f"{BUNDLED} --values 1 3 7.5",
}
# Steps of the bases between none and the bundled one, on so many scenes.
BASE_STEPS, BASE_SCENES, BASE_BATCH = (30, 120), 128, 4


def young_bases(runs: Path) -> list[Path]:
    """The bundled base with another UNet: of its first steps, in the order of their number. The text encoder stays the bundled one."""
    folders = [runs / f"steps_{steps}" for steps in (0, *BASE_STEPS)]
    if all((folder / "unet" / "config.json").is_file() for folder in folders):
        return folders
    torch.manual_seed(0)
    unet = build_unet()
    _write_base(folders[0], unet)
    bundled = load_base(NANO)
    latents, captions = encode_pictures(bundled.vae, BASE_SEEDS[:BASE_SCENES], runs / "base_latents.safetensors")
    data = LatentCaptions(latents, tokenize(bundled.tokenizer, captions), tokenize(bundled.tokenizer, [""])[0])
    task = BaseTask(unet, bundled.text_encoder, data, BASE_BATCH)
    for steps, folder in zip(BASE_STEPS, folders[1:], strict=True):
        train(task, LoopConfig(runs / "base", steps=steps, learning_rate=1e-3, warmup=20), report=console_report("base", every=50))
        _write_base(folder, unet)
    return folders


def _write_base(folder: Path, unet: UNet2DConditionModel) -> None:
    for path in NANO.glob("**/*"):
        part = path.relative_to(NANO)
        if path.is_file() and part.parts[0] in ("vae", "tokenizer", "text_encoder", "scheduler"):
            copy_file(path, folder / part)
    unet.save_pretrained(folder / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(OPTIONS), help="which experiments; all")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments")
    parser.add_argument("--seeds", type=int, help="of every experiment, instead of its own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in arguments.names:
        bases = [*young_bases(arguments.runs / "bases"), NANO] if name == "bases" else [NANO]
        options = [name, "--base", *map(str, bases), "--output", str(arguments.runs), *SHARED.split(), *OPTIONS[name].split()]
        options += [] if arguments.seeds is None else ["--seeds", str(arguments.seeds)]
        config = experiment_from(build_parser().parse_args(options))
        results = run_experiment(config, report=lambda run: console_report(run, every=100))
        table = write_report(config, results)
        RESULTS.mkdir(parents=True, exist_ok=True)
        for path in (table, table.with_suffix(".json"), table.with_suffix(".png")):
            shutil.copyfile(path, RESULTS / path.name)
        print(table.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
