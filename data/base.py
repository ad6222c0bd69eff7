"""What a data set is: pairs of a picture and map data with a mask, found in the layout in which it is published."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
ALL = "all"
# Rooms and streets are never that deep: the median says which unit a file has.
_FARTHEST_MEDIAN_METRES = 500.0


@dataclass(frozen=True)
class MapData:
    """A map of one picture. values_hwc: data as `methods.maps` defines it, float32, but depth in metres; 0 where nothing is known.

    mask_hw: bool, True where the values count.
    """

    values_hwc: Tensor
    mask_hw: Tensor


@dataclass(frozen=True)
class Judgement:
    """Somebody's comparison of two points' reflectance. first, second: (x, y) as shares of width and height, 0..1.

    darker: "1", "2" or "E" (equal); weight: how sure it is, above 0.
    """

    first: tuple[float, float]
    second: tuple[float, float]
    darker: str
    weight: float


@dataclass(frozen=True)
class Pair:
    """A picture and its map as files. name: unique in the set, a path without ending. row: of a file that holds many pictures."""

    name: str
    picture: Path
    map: Path
    row: int = 0


def _no_judgements(pair: Pair) -> tuple[Judgement, ...]:
    return ()


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    name: in `--data NAME:FOLDER`. title: with its source. maps: what it holds. splits: the usual one first. layout: an example of its
    files under FOLDER. find: (folder, split, map) -> pairs whose picture is there. picture: `[h, w, 3]` of sRGB 0..1. read: the map of a
    pair; None where there are only judgements. judgements: what people said about a pair.
    """

    name: str
    title: str
    maps: tuple[str, ...]
    splits: tuple[str, ...]
    layout: str
    find: Callable[[Path, str, str], Sequence[Pair]]
    picture: Callable[[Pair], Tensor]
    read: Callable[[Pair, str], MapData] | None
    judgements: Callable[[Pair], tuple[Judgement, ...]] = _no_judgements

    def pairs(self, folder: Path, map_name: str, split: str = "") -> tuple[Pair, ...]:
        """The pairs of a split (default: the usual one) that have the map; pictures without it are logged and left out.

        Raises ValueError that says what is missing, by example.
        """
        split = split or self.splits[0]
        if map_name not in self.maps:
            raise ValueError(f"{self.name} has no {map_name}: it holds {', '.join(self.maps)}.")
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}: choose {', '.join(self.splits)}.")
        if not folder.is_dir():
            raise ValueError(f"the data folder {folder} does not exist: give the folder of {self.name} that holds {self.layout}.")
        found = sorted(self.find(folder, split, map_name), key=lambda pair: (pair.name, pair.row))
        if not found:
            raise ValueError(f"no picture of {self.name} ({split}) is in {folder}: wanted {self.layout}, there is {_contents(folder)}.")
        pairs = tuple(pair for pair in found if pair.map.is_file())
        missing = next((pair.map for pair in found if not pair.map.is_file()), None)
        if not pairs:
            raise ValueError(f"{folder} holds {len(found)} pictures of {self.name} but no {map_name}: {missing} is missing, for one.")
        if missing:
            _LOG.warning(
                "%d of %d pictures have no %s and are left out: %s, for one", len(found) - len(pairs), len(found), map_name, missing
            )
        return pairs


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "nothing"


def relative_name(path: Path, folder: Path, ending: str) -> str:
    """A file's path under `folder` without its ending, with slashes."""
    return path.relative_to(folder).as_posix().removesuffix(ending)


def map_data(path: Path, values_hwc: numpy.ndarray, mask_hw: numpy.ndarray | None = None) -> MapData:
    """Values and the mask of what counts, less what is NaN or infinite. Raises ValueError, naming `path`, for a mask of another size."""
    values = torch.from_numpy(numpy.ascontiguousarray(values_hwc, dtype=numpy.float32))
    if mask_hw is not None and mask_hw.shape != values.shape[:2]:
        raise ValueError(f"{path} is {values.shape[1]} x {values.shape[0]}, its mask {_size(mask_hw)}: both must have one size.")
    inside = torch.ones(values.shape[:2], dtype=torch.bool) if mask_hw is None else torch.from_numpy(mask_hw > 0.5)
    mask = inside & torch.isfinite(values).all(-1)
    if broken := int((inside & ~mask).sum()):
        _tell_once(path, broken, mask.numel())
    return MapData(values.masked_fill(~mask[..., None], 0), mask)


@cache
def _tell_once(path: Path, broken: int, pixels: int) -> None:
    _LOG.warning("%s is NaN or infinite at %d of %d pixels: they do not count", path, broken, pixels)


def _size(values: numpy.ndarray) -> str:
    return " x ".join(map(str, values.shape[1::-1]))


def depth_data(path: Path, metres_hw: numpy.ndarray, mask_hw: numpy.ndarray | None = None) -> MapData:
    """Metres, of which only positive ones count. Raises ValueError if they can be none, and as `map_data`."""
    data = map_data(path, metres_hw[..., None], mask_hw)
    mask = data.mask_hw & (data.values_hwc[..., 0] > 0)
    if mask.any() and (median := float(data.values_hwc[..., 0][mask].median())) > _FARTHEST_MEDIAN_METRES:
        raise ValueError(f"the median depth of {path} is {median:g}: metres are wanted, these look like millimetres, divide by 1000.")
    return MapData(data.values_hwc.masked_fill(~mask[..., None], 0), mask)


def normal_data(path: Path, vectors_hw3: numpy.ndarray, mask_hw: numpy.ndarray | None = None) -> MapData:
    """Vectors of x right, y up, z to the viewer, made of length 1; shorter ones than 0.5 mean that nothing is known."""
    data = map_data(path, vectors_hw3, mask_hw)
    length = data.values_hwc.norm(dim=-1)
    mask = data.mask_hw & (length > 0.5)
    return MapData((data.values_hwc / length.clamp(min=0.5)[..., None]).masked_fill(~mask[..., None], 0), mask)


def towards_viewer(vectors_hw3: numpy.ndarray) -> numpy.ndarray:
    """Right-handed axes with x to the right as x right, y up, z to the viewer, whichever of the two ways they came.

    A visible surface faces the viewer: where most vectors point away, y is down and z away (OpenCV's axes).
    """
    away = numpy.nansum(numpy.sign(vectors_hw3[..., 2])) < 0
    return vectors_hw3 * numpy.array([1, -1, -1] if away else [1, 1, 1], dtype=numpy.float32)


def require_same_size(pair: Pair, picture_hwc: Tensor, data: MapData) -> None:
    """Raises ValueError where picture and map are not of one size."""
    if picture_hwc.shape[:2] != data.mask_hw.shape:
        sizes = [" x ".join(map(str, reversed(size))) for size in (data.mask_hw.shape, picture_hwc.shape[:2])]
        raise ValueError(f"{pair.map} is {sizes[0]}, its picture {pair.picture} {sizes[1]}: a pair must show the same pixels.")
