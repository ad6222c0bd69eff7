"""How well maps come out of a VQGAN through LoRAs on its decoder, on held-out scenes, beside what they have to beat.

    python -m intrinsic_lab.benchmarks.generators_table --base FOLDER [--loras FOLDER] [--control FOLDER] [--scenes N]

--base: the VQModel. --loras: a folder with NAME_MAP.safetensors, NAME that of the base (as written by
`python -m intrinsic_lab.training.generators nano`). --control: the runs folder in which `... nano-control` trained the LoRAs that these
are compared with: on random weights, the paper's control, and on the attention alone, the paper's LoRA.
Rows: the LoRAs, the controls, the training scenes' mean map, and the bound: the exact map, encoded and decoded by the VQGAN.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..methods.intrinsic_lora.extract import ExtractSettings, extract, plan_extraction
from ..methods.intrinsic_lora.generators import read_generator_lora, vqgan_generator
from ..methods.maps import MAPS
from ..scenes import SceneMaps, render_scenes
from ..training.generators.nano import CONTROLS, lora_run
from ..training.generators.vqgan import reconstruct
from ..training.generators.vqgan_lora import load_vqgan
from ..training.scene_pictures import ADAPTER_SEEDS, BUNDLED_MAPS, HELD_OUT_SEEDS, scene_data, scene_picture

MEAN_SCENES = 1000


def mean_map(map_name: str, size: int, count: int) -> Tensor:
    """The mean of the training scenes' maps in picture form, as data `[1, h, w, c]`."""
    total = torch.zeros(1, size, size, 3)
    seeds = ADAPTER_SEEDS[:count]
    for start in range(0, count, 100):
        total += scene_picture(render_scenes(seeds[start : start + 100], size, size), map_name).sum(0, keepdim=True)
    return MAPS[map_name].from_picture(total / count)


@torch.no_grad()
def lora_map(vqgan, path: Path, map_name: str, image_bhw3: Tensor) -> Tensor:
    """What the nodes make: map data of pictures."""
    layers = read_generator_lora(path, "vqgan", map_name).layers
    generator, settings = vqgan_generator(vqgan, {map_name: layers}), ExtractSettings(0)
    plan = plan_extraction(image_bhw3, [map_name], settings, generator.downscale, lambda height, width: 16)
    return extract(image_bhw3, [map_name], generator, settings, plan).maps[map_name]


def rows_of(arguments: argparse.Namespace, map_name: str, scenes: SceneMaps) -> dict[str, Tensor]:
    """Predictions `bhwc` for the held-out scenes by the name of their row."""
    vqgan = load_vqgan(arguments.base)
    rows = {}
    if arguments.loras:
        path = arguments.loras / f"{arguments.base.name}_{map_name}.safetensors"
        rows["bundled LoRA"] = lora_map(vqgan, path, map_name, scenes.image_bhwc)
    if arguments.control:
        for targets, init in CONTROLS:
            path = lora_run(arguments.control, map_name, targets, init) / f"{map_name}.safetensors"
            rows[f"LoRA r8, {targets}, {init} VQGAN"] = lora_map(load_vqgan(arguments.base, init, 0), path, map_name, scenes.image_bhwc)
    rows["mean map"] = mean_map(map_name, arguments.size, MEAN_SCENES).expand(arguments.scenes, -1, -1, -1)
    exact = 2 * scene_picture(scenes, map_name) - 1
    bound = reconstruct(vqgan, rearrange(exact, "b h w c -> b c h w"))
    rows["bound: exact map through the VQGAN"] = MAPS[map_name].from_picture(rearrange(bound, "b c h w -> b h w c") / 2 + 0.5)
    return rows


def table(arguments: argparse.Namespace) -> str:
    """The table as Markdown, one section per map."""
    scenes = render_scenes(HELD_OUT_SEEDS[: arguments.scenes], arguments.size, arguments.size)
    lines = []
    for name in BUNDLED_MAPS:
        exact, evaluation = scene_data(scenes, name), MAPS[name].evaluation
        scores = {row: evaluation.score(prediction, exact) for row, prediction in rows_of(arguments, name, scenes).items()}
        metrics = list(next(iter(scores.values())))
        lines += [f"\n### {name} (judged by {evaluation.main})\n", "| row | " + " | ".join(metrics) + " |"]
        lines.append("| --- |" + " --- |" * len(metrics))
        lines += [f"| {row} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |" for row, values in scores.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--loras", type=Path)
    parser.add_argument("--control", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(table(arguments))


if __name__ == "__main__":
    main()
