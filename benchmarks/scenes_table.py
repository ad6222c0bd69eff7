"""How well each map comes out of the nano bases (a UNet, a FLUX), on 200 held-out scenes, beside what it has to beat.

    python -m intrinsic_lab.benchmarks.scenes_table [--part K/N] [--report]

Trains what has no score yet (each run resumes where it stopped), scores it and prints the table. Scores are kept beside the table,
one file per run and state of the base: delete one to have its run trained and scored again. `--part 1/2` and `--part 2/2` share
the trainings between two processes and print nothing; `--report` trains nothing.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import Tensor

from ..methods.intrinsic_lora.recipe import RAW, recipe_of
from ..methods.lora.lora_file import read_lora
from ..methods.maps import MAPS
from ..scenes import render_scenes
from ..training.atomic import write_atomically
from ..training.backbones import single_step_part
from ..training.command_line import console_report
from ..training.intrinsic_lora import (
    IntrinsicLoraConfig,
    LatentPairs,
    add_adapter,
    load_adapter,
    load_base,
    map_latent,
    train_intrinsic_lora,
)
from ..training.loop import LoopConfig
from ..training.nano.adapters import ADAPTER_DATA, FLUX_STEPS, KIND, RANK
from ..training.scene_pictures import BUNDLED_MAPS, HELD_OUT_SEEDS, scene_data

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCENES = HELD_OUT_SEEDS[:200]
SIZE = 128
STEPS = 1000
BATCH = 1
LEARNING_RATES = {"attention": 1e-3, "wide": 1e-3, "full": 2e-4}
SEEDS = (0, 1, 2)
UNET, FLUX = "nano", "nano_flux"


@dataclass(frozen=True)
class Run:
    """One training whose result is a row of the table."""

    map: str
    kind: str
    init: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.map}-{self.kind}-{self.init}-{self.seed}"


def planned_runs() -> list[Run]:
    """Normals with three seeds; the other maps with one. The most telling comparisons come first."""
    normals = [Run("normal", kind, init, seed) for seed in SEEDS for kind in (KIND, "full") for init in ("trained", "random")]
    others = [
        Run(name, kind, init, 0) for name in BUNDLED_MAPS[1:] for kind, init in ((KIND, "trained"), (KIND, "random"), ("full", "trained"))
    ]
    paper = [Run(name, "attention", "trained", 0) for name in BUNDLED_MAPS]
    return normals[:4] + others + paper[:1] + normals[4:] + paper[1:]


def references(map_name: str) -> tuple[Tensor, Tensor]:
    """Pictures `bchw` in 0..1 of the held-out scenes, and the exact map `bhwc` (depth in metres)."""
    maps = render_scenes(SCENES, SIZE, SIZE)
    return rearrange(maps.image_bhwc, "b h w c -> b c h w"), scene_data(maps, map_name)


@torch.no_grad()
def decode(vae, latent_bchw: Tensor, map_name: str) -> Tensor:
    """Map data `bhwc` of map latents."""
    pictures = torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in latent_bchw.split(8)])
    return MAPS[map_name].from_picture(rearrange(pictures, "b c h w -> b h w c") / 2 + 0.5)


@torch.no_grad()
def encode(vae, pictures_bchw: Tensor) -> Tensor:
    """Scaled latents (mode) of pictures in 0..1."""
    return torch.cat([vae.encode(2 * part - 1).latent_dist.mode() for part in pictures_bchw.split(16)]) * vae.config.scaling_factor


@torch.no_grad()
def evaluate(base, network, map_name: str, latent_bchw: Tensor, reading: str = RAW) -> dict[str, float]:
    """Scores of a network on the held-out scenes, given the latents of their pictures."""
    text = base.embed(MAPS[map_name].prompt)
    predicted = torch.cat([map_latent(network, part, text, reading) for part in latent_bchw.split(16)])
    return MAPS[map_name].evaluation.score(decode(base.vae, predicted, map_name), references(map_name)[1])


def run_config(run: Run, base: Path, runs: Path) -> IntrinsicLoraConfig:
    """The same steps, batch and data for every row; the learning rate is the kind's own."""
    loop = LoopConfig(runs / run.name, steps=STEPS, learning_rate=LEARNING_RATES[run.kind], warmup=50, ema_decay=0.99, seed=run.seed)
    rank = 8 if run.kind == "attention" else RANK
    return IntrinsicLoraConfig(
        base=base, map=run.map, loop=loop, data=ADAPTER_DATA, kind=run.kind, rank=rank, batch=BATCH, init=run.init, save_dtype="float16"
    )


def trained_unet(run: Run, base: Path, runs: Path):
    """The UNet of a finished run, ready to predict."""
    config = run_config(run, base, runs)
    if run.kind == "full":
        return UNet2DConditionModel.from_pretrained(config.weights).eval()
    return with_adapter(load_base(base, run.init, run.seed).network, config.weights)


def with_adapter(network, path: Path):
    """`network` with the LoRA file `path`, through peft."""
    file = read_lora(path)
    settings = json.loads(file.metadata["intrinsic_lab.config"])
    add_adapter(network, settings["kind"], settings["rank"], 0)
    load_adapter(network, file)
    return network.eval()


