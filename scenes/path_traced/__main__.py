"""`python -m intrinsic_lab.scenes.path_traced`: path-traced pictures with exact maps, of procedural scenes or of a .blend file."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..pictures import save_picture
from . import blend, folder
from .worlds import plan_scene


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def render(options: argparse.Namespace) -> None:
    """Procedural scenes, one a seed."""
    from .build import build

    _require_blender()
    for number, seed in enumerate(range(options.seed0, options.seed0 + options.count), start=1):
        plan = plan_scene(seed)
        settings = {"seed": seed, **_quality(options)}
        about = {"kind": plan.kind, "caption": plan.caption}

        def prepare(plan=plan) -> None:
            build(plan)
            _make_ready(options)

        _sample(options, f"scene_{seed:05d}", (number, options.count), settings, about, prepare)


def from_blend(options: argparse.Namespace) -> None:
    """Views of a .blend file."""
    blend.require_blend(options.file)
    frames = blend.frames_of(options.frames) if options.frames else None
    _require_blender()
    _say(blend.open_blend(options.file))
    views = list(blend.views(options.file, frames, options.cameras))
    _make_ready(options)
    for number, view in enumerate(views, start=1):
        settings = {"file": options.file.name, "frame": view.frame, "camera": view.camera, **_quality(options)}
        _sample(options, view.name, (number, len(views)), settings, {}, partial(blend.show, view))


def draw_sheet(options: argparse.Namespace) -> None:
    """A sheet of samples that were rendered before."""
    names = options.names or sorted(path.stem for path in (options.data / "about").glob("*.json"))[:12]
    save_picture(folder.sheet(options.data, names, options.size), options.out)
    print(options.out)


def _sample(
    options: argparse.Namespace,
    name: str,
    place: tuple[int, int],
    settings: dict[str, Any],
    about: dict[str, Any],
    prepare: Callable[[], None],
) -> None:
    """Render and write one sample, unless it is there."""
    if folder.is_written(options.out, name, settings):
        return
    from .passes import path_trace

    begun = time.monotonic()
    prepare()
    maps = path_trace(options.samples, seed=settings["seed"] if "seed" in settings else settings["frame"], denoise=not options.noisy)
    about = about | _camera_and_version()
    folder.write_sample(options.out, name, maps, about.get("caption", ""), settings, about)
    print(f"{place[0]} of {place[1]}  {options.out / 'image' / name}.png  {time.monotonic() - begun:.1f} s", flush=True)


def _quality(options: argparse.Namespace) -> dict[str, Any]:
    return {"size": options.size, "samples": options.samples, "denoised": not options.noisy}


def _make_ready(options: argparse.Namespace) -> None:
    from .passes import expose_materials, use_cycles

    use_cycles(options.size, options.threads)
    _say([f"{found}: its albedo is taken from Cycles' diffuse color, roughness 1, metallic 0" for found in expose_materials()])


def _camera_and_version() -> dict[str, Any]:
    import bpy

    scene = bpy.context.scene
    lens = scene.camera.data
    about: dict[str, Any] = {"blender": bpy.app.version_string}
    if lens.type == "PERSP":
        corners = lens.view_frame(scene=scene)
        height = max(corner.y for corner in corners) - min(corner.y for corner in corners)
        about["vertical_fov_degrees"] = 2 * math.degrees(math.atan2(height / 2, abs(corners[0].z)))
    return about


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def _require_blender() -> None:
    """Raises ImportError that says what to install."""
    try:
        import bpy  # noqa: F401
        import OpenEXR  # noqa: F401
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ImportError(
            f"Blender's module is not installed ({error}). bpy 4.2 to 5.0 wants Python 3.11, later ones 3.13; this is {version}. "
            'In a virtual environment of its own: pip install -e ".[blender]"'
        ) from None


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "intrinsic-lab"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.scenes.path_traced", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    scenes = commands.add_parser("render", help="procedural scenes: the held-out set, which no training sees")
    scenes.add_argument("--out", type=Path, default=_cache() / "path_traced-128", metavar="DIR", help="(%(default)s)")
    scenes.add_argument("--count", type=_positive, default=200, help="how many (%(default)s)")
    scenes.add_argument("--seed0", type=int, default=0, help="the first one's seed (%(default)s)")
    scenes.set_defaults(run=render)

    own = commands.add_parser("from-blend", help="a training folder out of a .blend file; scripts in it do not run, it is not changed")
    own.add_argument("file", type=Path, metavar="FILE.blend")
    own.add_argument("--out", type=Path, required=True, metavar="DIR")
    own.add_argument("--frames", metavar="1-100", help="frames to render (the one that the file was saved at)")
    own.add_argument("--cameras", action="store_true", help="every camera of the scene, not only the active one")
    own.set_defaults(run=from_blend)

    for command in (scenes, own):
        command.add_argument("--size", type=_positive, default=128, help="shorter side in pixels (%(default)s)")
        command.add_argument("--samples", type=_positive, default=32, help="paths a pixel, before denoising (%(default)s)")
        command.add_argument(
            "--noisy", action="store_true", help="no denoising: irradiance without bias, noise that shrinks with --samples"
        )
        command.add_argument("--threads", type=_positive, default=1, help="(%(default)s)")

    page = commands.add_parser("sheet", help="rendered samples with their maps on one page")
    page.add_argument("--data", type=Path, default=_cache() / "path_traced-128", metavar="DIR", help="(%(default)s)")
    page.add_argument("--out", type=Path, required=True, metavar="FILE", help=".jpg or .png")
    page.add_argument("--names", nargs="+", help="which samples (the first twelve)")
    page.add_argument("--size", type=_positive, default=96, help="side of one picture in pixels (%(default)s)")
    page.set_defaults(run=draw_sheet)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} came, a whole number above 0 is wanted")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
