"""MIT Intrinsic Images (Grosse et al. 2009): 20 objects, 16-bit linear PNG; the picture is `diffuse.png` in sRGB."""

from pathlib import Path

from torch import Tensor

from ..methods.maps import srgb_from_linear
from ..methods.plain_files import visible
from .base import ALL, DataSet, MapData, Pair, map_data
from .files import read_pixels

_FILES = {"albedo": "reflectance.png", "shading": "shading.png"}


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    return [
        Pair(path.parent.relative_to(folder).as_posix(), path, path.with_name(_FILES[map_name]))
        for path in visible(folder.glob("**/diffuse.png"), folder)
    ]


def _picture(pair: Pair) -> Tensor:
    return srgb_from_linear(read_pixels(pair.picture))


def _read(pair: Pair, map_name: str) -> MapData:
    mask = pair.map.with_name("mask.png")
    if not mask.is_file():
        raise ValueError(f"{mask} is missing: it says which pixels are the object, unpack it beside {pair.map.name}.")
    return map_data(pair.map, read_pixels(pair.map).numpy(), read_pixels(mask)[..., 0].numpy())


MIT = DataSet(
    "mit",
    "MIT Intrinsic Images (Grosse et al. 2009)",
    tuple(_FILES),
    (ALL,),
    "OBJECT/diffuse.png with reflectance.png, shading.png and mask.png",
    _find,
    _picture,
    _read,
)
