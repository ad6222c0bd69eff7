"""How the maps should be read from the output of a network that predicts a flow, decided on nano FLUX.

    python -m intrinsic_lab.benchmarks.readings_table [--steps 200]

The same short training of each map's adapter with every one of `methods.intrinsic_lora.recipe.READINGS`, scored on held-out scenes. Runs
resume where they stopped; their folders keep the scores.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import torch

from ..kernels.machine import machine_and_card
from ..methods.intrinsic_lora.recipe import READINGS
from ..methods.maps import MAPS
from ..training.atomic import write_json, write_text
from ..training.command_line import console_report
from ..training.intrinsic_lora import predict_maps, train_intrinsic_lora
from ..training.nano.adapters import FLUX_BATCH, flux_config
from ..training.scene_pictures import BUNDLED_MAPS
from .scenes_table import FLUX, RESULTS, ROOT, once, references

SCENES = 64


def score(assets: Path, runs: Path, map_name: str, reading: str, steps: int) -> dict[str, float]:
    """All metrics of one short training's map."""
    config = flux_config(assets / FLUX, runs / f"{map_name}-{reading}-{steps}", map_name, reading, steps)
    report = console_report(f"{map_name} read as {reading}", every=100)
    base = train_intrinsic_lora(config, cache=runs.parent / "table" / "latents", report=report).base
    pictures, exact = (tensor[:SCENES] for tensor in references(map_name))
    text = base.embed(MAPS[map_name].prompt)
    predicted = predict_maps(base.network.eval(), base.vae, text, pictures, map_name, reading=reading)
    return MAPS[map_name].evaluation.score(predicted, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "readings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    assets, runs, steps = arguments.assets, arguments.runs, arguments.steps
    maps: dict[str, dict[str, float]] = {}
    for name in BUNDLED_MAPS:
        for reading in READINGS:
            kept = runs / f"{name}-{reading}-{steps}.json"
            scores = once(kept, partial(score, assets, runs, name, reading, steps))
            maps.setdefault(name, {})[reading] = scores[MAPS[name].evaluation.main]
    lines = ["| map | judged by | " + " | ".join(READINGS) + " |", "| --- | --- |" + " --- |" * len(READINGS)]
    for name, found in maps.items():
        lines.append(f"| {name} | {MAPS[name].evaluation.main} | " + " | ".join(f"{found[reading]:.3f}" for reading in READINGS) + " |")
    text = "\n".join(lines)
    print(text)
    record = {"steps": steps, "batch": FLUX_BATCH, "scenes": SCENES, "machine": machine_and_card(), "maps": maps}
    write_json(RESULTS / "readings_table.json", record)
    write_text(RESULTS / "readings_table.md", text + "\n")


if __name__ == "__main__":
    main()
