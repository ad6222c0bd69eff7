"""Writes assets/diode: four rendered rooms in DIODE's layout, for Load Data Set without a download.

python -m intrinsic_lab.tools.made_up_diode
"""

import numpy
from PIL import Image

from ..scenes import render_scenes
from ..training.scene_pictures import HELD_OUT_SEEDS
from .comfyui_source import ROOT

FOLDER, SIZE, PICTURES = ROOT / "assets" / "diode", 96, 4


def main() -> None:
    """Rooms that no bundled model has seen; nothing is known of a frame of four pixels, as a sensor leaves it."""
    for number in range(PICTURES):
        maps = render_scenes([HELD_OUT_SEEDS.start + number], SIZE, SIZE)
        stem = FOLDER / "val" / "indoors" / "scene_00000" / f"scan_{number:05d}" / f"{number:05d}_indoors_000_000"
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * maps.image_bhwc[0]).round().byte().numpy()).save(stem.with_suffix(".png"), optimize=True)
        mask = numpy.zeros((SIZE, SIZE), dtype=numpy.float32)
        mask[4:-4, 4:-4] = 1
        depth, normal = maps.depth_bhw1[0].numpy() * mask[..., None], maps.normal_bhwc[0].numpy() * mask[..., None]
        for ending, values in (("depth", depth), ("depth_mask", mask), ("normal", normal)):
            numpy.save(stem.with_name(f"{stem.name}_{ending}.npy"), values.astype(numpy.float32))


if __name__ == "__main__":
    main()
