"""Is a candidate of the bundled models better than what is bundled? The table that is read before weights are replaced.

    python -m intrinsic_lab.benchmarks.nano_gate [--candidate FOLDER] [--install]

Every row is judged on the same pictures, prompts and noise for both, so its difference has a spread: two standard errors of the mean of
the paired differences. A row is worse if it lost more than that. `--install` puts the candidate in the place of the bundled weights
if no row is worse and at least one is better; without it nothing is changed. Exit status 1: a row is worse, or nothing is better.

Rows: what the VAE leaves of exact maps; each map out of held-out pictures; the Fréchet distance of pictures from text; consistency of
I-LDM's and LumiX's maps. Sets: the rooms that all figures in degrees are about, every kind of scene seen by a camera, and, where they
were rendered (`python -m intrinsic_lab.scenes.path_traced`), path-traced pictures that nothing was trained on.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import torch
from einops import rearrange
from torch import Tensor

from ..kernels.machine import machine_and_card
from ..methods.ildm.consistency import frechet_distance
from ..methods.maps import MAPS
from ..training.atomic import write_atomically
from ..training.folder_data import read_picture
from ..training.intrinsic_lora import load_base, map_latent
from ..training.scene_pictures import BUNDLED_MAPS, HELD_OUT_SEEDS, render_kind, scene_data
from . import ildm_table, lumix_table
from .extraction_cost import start_comfyui
from .scenes_table import decode, encode, with_adapter

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Changes when rows are measured in another way: scores that were kept are then measured again.
VERSION = 1
SIZE = 128
COUNTS = {"room": 200, "world": 100}
# Five kinds of scenes take turns.
PATH_TRACED = 100
SAMPLE_SEEDS, PROMPTS, STEPS, CFG = (0, 1, 2, 3), 32, 20, 2.0
STANDARD_ERRORS = 2.0
# Pictures that share one value of a row whose measure is a mean.
GROUP = 4

# Row -> its values, one for each picture, group of pictures or seed. Lower is better, unless the row is in HIGHER.
Scores = dict[str, list[float]]
HIGHER = ("lines on edges", "segments on edges", "edges")


@dataclass(frozen=True)
class HeldOut:
    """Pictures `bchw` in 0..1 and their exact maps `bhwc` as data, depth in metres.

    captions: where pictures are to be made from them; mask_bhw: the pixels that count, None for all.
    """

    name: str
    pictures: Tensor
    maps: dict[str, Tensor]
    captions: tuple[str, ...] = ()
    mask_bhw: Tensor | None = None


def held_out_sets(path_traced: Path) -> list[HeldOut]:
    """Everything that adapters are judged on. path_traced: folder of `scenes.path_traced`, left out where it holds too few."""
    sets = [held_out_scenes(kind, count) for kind, count in COUNTS.items()]
    names = sorted(path.stem for path in (path_traced / "about").glob("*.json"))[:PATH_TRACED]
    if len(names) < PATH_TRACED:
        logging.warning("%s holds %d of %d pictures: they are left out", path_traced, len(names), PATH_TRACED)
        return sets
    return [*sets, read_path_traced(path_traced, names)]


def held_out_scenes(kind: str, count: int) -> HeldOut:
    """The first held-out scenes of a kind."""
    scenes = render_kind(HELD_OUT_SEEDS[:count], SIZE, kind)
    maps = {name: scene_data(scenes, name) for name in BUNDLED_MAPS}
    return HeldOut(kind, rearrange(scenes.image_bhwc, "b h w c -> b c h w"), maps, scenes.captions)


def read_path_traced(folder: Path, names: list[str]) -> HeldOut:
    """Samples of `scenes.path_traced`; the sky does not count."""

    def read(kind: str) -> Tensor:
        return torch.stack([read_picture(folder / kind / f"{name}.png") for name in names])

    maps = {name: MAPS[name].from_picture(rearrange(read(name), "b c h w -> b h w c")) for name in BUNDLED_MAPS}
    metres = torch.tensor([json.loads((folder / "about" / f"{name}.json").read_text())["depth_metres"] for name in names])
    nearest, farthest = rearrange(metres, "b ends -> ends b 1 1 1")
    maps["depth"] = nearest + (farthest - nearest) * maps["depth"]
    return HeldOut("path traced", read("image"), maps, mask_bhw=read("mask")[:, 0])


@dataclass
class Bundle:
    """A folder of bundled models, and how each of its rows is measured."""

    assets: Path

    @cached_property
    def base(self):
        return load_base(self.assets / "nano")

    def bounds(self, held_out: HeldOut) -> Iterator[tuple[str, Tensor]]:
        """What the VAE leaves of exact maps."""
        for name, exact in held_out.maps.items():
            latents = encode(self.base.vae, rearrange(MAPS[name].to_picture(exact), "b h w c -> b c h w"))
            yield name, main_metric(name, decode(self.base.vae, latents, name), exact, held_out.mask_bhw)

    @torch.no_grad()
    def errors(self, held_out: HeldOut, name: str) -> Tensor:
        """One map out of the pictures, by its adapter."""
        latents = encode(self.base.vae, held_out.pictures)
        network = with_adapter(load_base(self.assets / "nano").network, self.assets / f"nano_{name}.safetensors")
        text = self.base.embed(MAPS[name].prompt)
        predicted = torch.cat([map_latent(network, part, text) for part in latents.split(16)])
        return main_metric(name, decode(self.base.vae, predicted, name), held_out.maps[name], held_out.mask_bhw)

    @torch.no_grad()
    def distances(self, held_out: HeldOut, seeds: Sequence[int] = SAMPLE_SEEDS) -> list[float]:
        """Fréchet distance of pictures from the captions to the pictures themselves, for each seed."""
        real = features(encode(self.base.vae, held_out.pictures))
        return [frechet_distance(features(self.sample(held_out.captions[:PROMPTS], seed)), real) for seed in seeds]

    @torch.no_grad()
    def sample(self, prompts: tuple[str, ...], seed: int, cfg: float = CFG) -> Tensor:
        """Latents of pictures from text: DDIM, as diffusers does it."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_pretrained(self.assets / "nano" / "scheduler", set_alpha_to_one=False)
        scheduler.set_timesteps(STEPS)
        text = torch.cat([self.base.embed(prompt).context for prompt in (*prompts, "")])
        conditions = torch.cat([text[:-1], text[-1:].expand(len(prompts), -1, -1)])
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(len(prompts), self.base.network.config.in_channels, SIZE // 8, SIZE // 8, generator=generator)
        for timestep in scheduler.timesteps:
            told, empty = self.base.network(torch.cat([latent] * 2), timestep, conditions).sample.chunk(2)
            latent = scheduler.step(empty + cfg * (told - empty), timestep, latent).prev_sample
        return latent

    def joint(self, prompts: list[str], judge: "ildm_table.PictureNormals") -> Iterator[tuple[str, list[float]]]:
        """I-LDM's consistency under its Gaussian schedule."""
        world = ildm_table.World(self.assets / "nano", {True: self.assets / "nano_ildm.safetensors"})
        row = next(row for row in ildm_table.ROWS if row.name == "Gaussian")
        generated = world.generate(row, prompts, 0, 0)
        for name, values in ildm_table.judge(generated, judge).items():
            if name != "features":
                yield ildm_table.COLUMNS[name], values

    def lumix(self) -> Iterator[tuple[str, list[float]]]:
        """LumiX: maps from text that fit each other, maps of given pictures that are right."""
        world = lumix_table.World.load(self.assets / "nano_flux")
        denoiser, design = lumix_table.adapted(world, self.assets / "nano_lumix.safetensors")
        sampled = world.sample(denoiser, design, lumix_table.CFG)
        groups: dict[str, list[float]] = {}
        for start in range(0, len(lumix_table.SCENES), GROUP):
            part = {name: pictures[start : start + GROUP] for name, pictures in sampled.items()}
            for name, value in lumix_table.alignment(part).items():
                groups.setdefault(name, []).append(value)
        for name in ("normal of depth", "edges", "albedo x irradiance"):
            yield f"text: {name}", groups[name]
        decomposed = lumix_table.data_of(world.sample(denoiser, design, 1.0, (lumix_table.COLOR,)))
        for name in BUNDLED_MAPS:
            values = main_metric(name, decomposed[name], scene_data(world.scenes, name)).tolist()
            yield f"picture: {name}, {MAPS[name].evaluation.main}", values


def main_metric(map_name: str, prediction_bhwc: Tensor, exact_bhwc: Tensor, mask_bhw: Tensor | None = None) -> Tensor:
    """What a map is judged by, a value for each picture."""
    evaluation = MAPS[map_name].evaluation
    return evaluation.metrics(prediction_bhwc, exact_bhwc, mask_bhw)[evaluation.main]


def features(latents_bchw: Tensor) -> Tensor:
    """Mean and deviation of each channel, `[b, 2 c]`."""
    return torch.cat([latents_bchw.mean((2, 3)), latents_bchw.std((2, 3))], 1)


def measure(bundle: Bundle, sets: list[HeldOut], judge: "ildm_table.PictureNormals") -> Iterator[tuple[str, Callable[[], Scores]]]:
    """(group of rows, what measures it): each group is kept as soon as it is measured."""

    def row(what: str, held_out: HeldOut, name: str) -> str:
        return f"{what}, {held_out.name}: {name}, {MAPS[name].evaluation.main}"

    for held_out in sets:
        yield (
            f"bound-{held_out.name}",
            lambda held_out=held_out: {row("VAE bound", held_out, name): values.tolist() for name, values in bundle.bounds(held_out)},
        )
        for name in BUNDLED_MAPS:
            yield (
                f"{name}-{held_out.name}",
                lambda held_out=held_out, name=name: {row("map", held_out, name): bundle.errors(held_out, name).tolist()},
            )
        if held_out.captions:
            name = f"pictures from text, {held_out.name}: Fréchet distance"
            yield f"distance-{held_out.name}", lambda held_out=held_out, name=name: {name: bundle.distances(held_out)}
    prompts = list(sets[0].captions[:PROMPTS])
    yield "joint", lambda: {f"I-LDM: {name}": values for name, values in bundle.joint(prompts, judge)}
    yield "lumix", lambda: {f"LumiX, {name}": values for name, values in bundle.lumix()}


# Of every group, the files that its rows depend on.
DEPENDS = {
    "bound": ("nano/vae",),
    **{name: ("nano/unet", "nano/vae", "nano/text_encoder", f"nano_{name}.safetensors") for name in BUNDLED_MAPS},
    "distance": ("nano/unet", "nano/vae", "nano/text_encoder"),
    "joint": ("nano", "nano_ildm*"),
    "lumix": ("nano_flux", "nano_lumix*"),
}


def state_of(assets: Path, group: str, sets: list[HeldOut]) -> str:
    """Names the weights and pictures that a group of rows depends on."""
    content = hashlib.sha256(f"{VERSION} {group}".encode())
    for held_out in sets:
        if held_out.name in group:
            content.update(held_out.pictures.numpy().tobytes())
    for pattern in DEPENDS[group.partition("-")[0]]:
        for entry in sorted(assets.glob(pattern)):
            for path in sorted(entry.rglob("*.safetensors")) if entry.is_dir() else [entry]:
                if path.suffix == ".safetensors":
                    content.update(path.relative_to(assets).as_posix().encode() + path.read_bytes())
    return content.hexdigest()[:16]


def scores_of(bundled: Path, candidate: Path, sets: list[HeldOut], judge: Path, kept: Path) -> tuple[Scores, Scores]:
    """The rows of both folders of models that are not the same for both because they depend on the same weights.

    judge: the I-LoRA of `bundled` that is a second opinion on I-LDM's maps. What was measured before is read from `kept`.
    """
    opinion = ildm_table.PictureNormals(bundled / "nano", judge)
    both: tuple[Scores, Scores] = {}, {}
    measures = [dict(measure(Bundle(folder), sets, opinion)) for folder in (bundled, candidate)]
    for group in measures[0]:
        states = [state_of(folder, group, sets) for folder in (bundled, candidate)]
        if states[0] == states[1]:
            logging.info("%s: the same weights", group)
            continue
        for scores, state, compute in zip(both, states, (of[group] for of in measures), strict=True):
            path = kept / f"{group}-{state}{hashlib.sha256(judge.read_bytes()).hexdigest()[:8] if group == 'joint' else ''}.json"
            if not path.exists():
                logging.info("%s: measuring", path.name)
                with torch.inference_mode():
                    values = compute()
                write_atomically(path, lambda partial, values=values: partial.write_text(json.dumps(values)))
            scores |= json.loads(path.read_text())
    return both


@dataclass(frozen=True)
class Row:
    """A row of the table: both means, the gain (above 0: better) and its spread."""

    name: str
    bundled: float
    candidate: float
    gain: float
    spread: float

    @property
    def verdict(self) -> str:
        # Written so that NaN, which weights that exploded give, is worse too.
        if not self.gain >= -self.spread:
            return "worse"
        return "better" if self.gain > self.spread else "same"


def compare(bundled: Scores, candidate: Scores) -> list[Row]:
    """The rows that both have. Values that are equal to the last bit have no spread."""
    rows = []
    for name in (name for name in candidate if name in bundled):
        sign = 1 if name.endswith(HIGHER) else -1
        gains = [sign * (new - old) for old, new in zip(bundled[name], candidate[name], strict=True)]
        spread = STANDARD_ERRORS * stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        rows.append(Row(name, mean(bundled[name]), mean(candidate[name]), mean(gains), spread))
    return rows


def as_markdown(rows: list[Row]) -> str:
    lines = ["| row | bundled | candidate | gain | spread | |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [f"| {r.name} | {r.bundled:.4g} | {r.candidate:.4g} | {r.gain:+.3g} | {r.spread:.2g} | {r.verdict} |" for r in rows]
    return "\n".join(lines)


def install(candidate: Path, assets: Path) -> None:
    """Put every file of the candidate that differs in its place, one by one and each of them whole."""
    for path in sorted(candidate.rglob("*")):
        target = assets / path.relative_to(candidate)
        if path.is_file() and not (target.exists() and target.read_bytes() == path.read_bytes()):
            write_atomically(target, lambda partial, path=path: partial.write_bytes(path.read_bytes()))
    shutil.rmtree(candidate)


def keep_record(rows: list[Row]) -> None:
    """Write what weights were replaced by; rows of earlier replacements stay until they are measured again."""
    path = RESULTS / "nano_gate.json"
    kept = {row["name"]: Row(**row) for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    kept |= {row.name: row for row in rows}
    record = {"machine": machine_and_card(), "cores": os.cpu_count(), "rows": [vars(row) for row in kept.values()]}
    write_atomically(path, lambda partial: partial.write_text(json.dumps(record, indent=1)))
    write_atomically(path.with_suffix(".md"), lambda partial: partial.write_text(as_markdown(list(kept.values())) + "\n"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano")
    parser.add_argument("--candidate", type=Path, help="folder of the candidate (RUNS/further/candidate)")
    parser.add_argument("--path-traced", type=Path, default=Path.home() / ".cache" / "intrinsic-lab" / "path_traced-128", metavar="DIR")
    parser.add_argument("--install", action="store_true", help="replace the bundled weights if no row is worse")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    candidate = arguments.candidate or arguments.runs / "further" / "candidate"
    if not candidate.is_dir():
        raise SystemExit(f"there is no candidate in {candidate}: python -m intrinsic_lab.training.nano further makes one.")
    start_comfyui()
    sets, kept = held_out_sets(arguments.path_traced), arguments.runs / "gate"
    kept.mkdir(parents=True, exist_ok=True)
    rows = compare(*scores_of(arguments.assets, candidate, sets, arguments.assets / "nano_normal.safetensors", kept))
    text = as_markdown(rows)
    print(text)
    worse, better = ([row.name for row in rows if row.verdict == verdict] for verdict in ("worse", "better"))
    print(f"\n{len(better)} better, {len(worse)} worse, {len(rows) - len(better) - len(worse)} the same within their spread.")
    print("Rows that depend on weights that are the same in both are left out.")
    if worse or not better:
        return 1
    if arguments.install:
        install(candidate, arguments.assets)
        keep_record(rows)
        print("installed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
