"""NYU Depth v2 (Silberman et al. 2012), the labelled pictures: one MATLAB file of 1449 rooms, 480 x 640, depth in metres.

The 654 test pictures are those that `splits.mat` names, which is published beside it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..methods.extras import extra
from .base import ALL, DataSet, MapData, Pair, depth_data
from .files import open_hdf5

FILE, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    path = folder / FILE
    if not path.is_file():
        return []
    with open_hdf5(path) as file:
        every = range(len(file["images"]))
    rows = every if split == ALL else _rows_of(folder, split)
    if beyond := set(rows) - set(every):
        raise ValueError(f"{SPLITS} names picture {min(beyond) + 1}, {path} holds {len(every)}: copy both files again.")
    return [Pair(f"{row + 1:05d}", path, path, row) for row in rows]


def _rows_of(folder: Path, split: str) -> Sequence[int]:
    table = folder / SPLITS
    if not table.is_file():
        raise ValueError(f"{table} is missing: it says which pictures are for testing; copy it there, or take the split {ALL}.")
    matlab = extra("scipy.io", "Reading splits.mat")
    try:
        numbers = matlab.loadmat(table)[f"{split}Ndxs"].ravel()
    except (matlab.matlab.MatReadError, KeyError, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{table} has no list of {split} pictures ({error!r}): copy the published one there.") from None
    # MATLAB counts from 1.
    return [int(number) - 1 for number in numbers]


def _picture(pair: Pair) -> Tensor:
    with open_hdf5(pair.picture) as file:
        pixels_3wh = file["images"][pair.row]
    return torch.from_numpy(numpy.ascontiguousarray(pixels_3wh.transpose(2, 1, 0))).float() / 255


def _read(pair: Pair, map_name: str) -> MapData:
    with open_hdf5(pair.map) as file:
        return depth_data(pair.map, file["depths"][pair.row].T)


NYUV2 = DataSet(
    "nyuv2",
    "NYU Depth v2, labelled (Silberman et al. 2012)",
    ("depth",),
    (ALL, "test", "train"),
    f"{FILE}, and {SPLITS} for the splits",
    _find,
    _picture,
    _read,
)
