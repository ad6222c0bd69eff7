"""The model folders a node may offer: those of ComfyUI's `diffusers` category, and the ones bundled with the pack."""

import os
from pathlib import Path

import folder_paths

MODEL_INDEX = "model_index.json"
BUNDLED = Path(__file__).resolve().parents[2] / "assets"
BUNDLED_NAMES = {"nano (bundled)": "nano", "nano FLUX (bundled)": "nano_flux"}


def bundled_file(name: str) -> Path:
    """A file or folder of the pack's assets. Raises ValueError for a name that leads elsewhere."""
    path = (BUNDLED / name).resolve()
    if not path.is_relative_to(BUNDLED):
        raise ValueError(f"{name!r} is not inside the pack's assets.")
    return path


def model_folders() -> dict[str, Path]:
    """Every diffusers-format folder by the name a node shows: bundled ones first, then models/diffusers and extra_model_paths.

    As elsewhere in ComfyUI, of two folders with one name that of the earlier search path counts.
    """
    found = {shown: path for shown, name in BUNDLED_NAMES.items() if os.path.isfile((path := bundled_file(name)) / MODEL_INDEX)}
    for search_path in folder_paths.get_folder_paths("diffusers"):
        for folder in _folders_below(Path(search_path)):
            found.setdefault(folder.relative_to(search_path).as_posix(), folder)
    return found


def _folders_below(search_path: Path) -> list[Path]:
    folders, seen = [], set()
    for root, subfolders, files in os.walk(search_path, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real = os.path.realpath(root)
        if real in seen:
            # A link that leads back up would never end.
            subfolders.clear()
        elif MODEL_INDEX in files and Path(root) != search_path:
            folders.append(Path(root))
            subfolders.clear()
        seen.add(real)
    return folders


def model_folder(name: str) -> Path:
    """The folder behind a name of `model_folders`. Raises ValueError for any other text, such as a path."""
    folders = model_folders()
    if name not in folders:
        offered = ", ".join(folders) or "there is none yet"
        raise ValueError(
            f"There is no model folder {name!r} (offered: {offered}). Put a diffusers-format folder, with its {MODEL_INDEX}, into "
            "models/diffusers, or name its place in extra_model_paths.yaml under `diffusers`."
        )
    return folders[name]


def without_roots(text: str) -> str:
    """A message without the places of ComfyUI's folders and the pack's on this machine: paths begin with the last folder's name."""
    models = (path for paths, _ in folder_paths.folder_names_and_paths.values() for path in paths)
    named = (
        folder_paths.get_input_directory,
        folder_paths.get_output_directory,
        folder_paths.get_temp_directory,
        folder_paths.get_user_directory,
    )
    roots = {
        os.path.abspath(root) for root in (*models, *(get() for get in named), folder_paths.models_dir, folder_paths.base_path, BUNDLED)
    }
    for root in sorted(roots, key=len, reverse=True):
        if len(root) > 1:
            text = text.replace(f"{root}{os.sep}", f"{os.path.basename(root)}/").replace(root, os.path.basename(root))
    return text


def folder_fingerprint(folder: Path) -> tuple:
    """Changes whenever a file of the folder is added, replaced or removed: names, sizes and times, without reading the files.

    Also of a single file.
    """
    states = []
    for path in [folder] if os.path.isfile(folder) else sorted(folder.rglob("*")):
        if os.path.isfile(path):
            state = path.stat()
            states.append((path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns))
    return tuple(states)
