"""Does a base that paints better also tell maps better? The correlation of I-LoRA (section 4), on nano bases trained from nothing.

    OMP_NUM_THREADS=1 python -m intrinsic_lab.benchmarks.base_checkpoints [--steps N] [--adapter-steps N] [--runs FOLDER]

Trains UNet and text encoder on rooms for N steps, keeps the (averaged) base at 3, 10, 30 and 100 % of them, and trains the same LoRA on
each and on random weights, with the same steps and data. Printed and drawn: the Fréchet distance of each base's pictures to held-out rooms,
and the error of the map that its LoRA extracts from them. Every training goes on where it was stopped.
"""

import argparse
import logging
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import correlation, mean, stdev

import torch
from PIL import Image, ImageDraw

from ..methods.maps import MAPS
from ..training.atomic import copy_file, write_atomically
from ..training.command_line import console_report
from ..training.intrinsic_lora import IntrinsicLoraConfig, load_base, train_intrinsic_lora
from ..training.loop import LoopConfig, train
from ..training.nano.base import BaseTask, LatentCaptions, build_unet, encode_pictures, tokenize
from ..training.nano.text import build_text_encoder
from ..training.pairs import SceneData
from ..training.scene_pictures import BASE_SEEDS, BUNDLED_MAPS
from .measuring import RESULTS, ROOT, keep_result, markdown_table
from .nano_gate import STANDARD_ERRORS, Bundle, HeldOut, held_out_scenes

SHARES = (0.03, 0.1, 0.3, 1.0)
RANDOM = "random"
BASE_SCENES, BASE_BATCH = 2000, 16
ADAPTER_DATA, ADAPTER_BATCH = SceneData(count=500, size=128), 4
# The paper's LoRA: on the attention alone.
KIND, RANK = "attention", 8
HELD_OUT, SAMPLE_SEEDS = 100, (0, 1)


