"""What is said of copies and relatives of LoRAs, against what was done to make them.

    python -m intrinsic_lab.benchmarks.lora_kinship_table [--runs DIR]

LoRAs are trained on the bundled nano model (`training.intrinsic_lora`): one run saved at several steps, others from the same start on other
maps, others of the same map from another start. Of these, copies in every dtype, spelling and strength, resized ones and merges are made.
A row of the table is a file: what was done, what is said, and how far it is from its source. --runs: where trained files are kept.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..methods.lora_space.duplicates import find_duplicates
from ..methods.lora_space.index import LoraIndex
from ..methods.lora_space.kinship import LATER, MERGED, MERGED_REDUCED, REDUCED, ROUNDED, SAME_BYTES, SAME_CHANGE, SCALED
from ..methods.lora_space.relatives import find_relatives
from ..tools.console import format_table
from ..training.atomic import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
ASSETS = Path(__file__).resolve().parents[1] / "assets"
# (map, seed) -> steps. Seed 0 is one start for all maps.
RUNS = {("normal", 0): (60, 61, 63, 70, 90, 120), ("normal", 1): (60, 120), ("depth", 0): (60, 120), ("shading", 0): (120,)}
NONE = "-"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Made:
    """done: for a person. kind: what is to be said, of which sources (file names)."""

    done: str
    state: State
    kind: str = NONE
    sources: tuple[str, ...] = ()


def train(folder: Path) -> None:
    """The files of RUNS that are not there yet: MAP_SEED_STEPS.safetensors."""
    for (name, seed), steps in RUNS.items():
        for count in steps:
            target = folder / f"{name}_{seed}_{count}.safetensors"
            if target.exists():
                continue
            run = folder / f"{name}_{seed}"
            command = [
                sys.executable, "-m", "intrinsic_lab.training.intrinsic_lora", "--base", str(ASSETS / "nano"), "--map", name,
                "--scenes", "24", "--size", "64", "--rank", "4", "--threads", "1", "--save-dtype", "float32", "--batch", "4",
                "--learning-rate", "1e-3", "--seed", str(seed), "--steps", str(count), "--output", str(run),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            save_file(load_file(run / f"{name}.safetensors"), target, {"ss_steps": str(count)})


def modules(state: State) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(module, up, down, scale) in double precision."""
    for key, down in state.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            yield name, state[f"{name}.lora_up.weight"].double(), down.double(), float(state[f"{name}.alpha"]) / len(down)


