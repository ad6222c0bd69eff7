"""Which LoRAs of a node's list fit a model, by their headers alone: what the front end leaves out of the list."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ....methods.lora.cache import ReadCache
from ....methods.lora.fitting import Change, change_in, rows_by_columns
from ....methods.lora.header import BadFile
from ....methods.lora.weight_file import Reader, read_header
from ..backbones import BACKBONES
from ..loading.folder_files import ModelFolderError, weight_files
from ..paths import BUNDLED_NAMES, model_folder
from .files import lora_names, lora_path

FOLDERS = "IntrinsicLabLoadModel"
# The other nodes that say which model they load -> the category of its file.
CATEGORIES = {"CheckpointLoaderSimple": "checkpoints", "UNETLoader": "diffusion_models", "IntrinsicLabPictureToMaps": "checkpoints"}
_MOST = 1 << 16
_one_at_a_time = threading.Lock()
# By place, size and time of a file; None for one whose header cannot be read.
_changes: dict[tuple[Path, int, int], Change | None] = {}


@dataclass(frozen=True)
class Taker:
    """A node with a list of LoRAs. kind: of `Change`, which it takes. bundled: see `files.lora_names`."""

    kind: str
    bundled: Mapping[str, str]


def fitting_loras(taker: Taker, loader: str, model: str) -> dict[str, Any]:
    """misfits: names of LoRAs that cannot be put on that model, or are for other nodes; maps: by name, which map a file says it makes.

    loader, model: a node that loads models, and the name in it. What has no header that can be read fits: the run tells.
    Raises ValueError and FileNotFoundError for a loader or a name that is in no list.
    """
    try:
        rows = rows_by_columns([read_header(file).layout for file in _files_of(loader, model)])
    except (BadFile, ModelFolderError):
        return {"misfits": [], "maps": {}}
    changes = {name: change for name, change in _read(taker).items() if change is not None}
    misfits = [name for name, change in changes.items() if change.kind != taker.kind or not change.fits(rows)]
    return {"misfits": misfits, "maps": {name: change.map for name, change in changes.items() if change.map}}


def _files_of(loader: str, model: str) -> list[Path]:
    if loader == FOLDERS or model in BUNDLED_NAMES:
        folder = model_folder(model)
        parts = [folder / part for part in dict.fromkeys(backbone.part for backbone in BACKBONES) if (folder / part).is_dir()]
        return [file for part in parts for file in weight_files(part)]
    if loader not in CATEGORIES:
        raise ValueError(f"{loader[:80]!r} is no node that is known to load models: {FOLDERS}, {', '.join(CATEGORIES)} are.")
    if model not in folder_paths.get_filename_list(CATEGORIES[loader]):
        raise FileNotFoundError(f"There is no {model!r} in {CATEGORIES[loader]}: write a name as {loader} lists it.")
    return [Path(folder_paths.get_full_path_or_raise(CATEGORIES[loader], model))]


def _read(taker: Taker) -> dict[str, Change | None]:
    """Of all LoRAs that the node lists."""
    cache, found = ReadCache(), {}
    with _one_at_a_time:
        for name in lora_names(taker.bundled):
            try:
                path = lora_path(name, taker.bundled)
                state = path.stat()
            except (ValueError, OSError):
                continue
            key = path, state.st_size, state.st_mtime_ns
            if key not in _changes:
                if len(_changes) >= _MOST:
                    _changes.clear()
                _changes[key] = _change_in(path, cache)
            found[name] = _changes[key]
    return found


def _change_in(path: Path, cache: ReadCache) -> Change | None:
    try:
        with Reader(path, cache) as reader:
            return change_in(reader.header)
    except BadFile:
        return None
