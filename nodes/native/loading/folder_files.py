"""Reading one part of a diffusers-format folder: its config and its safetensors weights, and nothing else."""

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import comfy.model_management
import comfy.utils
import safetensors
from torch import Tensor

from ....methods import plain_files
from ....methods.plain_files import describe

CONFIG_NAMES = ("config.json", "scheduler_config.json")
WEIGHT_STEMS = ("diffusion_pytorch_model", "model")
# Beyond the largest published models.
MOST_LEVELS, MOST_LAYERS, WIDEST = 16, 512, 1 << 18
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# Where a weight goes: a name, or (name, slice along a dimension or None[, function of the weight]), as in comfy.utils.*_to_diffusers.
Target = str | tuple
KeyMap = Mapping[str, Target]


class ModelFolderError(ValueError):
    """A model folder that cannot be loaded; the message names the file, what was expected and what to do."""


class PartConfig(dict):
    """A config whose absent entries are explained instead of ending as a KeyError."""

    def __init__(self, content: dict, name: str):
        super().__init__(content)
        self.name = name

    def __missing__(self, key: str):
        raise ModelFolderError(f"{self.name} has no entry {key!r}: it is not the config this part was saved with; copy it again.")


def read_json(path: Path) -> PartConfig:
    """The JSON object in `path`. Raises ModelFolderError when it is missing or not a JSON object."""
    if not os.path.isfile(path):
        raise ModelFolderError(f"{describe(path)} is missing: the folder must be a complete diffusers-format model; copy it again.")
    try:
        content = plain_files.read_json(path)
    except ValueError as error:
        raise ModelFolderError(str(error)) from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{describe(path)} holds a {type(content).__name__}, a JSON object was expected: copy the file again.")
    return PartConfig(content, describe(path))


def read_config(part: Path) -> PartConfig:
    """The config of a part (unet, vae, text_encoder, scheduler, ...) of a model folder."""
    for name in CONFIG_NAMES:
        if os.path.isfile(part / name):
            return read_json(part / name)
    raise ModelFolderError(
        f"{describe(part)} has no {' or '.join(CONFIG_NAMES)}: this part of the model is missing; copy the folder again."
    )


def require_numbers(config: Mapping, names: Iterable[str], part: str, most: int = WIDEST, least: int = 1) -> None:
    """Check that entries of a config, where it has them, are whole numbers from `least` to `most`, or lists of a few.

    A config is a stranger's: what is built by it must be bounded before it is built.
    """
    for name in names:
        values = config.get(name)
        if values is None:
            continue
        numbers = values if isinstance(values, list) else [values]
        if len(numbers) > MOST_LEVELS or not all(type(number) is int and least <= number <= most for number in numbers):
            raise ModelFolderError(
                f"The {part} has {name} = {str(values)[:80]}: whole numbers from {least} to {most} were expected; copy it again."
            )


def require_finite(config: Mapping, names: Iterable[str], part: str) -> None:
    """Check that entries of a config, where it has them, are numbers."""
    for name in names:
        value = config.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ModelFolderError(f"The {part} has {name} = {str(value)[:80]}: a number was expected; copy it again.")


