"""Every family x every spelling: are LoRAs told right without any metadata, and is the same LoRA the same in every spelling?

    python -m intrinsic_lab.benchmarks.lora_formats_table [--structures]

A shelf is generated: of each architecture (`lora_models`) one LoRA, its change drawn once, in every spelling that ComfyUI's key map
knows. Its names and widths are the published model's, its rank is 1. A cell is right if the family is, and the changes that the reader
finds are the same as in the architecture's own spelling. --structures writes `structures.json` and `known_names.json` in `methods/lora`.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..methods.lora import families, loading
from ..methods.lora.delta import Delta
from ..methods.lora.formats.base import Sizes
from ..methods.lora.modules import describe
from ..methods.lora.names import canonical_name, fused_rows
from ..methods.lora.reading import read_deltas
from ..methods.lora.weight_file import read_header
from ..tools.console import format_table
from ..training.atomic import write_atomically
from .lora_models import ARCHITECTURES, Target, encoders, key_map, network
from .lumix_cost import start_comfyui

RESULTS = Path(__file__).resolve().parent / "results"
STRUCTURES = Path(families.__file__).parent / "structures.json"
KNOWN_NAMES = Path(loading.__file__).parent / "known_names.json"
NATIVE = "diffusion_model."


def structures() -> dict[str, dict]:
    """What `families` looks transformers up in, from ComfyUI's models: family -> depths and modules."""
    found: dict[str, dict] = {}
    for name, architecture in ARCHITECTURES.items():
        targets, shapes = key_map(name)
        sizes = {
            canonical_name(spelling): Sizes(1, *shapes[target.key][:2])
            for spelling, target in targets.items()
            if spelling.startswith(NATIVE) and spelling == target.key.removesuffix(".weight")
        }
        modules = found.setdefault(architecture.family, {"depths": dict(architecture.depths), "modules": defaultdict(set)})["modules"]
        for pattern, pairs in families.patterns_of(sizes).items():
            modules[pattern] |= pairs
    # UNets are told otherwise.
    return {
        family: {
            "depths": one["depths"],
            "modules": {pattern: sorted(map(list, pairs)) for pattern, pairs in sorted(one["modules"].items())},
        }
        for family, one in found.items()
        if not any(re.match(r"(?:down|up)_blocks_N_(?:attentions|resnets)_", pattern) for pattern in one["modules"])
    }


def known_names() -> dict[str, list[dict[str, list[str]]]]:
    """What ComfyUI's loader knows modules by: family -> [names, each of which it takes after any of the prefixes].

    Of a stack of blocks, the first stands for all. Text encoders are a family of their own, "text encoders": any file may hold them.
    """
    import comfy.lora

    spelled: dict[str, set[str]] = defaultdict(set)
    for name, architecture in ARCHITECTURES.items():
        spelled[architecture.family] |= comfy.lora.model_lora_keys_unet(network(name), {}).keys()
    for make in encoders().values():
        spelled["text encoders"] |= comfy.lora.model_lora_keys_clip(make(), {}).keys()
    return {family: _by_prefix(spellings) for family, spellings in spelled.items()}


def _by_prefix(spellings: set[str]) -> list[dict[str, list[str]]]:
    names: dict[str, set[str]] = defaultdict(set)
    for spelling in spellings:
        prefix = next(prefix for prefix in loading.PREFIXES if spelling.startswith(prefix))
        names[prefix].add(spelling.removeprefix(prefix))
    groups: dict[tuple[str, ...], list[str]] = {}
    for prefix in sorted(names):
        groups.setdefault(_first_blocks(names[prefix]), []).append(prefix)
    return [{"prefixes": prefixes, "names": list(chosen)} for chosen, prefixes in groups.items()]


def _first_blocks(names: set[str]) -> tuple[str, ...]:
    """Those of the first blocks, and one of each pattern that these lack."""
    first = {name for name in names if all(int(number) == 0 for number in re.findall(r"(?<=[._])(\d+)(?=[._])", name)[:2])}
    met = {loading.pattern_of(name) for name in first}
    for name in sorted(names - first):
        if (pattern := loading.pattern_of(name)) not in met:
            met.add(pattern)
            first.add(name)
    return tuple(sorted(first))


