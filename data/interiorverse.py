"""InteriorVerse (Zhu et al. 2022): rendered rooms as EXR, linear; the picture is shown in sRGB, cut at 1.

`NNN_material.exr` holds roughness in R and metallic in G. Normals: see `towards_viewer`. Lists of scenes (`train.txt` and so on, a name a
line) make the splits where they are there.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..methods.maps import srgb_from_linear
from ..methods.plain_files import read_text, visible
from .base import ALL, DataSet, MapData, Pair, depth_data, map_data, normal_data, relative_name, towards_viewer
from .files import read_exr

# Map -> ending of its file, and the channels there.
_FILES = {
    "normal": ("normal", ("R", "G", "B")),
    "depth": ("depth", ("R",)),
    "albedo": ("albedo", ("R", "G", "B")),
    "roughness": ("material", ("R",)),
    "metallic": ("material", ("G",)),
}
_PICTURE = "_im.exr"


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    pictures = visible(folder.rglob(f"*{_PICTURE}"), folder)
    if split != ALL:
        table = folder / f"{split}.txt"
        if not table.is_file():
            raise ValueError(f"{table} is missing: it lists the scenes of the split, one a line; or take the split {ALL}.")
        scenes = set(read_text(table).split())
        pictures = (path for path in pictures if path.parent.name in scenes)
    return [
        Pair(relative_name(path, folder, _PICTURE), path, path.with_name(path.name.replace(_PICTURE, f"_{_FILES[map_name][0]}.exr")))
        for path in pictures
    ]


def _picture(pair: Pair) -> Tensor:
    light = torch.from_numpy(read_exr(pair.picture))
    return srgb_from_linear(light.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1))


def _read(pair: Pair, map_name: str) -> MapData:
    values = read_exr(pair.map, _FILES[map_name][1])
    mask_file = pair.picture.with_name(pair.picture.name.replace(_PICTURE, "_mask.exr"))
    mask = read_exr(mask_file, ("R",))[..., 0] if mask_file.is_file() else None
    if map_name == "depth":
        return depth_data(pair.map, values[..., 0], mask)
    if map_name == "normal":
        return normal_data(pair.map, towards_viewer(values), mask)
    return map_data(pair.map, values, mask)


INTERIORVERSE = DataSet(
    "interiorverse",
    "InteriorVerse (Zhu et al. 2022)",
    tuple(_FILES),
    (ALL, "train", "val", "test"),
    "SCENE/000_im.exr with 000_normal.exr, 000_depth.exr, 000_albedo.exr, 000_material.exr and 000_mask.exr",
    _find,
    _picture,
    _read,
)
