"""The pack's own folders, path-traced ones too: one folder a map, or endings of names; normals OpenGL, depth near dark, colours sRGB.

    image/NAME.png  MAP/NAME.png       or       NAME.png  NAME_MAP.png

`mask/NAME.png` or `NAME_mask.png` says which pixels count, `about/NAME.json` which metres black and white depth stand for
(`scenes.path_traced`). Both may be missing: then every pixel counts, and depth is relative.
"""

import logging
from pathlib import Path

import numpy
from torch import Tensor

from ..methods.maps import MAPS, OTHER_MAPS, map_kind
from ..methods.plain_files import read_json, visible
from .base import ALL, DataSet, MapData, Pair, depth_data, map_data, normal_data
from .files import SUFFIXES, read_pixels

_LOG = logging.getLogger(__name__)
IMAGE, MASK = "image", "mask"


def matched(folder: Path, map_name: str) -> list[Pair]:
    """The pairs of a folder, by name. Raises ValueError, saying what was looked for, if there are none."""
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist: give a folder that holds pictures and their maps.")
    own = folder / map_name
    if own.is_dir():
        pictures, maps, wanted = _by_stem(folder / IMAGE), _by_stem(own), f"{IMAGE}/NAME.png with {map_name}/NAME.png"
    else:
        files, wanted = _by_stem(folder), f"NAME.png with NAME_{map_name}.png, or {IMAGE}/NAME.png with {map_name}/NAME.png"
        ending = f"_{map_name}"
        maps = {stem.removesuffix(ending): path for stem, path in files.items() if stem.endswith(ending)}
        # A picture may be called like a map (finish_line.png); then it has a map of its own.
        of_maps = tuple(f"_{name}" for name in (*MAPS, *OTHER_MAPS, MASK) if name != IMAGE)
        pictures = {stem.removesuffix(f"_{IMAGE}"): path for stem, path in files.items() if stem in maps or not stem.endswith(of_maps)}
    names = sorted(pictures.keys() & maps.keys())
    if not names:
        raise ValueError(f"{folder} holds {len(pictures)} pictures and {len(maps)} {map_name} maps but no pair: wanted {wanted}.")
    if alone := len(pictures.keys() ^ maps.keys()):
        _LOG.warning("%d files in %s have no partner for %s and are left out (%d pairs)", alone, folder, map_name, len(names))
    pairs = [Pair(name, pictures[name], maps[name]) for name in names]
    if 0 < (masked := sum(mask_file(pair) is not None for pair in pairs)) < len(pairs):
        _LOG.warning("%d of %d pictures in %s have no mask: all of their pixels count", len(pairs) - masked, len(pairs), folder)
    return pairs


def mask_file(pair: Pair) -> Path | None:
    """The picture that says which pixels of a pair count, if there is one."""
    own_folder = pair.map.stem == pair.name
    folder, stem = (pair.map.parent.with_name(MASK), pair.name) if own_folder else (pair.map.parent, f"{pair.name}_{MASK}")
    endings = (ending for suffix in sorted(SUFFIXES) for ending in (suffix, suffix.upper()))
    return next((path for ending in endings if (path := folder / f"{stem}{ending}").is_file()), None)


def read_mask(path: Path) -> Tensor:
    """`[h, w]` bool: where a mask is white."""
    return read_pixels(path)[..., 0] > 0.5


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending. Raises ValueError if the folder is missing or a name is double."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: put the pictures there, under the same names as their maps.")
    files: dict[str, Path] = {}
    for path in sorted(visible(folder.iterdir(), folder)):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in files:
                raise ValueError(f"{files[path.stem].name} and {path.name} in {folder} have the same name: keep one of them.")
            files[path.stem] = path
    return files


def _picture(pair: Pair) -> Tensor:
    return read_pixels(pair.picture)


def _read(pair: Pair, map_name: str) -> MapData:
    pixels = read_pixels(pair.map)
    mask = read_mask(path).numpy() if (path := mask_file(pair)) else None
    if map_name == "normal":
        return normal_data(pair.map, (2 * pixels - 1).numpy(), mask)
    if map_name == "depth":
        # Relative depth gets a metre's distance: AbsRel needs positive depth, and scale and shift are fitted anyway.
        about = pair.map.parent.parent / "about" / f"{pair.name}.json"
        nearest, farthest = _metres(about) if about.is_file() else (1.0, 2.0)
        grey = pixels.mean(-1).numpy()
        return depth_data(pair.map, nearest + (farthest - nearest) * grey.astype(numpy.float64), mask)
    return map_data(pair.map, map_kind(map_name).from_picture(pixels[None])[0].numpy(), mask)


def _metres(about: Path) -> tuple[float, float]:
    match read_json(about):
        case {"depth_metres": [int() | float() as nearest, int() | float() as farthest]} if 0 <= nearest <= farthest:
            return nearest, farthest
    raise ValueError(f'{about} does not say which metres black and white are: "depth_metres": [1.5, 7.0] is wanted, or no such file.')


FOLDER = DataSet(
    "folder",
    "a folder of your own, or path-traced scenes",
    tuple(MAPS),
    (ALL,),
    "image/NAME.png with MAP/NAME.png, or NAME.png with NAME_MAP.png",
    lambda folder, split, map_name: matched(folder, map_name),
    _picture,
    _read,
)