def stored(layers: dict[str, tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> State:
    state: State = {}
    for name, (up, down) in layers.items():
        state |= {f"{name}.lora_up.weight": up.to(dtype).contiguous(), f"{name}.lora_down.weight": down.to(dtype).contiguous()}
        state[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return state


def cast(state: State, dtype: torch.dtype) -> State:
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def scaled(state: State, times: float) -> State:
    return {key: tensor * times if ".lora_up." in key else tensor for key, tensor in state.items()}


def merged(*parts: tuple[State, float], dtype: torch.dtype = torch.float32) -> State:
    """The sum of the changes, exact: ranks side by side."""
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for state, share in parts:
        for name, up, down, scale in modules(state):
            layers.setdefault(name, []).append((up * scale * share, down))
    return stored(
        {name: (torch.cat([up for up, _ in one], 1), torch.cat([down for _, down in one])) for name, one in layers.items()}, dtype
    )


def resized(state: State, rank: int, dtype: torch.dtype = torch.float32) -> State:
    """The best approximation of each module, its singular values shared between both factors."""
    layers = {}
    for name, up, down, scale in modules(state):
        left, upper = torch.linalg.qr(up)
        right, lower = torch.linalg.qr(down.flatten(1).T)
        inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T * scale)
        root = values[:rank].sqrt()
        layers[name] = (left @ inner_left[:, :rank] * root, root[:, None] * (right @ inner_right.T[:, :rank]).T)
    return stored(layers, dtype)


def shelf(trained: dict[str, State]) -> dict[str, Made]:
    """File name -> what it is."""
    first, start, other, third = (trained[name] for name in ("normal_0_60", "depth_0_120", "normal_1_120", "shading_0_120"))
    made = {name: Made("trained", state) for name, state in trained.items()}
    for (name, seed), steps in RUNS.items():
        for earlier, later in pairwise(steps):
            source, file = (f"{name}_{seed}_{count}" for count in (earlier, later))
            made[file] = Made(f"step {earlier} -> {later}", trained[file], LATER, (source,))
    of_first = ("normal_0_60",)
    made |= {
        "bytes": Made("copied", first, SAME_BYTES, of_first),
        "turned factors": Made("factors multiplied by R and its inverse", merged((resized(first, 4), 1.0)), SAME_CHANGE, of_first),
        "times 1.02": Made("scaled by 1.02", scaled(first, 1.02), SCALED, of_first),
        "times 0.5 fp16": Made("scaled by .5, fp16", cast(scaled(first, 0.5), torch.float16), SCALED, of_first),
        "minus": Made("scaled by -1", scaled(first, -1.0)),
    }
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    made |= {name: Made(f"stored as {name}", cast(first, dtype), ROUNDED, of_first) for name, dtype in dtypes.items()}
    made["bf16 in fp32"] = Made("stored as bf16, then as fp32", cast(cast(first, torch.bfloat16), torch.float32), ROUNDED, of_first)
    for rank in (1, 2, 3):
        made[f"rank {rank}"] = Made(f"rank 4 -> {rank}", resized(start, rank), REDUCED, ("depth_0_120",))
    made["rank 2 fp16"] = Made("rank 4 -> 2, fp16", resized(other, 2, torch.float16), REDUCED, ("normal_1_120",))
    wide = merged((start, 0.7), (other, 0.3))
    made |= {
        "merge .7 .3": Made(".7 depth + .3 normal", wide, MERGED, ("depth_0_120", "normal_1_120")),
        "merge fp16": Made("1.2 shading + .4 normal, fp16", merged((third, 1.2), (other, 0.4), dtype=torch.float16), MERGED,
                           ("shading_0_120", "normal_1_120")),
        "merge of 3": Made(".5 + .3 + .2", merged((start, 0.5), (other, 0.3), (third, 0.2)), MERGED,
                           ("depth_0_120", "normal_1_120", "shading_0_120")),
    }  # fmt: skip
    three = merged((start, 0.4), (other, 0.4), (third, 0.4))
    made |= {
        # Of shares that no unreduced merge has: what was reduced from a file on the shelf is told by it.
        "merge rank 4": Made(".6 depth + .5 normal, rank 8 -> 4", resized(merged((start, 0.6), (other, 0.5)), 4), MERGED_REDUCED,
                             ("depth_0_120", "normal_1_120")),
        "merge rank 2 bf16": Made(".4 depth + .8 normal, rank 8 -> 2, bf16", resized(merged((start, 0.4), (other, 0.8)), 2, torch.bfloat16),
                                  MERGED_REDUCED, ("depth_0_120", "normal_1_120")),
        "merge of 3 rank 4": Made(".4 + .4 + .4, rank 12 -> 4", resized(three, 4), MERGED_REDUCED,
                                  ("depth_0_120", "normal_1_120", "shading_0_120")),
        "half rank 2": Made("scaled by .5, rank 4 -> 2", resized(scaled(third, 0.5), 2), REDUCED, ("shading_0_120",)),
    }  # fmt: skip
    return made


def measure(runs: Path) -> dict:
    train(runs)
    names = [f"{name}_{seed}_{count}" for (name, seed), steps in RUNS.items() for count in steps]
    trained = {name: load_file(runs / f"{name}.safetensors") for name in names}
    made = shelf(trained)
    with tempfile.TemporaryDirectory() as place:
        for name, one in made.items():
            path = Path(place) / "loras" / f"{name}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_file(one.state, path)
            # What was trained first is the original.
            os.utime(path, (1, 1) if name in trained else (2, 2))
        with LoraIndex(Path(place) / "index.sqlite") as index:
            index.update([Path(place) / "loras"])
            started = perf_counter()
            groups = find_duplicates(index)
            copies = {copy.entry.id for group in groups for copy in group.copies}
            relatives = find_relatives(index, copies=copies)
            seconds = perf_counter() - started
    said: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
    for group in groups:
        for copy in group.copies:
            said.setdefault(Path(copy.entry.name).stem, []).append((copy.kind, (Path(group.original.name).stem,), copy.text))
    for relative in relatives:
        sources = tuple(Path(entry.name).stem for entry, _ in relative.sources)
        said.setdefault(Path(relative.entry.name).stem, []).append((relative.kind, sources, relative.text))
    rows = []
    for name, one in made.items():
        found = said.get(name, [(NONE, (), "")])
        right = any(kind == one.kind and set(sources) == set(one.sources) for kind, sources, _ in found) and len(found) == 1
        words = "; ".join(text.replace(".safetensors", "") or kind for kind, _, text in found)
        rows.append({"file": name, "done": one.done, "said": words, "right": "yes" if right else "NO"})
    return {
        "machine": f"{platform.machine()}, CPU, {os.cpu_count()} cores",
        "files": len(rows),
        "right": sum(row["right"] == "yes" for row in rows),
        "seconds": round(seconds, 2),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of the trained files, which are trained where they are not there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(options.runs or Path(folder))
    text = f"{format_table(record['rows'])}\n\n{record['right']} of {record['files']} right, compared in {record['seconds']} s"
    print(text)
    write_atomically(RESULTS / "lora_kinship_table.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    write_atomically(RESULTS / "lora_kinship_table.md", lambda path: path.write_text(f"```\n{text}\n```\n"))


if __name__ == "__main__":
    main()
