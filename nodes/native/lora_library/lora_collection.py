"""The collections of LoRAs that are indexed, models/loras and the pack's own styles; their preview pictures; where the index is kept."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import folder_paths
from PIL import Image

# The index itself is imported where it is opened: the pack loads with ComfyUI, whether its nodes are used or not.
from ....methods.lora.names import SUFFIXES
from ....methods.lora_space.database import families_in
from ....methods.lora_space.entries import Entry, Progress
from ..paths import bundled_file
from . import files
from .files import BUNDLED_MARK

if TYPE_CHECKING:
    from ....methods.lora_space.index import LoraIndex
    from ....methods.lora_space.postgres_store import PostgresStore

POSTGRES_VARIABLE = "INTRINSIC_LAB_POSTGRES"
LORAS, BUNDLED = "models/loras", "nano styles (bundled)"
COLLECTIONS = (LORAS, BUNDLED)
PREVIEW_SIDE = 256
_PREVIEW_ENDINGS = tuple(f"{mark}{ending}" for mark in (".preview", "") for ending in (".png", ".jpg", ".jpeg", ".webp"))


@dataclass(frozen=True)
class LoraCollection:
    """What a LORA_INDEX is: one collection's index, narrowed to a base family and a folder (None: all of them).

    state: changes with the files, so that what is computed from the index is computed again.
    """

    collection: str
    family: str | None
    folder: str | None
    state: str

    def open(self) -> "AbstractContextManager[LoraIndex]":
        """The index itself, for one thread."""
        from ....methods.lora_space.index import LoraIndex

        return LoraIndex(database_of(self.collection))


def roots_of(collection: str) -> list[Path]:
    """The folders of a collection. Raises ValueError for any other text, such as a path."""
    if collection == BUNDLED:
        return [bundled_file("loras")]
    if collection == LORAS:
        return [Path(folder) for folder in folder_paths.get_folder_paths("loras") if os.path.isdir(folder)]
    raise ValueError(f"There is no LoRA collection {collection!r}: choose {' or '.join(COLLECTIONS)}.")


def database_of(collection: str) -> Path:
    """The index of a collection, in ComfyUI's user folder; the underscores keep it from being served over HTTP."""
    folder = Path(folder_paths.get_user_directory()) / "__intrinsic_lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / ("loras_bundled.sqlite" if collection == BUNDLED else "loras.sqlite")


def indexed_families() -> list[str]:
    """Base families of what the collections' indexes hold, most first."""
    return list(dict.fromkeys(family for collection in COLLECTIONS for family in families_in(database_of(collection))))


def files_state(collection: str) -> str:
    """Changes whenever a file of the collection is added, replaced, moved or removed; costs a stat per file."""
    from ....methods.lora_space.scan import list_files

    found = sorted((file.name, file.root, file.size, file.mtime_ns) for file in list_files(roots_of(collection)).files)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def bundled_styles() -> dict[str, str]:
    """The pack's own style LoRAs: see `files.lora_names`."""
    assets = bundled_file("")
    paths = sorted((assets / "loras").rglob("*.safetensors"))
    return {path.relative_to(assets / "loras").as_posix(): path.relative_to(assets).as_posix() for path in paths}


def lora_names() -> list[str]:
    """Every LoRA that can be indexed, by the name that nodes show: no pickles."""
    return [name for name in files.lora_names(bundled_styles()) if name.removesuffix(BUNDLED_MARK).endswith(SUFFIXES)]


def lora_path(name: str) -> Path:
    """The file behind a name that nodes show. Raises FileNotFoundError for any other text, such as a path or a pickle's name."""
    path = files.lora_path(name, bundled_styles())
    if not path.name.lower().endswith(SUFFIXES):
        raise FileNotFoundError(f"{name} is a pickle: convert it to safetensors where you trust it, and take the result.")
    return path


def shown_name(entry: Entry, collection: str) -> str:
    """The name of an indexed file in nodes; without a mark it is what LoraLoader takes."""
    return Path(entry.name).as_posix() + BUNDLED_MARK if collection == BUNDLED else entry.name


def preview_file(lora: Path) -> Path | None:
    """The picture beside a LoRA: NAME.preview.png, NAME.png, also .jpg, .jpeg, .webp. A link that leads out of the folder is none."""
    stem = lora.with_suffix("")
    for ending in _PREVIEW_ENDINGS:
        picture = stem.with_name(stem.name + ending)
        if picture.is_file() and picture.resolve().parent == lora.parent.resolve():
            return picture
    return None


def preview_picture(lora: Path, side: int = PREVIEW_SIDE) -> Image.Image | None:
    """The picture beside a LoRA, no side above `side`; None if there is none that can be read."""
    if (picture := preview_file(lora)) is None:
        return None
    try:
        with Image.open(picture) as opened:
            opened.thumbnail((side, side))
            return opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def preview_jpeg(name: str) -> bytes | None:
    """The preview of a LoRA by its shown name, for the front end; None if the name or its picture is not there."""
    try:
        picture = preview_picture(lora_path(name))
    except FileNotFoundError:
        return None
    if picture is None:
        return None
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=88)
    return encoded.getvalue()


def progress_report() -> Callable[[Progress], None]:
    """A `report` that moves the node's progress bar and ends the work when the prompt is cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def report(progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(progress.done, max(1, progress.total))

    return report


# By index, base family and sub-network: the state it is in step with, and the store. A search of an unchanged collection only asks.
_in_step: dict[tuple[str, str, str, str], tuple[str, "PostgresStore"]] = {}


def server_store(collection: LoraCollection, index: "LoraIndex", like: Sequence[Path], subnetwork: str) -> "PostgresStore | None":
    """The vectors in the PostgreSQL server that the environment names (`POSTGRES_VARIABLE`), in step with the index; else None.

    Raises ValueError if that server cannot be used; the log says why.
    """
    if not (where := os.environ.get(POSTGRES_VARIABLE)):
        return None
    from ....methods.lora_space.postgres_store import PostgresStore
    from ....methods.lora_space.search import family_of

    key = where, index.identity, family_of(index, like), subnetwork
    state, store = _in_step.get(key, ("", None))
    if store is not None and state == collection.state:
        return store
    made = PostgresStore.sync(where, index, *key[2:], report=progress_report())
    if store is not None:
        store.close()
    _in_step[key] = collection.state, made
    return made
