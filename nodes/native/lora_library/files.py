"""The LoRA files that nodes offer: models/loras as LoraLoader names them, and the pack's own, told by a mark."""

import os
from pathlib import Path

import folder_paths

from ....methods.lora.names import SUFFIXES
from ....methods.maps import MAPS
from ..paths import bundled_file

BUNDLED_MARK = " (bundled)"
STYLES = "styles"
# Kind of LoRA -> name that nodes show, without its mark -> file of the pack's assets.
_BUNDLED = {
    "intrinsic": {f"nano/{name}": f"nano_{name}.safetensors" for name in MAPS},
    "ildm": {"nano/ildm": "nano_ildm.safetensors"},
    "lumix": {"nano/lumix": "nano_lumix.safetensors"},
    "gan": {},
    "vqgan": {f"nano VQGAN/{name}": f"nano_vqgan_{name}.safetensors" for name in MAPS},
}


def bundled_loras(kind: str) -> dict[str, Path]:
    """The pack's own LoRAs of a kind, a key of `_BUNDLED` or STYLES, by the names that nodes show."""
    if kind == STYLES:
        folder = bundled_file("loras")
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}
    else:
        found = {name: path for name, file in _BUNDLED[kind].items() if (path := bundled_file(file)).is_file()}
    return {name + BUNDLED_MARK: path for name, path in found.items()}


def lora_names(kind: str) -> list[str]:
    """Every LoRA that a node of this kind may offer: the pack's own first, then models/loras as LoraLoader names them."""
    names = folder_paths.get_filename_list("loras")
    # What finds LoRAs by their weights opens no pickle.
    return [*bundled_loras(kind), *(name for name in names if kind != STYLES or name.endswith(SUFFIXES))]


def lora_path(name: str, kind: str) -> Path:
    """The file behind a name of `lora_names`. Raises FileNotFoundError for any other text, such as a path."""
    if path := bundled_loras(kind).get(name):
        return path
    path = folder_paths.get_full_path("loras", name) if name in folder_paths.get_filename_list("loras") else None
    if path is None:
        raise FileNotFoundError(f"There is no LoRA {name!r}: write a name as LoraLoader lists it; press R in ComfyUI after adding files.")
    return Path(path)


def lora_state(name: str | None, kind: str) -> tuple | None:
    """Changes when the file behind a name is replaced; None where there is none yet: a name over a link, or one that execution reports."""
    try:
        state = os.stat(lora_path(name, kind)) if name is not None else None
    except FileNotFoundError:
        return None
    return state and (name, state.st_size, state.st_mtime_ns)
