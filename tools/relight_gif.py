"""The moving picture of the README: a lamp that goes round over a rendered scene, as Relight from Maps makes it.

python -m intrinsic_lab.tools.relight_gif [--out docs/relight.gif] [--seed 12] [--kind tabletop]
"""

import argparse
import io
import math
from pathlib import Path

from PIL import Image, ImageDraw

from ..methods.lamps import Lamp, Lighting, Scene, relative_depth, relit
from ..scenes import KINDS, render_scenes
from .batch_jobs import write_atomically
from .comfyui_source import ROOT

WIDTH, HEIGHT, FRAMES, MILLISECONDS = 384, 288, 24, 100


def frames(seed: int, kind: str) -> list[Image.Image]:
    """One way of a lamp round the scene."""
    maps = render_scenes([seed], HEIGHT, WIDTH, kind=kind)
    scene = Scene(
        maps.albedo_bhwc, maps.normal_bhwc, relative_depth(maps.depth_bhw1), maps.shading_bhwc, maps.roughness_bhw1, maps.metallic_bhw1
    )
    pictures = []
    for number in range(FRAMES):
        angle = 2 * math.pi * number / FRAMES
        lamp = Lamp(0.5 + 0.36 * math.cos(angle), 0.45 + 0.3 * math.sin(angle), 0.35, "#ffe2b8", 1.3, 1.1)
        picture, _ = relit(scene, [lamp], Lighting(ambient=0.12, relief=0.9, shadows=0.9, hardness=0.5))
        shown = Image.fromarray((picture[0].clamp(0, 1) * 255).round().byte().numpy())
        x, y = lamp.x * WIDTH, lamp.y * HEIGHT
        ImageDraw.Draw(shown).ellipse((x - 8, y - 8, x + 8, y + 8), fill="#ffe2b8", outline="white", width=2)
        pictures.append(shown.quantize(128, dither=Image.Dither.FLOYDSTEINBERG))
    return pictures


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "relight.gif")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--kind", choices=KINDS, default="tabletop")
    chosen = parser.parse_args()
    first, *others = frames(chosen.seed, chosen.kind)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    write_atomically(chosen.out, file.getvalue())


if __name__ == "__main__":
    main()