def train_bases(vae_of: Path, runs: Path, steps: int) -> dict[str, Path]:
    """Folders with `nano`, a diffusers folder, by share of the training, and one with random weights. vae_of: whose VAE and words."""
    from transformers import CLIPTokenizer

    folders = {f"{share:.0%}": runs / f"base-{share:.0%}" for share in SHARES}
    if not all((folder / "nano" / "unet").exists() for folder in folders.values()):
        loaded, tokenizer = load_base(vae_of), CLIPTokenizer.from_pretrained(vae_of / "tokenizer")
        latents, captions = encode_pictures(loaded.vae, BASE_SEEDS[:BASE_SCENES], runs / "base_latents.safetensors")
        data = LatentCaptions(latents, tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0])
        config = LoopConfig(runs / "base", steps, learning_rate=1e-3, warmup=min(100, max(1, steps // 20)), ema_decay=0.99)
        for share, folder in zip(SHARES, folders.values(), strict=True):
            if (folder / "nano" / "unet").exists():
                continue
            torch.manual_seed(0)
            unet = build_unet().to(memory_format=torch.channels_last)
            task = BaseTask(unet, build_text_encoder(len(tokenizer)), data, BASE_BATCH)
            train(task, replace(config, steps=max(1, round(share * steps))), report=console_report("base", every=50))
            write_base(vae_of, folder / "nano", task.module.unet, task.module.text_encoder)
    folders[RANDOM] = runs / "base-random"
    if not (folders[RANDOM] / "nano" / "unet").exists():
        drawn = load_base(vae_of, "random", 0)
        write_base(vae_of, folders[RANDOM] / "nano", drawn.network, drawn.text_encoder)
    return folders


def write_base(vae_of: Path, folder: Path, unet, text_encoder) -> None:
    """A diffusers folder with everything but UNet and text encoder from another; whole or not at all."""
    partial = folder.with_name(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(vae_of, partial, ignore=shutil.ignore_patterns("unet", "text_encoder", "intrinsic_vae"))
    unet.save_pretrained(partial / "unet")
    text_encoder.save_pretrained(partial / "text_encoder")
    partial.rename(folder)


def train_adapter(folder: Path, map_name: str, steps: int, kind: str, latents: Path) -> None:
    """The LoRA of a map on `folder/nano`, put beside it under the name that bundled ones have."""
    loop = LoopConfig(folder / f"{map_name}-{kind}", steps, learning_rate=1e-3, schedule="cosine", warmup=30, ema_decay=0.99)
    config = IntrinsicLoraConfig(folder / "nano", map_name, loop, ADAPTER_DATA, kind, RANK, ADAPTER_BATCH)
    if not config.weights.exists():
        train_intrinsic_lora(config, cache=latents, report=console_report(f"{folder.name} {map_name}", every=50))
    copy_file(config.weights, folder / f"nano_{map_name}.safetensors")


@dataclass(frozen=True)
class Row:
    """A base: samples that it was trained on, Fréchet distances by seed, errors of each held-out picture by map."""

    base: str
    samples: int
    distances: list[float]
    errors: dict[str, list[float]]


@torch.inference_mode()
def judge(base: str, samples: int, folder: Path, maps: list[str], held_out: HeldOut) -> Row:
    bundle = Bundle(folder)
    return Row(base, samples, bundle.distances(held_out, SAMPLE_SEEDS), {name: bundle.errors(held_out, name).tolist() for name in maps})


def as_markdown(rows: list[Row], maps: list[str]) -> str:
    """The table, and for each map whether its error falls as the distance falls: among the checkpoints, and the random base's place."""

    def spread(values: list[float], standard_error: bool = False) -> str:
        deviation = stdev(values) * (STANDARD_ERRORS / len(values) ** 0.5 if standard_error else 1)
        return f"{mean(values):.4g} ± {deviation:.2g}"

    cells = [[row.base, row.samples, spread(row.distances), *(spread(row.errors[name], True) for name in maps)] for row in rows]
    titles = [f"{name}, {MAPS[name].evaluation.main} (± two standard errors)" for name in maps]
    lines = [markdown_table(["base", "samples seen", "Fréchet distance (± of seeds)", *titles], cells), ""]
    trained = [row for row in rows if row.base != RANDOM]
    # Of bases that are hardly trained distances are larger by orders of magnitude.
    distances = [math.log(mean(row.distances)) for row in trained]
    for name in maps:
        errors = [mean(row.errors[name]) for row in rows]
        worst = errors.index(max(errors))
        among = [mean(row.errors[name]) for row in trained]
        lines.append(
            f"{name}: correlation of log distance and error over {len(trained)} checkpoints {correlation(distances, among):+.2f}; "
            f"the worst base is {rows[worst].base}."
        )
    return "\n".join(lines)


def plot(rows: list[Row], map_name: str, width: int = 560, height: int = 360) -> Image.Image:
    """Error of a map over the logarithm of the Fréchet distance, a named point for each base."""
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    x, y = [math.log10(mean(row.distances)) for row in rows], [mean(row.errors[map_name]) for row in rows]

    def place(value: float, values: list[float], start: int, end: int) -> float:
        return start + (value - min(values)) / ((max(values) - min(values)) or 1) * (end - start)

    pen.line([(60, 20), (60, height - 40), (width - 20, height - 40)], fill="#808080")
    for row, across, up in zip(rows, x, y, strict=True):
        at = place(across, x, 90, width - 110), place(up, y, height - 70, 40)
        pen.ellipse([at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4], fill="#d04010" if row.base == RANDOM else "#2060c0")
        pen.text((at[0] + 8, at[1] - 6), row.base, fill="black")
    for value, top in ((max(y), 34), (min(y), height - 76)):
        pen.text((8, top), f"{value:.4g}", fill="black")
    for value, left in ((min(x), 80), (max(x), width - 120)):
        pen.text((left, height - 36), f"{10**value:.3g}", fill="black")
    pen.text((64, 4), f"{map_name}: {MAPS[map_name].evaluation.main}", fill="black")
    pen.text((width // 2 - 50, height - 18), "Fréchet distance of pictures (log)", fill="black")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help=f"of {BASE_BATCH} samples, of the base (%(default)s)")
    parser.add_argument("--adapter-steps", type=int, default=150, help=f"of {ADAPTER_BATCH} samples, of each LoRA (%(default)s)")
    parser.add_argument("--maps", nargs="+", choices=BUNDLED_MAPS, default=["normal"])
    parser.add_argument("--kind", choices=("attention", "wide"), default=KIND, help="what the LoRA changes (%(default)s: the paper's)")
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "base_checkpoints")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folders = train_bases(arguments.assets / "nano", arguments.runs, arguments.steps)
    held_out = held_out_scenes("room", HELD_OUT)
    rows = []
    for base, folder in folders.items():
        for name in arguments.maps:
            train_adapter(folder, name, arguments.adapter_steps, arguments.kind, arguments.runs / "latents")
        samples = 0 if base == RANDOM else max(1, round(float(base[:-1]) / 100 * arguments.steps)) * BASE_BATCH
        rows.append(judge(base, samples, folder, arguments.maps, held_out))
        logging.info("%s: Fréchet distance %.3g", base, mean(rows[-1].distances))
    for name in arguments.maps:
        picture = plot(rows, name)
        write_atomically(RESULTS / f"base_checkpoints_{name}.png", lambda path, picture=picture: picture.save(path, "PNG"))
    settings = {"steps": arguments.steps, "adapter steps": arguments.adapter_steps, "kind": arguments.kind, "rank": RANK}
    record = settings | {"held-out rooms": HELD_OUT, "rows": [vars(row) for row in rows]}
    keep_result("base_checkpoints", as_markdown(rows, arguments.maps), record)


if __name__ == "__main__":
    main()
