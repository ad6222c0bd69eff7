"""Where training pairs come from: the rendered `scenes`, with exact maps. (A folder of pictures: `folder_data`.)"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor

from ..methods.maps import map_kind
from ..scenes import ROOM, SceneMaps, sample_scenes
from .scene_pictures import ADAPTER_SEEDS, HELD_OUT_SEEDS, render_kind, scene_picture

IMAGE = "image"
# Called while data are encoded before the first step: what, how many are done, of how many. May raise `loop.Interrupted`.
OnEncoded = Callable[[str, int, int], None]


class PairSource(Protocol):
    """Pictures and the maps that belong to them, row by row."""

    def __len__(self) -> int:
        """Number of pairs."""

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        """`[b, 3, h, w]` in 0..1: the pictures if `kind` is "image", else that map in picture form (`methods.maps`)."""

    def identity(self, kind: str) -> dict[str, Any]:
        """What `read(kind, ...)` depends on, in JSON's types: equal identities give equal pictures."""


@runtime_checkable
class MaskedSource(PairSource, Protocol):
    """Pairs whose maps are not known everywhere."""

    def masks(self, rows: Sequence[int]) -> Tensor:
        """`[b, 1, h, w]`, True where the map counts: what lies outside is never learnt."""


class CaptionedSource(PairSource, Protocol):
    """Pairs with a text for every row."""

    @property
    def captions(self) -> tuple[str, ...]:
        """What is seen in the pictures; empty where nothing is told."""


Pairs = TypeVar("Pairs", bound=PairSource)


@dataclass(frozen=True)
class Aligned(Generic[Pairs]):
    """The same pictures with each of several maps, by its name."""

    maps: Mapping[str, Pairs]

    def __len__(self) -> int:
        return len(self.of(IMAGE))

    def of(self, kind: str) -> Pairs:
        """The pairs from which a kind of picture is read."""
        return next(iter(self.maps.values())) if kind == IMAGE else self.maps[kind]

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        return self.of(kind).read(kind, rows)

    def identity(self, kind: str) -> dict[str, Any]:
        return self.of(kind).identity(kind)

    @property
    def masked(self) -> bool:
        """Whether all maps are `MaskedSource`s."""
        return all(isinstance(pairs, MaskedSource) for pairs in self.maps.values())


@dataclass(frozen=True)
class SceneData:
    """`count` rendered scenes of `size` x `size` pixels, seeds from `first_seed` on."""

    first_seed: int = ADAPTER_SEEDS.start
    count: int = 4000
    size: int = 128

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ValueError(f"{self.count} scenes of {self.size} pixels were asked for: at least 1 scene of 8 pixels is needed.")

    def source(self, map_name: str) -> "SceneData":
        """The pairs for one map: rooms, or scenes in which it varies. Raises ValueError if a held-out scene is among the seeds."""
        if self.first_seed < HELD_OUT_SEEDS.stop and self.first_seed + self.count > HELD_OUT_SEEDS.start:
            raise ValueError(
                f"seeds {self.first_seed} to {self.first_seed + self.count - 1} include scenes that are held out for judging "
                f"({HELD_OUT_SEEDS.start} to {HELD_OUT_SEEDS.stop - 1}): start at {HELD_OUT_SEEDS.stop} or later."
            )
        kind = map_kind(map_name).scene_kind
        return self if kind == ROOM else VariedSceneData(self.first_seed, self.count, self.size, kind)

    def __len__(self) -> int:
        return self.count

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(sample_scenes(range(self.first_seed, self.first_seed + self.count), kind=self._scenes).captions)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        maps = _rendered(self._scenes, tuple(self.first_seed + row for row in rows), self.size)
        return rearrange(scene_picture(maps, kind), "b h w c -> b c h w").contiguous()

    @property
    def _scenes(self) -> str:
        return ROOM

    def identity(self, kind: str) -> dict[str, Any]:
        return {"scenes": asdict(self), "kind": kind}


@dataclass(frozen=True)
class VariedSceneData(SceneData):
    """Scenes of another kind than rooms (of `scenes.KINDS`; "world": all of them), their pictures as a camera gives them."""

    kind: str = "world"

    @property
    def _scenes(self) -> str:
        return self.kind

    def identity(self, kind: str) -> dict[str, Any]:
        # Rooms never change; of other kinds a later version of the pack may draw other scenes.
        return super().identity(kind) | {"captions": hashlib.sha256("\n".join(self.captions).encode()).hexdigest()}

    def source(self, map_name: str) -> "VariedSceneData":
        """The pairs for one map; these scenes have all of them. Raises ValueError as `SceneData.source`."""
        super().source(map_name)
        return self


# Whoever wants several maps of the same rows asks for them one after the other.
@lru_cache(maxsize=2)
def _rendered(scenes: str, seeds: tuple[int, ...], size: int) -> SceneMaps:
    return render_kind(seeds, size, scenes)


@dataclass(frozen=True)
class JoinedData:
    """Several sets of scenes of one size, one after the other."""

    parts: tuple[SceneData, ...]

    @property
    def size(self) -> int:
        return self.parts[0].size

    def source(self, map_name: str) -> "JoinedData":
        """The pairs for one map. Raises ValueError as `SceneData.source` does."""
        for part in self.parts:
            part.source(map_name)
        return self

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(caption for part in self.parts for caption in part.captions)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        pictures: dict[int, Tensor] = {}
        first = 0
        for part in self.parts:
            if own := [row for row in rows if first <= row < first + len(part)]:
                pictures |= dict(zip(own, part.read(kind, [row - first for row in own]), strict=True))
            first += len(part)
        return torch.stack([pictures[row] for row in rows])

    def identity(self, kind: str) -> dict[str, Any]:
        return {"joined": [part.identity(kind) for part in self.parts]}
