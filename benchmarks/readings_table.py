"""How the maps should be read from the output of a network that predicts a flow, decided on nano FLUX, beside the nano UNet.

    python -m intrinsic_lab.benchmarks.readings_table [--steps 200] [--maps normal depth albedo]

The same short training of each map's adapter, on the same pictures, with every one of `methods.intrinsic_lora.recipe.READINGS`, scored on
held-out scenes. Runs resume where they stopped; their folders keep the scores.
"""

import argparse
import logging
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from einops import rearrange

from ..kernels.machine import machine_and_card
from ..methods.intrinsic_lora.recipe import RAW, READINGS
from ..methods.maps import MAPS
from ..scenes import SceneMaps, render_scenes
from ..training.atomic import write_json, write_text
from ..training.command_line import console_report
from ..training.intrinsic_lora import add_adapter, load_base, predict_maps, train_intrinsic_lora
from ..training.nano.adapters import FLUX_BATCH, KIND, RANK, flux_config
from ..training.scene_pictures import BUNDLED_MAPS, HELD_OUT_SEEDS, scene_data
from .scenes_table import FLUX, RESULTS, ROOT, SIZE, UNET, once

SCENES = 64


@cache
def held_out() -> SceneMaps:
    """The scenes that every run is scored on."""
    return render_scenes(HELD_OUT_SEEDS[:SCENES], SIZE, SIZE)


@dataclass(frozen=True)
class Column:
    """A base of assets/, and how its output is read."""

    title: str
    base: str
    reading: str

    def run(self, map_name: str, steps: int) -> str:
        """Name of one training."""
        return f"{map_name}-{self.reading}-{steps}" + ("" if self.base == FLUX else f"-{self.base}")


COLUMNS = (*(Column(f"FLUX, {reading}", FLUX, reading) for reading in READINGS), Column("UNet, raw", UNET, RAW))


def score(assets: Path, runs: Path, map_name: str, column: Column, steps: int) -> dict[str, float]:
    """All metrics of one short training's map, and how many parameters learnt it."""
    reading = column.reading
    config = flux_config(assets / column.base, runs / column.run(map_name, steps), map_name, reading, steps)
    report = console_report(f"{map_name} read as {reading}", every=100)
    base = train_intrinsic_lora(config, cache=runs.parent / "table" / "latents", report=report).base
    pictures, text = rearrange(held_out().image_bhwc, "b h w c -> b c h w"), base.embed(MAPS[map_name].prompt)
    predicted = predict_maps(base.network.eval(), base.vae, text, pictures, map_name, reading=reading)
    return MAPS[map_name].evaluation.score(predicted, scene_data(held_out(), map_name))


def parameters(assets: Path, base: str) -> int:
    """Of an adapter."""
    network = load_base(assets / base).network
    add_adapter(network, KIND, RANK, 0)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--maps", nargs="+", choices=BUNDLED_MAPS, default=BUNDLED_MAPS)
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "readings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    assets, runs, steps = arguments.assets, arguments.runs, arguments.steps
    maps: dict[str, dict[str, float]] = {}
    for name in arguments.maps:
        for column in COLUMNS:
            scores = once(runs / f"{column.run(name, steps)}.json", partial(score, assets, runs, name, column, steps))
            maps.setdefault(name, {})[column.title] = scores[MAPS[name].evaluation.main]
    titles = [column.title for column in COLUMNS]
    lines = ["| map | judged by | " + " | ".join(titles) + " |", "| --- | --- |" + " --- |" * len(titles)]
    for name, found in maps.items():
        lines.append(f"| {name} | {MAPS[name].evaluation.main} | " + " | ".join(f"{found[title]:.3f}" for title in titles) + " |")
    sizes = {column.base: parameters(assets, column.base) for column in COLUMNS}
    lines.append("| parameters of an adapter | | " + " | ".join(f"{sizes[column.base]:,}" for column in COLUMNS) + " |")
    text = "\n".join(lines)
    print(text)
    record = {"steps": steps, "batch": FLUX_BATCH, "scenes": SCENES, "machine": machine_and_card(), "parameters": sizes, "maps": maps}
    write_json(RESULTS / "readings_table.json", record)
    write_text(RESULTS / "readings_table.md", text + "\n")


if __name__ == "__main__":
    main()
