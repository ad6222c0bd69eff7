"""Where trainings started from a graph read and write: data folders, run folders, and the places where loader nodes find the results."""

import hashlib
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import folder_paths

from ....data.files import SUFFIXES
from ....methods.maps import MAPS, OTHER_MAPS
from ....methods.plain_files import is_hidden, open_regular, read_json
from ..loading.diffusers_folder import detect_family
from ..loading.folder_files import ModelFolderError
from ..paths import model_folder, model_folders

SCENES = "rendered scenes"
SUBFOLDER = "intrinsic_lab"
# In a run's folder: SHA-256 of every file that it put where loaders look.
RECORD = "published.json"
FINISHED = "loss.json"
# As `training.single_file` reads them; that room imports diffusers.
CHECKPOINT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")
# What lies at the top of a public data set, beside folders (NYUv2 is one .mat file).
DATA_SET_FILES = {*SUFFIXES, ".mat", ".h5", ".npy", ".hdr", ".exr"}
_LONGEST_NAME = 100
_FORBIDDEN = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Destination:
    """Where a result goes: `path`, a file or a folder, and `name`, under which loader nodes know it."""

    name: str
    path: Path


def base_names(*families: str) -> list[str]:
    """What can be trained on: the model folders of some families (keys of `diffusers_folder.FAMILY_NAMES`), then every checkpoint file."""
    found = []
    for name, folder in model_folders().items():
        try:
            family = detect_family(folder)
        except ModelFolderError as error:
            _tell_once(name, str(error))
            continue
        if family in families:
            found.append(name)
    return [*found, *checkpoint_files()]


@cache
def _tell_once(name: str, problem: str) -> None:
    logging.warning("The model folder %s is left out of the lists of bases: %s", name, problem)


def checkpoint_files() -> dict[str, Path]:
    """The files of ComfyUI's `checkpoints` that trainers can read, by name; which model each holds shows when it is trained on."""
    names = folder_paths.get_filename_list("checkpoints")
    files = {
        name: folder_paths.get_full_path("checkpoints", name)
        for name in names
        if name.endswith(CHECKPOINT_ENDINGS) and not is_hidden(Path(name), Path())
    }
    return {name: Path(path) for name, path in files.items() if path}


def base_path(name: str) -> Path:
    """The folder or the checkpoint file behind a name of `base_names`. Raises ValueError for any other text, such as a path."""
    return checkpoint_files().get(name) or model_folder(name)


def data_folders() -> dict[str, Path]:
    """The folders in ComfyUI's input directory, by name."""
    root = Path(folder_paths.get_input_directory())
    return {path.name: path for path in sorted(_visible(root)) if os.path.isdir(path)}


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, less what is hidden; nothing in one that cannot be read: lists of nodes are made of it."""
    try:
        return [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def pair_folders() -> list[str]:
    """Those of `data_folders` that hold a map in either layout of `training.folder_data`, and so not what ComfyUI itself keeps there."""
    kinds = tuple(MAPS | OTHER_MAPS)
    endings = tuple(f"_{name}" for name in kinds)

    def holds_a_map(folder: Path) -> bool:
        # Looked at whenever the lists of nodes are asked for: one listing of the folder, up to the first map.
        return any(path.name in kinds or path.stem.endswith(endings) for path in _visible(folder))

    return [name for name, folder in data_folders().items() if holds_a_map(folder)]


def data_set_folders() -> list[str]:
    """Those of `data_folders` in which a public data set can lie: they hold folders, pictures or arrays."""

    def may_be_one(folder: Path) -> bool:
        return any(path.suffix.lower() in DATA_SET_FILES or os.path.isdir(path) for path in _visible(folder))

    return [name for name, folder in data_folders().items() if may_be_one(folder)]


def data_folder(name: str) -> Path:
    """The folder behind a name of `data_folders`. Raises ValueError for any other text, such as a path."""
    folders = data_folders()
    if name not in folders:
        offered = ", ".join(folders) or "there is none yet"
        raise ValueError(f"There is no data folder {name!r} (offered: {offered}): put a folder of pictures and maps into ComfyUI's input.")
    return folders[name]


def maps_in(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` of which a data folder holds files, in either layout of `training.folder_data`."""
    return tuple(name for name in names if (folder / name).is_dir() or any(folder.glob(f"*_{name}.*")))


