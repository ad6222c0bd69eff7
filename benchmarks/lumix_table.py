"""The design matrix of LumiX on the nano FLUX base: how maps meet in attention, how their update is structured, at equal steps.

    python -m intrinsic_lab.benchmarks.lumix_table [--part K/N] [--report] [--sheet FILE]

Trains what has no score yet (each run resumes where it stopped), scores it and prints the table; scores are kept one file per run and
state of the base. `--part 1/2` and `--part 2/2` share the runs between two processes; `--report` trains nothing.

From held-out prompts, all maps sampled together, judged without ground truth: normals against those of the generated depth (median
degrees), edges of each map against the picture's (correlation), and the picture against albedo x irradiance (RMSE, sRGB). From held-out
pictures (the colour map given clean): each map's error. FLOPs and parameters are those of a FLUX.1 block at the paper's 1,536 tokens.
"""

import argparse
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from einops import rearrange
from torch import Tensor

from ..kernels.flops import cross_intrinsic_flops, query_broadcast_flops, tensor_lora_flops
from ..methods.ildm.consistency import depth_normal_degrees, edge_agreement, edge_strength
from ..methods.lumix.design import (
    ATTENTIONS,
    COLOR,
    CROSS_INTRINSIC,
    HYBRID,
    KINDS,
    LORAS,
    MAP_NAMES,
    QUERY_BROADCAST,
    SEPARATE,
    TENSOR,
    Design,
)
from ..methods.lumix.schedule import published_shift, shifted_sigmas
from ..methods.lumix.tensor_lora.config import AdapterConfig
from ..methods.lumix.tensor_lora.file import read_adapter
from ..methods.lumix.tensor_lora.layer import Adapter
from ..methods.maps import map_kind, srgb_from_linear
from ..scenes import SceneMaps, render_scenes
from ..training.atomic import write_atomically
from ..training.backbones.backbone import FlowBase, TextEmbeddings
from ..training.backbones.flux import encode_texts, load_flux_base
from ..training.command_line import console_report
from ..training.lumix import LumixConfig, MapDenoiser, sample_maps, train_lumix
from ..training.nano.flux_lumix import nano_config
from ..training.scene_pictures import HELD_OUT_SEEDS, scene_data, scene_picture
from .generators_table import mean_map

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCENES = HELD_OUT_SEEDS[:32]
SIZE = 128
STEPS = 300
SAMPLING_STEPS, CFG = 8, 3.0
GROUPS = 8
JUDGED_BY = {"normal": "mean_degrees", "depth": "abs_rel", "albedo": "rmse", "shading": "rmse"}
# Of normals and the depth's own, in maps from text. Exact maps through the VAE are not nearer than 15.
ALIGNED_DEGREES = 18.0
# Of the scenes the base was trained on: a generated picture does not tell its own.
VERTICAL_FOV_DEGREES = 48.0
# The paper's block: 512 text and 1,024 image tokens, width 3,072.
PAPER_TOKENS, PAPER_WIDTH = 1536, 3072


@dataclass(frozen=True)
class Run:
    """One training. other_rank: for hybrid."""

    attention: str
    lora: str
    rank: int = 8
    adapt_query: bool = False

    @property
    def name(self) -> str:
        return f"{self.attention}-{self.lora}-r{self.rank}" + ("-query" if self.adapt_query else "")

    @property
    def design(self) -> Design:
        return Design(self.attention, self.lora, adapt_query=self.adapt_query)

    @property
    def other_rank(self) -> int:
        return self.rank // 2 if self.lora == HYBRID else 0


def planned_runs() -> list[Run]:
    """The paper's own comparisons first, so that a part of the table tells the most."""
    first = [
        (QUERY_BROADCAST, TENSOR),
        (SEPARATE, SEPARATE),
        (CROSS_INTRINSIC, SEPARATE),
        (CROSS_INTRINSIC, TENSOR),
        (QUERY_BROADCAST, HYBRID),
    ]
    ablations = [Run(QUERY_BROADCAST, TENSOR, adapt_query=True), Run(QUERY_BROADCAST, TENSOR, 4), Run(QUERY_BROADCAST, TENSOR, 12)]
    rest = [cell for cell in product(ATTENTIONS[::-1], LORAS) if cell not in first]
    return [Run(*cell) for cell in first] + ablations + [Run(*cell) for cell in rest]


def run_config(run: Run, base: Path, runs: Path) -> LumixConfig:
    """The bundled adapter's recipe with fewer steps and in the run's design."""
    return nano_config(base, runs / run.name, STEPS, design=run.design, rank=run.rank, other_rank=run.other_rank)


