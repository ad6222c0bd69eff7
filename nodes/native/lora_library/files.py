"""The LoRA files that nodes offer: models/loras as LoraLoader names them, and the pack's own, told by a mark."""

from collections.abc import Mapping
from pathlib import Path

import folder_paths
import torch

from ....methods.plain_files import is_hidden
from ..paths import bundled_file

BUNDLED_MARK = " (bundled)"
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def bundled_loras(files: Mapping[str, str]) -> dict[str, Path]:
    """The pack's own LoRAs that are there, by the names that nodes show. files: such names without their mark -> files of the assets."""
    return {name + BUNDLED_MARK: path for name, file in files.items() if (path := bundled_file(file)).is_file()}


def lora_names(bundled: Mapping[str, str]) -> list[str]:
    """Every LoRA that a node may offer: the pack's own (`files` of `bundled_loras`) first, then models/loras, less what is hidden."""
    return [*bundled_loras(bundled), *(name for name in folder_paths.get_filename_list("loras") if not is_hidden(Path(name), Path()))]


def lora_path(name: str, bundled: Mapping[str, str]) -> Path:
    """The file behind a name of `lora_names(bundled)`. Raises FileNotFoundError for any other text, such as a path.

    Raises ValueError for a pickle where this torch cannot read one safely.
    """
    if path := bundled_loras(bundled).get(name):
        return path
    # Not by the list of names: core may not have seen yet what was just trained.
    is_weights = Path(name).suffix.lower() in folder_paths.supported_pt_extensions
    found = folder_paths.get_full_path("loras", name) if is_weights else None
    if found is not None and Path(name).suffix.lower() not in (".safetensors", ".sft") and TORCH < (2, 6):
        raise ValueError(
            f"{name} is a pickle, and torch {torch.__version__} can be made to run code by one, whatever it is told (safe from 2.6 on): "
            "convert it to safetensors where you trust it, or update torch."
        )
    if found is None:
        raise FileNotFoundError(f"There is no LoRA {name!r}: write a name as LoraLoader lists it; press R in ComfyUI after adding files.")
    return Path(found)
