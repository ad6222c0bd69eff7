"""A training folder of path-traced pictures: one folder a map, in the looks that `training.folder_data.FolderData` reads.

    image/NAME.png  image/NAME.txt  normal/NAME.png  depth/NAME.png  albedo/NAME.png  ...  about/NAME.json

All PNGs have 16 bits. image, albedo, shading, specular: sRGB, cut to 0..1. normal: (n + 1) / 2. depth: nearest (black) to farthest
(white); the metres of both are in about/NAME.json. roughness, metallic, mask: as they are. about/NAME.json is written last: a
sample that has it is whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from ..pictures import sixteen_bit_png, write_file
from ..rendering import srgb_from_linear
from .passes import Maps

KINDS = ("image", "normal", "depth", "albedo", "shading", "specular", "roughness", "metallic", "mask")


def looks(maps: Maps) -> dict[str, numpy.ndarray]:
    """The picture and every map as something to look at, `[h, w, 1 or 3]` in 0..1."""

    def srgb(linear: numpy.ndarray) -> numpy.ndarray:
        return srgb_from_linear(torch.from_numpy(linear).clamp(0, 1)).numpy()

    nearest, farthest = maps.depth.min(), maps.depth.max()
    return {
        "image": srgb(maps.picture),
        "normal": (maps.normal + 1) / 2,
        "depth": (maps.depth - nearest) / max(farthest - nearest, 1e-12),
        "albedo": srgb(maps.albedo),
        "shading": srgb(maps.shading),
        "specular": srgb(maps.specular),
        "roughness": maps.roughness.clip(0, 1),
        "metallic": maps.metallic.clip(0, 1),
        "mask": maps.mask.astype(numpy.float32),
    }


def is_written(folder: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether a sample is there, whole. Raises ValueError if it was made with other settings."""
    about = folder / "about" / f"{name}.json"
    if not about.is_file():
        return False
    came = json.loads(about.read_text(encoding="utf-8"))["settings"]
    if came != settings:
        raise ValueError(f"{folder} holds {name} made with {came}, asked for is {settings}: give another folder, or the same settings.")
    return True


def write_sample(folder: Path, name: str, maps: Maps, caption: str, settings: dict[str, Any], about: dict[str, Any]) -> None:
    """Write a sample; a kill at any moment leaves only whole files under these names, about/NAME.json only beside all others."""
    for kind, look in looks(maps).items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write_file(folder / kind / f"{name}.png", sixteen_bit_png(torch.from_numpy(look)))
    if caption:
        write_file(folder / "image" / f"{name}.txt", (caption + "\n").encode())
    about = {
        "settings": settings,
        **about,
        "depth_metres": [float(maps.depth.min()), float(maps.depth.max())],
        "exposure": maps.exposure,
        "share_cut_at_white": {kind: float((getattr(maps, kind) > 1).any(-1).mean()) for kind in ("picture", "shading")},
    }
    (folder / "about").mkdir(exist_ok=True)
    write_file(folder / "about" / f"{name}.json", (json.dumps(about, indent=2) + "\n").encode())


def sheet(folder: Path, names: Sequence[str], size: int) -> Image.Image:
    """Samples as rows, their maps as columns. Raises ValueError for one that is not there."""
    margin, line = 4, 16
    font = ImageFont.load_default(12)
    page = Image.new("RGB", (margin + len(KINDS) * (size + margin), line + margin + len(names) * (size + margin)), "white")
    draw = ImageDraw.Draw(page)
    for column, kind in enumerate(KINDS):
        left = margin + column * (size + margin)
        draw.text((left, margin // 2), kind, font=font, fill="black")
        for row, name in enumerate(names):
            path = folder / kind / f"{name}.png"
            if not path.is_file():
                raise ValueError(f"{path} is not there: render it first, or name samples that {folder / 'about'} lists.")
            page.paste(_shown(path).resize((size, size), Image.Resampling.LANCZOS), (left, line + margin + row * (size + margin)))
    return page


def _shown(path: Path) -> Image.Image:
    """A 16-bit PNG in 8 bits; Pillow cuts grey ones off at 255 instead of dividing."""
    with Image.open(path) as opened:
        if opened.mode == "RGB":
            return opened.copy()
        return Image.fromarray((numpy.asarray(opened) / 257).round().astype(numpy.uint8)).convert("RGB")