def score_mean_map(map_name: str, vae, runs: Path) -> dict[str, float]:
    """The training set's mean map as the answer to every picture."""
    pairs = LatentPairs.encode(vae, ADAPTER_DATA.source(map_name), map_name, runs / "latents")
    rows = range(0, len(pairs), 2)
    total = sum(ADAPTER_DATA.read(map_name, [row]) for row in rows) / len(rows)
    mean_map = MAPS[map_name].from_picture(rearrange(total, "b c h w -> b h w c"))
    return MAPS[map_name].evaluation.score(mean_map.expand(len(SCENES), -1, -1, -1), references(map_name)[1])


def score_vae_bound(map_name: str, vae) -> dict[str, float]:
    """The exact map, encoded and decoded: no prediction can be expected to be better."""
    exact = references(map_name)[1]
    latents = encode(vae, rearrange(MAPS[map_name].to_picture(exact), "b h w c -> b c h w"))
    return MAPS[map_name].evaluation.score(decode(vae, latents, map_name), exact)


def score_file(base: Path, name: str) -> Path:
    """Where a row's scores are kept: they hold for one state of the base's VAE and network."""
    state = [digest(base / part / "diffusion_pytorch_model.safetensors") for part in ("vae", single_step_part(base))]
    return RESULTS / "scenes_scores" / "-".join(state) / f"{name}.json"


def once(path: Path, compute) -> dict[str, float]:
    """Scores kept in `path`, computed if they are not there."""
    if not path.exists():
        values = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(values)))
    return json.loads(path.read_text())


def table(bases: Path, runs: Path) -> dict:
    """All rows that exist, per map: `{map: {row: {metric: [values over seeds]}}}`."""
    # The two bases have one VAE.
    loaded = {name: load_base(bases / name) for name in (UNET, FLUX)}
    vae, unet_base = loaded[UNET].vae, bases / UNET
    latents = encode(vae, references("normal")[0])
    result = {}
    for name in BUNDLED_MAPS:
        rows = {"VAE bound": [once(score_file(unet_base, f"{name}-bound"), partial(score_vae_bound, name, vae))]}
        rows["mean map"] = [once(score_file(unet_base, f"{name}-mean"), partial(score_mean_map, name, vae, runs))]
        for base, row in ((UNET, "bundled adapter"), (FLUX, f"nano FLUX: bundled adapter, {FLUX_STEPS} steps")):
            bundled = bases / f"{base}_{name}.safetensors"
            if bundled.exists():
                network = with_adapter(load_base(bases / base).network, bundled)
                kept = score_file(bases / base, f"{name}-bundled-{digest(bundled)}")
                reading = recipe_of(read_lora(bundled), bundled.name).reading
                rows[row] = [once(kept, partial(evaluate, loaded[base], network, name, latents, reading))]
        for run in (run for run in planned_runs() if run.map == name):
            kept = score_file(unet_base, run.name)
            if not kept.exists() and not run_config(run, unet_base, runs).weights.exists():
                continue
            scores = once(kept, lambda run=run, name=name: evaluate(loaded[UNET], trained_unet(run, unet_base, runs), name, latents))
            what = "full fine-tuning" if run.kind == "full" else f"LoRA {run.kind} r{8 if run.kind == 'attention' else RANK}"
            rows.setdefault(f"{what}, {run.init} base, {STEPS} steps", []).append(scores)
        result[name] = {row: {key: [seed[key] for seed in kept] for key in kept[0]} for row, kept in rows.items()}
    return result


def digest(path: Path) -> str:
    """Names a file by its content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def print_table(result: dict) -> str:
    """The table as Markdown, one section per map; mean +- standard deviation where there are several seeds."""
    lines = []
    for name, rows in result.items():
        metrics = list(next(iter(rows.values())))
        lines += [f"\n### {name} (judged by {MAPS[name].evaluation.main})\n", "| row | seeds | " + " | ".join(metrics) + " |"]
        lines.append("| --- | --- |" + " --- |" * len(metrics))
        for row, values in rows.items():
            cells = [f"{mean(v):.3f}" + (f" ± {stdev(v):.3f}" if len(v) > 1 else "") for v in values.values()]
            lines.append(f"| {row} | {len(next(iter(values.values())))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ROOT / "assets", help="where the bases and the bundled adapters are")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "table")
    parser.add_argument("--part", default="1/1", help="K/N: train every N-th run, beginning with the K-th")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if not arguments.report:
        part, parts = (int(number) for number in arguments.part.split("/"))
        for run in planned_runs()[part - 1 :: parts]:
            config = run_config(run, arguments.assets / UNET, arguments.runs)
            if not (score_file(config.base, run.name).exists() or config.weights.exists()):
                train_intrinsic_lora(config, cache=arguments.runs / "latents", report=console_report(run.name, every=250))
        if parts > 1:
            return
    result = table(arguments.assets, arguments.runs)
    text = print_table(result)
    print(text)
    machine = f"{platform.machine()}, CPU, {os.cpu_count()} cores"
    record = {"scenes": len(SCENES), "size": SIZE, "batch": BATCH, "machine": machine, "maps": result}
    write_atomically(RESULTS / "scenes_table.json", lambda path: path.write_text(json.dumps(record, indent=1)))
    write_atomically(RESULTS / "scenes_table.md", lambda path: path.write_text(text + "\n"))


if __name__ == "__main__":
    main()
