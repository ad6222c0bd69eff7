"""Training pairs from public data sets (`data`): read as they come, invalid pixels masked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DATA_SETS, MapData, Pair, require_same_size
from ..methods.maps import MapKind, map_kind, unit_normals
from .folder_data import few_rows, square
from .pairs import IMAGE, Aligned

# Farther than this share of the pixels, depth is cut, as I-LoRA does: one far pixel would make all others alike.
FARTHEST = 0.99


@dataclass(frozen=True)
class SetData:
    """A public data set, read as squares: the short side is resized to `size`, the centre is cropped; no flips.

    name: of `data.DATA_SETS`. split: empty is the set's usual one. count, labels, seed: see `few_rows`. Raises ValueError for impossible
    values.
    """

    name: str
    folder: Path
    split: str = ""
    size: int = 512
    count: int = 0
    labels: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in DATA_SETS:
            raise ValueError(f"there is no data set {self.name!r}: choose {', '.join(DATA_SETS)}.")
        if DATA_SETS[self.name].read is None:
            raise ValueError(f"{self.name} holds judgements and no maps: it can be evaluated on, not learnt from.")
        if self.size < 8:
            raise ValueError(f"the size is {self.size} pixels: at least 8 are needed.")

    def source(self, map_name: str) -> "SetPairs":
        """The pairs of the split that have the map. Raises ValueError, saying what is missing, if there are none."""
        pairs = self._pairs(map_name)
        return SetPairs(self, map_name, tuple(pairs[row] for row in few_rows(len(pairs), self.count, self.labels, self.seed)))

    def aligned(self, map_names: Sequence[str]) -> "AlignedSet":
        """The pictures that have each of several maps. Raises ValueError if no picture has all of them, or none is asked for."""
        if not map_names:
            raise ValueError("no map was asked for: name at least one beside the picture.")
        found = {name: {(pair.name, pair.row): pair for pair in self._pairs(name)} for name in map_names}
        shared = sorted(set.intersection(*(set(pairs) for pairs in found.values())))
        if not shared:
            raise ValueError(f"no picture of {self.name} in {self.folder} has all of {', '.join(map_names)}: leave out those it lacks.")
        chosen = [shared[row] for row in few_rows(len(shared), self.count, self.labels, self.seed)]
        return AlignedSet({name: SetPairs(self, name, tuple(pairs[key] for key in chosen)) for name, pairs in found.items()})

    def _pairs(self, map_name: str) -> tuple[Pair, ...]:
        return DATA_SETS[self.name].pairs(self.folder, map_name, self.split)


@dataclass(frozen=True)
class SetPairs:
    """A `pairs.MaskedSource`: pairs of a data set, read when asked for."""

    data: SetData
    map_name: str
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        """See `PairSource.read`; a map is black where nothing is known. Raises ValueError naming a file that cannot be read."""
        which = 0 if kind == IMAGE else 1
        return torch.stack([_training_pair(self.data, self.map_name, self.pairs[row])[which] for row in rows])

    def masks(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([_training_pair(self.data, self.map_name, self.pairs[row])[2] for row in rows])

    def identity(self, kind: str) -> dict[str, Any]:
        # A picture's pixels do not depend on which map belongs to it.
        files = [(pair.name, pair.row, *_state(pair.picture if kind == IMAGE else pair.map)) for pair in self.pairs]
        return {"files": files, "kind": kind, "settings": {"name": self.data.name, "size": self.data.size}}


@dataclass(frozen=True)
class AlignedSet(Aligned[SetPairs]):
    """A `pairs.CaptionedSource` of a public data set, each map with its mask. Nobody captioned them."""

    @property
    def captions(self) -> tuple[str, ...]:
        return ("",) * len(self)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# Picture, map and mask of a row are asked for one after the other, of several maps in turn.
@lru_cache(maxsize=8)
def _training_pair(data: SetData, map_name: str, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Picture and map picture `[3, size, size]`, and the mask `[1, size, size]`."""
    kind = DATA_SETS[data.name]
    picture = kind.picture(pair)
    assert kind.read is not None
    whole = kind.read(pair, map_name)
    require_same_size(pair, picture, whole)
    resized = _squared(whole, data.size)
    mask = resized.mask_hw[None]
    shown = _shown(map_kind(map_name), resized).movedim(-1, 0)
    return square(picture.movedim(-1, 0), data.size).clamp(0, 1), shown.masked_fill(~mask, 0), mask


def _squared(data: MapData, size: int) -> MapData:
    """A pixel counts if all that it is made of counts."""
    known = data.mask_hw[None].float()
    share = square(known, size)
    values = square(data.values_hwc.movedim(-1, 0), size) / share.clamp(min=1e-6)
    return replace(data, values_hwc=values.movedim(0, -1), mask_hw=share[0] > 0.999)


def _shown(kind: MapKind, data: MapData) -> Tensor:
    """`[h, w, 3]` in 0..1: the map's picture, of what is known."""
    values, known = data.values_hwc, data.values_hwc[data.mask_hw]
    if kind.relative and len(known):
        farthest = known.flatten().kthvalue(max(1, round(FARTHEST * known.numel()))).values
        values = torch.where(data.mask_hw[..., None], values, known.min()).clamp(max=farthest)
    if kind.vector:
        values = unit_normals(values)
    return kind.to_picture(values[None])[0].clamp(0, 1)
