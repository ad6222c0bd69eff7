"""Normals of held-out scenes from the single step, from naive multi-step sampling and from the augmented method, on the nano base.

    python -m intrinsic_lab.benchmarks.multi_step_table

Trains the naive adapter if the runs folder has none (it resumes where it stopped); the other two are bundled. A row that is kept for the
same adapter is not sampled again.
"""

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..kernels.machine import machine_and_card
from ..methods.intrinsic_lora.multi_step import AUGMENTED, MULTI, SINGLE
from ..methods.maps import MAPS
from ..scenes import render_scenes
from ..training.atomic import write_text
from ..training.command_line import console_report
from ..training.intrinsic_lora import load_base, noise_for, predict_maps, predict_maps_in_steps, train_intrinsic_lora
from ..training.nano.adapters import multi_step_config
from ..training.scene_pictures import HELD_OUT_SEEDS, scene_data
from .scenes_table import RESULTS, ROOT, SIZE, digest, with_adapter

MAP = "normal"
MULTI_STEPS = 500
RECORD = RESULTS / "multi_step_table.json"


@dataclass(frozen=True)
class Row:
    """One way to the map; strength: of naive sampling, see `predict_maps_in_steps`."""

    method: str
    steps: int = 1
    guidance: float = 1.0
    rescale: float = 0.0
    strength: float = 1.0


# Upstream samples with 25 steps, guidance 3 and rescale 0.7.
ROWS = (
    Row(SINGLE),
    *(Row(AUGMENTED, steps, 3.0, 0.7) for steps in (25, 10, 5, 2, 1)),
    *(Row(AUGMENTED, 10, guidance, 0.7) for guidance in (1.0, 5.0)),
    Row(MULTI, 25, 3.0),
    *(Row(MULTI, 25, strength=strength) for strength in (1.0, 0.6)),
)


def predicted(row: Row, base_folder: Path, adapter: Path, pictures_bchw: Tensor) -> Tensor:
    """Map data of the pictures by one row's way."""
    base = load_base(base_folder)
    with_adapter(base.network, adapter)
    if row.method == SINGLE:
        return predict_maps(base.network, base.vae, base.embed(MAPS[MAP].prompt), pictures_bchw, MAP)
    options = {name: value for name, value in asdict(row).items() if name != "method"}
    return predict_maps_in_steps(base, noise_for(base_folder, row.method), pictures_bchw, MAP, **options)


def as_table(rows: list[dict]) -> str:
    """Markdown."""
    metrics = list(rows[0]["scores"])
    head = ["method", "steps", "guidance", "rescale", "strength", *metrics]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for kept in rows:
        cells = [str(kept["row"][name]) for name in head[:5]] + [f"{kept['scores'][name]:.3f}" for name in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _write(rows: list[dict]) -> None:
    record = {"map": MAP, "size": SIZE, "naive_training_steps": MULTI_STEPS, "machine": machine_and_card(), "rows": rows}
    write_text(RECORD, json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano")
    parser.add_argument("--scenes", type=int, default=12, help="held-out rooms (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    base = arguments.assets / "nano"
    naive = multi_step_config(base, arguments.runs, MULTI, MULTI_STEPS)
    if not naive.weights.exists():
        train_intrinsic_lora(naive, cache=arguments.runs / "latents", report=console_report("naive multi-step", every=100))
    bundled = {SINGLE: arguments.assets / f"nano_{MAP}.safetensors", AUGMENTED: arguments.assets / f"nano_{MAP}_augmented.safetensors"}
    adapters = bundled | {MULTI: naive.weights}
    maps = render_scenes(HELD_OUT_SEEDS[: arguments.scenes], SIZE, SIZE)
    pictures, exact = rearrange(maps.image_bhwc, "b h w c -> b c h w"), scene_data(maps, MAP)
    kept = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    done: list[dict] = []
    for row in ROWS:
        what = {"row": asdict(row), "scenes": arguments.scenes, "adapter": digest(adapters[row.method])}
        known = next((entry for entry in kept if {name: entry[name] for name in what} == what), None)
        if known is None:
            known = what | {"scores": MAPS[MAP].evaluation.score(predicted(row, base, adapters[row.method], pictures), exact)}
            kept.append(known)
            logging.info("%s: %s", row, known["scores"])
        done.append(known)
        # What is sampled is kept, also when the rest is cut short.
        _write(done + [entry for entry in kept if entry not in done])
    _write(done)
    table = as_table(done)
    write_text(RECORD.with_suffix(".md"), table + "\n")
    print(table)


if __name__ == "__main__":
    main()
