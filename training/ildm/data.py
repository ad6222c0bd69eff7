"""Pictures with all their intrinsics and a caption: rendered scenes, or a folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from einops import rearrange
from torch import Tensor

from ...methods.ildm.intrinsic_vae import INTRINSICS, intrinsics_from_pictures, join_intrinsics
from ...scenes import render_scenes, sample_scenes
from ..folder_data import FolderData, FolderPairs, captions_of
from ..pairs import IMAGE, SceneData
from ..scene_pictures import scene_data

INTRINSICS_KIND = "intrinsics"


class JointSource(Protocol):
    """A `pairs.PairSource` of the kinds "image" and "intrinsics", with a caption per row.

    `read("intrinsics", rows)` gives `[b, TOTAL_CHANNELS, h, w]` in 0..1: half of the intrinsic VAE's -1..1, plus a half.
    """

    captions: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, kind: str, rows: Sequence[int]) -> Tensor: ...

    def identity(self, kind: str) -> dict[str, Any]: ...


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
        self.scenes.source(IMAGE)
        seeds = range(self.scenes.first_seed, self.scenes.first_seed + len(self.scenes))
        return JointScenes(self.scenes, tuple(sample_scenes(seeds).captions))


@dataclass(frozen=True)
class JointScenes:
    """A `JointSource` of scenes, rendered when asked for."""

    scenes: SceneData
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scenes)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        if kind == IMAGE:
            return self.scenes.read(IMAGE, rows)
        maps = render_scenes([self.scenes.first_seed + row for row in rows], self.scenes.size, self.scenes.size)
        return _unit_range(join_intrinsics({name: scene_data(maps, name) for name in INTRINSICS}))

    def identity(self, kind: str) -> dict[str, Any]:
        return self.scenes.identity(kind)


@dataclass(frozen=True)
class JointFolderData:
    """A folder of pictures and maps in a layout of `folder_data`, and captions in NAME.txt beside the pictures.

    intrinsics: those the folder holds; the others stay zero. Raises ValueError for unknown ones and for none.
    """

    folder: FolderData
    intrinsics: tuple[str, ...] = tuple(INTRINSICS)

    def __post_init__(self) -> None:
        if not self.intrinsics or (unknown := set(self.intrinsics) - INTRINSICS.keys()):
            came = ", ".join(sorted(unknown)) if self.intrinsics else "none"
            raise ValueError(f"the intrinsics are {came}: choose from {', '.join(INTRINSICS)}.")

    @property
    def size(self) -> int:
        return self.folder.size

    def source(self) -> "JointFolder":
        """Pictures that have every one of the intrinsics. Raises ValueError if there are none."""
        aligned = self.folder.aligned(self.intrinsics)
        return JointFolder(aligned, captions_of(next(iter(aligned.values())).pictures))


@dataclass(frozen=True)
class JointFolder:
    """A `JointSource` of files. `pairs`: the same pictures with each of the intrinsics."""

    pairs: dict[str, FolderPairs]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        if kind == IMAGE:
            return next(iter(self.pairs.values())).read(IMAGE, rows)
        pictures = {name: rearrange(source.read(name, rows), "b c h w -> b h w c") for name, source in self.pairs.items()}
        return _unit_range(intrinsics_from_pictures(pictures))

    def identity(self, kind: str) -> dict[str, Any]:
        names = {IMAGE: next(iter(self.pairs))} if kind == IMAGE else {name: name for name in self.pairs}
        return {shown: self.pairs[name].identity(IMAGE if kind == IMAGE else name) for shown, name in names.items()}
