"""Intrinsic Images in the Wild (Bell et al. 2014): photographs, and people's judgements which of two points is darker paint.

There are no maps to learn; albedo is judged by WHDR.
"""

from pathlib import Path

from torch import Tensor

from ..methods.plain_files import read_json, visible
from .base import ALL, DataSet, Judgement, Pair
from .files import read_pixels


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    return [Pair(path.stem, path, path.with_suffix(".json")) for path in visible(folder.glob("*.png"), folder)]


def _picture(pair: Pair) -> Tensor:
    return read_pixels(pair.picture)


def _judgements(pair: Pair) -> tuple[Judgement, ...]:
    """Those of opaque points with an answer and a positive weight."""
    try:
        content = read_json(pair.map)
        points = {point["id"]: (float(point["x"]), float(point["y"])) for point in content["intrinsic_points"] if point["opaque"]}
        return tuple(
            Judgement(points[said["point1"]], points[said["point2"]], said["darker"], float(said["darker_score"]))
            for said in content["intrinsic_comparisons"]
            if said["darker"] in ("1", "2", "E")
            and said["darker_score"] is not None
            and said["darker_score"] > 0
            and {said["point1"], said["point2"]} <= points.keys()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{pair.map} holds no judgements as IIW writes them ({error!r}): replace or remove it.") from None


IIW = DataSet(
    "iiw",
    "Intrinsic Images in the Wild (Bell et al. 2014)",
    ("albedo",),
    (ALL,),
    "ID.png with ID.json",
    _find,
    _picture,
    None,
    _judgements,
)