def require_options(config: Mapping, allowed: Mapping[str, tuple], part: str) -> None:
    """Check options that ComfyUI's own layers fix.

    `allowed`: for each option its possible values, first the one that diffusers takes when the config does not say.
    """
    for name, values in allowed.items():
        value = config.get(name, values[0])
        if not any(value == known for known in values):
            wanted = " or ".join(repr(choice) for choice in values)
            raise ModelFolderError(
                f"The {part} has {name} = {value!r}, ComfyUI's native layers need {wanted}: this model cannot be loaded natively."
            )


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of a part, full precision before fp16, whole before sharded."""
    for variant in ("", ".fp16"):
        for stem in WEIGHT_STEMS:
            if os.path.isfile(whole := part / f"{stem}{variant}.safetensors"):
                return [whole]
            if os.path.isfile(index := part / f"{stem}.safetensors.index{variant}.json"):
                return _shards(index)
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in part.glob(pattern))
    if pickles:
        raise ModelFolderError(
            f"{describe(part)} has its weights only as a pickle ({', '.join(pickles)}), which may run code when opened. Get the model's "
            "safetensors files, or convert it once where you trust it: load it with diffusers, then save_pretrained(folder)."
        )
    expected = f"{WEIGHT_STEMS[0]}.safetensors or {WEIGHT_STEMS[1]}.safetensors"
    raise ModelFolderError(
        f"{describe(part)} has no weights: {expected} (also .fp16, or sharded with an index) was expected; copy the folder again."
    )


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names:
        raise ModelFolderError(f"{describe(index)} names no files: copy it again.")
    for name in names:
        # An index is downloaded data: it may only name files beside itself.
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ModelFolderError(f"{describe(index)} names {name!r}, a plain safetensors file name was expected: do not use this folder.")
        if not (index.parent / name).is_file():
            raise ModelFolderError(f"{describe(index.parent / name)} is missing, {describe(index)} names it: copy the missing file.")
    return [index.parent / name for name in names]


def read_weights(part: Path) -> dict[str, Tensor]:
    """All weights of a part by their name in the files. Only safetensors are opened."""
    weights = {}
    for path in weight_files(part):
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            # Reads the header alone: it must fit the file's size.
            with safetensors.safe_open(path, framework="pt"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelFolderError(
                f"{describe(path)} is not a complete safetensors file ({path.stat().st_size} bytes; {error}): "
                "it is truncated or of another format; copy or download it again."
            ) from error
        weights.update(comfy.utils.load_torch_file(str(path), safe_load=True))
    return weights


def rename(weights: dict[str, Tensor], key_map: KeyMap, part: str, ignore: Collection[str] = ()) -> dict[str, Tensor]:
    """Weights under ComfyUI's names; slices of one weight are concatenated. Empties `weights`, so that nothing is held twice.

    Raises ModelFolderError for weights that the map does not know.
    """
    unknown = [name for name in weights if name not in key_map and name not in ignore]
    if unknown:
        raise ModelFolderError(
            f"The {part} holds {len(unknown)} weights that its config does not call for, such as {', '.join(unknown[:3])}: "
            "config.json and the weights do not belong together, or the model has parts that ComfyUI does not know."
        )
    renamed: dict[str, Tensor] = {}
    slices: dict[str, list[tuple[tuple[int, int, int], Tensor]]] = {}
    for name in list(weights):
        weight = weights.pop(name)
        if name in ignore:
            continue
        goes_to = key_map[name]
        target, span, change = (goes_to, None, None) if isinstance(goes_to, str) else (*goes_to, None)[:3]
        weight = change(weight) if change else weight
        if span is None:
            renamed[target] = weight
        else:
            slices.setdefault(target, []).append((span, weight))
    for target in list(slices):
        parts = sorted(slices.pop(target), key=lambda item: item[0][1])
        renamed[target] = _concatenate([weight for _, weight in parts], parts[0][0][0])
    return renamed


def _concatenate(parts: list[Tensor], dim: int) -> Tensor:
    # torch.cat does not know every 8-bit type, copying does.
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    whole = parts[0].new_empty(shape)
    start = 0
    for part in parts:
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return whole


def require_same_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], part: str) -> None:
    """Check that `given` fills a module's state dict: every name there, every shape right. ComfyUI itself only logs what is missing."""
    missing = [name for name in expected if name not in given]
    if missing:
        raise ModelFolderError(
            f"The {part} lacks {len(missing)} weights, such as {', '.join(missing[:3])}: a file is incomplete; copy the folder again."
        )
    wrong = [name for name, weight in given.items() if name in expected and weight.shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        raise ModelFolderError(
            f"{len(wrong)} weights of the {part} have another shape than config.json says: {name} is {list(given[name].shape)}, "
            f"{list(expected[name].shape)} was expected. config.json and the weights do not belong together."
        )
