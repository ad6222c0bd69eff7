"""A person's own .blend file: which views of it to render. Needs `bpy` where it says so."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Plain, zstd (Blender 3 and later) and gzip (before).
_BEGINNINGS = (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b")


@dataclass(frozen=True)
class View:
    """A frame seen by a camera (the name of its object)."""

    name: str
    frame: int
    camera: str


def frames_of(text: str) -> range:
    """ "7" or "1-100" as frames. Raises ValueError for other words, or a range that ends before it begins."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise ValueError(f"the frames came as {text!r}: give one, as 7, or the first and last, as 1-100.")
    return range(first, last + 1)


def require_blend(path: Path) -> None:
    """Raise ValueError unless the file is there and begins as .blend files do."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of a .blend file.")
    with path.open("rb") as file:
        beginning = file.read(8)
    if not beginning.startswith(_BEGINNINGS):
        raise ValueError(f"{path} is no Blender file (it begins with {beginning!r}): give one that Blender saved.")


def open_blend(path: Path) -> list[str]:
    """Load a file; no script, driver or handler in it runs, and nothing is ever saved back.

    Returns a sentence about each picture that the file uses but does not find. Raises ValueError for a file that Blender cannot
    read, and for one without a camera.
    """
    import bpy

    bpy.context.preferences.filepaths.use_scripts_auto_execute = False
    try:
        bpy.ops.wm.open_mainfile(filepath=str(path.resolve()), load_ui=False, use_scripts=False)
    except RuntimeError as error:
        raise ValueError(
            f"Blender {bpy.app.version_string} cannot read {path} ({error}): save it with this version or an older one."
        ) from None
    if not cameras():
        raise ValueError(f"{path} has no camera in its scene {bpy.context.scene.name!r}: add one in Blender, and save.")
    missing = []
    for image in bpy.data.images:
        if image.source == "FILE" and not image.packed_file and image.users:
            where = Path(bpy.path.abspath(image.filepath, library=image.library))
            if not where.is_file():
                missing.append(f"the picture {where} is missing and shows as magenta")
    return missing


def cameras() -> list[Any]:
    """The scene's cameras, the active one first."""
    import bpy

    scene = bpy.context.scene
    return sorted((thing for thing in scene.objects if thing.type == "CAMERA"), key=lambda thing: (thing != scene.camera, thing.name))


def views(path: Path, frames: range | None, all_cameras: bool) -> Iterator[View]:
    """Every frame (default: the one the file was saved at) by the active camera or by all. Raises ValueError for a panorama."""
    import bpy

    chosen = cameras() if all_cameras else cameras()[:1]
    for camera in chosen:
        if camera.data.type == "PANO":
            raise ValueError(f"camera {camera.name!r} is a panorama, which has no optical axis: make it perspective, or leave it out.")
    for frame in frames or (bpy.context.scene.frame_current,):
        for camera in chosen:
            which = f"_{re.sub(r'[^A-Za-z0-9.-]+', '-', camera.name)}" if all_cameras else ""
            yield View(f"{path.stem}_{frame:04d}{which}", frame, camera.name)


def show(view: View) -> None:
    """Go to the view's frame and camera."""
    import bpy

    scene = bpy.context.scene
    scene.frame_set(view.frame)
    scene.camera = scene.objects[view.camera]
