"""Public data sets, read as they come. A set is one file and one entry of `DATA_SETS`."""

from pathlib import Path

from .arap import ARAP
from .base import DataSet, Judgement, MapData, Pair, require_same_size
from .diode import DIODE
from .folder import FOLDER
from .hypersim import HYPERSIM
from .iiw import IIW
from .interiorverse import INTERIORVERSE
from .mit import MIT
from .nyuv2 import NYUV2
from .scannet import SCANNET

DATA_SETS = {kind.name: kind for kind in (DIODE, HYPERSIM, NYUV2, SCANNET, INTERIORVERSE, MIT, IIW, FOLDER, ARAP)}


def named_set(text: str) -> tuple[DataSet, Path] | None:
    """The data set and the folder that `NAME:FOLDER` says; None for what names no set, such as a plain folder."""
    name, colon, folder = text.partition(":")
    return (DATA_SETS[name], Path(folder)) if colon and name in DATA_SETS else None


__all__ = ["DATA_SETS", "DataSet", "Judgement", "MapData", "Pair", "named_set", "require_same_size"]
