"""Normals of ScanNet's frames as FrameNet publishes them (Huang et al. 2019): 8-bit PNG of (n + 1) / 2, black where nothing is known.

Axes: see `towards_viewer`.
"""

from pathlib import Path

from torch import Tensor

from ..methods.plain_files import visible
from .base import ALL, DataSet, MapData, Pair, normal_data, relative_name, towards_viewer
from .files import read_pixels


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    pairs = []
    for ending in ("-color.png", "-color.jpg"):
        for path in visible(folder.glob(f"**/scene*_*/frame-*{ending}"), folder):
            pairs.append(Pair(relative_name(path, folder, ending), path, path.with_name(path.name.replace(ending, "-normal.png"))))
    return pairs


def _picture(pair: Pair) -> Tensor:
    return read_pixels(pair.picture)


def _read(pair: Pair, map_name: str) -> MapData:
    pixels = read_pixels(pair.map).numpy()
    known = pixels.max(-1) > 0
    vectors = towards_viewer((2 * pixels - 1) * known[..., None])
    return normal_data(pair.map, vectors, known)


SCANNET = DataSet(
    "scannet",
    "ScanNet's normals by FrameNet (Huang et al. 2019)",
    ("normal",),
    (ALL,),
    "scene0016_02/frame-000000-color.png (or .jpg) with frame-000000-normal.png",
    _find,
    _picture,
    _read,
)
