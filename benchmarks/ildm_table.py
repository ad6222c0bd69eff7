"""What the exchange between picture and maps does (I-LDM), on the nano base: schedules side by side on the same prompts and noise.

    python -m intrinsic_lab.benchmarks.ildm_table [--skip-ablation] [--seeds N] [--prompts N] [--report] [--sheet FILE]

Samples through the pack's own patch of ComfyUI's model. Consistency is judged on what was generated, without ground truth: generated
normals against those of the generated depth and against those the bundled I-LoRA sees in the picture (median degrees), line map and
segment boundaries against the picture's edges (correlation). Fidelity: the Fréchet distance of the nano encoder's features to the
base's pictures of the other seeds (so the base itself is not at 0), and the mean change of the same seed's picture, in 8-bit levels.

Rows with another strength of the LoRA, and with the paper's 25 steps at guidance 7.5, are compared with pictures without exchange at the
same steps and guidance. `ildm_attention` prints where attention crosses.

Each seed has prompts of its own. Scores are kept in the runs folder, one file per row and seed, so a run that is stopped goes on where
it was. --sheet also writes pictures and maps of the first prompts.
"""

import argparse
import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..methods.ildm import schedules
from ..methods.ildm.consistency import depth_normal_degrees, edge_agreement, edge_strength, frechet_distance
from ..methods.ildm.intrinsic_vae import join_intrinsics, split_intrinsics
from ..methods.lora.lora_file import read_lora
from ..methods.metrics import normal_angle_degrees
from ..scenes import SceneMaps, render_scenes, segmentation_colors
from ..training.atomic import write_atomically
from ..training.nano.joint import train_lora
from ..training.scene_pictures import HELD_OUT_SEEDS
from .extraction_cost import start_comfyui
from .measuring import ROOT, keep_result

SEEDS = (0, 1, 2)
PROMPTS_PER_SEED = 34
BATCH = 17
SIZE, LATENT_SIDE = 128, 16
STEPS, CFG = 24, 2.0
SAMPLER, SCHEDULER = "euler_ancestral", "normal"
# Of the scenes the base was trained on: a generated picture does not tell its own.
VERTICAL_FOV_DEGREES = 48.0
# The paper's stages 3 to 7 of nine, at the same relative depth of the nano UNet's seven.
DROP_STAGES = (2, 3, 4, 5)


@dataclass(frozen=True)
class Row:
    """One way to sample. image_domain: of the LoRA's training; strength: of the LoRA; base: the row whose pictures it is compared with."""

    name: str
    schedule: schedules.WeightSchedule
    image_domain: bool = True
    strength: float = 1.0
    steps: int = STEPS
    cfg: float = CFG
    base: str = "no exchange (w = 0)"


ALWAYS = "always (w = 1)"
PAPER_BASE = "25 steps, guidance 7.5 (the paper's): no exchange"
_PAPER = {"steps": 25, "cfg": 7.5, "base": PAPER_BASE}
ROWS = (
    Row("no exchange (w = 0)", schedules.constant_schedule(0.0)),
    Row("Drop", schedules.drop_schedule(schedules.at_stages(DROP_STAGES))),
    Row("Gaussian", schedules.gaussian_schedule()),
    Row(ALWAYS, schedules.constant_schedule(1.0)),
    Row("always, LoRA at strength 0.5", schedules.constant_schedule(1.0), strength=0.5),
    Row("always, LoRA at strength 1.5", schedules.constant_schedule(1.0), strength=1.5),
    Row(PAPER_BASE, schedules.constant_schedule(0.0), **_PAPER),
    Row("25 steps, guidance 7.5: Gaussian", schedules.gaussian_schedule(), **_PAPER),
    Row("25 steps, guidance 7.5: always", schedules.constant_schedule(1.0), **_PAPER),
    Row("Gaussian, LoRA trained without pictures", schedules.gaussian_schedule(), image_domain=False),
)
BY_NAME = {row.name: row for row in ROWS}
NOT_MEASURED = (
    "without the intrinsic VAE, and with each map left out: each needs an intrinsic VAE and a LoRA of its own, an hour of training"
)


@dataclass(frozen=True)
class Generated:
    """Pictures `[b, h, w, 3]` in 0..1 and their maps as data, by name."""

    image: Tensor
    maps: dict[str, Tensor]


