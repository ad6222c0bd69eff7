"""The pictures that every run of an experiment is judged on, none of which it has learnt from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...data import DATA_SETS, MapData
from ...evaluate.measures import measure
from ...evaluate.predictions import NetworkPredictions, Sampling
from ...methods.intrinsic_lora.multi_step import SINGLE
from ...methods.intrinsic_lora.recipe import Recipe
from ...methods.maps import MAPS, map_kind
from ..intrinsic_lora import IntrinsicLoraConfig, SingleStepBase, noise_for
from ..pairs import PairSource
from ..scene_pictures import HELD_OUT_SEEDS, render_kind, scene_data
from ..set_data import SetPairs


@dataclass(frozen=True)
class JudgedScenes:
    """The first `count` of the held-out scenes, rendered at `size` pixels. Raises ValueError for impossible values."""

    count: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(HELD_OUT_SEEDS):
            raise ValueError(f"{self.count} scenes were asked for to judge on: there are 1 to {len(HELD_OUT_SEEDS)}.")

    def require_unseen(self, map_name: str, source: PairSource) -> None:
        """The trainer refuses held-out scenes by itself."""

    def pictures(self, map_name: str) -> Iterator[tuple[Tensor, MapData]]:
        """Pictures `[h, w, 3]` of sRGB and their exact maps."""
        yield from _rendered(self, map_name)

    def identity(self) -> dict[str, Any]:
        return {"scenes": self.count, "size": self.size}

    def __str__(self) -> str:
        return f"{self.count} held-out scenes of {self.size} pixels"


# Every run asks for the same ones.
@lru_cache(maxsize=4)
def _rendered(judged: JudgedScenes, map_name: str) -> tuple[tuple[Tensor, MapData], ...]:
    maps = render_kind(HELD_OUT_SEEDS[: judged.count], judged.size, map_kind(map_name).scene_kind)
    known = torch.ones(judged.size, judged.size, dtype=torch.bool)
    return tuple((picture, MapData(data, known)) for picture, data in zip(maps.image_bhwc, scene_data(maps, map_name), strict=True))


@dataclass(frozen=True)
class JudgedSet:
    """Pictures of a split of a data set (`data.DATA_SETS`; an empty split is the usual one), the first `count`; 0: all.

    Raises ValueError for sets of judgements, which are no maps.
    """

    name: str
    folder: Path
    split: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        if DATA_SETS[self.name].read is None:
            raise ValueError(f"{self.name} holds judgements and no maps: choose another set to judge on.")

    def pairs(self, map_name: str):
        return DATA_SETS[self.name].pairs(self.folder, map_name, self.split)[: self.count or None]

    def require_unseen(self, map_name: str, source: PairSource) -> None:
        """Raises ValueError if a picture is both learnt from and judged."""
        if isinstance(source, SetPairs):
            learnt = {(pair.picture.resolve(), pair.row) for pair in source.pairs}
        else:
            learnt = {(path.resolve(), 0) for path in getattr(source, "pictures", ())}
        judged = {(pair.picture.resolve(), pair.row) for pair in self.pairs(map_name)}
        if both := len(learnt & judged):
            raise ValueError(f"{both} pictures of {self.folder} would be learnt from and judged on: give another split or folder to one.")

    def pictures(self, map_name: str) -> Iterator[tuple[Tensor, MapData]]:
        """Pictures `[h, w, 3]` of sRGB and their maps, where there is anything to judge."""
        kind = DATA_SETS[self.name]
        assert kind.read is not None
        for pair in self.pairs(map_name):
            if (reference := kind.read(pair, map_name)).mask_hw.any():
                yield kind.picture(pair), reference

    def identity(self) -> dict[str, Any]:
        return {"set": self.name, "folder": str(self.folder), "split": self.split, "count": self.count}

    def __str__(self) -> str:
        return f"{DATA_SETS[self.name].title}, {self.split or DATA_SETS[self.name].splits[0]}"


Judged = JudgedScenes | JudgedSet


def predictions_of(base: SingleStepBase, config: IntrinsicLoraConfig, sampling: Sampling) -> NetworkPredictions:
    """Of a network that was trained with `config`, at the size it was trained at."""
    recipe = Recipe(config.map, MAPS[config.map].prompt, method=config.method, reading=config.reading)
    noise = None if config.method == SINGLE else noise_for(config.base, config.method)
    return NetworkPredictions(base, recipe, config.data.size, noise, sampling)


class NotFinite(ValueError):
    """A trained network's maps hold what is no number."""


def judge(predictions: NetworkPredictions, judged: Judged, alignment: str) -> dict[str, float]:
    """Every metric of a trained network, the mean over the pictures. Raises NotFinite, and ValueError where nothing can be judged."""
    name, scores = predictions.recipe.map, []
    for picture, reference in judged.pictures(name):
        data = predictions.of(picture)
        if not data.isfinite().all():
            raise NotFinite("its maps are NaN or infinite")
        scores.append(measure(name, data, reference, alignment))
    if not scores:
        raise ValueError(f"nothing of {judged} can be judged: its masks are empty.")
    return {metric: fmean(score[metric] for score in scores) for metric in scores[0]}
