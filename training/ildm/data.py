"""Pictures with all their intrinsics and a caption: rendered scenes, a folder, or a public data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ...data import DATA_SETS
from ...methods.ildm.intrinsic_vae import INTRINSICS, TOTAL_CHANNELS, channel_slice, intrinsics_from_pictures, join_intrinsics
from ...scenes import render_scenes
from ..folder_data import AlignedPairs, FolderData
from ..pairs import IMAGE, CaptionedSource, MaskedSource, SceneData
from ..scene_pictures import scene_data
from ..set_data import AlignedSet, SetData

INTRINSICS_KIND = "intrinsics"


class JointSource(CaptionedSource, Protocol):
    """Its kinds are "image" and "intrinsics".

    `read("intrinsics", rows)` gives `[b, TOTAL_CHANNELS, h, w]` in 0..1: half of the intrinsic VAE's -1..1, plus a half.
    """


def _unit_range(joined_bhwc: Tensor) -> Tensor:
    return rearrange((joined_bhwc + 1) / 2, "b h w c -> b c h w").contiguous()


@dataclass(frozen=True)
class JointSceneData:
    """Rendered scenes, see `pairs.SceneData`; held-out scenes are refused there."""

    scenes: SceneData = field(default_factory=SceneData)

    @property
    def size(self) -> int:
        return self.scenes.size

    def source(self) -> "JointScenes":
        return JointScenes(self.scenes.source(IMAGE))


@dataclass(frozen=True)
class JointScenes:
    """A `JointSource` of scenes, rendered when asked for."""

    scenes: SceneData

    @property
    def captions(self) -> tuple[str, ...]:
        return self.scenes.captions

    def __len__(self) -> int:
        return len(self.scenes)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        if kind == IMAGE:
            return self.scenes.read(IMAGE, rows)
        maps = render_scenes([self.scenes.first_seed + row for row in rows], self.scenes.size, self.scenes.size)
        return _unit_range(join_intrinsics({name: scene_data(maps, name) for name in INTRINSICS}))

    def identity(self, kind: str) -> dict[str, Any]:
        return self.scenes.identity(kind)


def held(data: FolderData | SetData) -> tuple[str, ...]:
    """The intrinsics to learn from, where nobody named them: all of a folder's, those that a data set has."""
    return tuple(name for name in INTRINSICS if isinstance(data, FolderData) or name in DATA_SETS[data.name].maps)


@dataclass(frozen=True)
class JointFolderData:
    """A folder of pictures and maps in a layout of `folder_data`, and captions in NAME.txt beside the pictures; or a public data set.

    intrinsics: those the folder holds; the others stay zero. Raises ValueError for unknown ones and for none.
    """

    folder: FolderData | SetData
    intrinsics: tuple[str, ...] = tuple(INTRINSICS)

    def __post_init__(self) -> None:
        if not self.intrinsics or (unknown := set(self.intrinsics) - INTRINSICS.keys()):
            came = ", ".join(sorted(unknown)) if self.intrinsics else "none"
            raise ValueError(f"the intrinsics are {came}: choose from {', '.join(INTRINSICS)}.")

    @property
    def size(self) -> int:
        return self.folder.size

    def source(self) -> "JointFolder | JointSet":
        """Pictures that have every one of the intrinsics. Raises ValueError if there are none."""
        pairs = self.folder.aligned(self.intrinsics)
        return JointSet(pairs) if pairs.masked else JointFolder(pairs)


@dataclass(frozen=True)
class JointFolder:
    """A `JointSource` of files."""

    pairs: AlignedPairs | AlignedSet

    @property
    def captions(self) -> tuple[str, ...]:
        return self.pairs.captions

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        if kind == IMAGE:
            return self.pairs.read(IMAGE, rows)
        pictures = {name: rearrange(self.pairs.read(name, rows), "b c h w -> b h w c") for name in self.pairs.maps}
        return _unit_range(intrinsics_from_pictures(pictures))

    def identity(self, kind: str) -> dict[str, Any]:
        return {name: self.pairs.identity(name) for name in ([IMAGE] if kind == IMAGE else self.pairs.maps)}


@dataclass(frozen=True)
class JointSet(JointFolder):
    """A `JointSource` and `pairs.MaskedSource` of maps with masks: an unknown pixel is zero, as an intrinsic that is not there."""

    def known(self, rows: Sequence[int]) -> Tensor:
        """`[b, TOTAL_CHANNELS, h, w]`, True where an intrinsic counts, and everywhere for those that the set has none of."""
        known = torch.ones(len(rows), TOTAL_CHANNELS, self.pairs.of(IMAGE).data.size, self.pairs.of(IMAGE).data.size, dtype=torch.bool)
        for name, pairs in self.pairs.maps.items():
            assert isinstance(pairs, MaskedSource)
            known[:, channel_slice(name)] = pairs.masks(rows)
        return known

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        pictures = super().read(kind, rows)
        return pictures if kind == IMAGE else torch.where(self.known(rows), pictures, 0.5)

    def masks(self, rows: Sequence[int]) -> Tensor:
        """`[b, 1, h, w]`, True where every intrinsic counts: a latent holds all of them."""
        return self.known(rows).all(1, keepdim=True)