@dataclass
class World:
    """What all runs are judged on: held-out scenes, their latents by map, what the base is told of their captions, noise."""

    folder: Path
    base: FlowBase
    scenes: SceneMaps
    latents: dict[str, Tensor]
    text: TextEmbeddings
    empty: TextEmbeddings

    @classmethod
    @torch.no_grad()
    def load(cls, folder: Path) -> "World":
        base, scenes = load_flux_base(folder), render_scenes(SCENES, SIZE, SIZE)
        latents = {name: encode(base.vae, rearrange(scene_picture(scenes, kind), "b h w c -> b c h w")) for name, kind in KINDS.items()}
        text = encode_texts(folder, [*scenes.captions, ""])
        count = len(SCENES)
        return cls(folder, base, scenes, latents, text.rows(torch.arange(count)), text.rows(torch.full((count,), count)))

    def sample(self, denoiser: MapDenoiser, design: Design, cfg: float, given: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Pictures `[b, h, w, 3]` of all maps; a scene's noise depends on its number alone."""
        shape = self.latents[COLOR].shape[1:]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in SCENES])
        sigmas = shifted_sigmas(SAMPLING_STEPS, published_shift(shape[1] * shape[2] // 4))
        parts = []
        for rows in torch.arange(len(SCENES)).split(GROUPS):
            known = {name: self.latents[name][rows] for name in given}
            empty = self.empty.rows(rows)
            parts.append(sample_maps(denoiser, design, noise[rows], self.text.rows(rows), sigmas, empty=empty, cfg=cfg, given=known))
        latents = torch.cat(parts)
        return {name: decode(self.base.vae, latents[:, row]) for row, name in enumerate(design.maps)}


@torch.no_grad()
def encode(vae, pictures_bchw: Tensor) -> Tensor:
    """Model latents (mode) of pictures in 0..1."""
    latents = torch.cat([vae.encode(2 * part - 1).latent_dist.mode() for part in pictures_bchw.split(16)])
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae, latents_bchw: Tensor) -> Tensor:
    """Pictures `[b, h, w, 3]`, nominally in 0..1, of model latents."""
    latents = latents_bchw / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    pictures = torch.cat([vae.decode(part).sample for part in latents.split(16)])
    return rearrange(pictures, "b c h w -> b h w c") / 2 + 0.5


def data_of(pictures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map data of the pictures of maps (`methods.maps`), under the trainers' names; the colour picture as it is."""
    return {KINDS[name]: map_kind(KINDS[name]).from_picture(picture) for name, picture in pictures.items()}


def alignment(pictures: dict[str, Tensor]) -> dict[str, float]:
    """How well the maps of pictures fit each other, without ground truth."""
    data = data_of(pictures)
    edges = edge_strength(pictures[COLOR].clamp(0, 1))
    product_picture = srgb_from_linear((data["albedo"] * data["shading"]).clamp(0, 1))
    others = [name for name in MAP_NAMES if name != COLOR]
    agreement = {f"edges {name}": edge_agreement(edge_strength(pictures[name].clamp(0, 1)), edges).mean().item() for name in others}
    return {
        "normal of depth": depth_normal_degrees(data["depth"], data["normal"], VERTICAL_FOV_DEGREES).mean().item(),
        **agreement,
        "edges": mean(agreement.values()),
        "albedo x irradiance": (product_picture - pictures[COLOR].clamp(0, 1)).square().mean((1, 2, 3)).sqrt().mean().item(),
    }


def quality(data: dict[str, Tensor], scenes: SceneMaps) -> dict[str, float]:
    """Errors of map data made from the scenes' own pictures."""
    found = {}
    for kind, metric in JUDGED_BY.items():
        found[f"{kind} {metric}"] = map_kind(kind).evaluation.score(data[kind], scene_data(scenes, kind))[metric]
    return found


def adapted(world: World, path: Path) -> tuple[MapDenoiser, Design]:
    """The base with the adapter in `path`."""
    adapter = read_adapter(path).float()
    return MapDenoiser(load_flux_base(world.folder).transformer, adapter).eval(), adapter.config.design


def score_run(world: World, path: Path) -> dict[str, float]:
    """Everything the table says of one adapter."""
    denoiser, design = adapted(world, path)
    sampled = alignment(world.sample(denoiser, design, CFG))
    started = time.process_time()
    decomposed = world.sample(denoiser, design, 1.0, (COLOR,))
    seconds = (time.process_time() - started) / len(SCENES)
    own = {f"given: {name}": value for name, value in alignment(decomposed).items()}
    trained = sum(parameter.numel() for parameter in denoiser.adapter.parameters())
    return sampled | quality(data_of(decomposed), world.scenes) | own | {"seconds": seconds, "trained parameters": trained}


def block_costs(run: Run) -> dict[str, float]:
    """Of a FLUX.1 block, image and text: adapter parameters (millions), GFLOP of the attention and of the adapter."""
    maps, tokens, width = len(MAP_NAMES), PAPER_TOKENS, PAPER_WIDTH
    with torch.device("meta"):
        adapter = Adapter(AdapterConfig(run.design, width, 0, 1, run.rank, run.other_rank))
    attention = cross_intrinsic_flops if run.attention == CROSS_INTRINSIC else query_broadcast_flops
    outputs = adapter.config.input_outputs
    if run.lora == TENSOR:
        update = tensor_lora_flops(tokens, width, outputs * width, maps, run.rank) + tensor_lora_flops(tokens, width, width, maps, run.rank)
    else:
        # Two thin products for every projection and pair of maps of the structure.
        rank = run.rank + (maps - 1) * run.other_rank
        update = (outputs + 1) * maps * 2 * tokens * rank * 2 * width
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    return {"parameters (M)": parameters / 1e6, "attention GFLOP": attention(tokens, width, maps) / 1e9, "adapter GFLOP": update / 1e9}


MEAN_MAP = "mean map of training scenes"
REFERENCES = ("exact maps through the VAE", "maps of another scene", MEAN_MAP)
MEAN_SCENES = 500


def references(world: World) -> dict[str, dict[str, float]]:
    """The ends of the measures' scales: exact maps through the VAE, those of another scene, and the answer that sees no picture."""
    exact = {name: decode(world.base.vae, latents) for name, latents in world.latents.items()}
    shuffled = {name: picture if name == COLOR else picture.roll(1, 0) for name, picture in exact.items()}
    pairs = zip(REFERENCES, (exact, shuffled), strict=False)
    found = {name: alignment(pictures) | quality(data_of(pictures), world.scenes) for name, pictures in pairs}
    mean_maps = {kind: mean_map(kind, SIZE, MEAN_SCENES).expand(len(SCENES), -1, -1, -1) for kind in JUDGED_BY}
    return found | {MEAN_MAP: quality(mean_maps, world.scenes)}


def verdict(adapter: dict[str, float], mean_maps: dict[str, float]) -> str:
    """What the adapter must do to be of use: beat the mean map on every map, make maps that fit each other."""
    lines = [
        f"{kind}: {adapter[f'{kind} {metric}']:.3f}, mean map {mean_maps[f'{kind} {metric}']:.3f}" for kind, metric in JUDGED_BY.items()
    ]
    better = sum(adapter[f"{kind} {metric}"] < mean_maps[f"{kind} {metric}"] for kind, metric in JUDGED_BY.items())
    return (
        f"\nThe bundled adapter, given pictures, is better than the mean map on {better} of {len(JUDGED_BY)} maps ({'; '.join(lines)}). "
        f"From text its normals are {adapter['normal of depth']:.1f} degrees from those of its depth; {ALIGNED_DEGREES:.0f} are aimed at."
    )


COLUMNS = {
    "normal of depth": ("text: normals of depth, °", 1),
    "edges": ("text: edges", 3),
    "albedo x irradiance": ("text: albedo x irradiance, RMSE", 3),
    "normal mean_degrees": ("picture: normal, °", 1),
    "depth abs_rel": ("picture: depth, AbsRel", 3),
    "albedo rmse": ("picture: albedo, RMSE", 3),
    "shading rmse": ("picture: irradiance, RMSE", 3),
    "given: edges": ("picture: edges", 3),
    "trained parameters": ("nano parameters", 0),
    "parameters (M)": ("FLUX.1 block: parameters, M", 2),
    "attention GFLOP": ("attention, GFLOP", 1),
    "adapter GFLOP": ("adapter, GFLOP", 1),
    "final loss": ("training loss", 3),
    "seconds": ("CPU s a picture", 2),
}


def as_markdown(rows: dict[str, dict[str, float]], missing: list[str]) -> str:
    lines = ["| attention, LoRA | " + " | ".join(title for title, _ in COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, values in rows.items():
        cells = [f"{values[column]:.{digits}f}" if column in values else "" for column, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if missing:
        lines.append(f"\nNot run: {', '.join(missing)} (a run of the command completes them).")
    return "\n".join(lines)


def sheet(world: World, path: Path, target: Path, scenes: int = 3) -> None:
    """For the first prompts: the maps from text, below them the maps from the scene's own picture, below them the exact ones."""
    from PIL import Image

    denoiser, design = adapted(world, path)
    exact = {name: decode(world.base.vae, latents) for name, latents in world.latents.items()}
    three = (world.sample(denoiser, design, CFG), world.sample(denoiser, design, 1.0, (COLOR,)), exact)
    rows = [torch.cat([pictures[name][i] for name in MAP_NAMES], dim=1) for i in range(scenes) for pictures in three]
    pixels = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    write_atomically(target, lambda partial: Image.fromarray(pixels).save(partial, "PNG"))


def keep(path: Path, values: dict[str, float]) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(values, indent=1)))


def once(path: Path, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Scores kept in `path`, computed if they are not there."""
    if not path.exists():
        keep(path, compute())
    return json.loads(path.read_text())


def state_of(base: Path) -> str:
    """Names the weights and settings that all scores depend on."""
    recipe = run_config(Run(QUERY_BROADCAST, TENSOR), Path(), Path())
    # Named one by one: an option that is new to the trainers changes nothing here.
    trained = [recipe.loop.steps, recipe.loop.learning_rate, recipe.loop.ema_decay, recipe.batch, recipe.clean_share, asdict(recipe.data)]
    content = hashlib.sha256(json.dumps([SAMPLING_STEPS, CFG, len(SCENES), *trained]).encode())
    for part in ("transformer", "vae"):
        content.update((base / part / "diffusion_pytorch_model.safetensors").read_bytes())
    return content.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "nano_flux")
    parser.add_argument("--bundled", type=Path, default=ROOT / "assets" / "nano_lumix.safetensors")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "lumix_table")
    parser.add_argument("--latents", type=Path, default=ROOT / "runs" / "nano" / "table" / "latents", help="folder of encoded maps")
    parser.add_argument("--part", default="1/1", help="K/N: do every N-th run, beginning with the K-th")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--sheet", type=Path, help="write pictures of the bundled adapter to this PNG, and nothing else")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = World.load(arguments.base)
    if arguments.sheet:
        sheet(world, arguments.bundled, arguments.sheet)
        return
    folder = RESULTS / "lumix_scores" / state_of(arguments.base)
    part, parts = (int(number) for number in arguments.part.split("/"))
    if not arguments.report:
        for run in planned_runs()[part - 1 :: parts]:
            kept = folder / f"{run.name}.json"
            if kept.exists():
                continue
            config = run_config(run, arguments.base, arguments.runs)
            history = train_lumix(config, cache=arguments.latents, report=console_report(run.name)).history
            values = score_run(world, config.weights) | {"final loss": mean(history.losses[-50:]), "minutes": history.seconds / 60}
            keep(kept, values)
        if parts > 1:
            return
    rows = {name: once(folder / f"{name.replace(' ', '-')}.json", lambda name=name: references(world)[name]) for name in REFERENCES}
    if arguments.bundled.exists():
        state = hashlib.sha256(arguments.bundled.read_bytes()).hexdigest()[:12]
        rows["bundled adapter"] = once(folder / f"bundled-{state}.json", lambda: score_run(world, arguments.bundled))
    missing = []
    for run in planned_runs():
        kept = folder / f"{run.name}.json"
        label = f"{run.attention}, {run.lora}, rank {run.rank}" + (" (+ query)" if run.adapt_query else "")
        if kept.exists():
            rows[label] = json.loads(kept.read_text()) | block_costs(run)
        else:
            missing.append(label)
    text = as_markdown(rows, missing)
    if "bundled adapter" in rows:
        text += "\n" + verdict(rows["bundled adapter"], rows[MEAN_MAP])
    print(text)
    record = {"steps": STEPS, "scenes": len(SCENES), "sampling steps": SAMPLING_STEPS, "cfg": CFG, "rows": rows, "not run": missing}
    kept_rows = json.dumps(record | {"machine": f"CPU, {os.cpu_count()} cores"}, indent=1)
    write_atomically(RESULTS / "lumix_table.md", lambda path: path.write_text(text + "\n"))
    write_atomically(RESULTS / "lumix_table.json", lambda path: path.write_text(kept_rows))


if __name__ == "__main__":
    main()