def write_tables() -> None:
    for path, table in ((STRUCTURES, structures()), (KNOWN_NAMES, known_names())):
        lines = (f" {json.dumps(family)}: {json.dumps(one, separators=(',', ':'))}" for family, one in table.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        write_atomically(path, lambda partial: partial.write_text(text))  # noqa: B023


# How a prefix and a pair of endings is called by who writes it so. Names are the architecture's own, or diffusers'.
KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
FORMATS = {
    "lora_unet_": ("kohya, musubi", KOHYA),
    "lora_prior_unet_": ("kohya, prior", KOHYA),
    "lora_transformer_": ("OneTrainer", KOHYA),
    "lycoris_": ("LyCORIS, SimpleTuner", KOHYA),
    "diffusion_model.": ("ComfyUI, ai-toolkit", PEFT),
    "transformer.": ("diffusers", PEFT),
    "unet.base_model.model.": ("old peft", PEFT),
    "base_model.model.": ("peft", ("lora_A.default.weight", "lora_B.default.weight")),
    "unet.": ("diffusers' processors", ("lora.down.weight", "lora.up.weight")),
    "": ("plain names", PEFT),
}
OWN_NAMES = ("lora_unet_", "diffusion_model.")


class Format(NamedTuple):
    """label: who writes it. native: whether names are the architecture's own."""

    label: str
    native: bool
    endings: tuple[str, str]


def format_of(spelling: str, target: Target) -> Format:
    prefix = next(prefix for prefix in FORMATS if spelling.startswith(prefix))
    label, endings = FORMATS[prefix]
    own = target.key.removeprefix(NATIVE).removesuffix(".weight").replace(".", "_")
    # Diffusers' names of a model are its own for some modules.
    return Format(label, prefix in OWN_NAMES and spelling.removeprefix(prefix).replace(".", "_") == own, endings)


def chosen_weights(name: str) -> set[str]:
    """Weights that a LoRA of the architecture is made for: of the first block of each stack, and outside."""
    targets, shapes = key_map(name)
    linear = [key for key in dict.fromkeys(target.key for target in targets.values()) if len(shapes[key]) == 2 and key.endswith(".weight")]
    first = [key for key in linear if all(int(number) == 0 for number in re.findall(r"\.(\d+)\.", key)[:2])]
    return set((first if len(first) > 8 else linear)[:60])


def last_block(spelling: str, rows: int, width: int, depths: Mapping[str, int]) -> str | None:
    """The same module in the last block of its stack, which tells how many there are; None for a module that is in none."""
    stacks = families.depths_of([piece for piece, *_ in fused_rows(canonical_name(spelling), rows, width)])
    number = next((depths[stack] - 1 for stack in stacks if stack in depths), None)
    return None if number is None else re.sub(r"(?<=[a-z][._])0(?=[._])", str(number), spelling, count=1)


def write_shelf(name: str, folder: Path) -> dict[Format, Path]:
    """One LoRA of an architecture in every format that has names for a part of it at least."""
    targets, shapes = key_map(name)
    chosen, depths = chosen_weights(name), ARCHITECTURES[name].depths
    states: dict[Format, dict[str, Tensor]] = defaultdict(dict)
    for spelling, target in targets.items():
        if target.key in chosen:
            form = format_of(spelling, target)
            down, up = _change(target.key, shapes[target.key])
            up = up[target.start : target.start + target.rows]
            if target.swapped:
                up = torch.cat(up.chunk(2)[::-1])
            for where in filter(None, {spelling, last_block(spelling, target.rows, shapes[target.key][1], depths)}):
                states[form] |= {f"{where}.{form.endings[0]}": down, f"{where}.{form.endings[1]}": up}
    paths = {}
    for number, (form, state) in enumerate(states.items()):
        # A name here and there, such as that of a part of linear1, is no format.
        if len(state) < 8:
            continue
        paths[form] = folder / f"{number}.safetensors"
        # In diffusers' names nothing but metadata tells Chroma from FLUX.1 trained without its modulation.
        metadata = {"modelspec.architecture": "chroma/lora"} if name == "Chroma" and not form.native else None
        save_file({key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}, paths[form], metadata)
    return paths


def _change(key: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(down, up) of rank 1, drawn by the weight's name."""
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest()))
    return torch.randn(1, shape[1], generator=draw).half(), torch.randn(shape[0], 1, generator=draw).half()


def judge(name: str) -> dict[str, str]:
    """Format -> "right", or what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shelf(name, Path(folder))
        found = {form: {delta.module: delta for delta in read_deltas(path)} for form, path in paths.items()}
        whole = next(deltas for form, deltas in found.items() if form.native)
        return {
            f"{form.label}{'' if form.native else ', diffusers names'}": _wrong(name, paths[form], found[form], whole) for form in paths
        }


def _wrong(name: str, path: Path, found: dict[str, Delta], whole: dict[str, Delta]) -> str:
    facts = describe(read_header(path))
    if facts.family != ARCHITECTURES[name].family:
        return f"family {facts.family}"
    if facts.approximate:
        return "not all read"
    if unknown := found.keys() - whole.keys():
        return f"another name: {min(unknown)}"
    same = all(torch.equal(one.up, whole[module].up) and torch.equal(one.down, whole[module].down) for module, one in found.items())
    return "right" if same else "another change"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", action="store_true", help="write the tables that families and names are looked up in")
    options = parser.parse_args()
    start_comfyui()
    if options.structures:
        write_tables()
    rows = [{"model": name} | judge(name) for name in ARCHITECTURES]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = format_table([{column: row.get(column, "-") for column in columns} for row in rows])
    cells = [found for row in rows for column, found in row.items() if column != "model"]
    text += f"\n\n{cells.count('right')} of {len(cells)} right; -: ComfyUI has no such names"
    print(text)
    record = {
        "machine": f"{platform.machine()}, CPU, {os.cpu_count()} cores",
        "right": cells.count("right"),
        "cells": len(cells),
        "rows": rows,
    }
    write_atomically(RESULTS / "lora_formats_table.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    write_atomically(RESULTS / "lora_formats_table.md", lambda path: path.write_text(f"```\n{text}\n```\n"))


if __name__ == "__main__":
    main()
