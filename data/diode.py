"""DIODE (Vasiljevic et al. 2019): laser scans indoors and outdoors, 768 x 1024.

Depth in metres with a mask; normals with x right, y up, z to the viewer, (0, 0, 0) where nothing is known.
"""

from pathlib import Path

from torch import Tensor

from ..methods.plain_files import visible
from .base import DataSet, MapData, Pair, depth_data, normal_data, relative_name
from .files import read_npy, read_pixels


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    return [
        Pair(relative_name(path, folder, ".png"), path, path.with_name(f"{path.stem}_{map_name}.npy"))
        for path in visible(folder.glob(f"{split}/*/scene_*/scan_*/*.png"), folder)
    ]


def _picture(pair: Pair) -> Tensor:
    return read_pixels(pair.picture)


def _read(pair: Pair, map_name: str) -> MapData:
    if map_name == "normal":
        return normal_data(pair.map, read_npy(pair.map, 3))
    mask = pair.map.with_name(f"{pair.map.stem}_mask.npy")
    if not mask.is_file():
        raise ValueError(f"{mask} is missing: DIODE's depth counts only inside its mask, unpack it beside {pair.map.name}.")
    return depth_data(pair.map, read_npy(pair.map, 1)[..., 0], read_npy(mask, 1)[..., 0])


DIODE = DataSet(
    "diode",
    "DIODE (Vasiljevic et al. 2019)",
    ("normal", "depth"),
    ("val", "train"),
    "val/indoors/scene_00019/scan_00183/NAME.png with NAME_normal.npy, NAME_depth.npy and NAME_depth_mask.npy",
    _find,
    _picture,
    _read,
)
