"""Pictures with all their maps and a caption, under LumiX's names: rendered scenes, or a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...methods.lumix.design import COLOR, KINDS
from ...scenes import sample_scenes
from ..folder_data import FolderData, FolderPairs, captions_of
from ..pairs import IMAGE, SceneData


class MapSource(Protocol):
    """A `pairs.PairSource` of every map's kind, with a caption per row."""

    captions: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, kind: str, rows: Sequence[int]) -> Tensor: ...

    def identity(self, kind: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class MapScenes:
    """A `MapSource` of rendered scenes."""

    scenes: SceneData
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scenes)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        return self.scenes.read(kind, rows)

    def identity(self, kind: str) -> dict[str, Any]:
        return self.scenes.identity(kind)


@dataclass(frozen=True)
class MapFolder:
    """A `MapSource` of files. pairs: the same pictures with each kind of map."""

    pairs: dict[str, FolderPairs]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        return self._of(kind).read(kind, rows)

    def identity(self, kind: str) -> dict[str, Any]:
        return self._of(kind).identity(kind)

    def _of(self, kind: str) -> FolderPairs:
        return next(iter(self.pairs.values())) if kind == IMAGE else self.pairs[kind]


def map_source(data: SceneData | FolderData, maps: Sequence[str]) -> MapSource:
    """Pictures that have every one of `maps` (LumiX's names). Raises ValueError if there are none, and for held-out scenes."""
    if isinstance(data, SceneData):
        data.source(IMAGE)
        return MapScenes(data, tuple(sample_scenes(range(data.first_seed, data.first_seed + len(data))).captions))
    pairs = data.aligned([KINDS[name] for name in maps if name != COLOR])
    return MapFolder(pairs, captions_of(next(iter(pairs.values())).pictures))
