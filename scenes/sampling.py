"""Which scene a seed is, of every kind."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .names import KINDS, ROOM, WORLD
from .parameters import FREE_STYLE, Scenes, Style, sample_rooms
from .world.draw import Draw
from .world.kinds import PLANNED
from .world.plan import Plan


@dataclass(frozen=True)
class Worlds:
    """A batch of scenes of any kind: each is the plan of one scene, or one room.

    What callers read of `Scenes` (seeds, captions, the camera) is here too.
    """

    seeds: tuple[int, ...]
    kinds: tuple[str, ...]
    drawn: tuple[Plan | Scenes, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Worlds":
        return Worlds(self.seeds[rows], self.kinds[rows], self.drawn[rows])

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(of.captions[0] if isinstance(of, Scenes) else of.caption for of in self.drawn)

    @property
    def vertical_fov_degrees(self) -> Tensor:
        """[b]"""
        return self._cameras("vertical_fov_degrees")

    @property
    def camera_position(self) -> Tensor:
        """[b, 3]"""
        return self._cameras("position", "camera_position")

    @property
    def camera_axes(self) -> Tensor:
        """[b, 3, 3], rows right, up, back in world coordinates."""
        return self._cameras("axes", "camera_axes")

    def _cameras(self, name: str, of_room: str | None = None) -> Tensor:
        values = [
            getattr(of, of_room or name)[0] if isinstance(of, Scenes) else torch.tensor(getattr(of.camera, name)) for of in self.drawn
        ]
        return torch.stack(values)


def kind_of(seed: int) -> str:
    """The kind that a seed is in the world."""
    return random.Random(f"{WORLD} {seed}").choice(KINDS)


def sample_scenes(seeds: Sequence[int], style: Style = FREE_STYLE, kind: str = ROOM) -> Scenes | Worlds:
    """Draw one scene per seed; the same seed, style and kind always give the same scene, whatever the batch.

    kind: one of KINDS, or "world": each seed draws its kind, and is what it would be of that kind. Raises ValueError for another
    name and for an empty list of seeds.
    """
    if kind not in (*KINDS, WORLD):
        raise ValueError(f"there is no kind of scene {kind!r}: choose {', '.join(KINDS)} or {WORLD}.")
    if kind == ROOM:
        return sample_rooms(seeds, style)
    if not len(seeds):
        raise ValueError("no seeds came: give at least one, e.g. [0].")
    seeds = tuple(int(seed) for seed in seeds)
    kinds = tuple(kind_of(seed) if kind == WORLD else kind for seed in seeds)
    drawn = [
        sample_rooms([seed], style) if of == ROOM else PLANNED[of](Draw(of, seed, style)) for seed, of in zip(seeds, kinds, strict=True)
    ]
    return Worlds(seeds, kinds, tuple(drawn))