@dataclass
class World:
    """The nano base in ComfyUI with its intrinsic VAE; `loras`: of the intrinsic domain, by whether it saw pictures in training."""

    base: Path
    loras: dict[bool, Path]
    prompts_per_seed: int = PROMPTS_PER_SEED
    models: dict[str, object] = field(default_factory=dict)

    def state(self, row: Row) -> str:
        """Names the weights and settings that a row's scores depend on."""
        settings = [row.name, self.prompts_per_seed, BATCH, row.steps, row.cfg, row.strength, SAMPLER, SCHEDULER, DROP_STAGES]
        content = hashlib.sha256(json.dumps(settings).encode())
        for path in [self.base / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae", "intrinsic_vae")]:
            content.update(path.read_bytes())
        content.update(self.loras[row.image_domain].read_bytes())
        return content.hexdigest()[:12]

    def __post_init__(self) -> None:
        from ..nodes.native.loading.diffusers_folder import load_pipeline
        from ..nodes.native.loading.intrinsic_vae import load_intrinsic_vae

        self.pipeline = load_pipeline(self.base, dtype=torch.float32, text_dtype=torch.float32)
        self.intrinsic_vae = load_intrinsic_vae(self.base / "intrinsic_vae", torch.float32)

    def model(self, row: Row):
        """The base, patched as the node does it."""
        from ..nodes.native.joint_sampling import cross_domain

        if row.name not in self.models:
            lora = cross_domain.bind_lora(self.pipeline.model, read_lora(self.loras[row.image_domain]), row.strength, "the LoRA")
            self.models[row.name], _ = cross_domain.exchange_domains(self.pipeline.model, row.schedule, {"intrinsic": lora})
        return self.models[row.name]

    def text(self, prompts: list[str]) -> list:
        """CONDITIONING with one context per prompt."""
        clip = self.pipeline.clip
        contexts = [clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts]
        return [[torch.cat(contexts), {}]]

    def generate(self, row: Row, prompts: list[str], first: int, seed: int) -> Generated:
        """Samples of `prompts`, the first of which is number `first`: a prompt's noise depends on its number and the seed alone."""
        import comfy.sample

        numbers = list(range(first, first + len(prompts))) * 2
        latent = torch.zeros(len(numbers), self.pipeline.vae.latent_channels, LATENT_SIDE, LATENT_SIDE)
        noise = comfy.sample.prepare_noise(latent, seed, numbers)
        options = dict(denoise=1.0, disable_pbar=True, seed=seed)
        joint = comfy.sample.sample(
            self.model(row), noise, row.steps, row.cfg, SAMPLER, SCHEDULER, self.text(prompts), self.text([""]), latent, **options
        )
        picture, intrinsic = joint.chunk(2)
        return Generated(self.pipeline.vae.decode(picture), split_intrinsics(self.intrinsic_vae.decode(intrinsic).float()))


class PictureNormals:
    """What the bundled I-LoRA sees in a picture, by diffusers: a second opinion that has nothing to do with I-LDM."""

    def __init__(self, base: Path, adapter: Path):
        from ..training.intrinsic_lora import load_base
        from .scenes_table import with_adapter

        self.base = load_base(base)
        self.unet = with_adapter(load_base(base).network, adapter)

    def __call__(self, image_bhwc: Tensor) -> Tensor:
        from ..training.intrinsic_lora import map_latent
        from .scenes_table import decode, encode

        latents = encode(self.base.vae, rearrange(image_bhwc, "b h w c -> b c h w"))
        return decode(self.base.vae, map_latent(self.unet, latents, self.base.embed("surface normal")), "normal")

    def features(self, image_bhwc: Tensor) -> Tensor:
        """Mean and deviation of each channel of the nano encoder's latents, `[b, 32]`."""
        from .scenes_table import encode

        latents = encode(self.base.vae, rearrange(image_bhwc, "b h w c -> b c h w"))
        return torch.cat([latents.mean((2, 3)), latents.std((2, 3))], 1)


def judge(generated: Generated, picture_normals: PictureNormals) -> dict[str, list]:
    """Scores per picture, and its features."""
    image, maps = generated.image, generated.maps
    edges = edge_strength(image)
    seen = normal_angle_degrees(picture_normals(image), maps["normal"]).flatten(1).median(1).values
    scores = {
        "normal of depth": depth_normal_degrees(coarse(maps["depth"]), coarse(maps["normal"]), VERTICAL_FOV_DEGREES),
        "normal of picture": seen,
        "lines": edge_agreement(maps["line"][..., 0].clamp(0, 1), edges),
        "segments": edge_agreement(edge_strength(maps["segmentation"].clamp(0, 1)), edges),
        "features": picture_normals.features(image),
    }
    return {name: values.tolist() for name, values in scores.items()}


def coarse(map_bhwc: Tensor) -> Tensor:
    """Means of 4 x 4 pixels: the slopes of a decoded depth are noise below that."""
    return rearrange(functional.avg_pool2d(rearrange(map_bhwc, "b h w c -> b c h w"), 4), "b c h w -> b h w c")


COLUMNS = {
    "normal of depth": "normals: of depth, °",
    "normal of picture": "normals: of picture, °",
    "lines": "lines on edges",
    "segments": "segments on edges",
    "distance": "Fréchet distance",
    "change": "change of picture",
}


CONSISTENCY = ("normal of depth", "normal of picture", "lines", "segments")
HIGHER_IS_BETTER = ("lines", "segments")


def score_path(world: World, row: Row, seed: int, folder: Path) -> Path:
    return folder / f"{world.state(row)}-{seed}.json"


def scored(world: World, picture_normals: PictureNormals, prompts: list[str], row: Row, seed: int, folder: Path) -> dict[str, list]:
    """Scores of one row and seed, from its file if it is there. The base's pictures stay beside it: the others are compared with them."""
    path = score_path(world, row, seed, folder)
    if not path.exists():
        started, scores, pictures = time.monotonic(), {}, []
        own = range(seed * world.prompts_per_seed, (seed + 1) * world.prompts_per_seed)
        for first in own[::BATCH]:
            generated = world.generate(row, prompts[first : first + BATCH], first, seed)
            pictures.append((generated.image.clamp(0, 1) * 255).round().to(torch.uint8))
            for name, values in judge(generated, picture_normals).items():
                scores.setdefault(name, []).extend(values)
        image, kept = torch.cat(pictures), folder / f"{world.state(BY_NAME[row.base])}-{seed}.bin"
        if row.name == row.base:
            write_atomically(kept, lambda partial: partial.write_bytes(image.numpy().tobytes()))
        base = torch.frombuffer(bytearray(kept.read_bytes()), dtype=torch.uint8).view(image.shape)
        scores["change"] = (image.float() - base.float()).abs().mean((1, 2, 3)).tolist()
        write_atomically(path, lambda partial: partial.write_text(json.dumps(scores)))
        logging.info("%s, seed %d: %.0f s", row.name, seed, time.monotonic() - started)
    return json.loads(path.read_text())


def exact(scenes: SceneMaps) -> Generated:
    """Rendered scenes in the place of generated ones."""
    segmentation = segmentation_colors(scenes.segmentation_bhw)
    maps = {"depth": scenes.depth_bhw1, "normal": scenes.normal_bhwc, "segmentation": segmentation, "line": scenes.line_bhw1}
    return Generated(scenes.image_bhwc, maps)


def references(world: World, picture_normals: PictureNormals, scenes: SceneMaps) -> dict[str, dict[str, list]]:
    """What the measures give for rendered scenes: the ends of their scales, and what the intrinsic VAE leaves of exact maps."""
    true = exact(scenes)
    rebuilt = world.intrinsic_vae.decode(world.intrinsic_vae.encode(join_intrinsics(true.maps))).float()
    shuffled = {name: values.roll(1, 0) for name, values in true.maps.items()}
    cases = {
        "rendered scenes, exact maps": true,
        "rendered scenes, maps through the intrinsic VAE": Generated(true.image, split_intrinsics(rebuilt)),
        "rendered scenes, maps of another scene": Generated(true.image, shuffled),
    }
    return {name: judge(case, picture_normals) for name, case in cases.items()}


def table(sampled: dict[str, dict[int, dict[str, list]]], rendered: dict[str, dict[str, list]]) -> dict[str, dict[str, list[float]]]:
    """`{row: {column: [value of each seed]}}`; a distance is to the pictures of its base's other seeds."""
    result = {name: {column: [mean(values[column])] for column in COLUMNS if column in values} for name, values in rendered.items()}
    for name, seeds in sampled.items():
        if BY_NAME[name].base not in sampled:
            continue
        result[name] = {column: [mean(scores[column]) for scores in seeds.values()] for column in COLUMNS if column != "distance"}
        base = {seed: torch.tensor(scores["features"]) for seed, scores in sampled[BY_NAME[name].base].items()}
        others = {seed: [features for other, features in base.items() if other != seed] for seed in seeds}
        result[name]["distance"] = [
            frechet_distance(torch.tensor(scores["features"]), torch.cat(others[seed])) for seed, scores in seeds.items() if others[seed]
        ]
    return result


def as_markdown(result: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| row | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, values in result.items():
        cells = []
        for column in COLUMNS:
            numbers = values.get(column)
            digits = 3 if column in ("lines", "segments") else 2
            spread = f" ± {stdev(numbers):.{digits}f}" if numbers and len(numbers) > 1 else ""
            cells.append(f"{mean(numbers):.{digits}f}{spread}" if numbers else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(result: dict[str, dict[str, list[float]]]) -> str:
    """Whether exchange beats none: paired by seed, a difference counts if it is larger than twice its deviation over the seeds."""
    lines = []
    for name, values in result.items():
        row = BY_NAME.get(name)
        if row is None or name == row.base or len(values["change"]) < 2:
            continue
        changes = []
        for column in CONSISTENCY:
            gains = [new - old for new, old in zip(values[column], result[row.base][column], strict=False)]
            beyond = abs(mean(gains)) > 2 * stdev(gains)
            better = (mean(gains) > 0) == (column in HIGHER_IS_BETTER)
            word = ("better" if better else "worse") if beyond else "the same"
            changes.append(f"{COLUMNS[column]} {mean(gains):+.3f} ± {stdev(gains):.3f} ({word})")
        lines.append(f"- {name}: {', '.join(changes)}")
    moved = {name: mean(values["change"]) for name, values in result.items() if name in ("Drop", "Gaussian", ALWAYS)}
    always = moved.pop(ALWAYS, None)
    if always is not None and moved:
        most = max(moved.values())
        word = "farther than" if always > most else "not farther than"
        lines += ["", f"Full exchange moves pictures {word} the schedules do: {always:.2f} of 255 levels against at most {most:.2f}."]
    return "\n".join(["Against no exchange at the same steps and guidance, paired by seed:", "", *lines])


def contact_sheet(world: World, prompts: list[str], path: Path, seed: int = 0, scale: int = 1) -> None:
    """Rows of the table from top to bottom; of each prompt the picture, then depth, normal, segmentation and line."""
    from PIL import Image

    rows = []
    for row in (row for row in ROWS if row.image_domain in world.loras):
        generated = world.generate(row, prompts, 0, seed)
        looks = [generated.image] + [
            ((values + 1) / 2 if name == "normal" else values).expand(*values.shape[:3], 3) for name, values in generated.maps.items()
        ]
        rows.append(rearrange(torch.stack(looks), "look b h w c -> h (b look w) c"))
    pixels = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.LANCZOS)
    write_atomically(path, lambda partial: picture.save(partial, "JPEG", quality=90))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "nano")
    parser.add_argument("--lora", type=Path, default=ROOT / "assets" / "nano_ildm.safetensors")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--prompts", type=int, default=PROMPTS_PER_SEED, help="of each seed (%(default)s)")
    parser.add_argument("--report", action="store_true", help="sample nothing: the table of what is there")
    parser.add_argument("--skip-ablation", action="store_true", help="leave out the LoRA trained without pictures, which is trained here")
    parser.add_argument("--sheet", type=Path, help="also write pictures and maps of the first prompts to this JPEG")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start_comfyui()
    scenes = render_scenes(HELD_OUT_SEEDS[: arguments.seeds * arguments.prompts], SIZE, SIZE)
    prompts = list(scenes.captions)
    folder = arguments.runs / "ildm_table"
    folder.mkdir(parents=True, exist_ok=True)
    world = World(arguments.base, {True: arguments.lora}, arguments.prompts)
    picture_normals = PictureNormals(arguments.base, ROOT / "assets" / "nano_normal.safetensors")
    sampled: dict[str, dict[int, dict[str, list]]] = {}
    for image_domain in (True,) if arguments.skip_ablation else (True, False):
        if not image_domain:
            world.loras[False] = train_lora(
                arguments.base, arguments.runs, image_domain=False, intrinsic_vae=arguments.base / "intrinsic_vae"
            )
        with torch.inference_mode():
            for seed, row in product(range(arguments.seeds), (row for row in ROWS if row.image_domain is image_domain)):
                if not arguments.report or score_path(world, row, seed, folder).exists():
                    sampled.setdefault(row.name, {})[seed] = scored(world, picture_normals, prompts, row, seed, folder)
    with torch.inference_mode():
        if arguments.sheet:
            contact_sheet(world, prompts[:3], arguments.sheet)
        result = table(sampled, references(world, picture_normals, scenes))
    missing = [row.name for row in ROWS if row.name not in result] + [NOT_MEASURED]
    text = f"{as_markdown(result)}\n\n{verdict(result)}\n\nNot measured: {'; '.join(missing)}."
    settings = {"prompts": len(prompts), "seeds": arguments.seeds, "steps": STEPS, "cfg": CFG, "sampler": SAMPLER, "scheduler": SCHEDULER}
    keep_result("ildm_table", text, settings | {"drop stages": DROP_STAGES, "rows": result})


if __name__ == "__main__":
    main()
