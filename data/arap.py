"""ARAP, "as realistic as possible" (Bonneel et al. 2017): rendered scenes with their albedo, all in one folder, in linear RGB.

    alley.hdr with alley_albedo.hdr     kitchen_light0.hdr, kitchen_light1.hdr with kitchen_albedo.hdr     NAME.jpg with NAME_albedo.jpg

Its page says that the files are linear; their names are known from those who evaluate on it. Shading is light over albedo. Radiance files
(`.hdr`) have a scale of their own: their albedo's brightest thousandth is brought to 1, their light is shown as Hypersim's authors do.
"""

import re
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..methods.maps import srgb_from_linear
from ..methods.plain_files import visible
from .base import ALL, DataSet, MapData, Pair, map_data
from .files import SUFFIXES, read_exr, read_pixels, read_radiance
from .hypersim import tone_scale

_HIGH_RANGE = {".hdr": read_radiance, ".exr": read_exr}
_ALBEDO, _BRIGHTEST = "_albedo", 99.9
# Not a picture but made of one.
_MADE = re.compile(r"_(albedo|shading|reflectance|normals?|depth|mask)$")
_LIGHT = re.compile(r"_light\d+$")
# Below this share of the brightest, light over albedo is noise.
_DARKEST = 1e-3


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    files = {path.stem: path for path in sorted(visible(folder.iterdir(), folder)) if path.suffix.lower() in SUFFIXES | _HIGH_RANGE.keys()}
    pictures = [path for stem, path in files.items() if not _MADE.search(stem)]
    pairs = []
    for path in pictures:
        own, shared = path.stem + _ALBEDO, _LIGHT.sub("", path.stem) + _ALBEDO
        pairs.append(Pair(path.stem, path, files.get(own) or files.get(shared) or path.with_name(f"{shared}{path.suffix}")))
    return pairs


def _linear(path: Path) -> numpy.ndarray:
    reader = _HIGH_RANGE.get(path.suffix.lower())
    return read_pixels(path).numpy() if reader is None else reader(path)


def _light(pair: Pair) -> numpy.ndarray:
    """Linear, of a brightness that can be shown."""
    light = _linear(pair.picture)
    return light * tone_scale(light) if pair.picture.suffix.lower() in _HIGH_RANGE else light


def _albedo(pair: Pair) -> numpy.ndarray:
    albedo = _linear(pair.map)
    if pair.map.suffix.lower() not in _HIGH_RANGE:
        return albedo
    finite = albedo[numpy.isfinite(albedo)]
    return albedo / max(float(numpy.percentile(finite, _BRIGHTEST)) if finite.size else 0.0, 1e-12)


def _picture(pair: Pair) -> Tensor:
    return srgb_from_linear(torch.from_numpy(_light(pair)).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1))


def _read(pair: Pair, map_name: str) -> MapData:
    albedo = _albedo(pair)
    if map_name == "albedo":
        return map_data(pair.map, albedo)
    light = _light(pair)
    if light.shape != albedo.shape:
        # Whoever pairs the two says so by size.
        return map_data(pair.map, albedo, numpy.zeros(albedo.shape[:2]))
    bright = numpy.all(albedo > _DARKEST, axis=-1)
    return map_data(pair.map, light / numpy.where(bright[..., None], albedo, 1), bright)


ARAP = DataSet(
    "arap",
    "ARAP (Bonneel et al. 2017)",
    ("albedo", "shading"),
    (ALL,),
    "alley.hdr with alley_albedo.hdr, or kitchen_light0.hdr, kitchen_light1.hdr with kitchen_albedo.hdr (.jpg and .png alike)",
    _find,
    _picture,
    _read,
)