def name_problem(name: str) -> str | None:
    """What is wrong with a run's name, which becomes the name of files; None if nothing is."""
    if not name.strip() or name != name.strip():
        return f"The name is {name!r}: write a name without spaces around it."
    if found := _FORBIDDEN.search(name):
        return f'The name {name!r} holds {found[0]!r}: use a plain file name, without folders and without \\ / : * ? " < > |.'
    if name.startswith(".") or name.endswith("."):
        return f"The name {name!r} starts or ends with a dot: leave it out."
    if _RESERVED.fullmatch(name):
        return f"The name {name!r} is reserved by Windows: choose another one."
    if len(name.encode()) > _LONGEST_NAME:
        return f"The name is {len(name.encode())} bytes long: {_LONGEST_NAME} are possible."
    return None


def output_folder(kind: str, name: str) -> Path:
    """The pack's folder of this name and kind of results. Raises ValueError for names that are no plain file name."""
    if problem := name_problem(name):
        raise ValueError(problem)
    return Path(folder_paths.get_output_directory()) / SUBFOLDER / kind / name


def run_folder(name: str) -> Path:
    """The folder of a run's checkpoints and records. Raises as `output_folder`."""
    return output_folder("training", name)


def _first_folder(category: str) -> Path:
    return Path(folder_paths.get_folder_paths(category)[0])


def lora_destination(name: str) -> Destination:
    """For a LoRA of this name: a file in the first models/loras folder."""
    listed = Path(SUBFOLDER) / f"{name}.safetensors"
    return Destination(str(listed), _first_folder("loras") / listed)


def intrinsic_vae_destination(name: str) -> Destination:
    """For an intrinsic VAE of this name: a folder in the first models/vae folder, where Load Intrinsic VAE looks."""
    return Destination(f"vae/{name}", _first_folder("vae") / name)


def is_finished(run: Path) -> bool:
    """Whether a run has come to its last step before."""
    return (run / FINISHED).is_file()


def require_free(run: Path, destination: Destination) -> None:
    """Raises ValueError if the destination cannot be written, or holds anything that this run did not put there itself."""
    _require_writable(destination)
    own = _record(run)
    if any(_sha256(path) not in own for path in _files(destination.path)):
        raise ValueError(f"{destination.name} is there already and was not made by this run: choose another name.")


def _require_writable(destination: Destination) -> None:
    """Raises ValueError for a read-only folder, found by writing: permissions do not tell of read-only file systems, nor to root."""
    folder = destination.path if destination.path.is_dir() else destination.path.parent
    made = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=made):
            pass
    except OSError as error:
        raise ValueError(
            f"{destination.name} cannot be written ({error.strerror}): make ComfyUI's folder for it writable, or list a writable one "
            "first in extra_model_paths.yaml."
        ) from None


def publish(run: Path, result: Path, destination: Destination) -> None:
    """Copy a run's result, a file or a flat folder of files, to its destination, each file whole or not. Raises as `require_free`."""
    from ....training.atomic import copy_file, write_json

    require_free(run, destination)
    own = sorted(_record(run) | {_sha256(path) for path in _files(result)})
    # Before the files: what a crash leaves behind must be known as the run's own.
    write_json(run / RECORD, own)
    for source in _files(result):
        target = destination.path if result.is_file() else destination.path / source.name
        copy_file(source, target)


def _record(run: Path) -> set[str]:
    try:
        return set(read_json(run / RECORD))
    except (TypeError, ValueError):
        return set()


def _files(path: Path) -> list[Path]:
    """The file, or the files of the folder; config.json, by which loaders know a folder, last."""
    if path.is_dir():
        return sorted((file for file in path.iterdir() if file.is_file()), key=lambda file: (file.name == "config.json", file.name))
    return [path] if path.exists() else []


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
