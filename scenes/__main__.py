"""`python -m intrinsic_lab.scenes`: the gallery sheet, a scene's picture, or a scene with all its maps, as files."""

import argparse
import sys
from pathlib import Path

from .names import KINDS, ROOM, WORLD
from .pictures import gallery, save_picture, save_scene
from .rendering import render_scenes

# Chosen by eye among the held-out scenes (seeds 0..999), which no training sees.
DEMO_SEED = 122
GALLERY_SEEDS = (122, 105, 78, 152, 23, 1)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.scenes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    sheet = commands.add_parser("gallery", help="a sheet of scenes with all their maps and captions")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help=".jpg or .png")
    sheet.add_argument("--seeds", type=int, nargs="+", default=GALLERY_SEEDS)
    sheet.add_argument("--size", type=int, default=160, help="side of one picture in pixels (%(default)s)")

    picture = commands.add_parser("picture", help="a scene's picture alone, 8-bit")
    picture.add_argument("--out", type=Path, required=True, metavar="FILE", help=".jpg or .png")

    whole = commands.add_parser("render", help="a scene's picture and maps, 16-bit PNG; training reads such folders")
    whole.add_argument("--out", type=Path, required=True, metavar="DIR")
    for command in (picture, whole):
        command.add_argument("--seed", type=int, default=DEMO_SEED, help="which scene (%(default)s: the demo's)")
        command.add_argument("--size", type=int, default=512, help="side in pixels (%(default)s)")

    for command in (sheet, picture, whole):
        command.add_argument("--kind", choices=(*KINDS, WORLD), default=ROOM, help="of scene; world: each seed its own (%(default)s)")

    options = parser.parse_args(arguments)
    try:
        if options.command == "gallery":
            save_picture(gallery(options.seeds, options.size, options.kind), options.out)
            written = [options.out]
        elif options.command == "picture":
            save_picture(render_scenes([options.seed], options.size, options.size, kind=options.kind).image_bhwc[0], options.out)
            written = [options.out]
        else:
            written = save_scene(options.seed, options.size, options.out, options.kind)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
