"""Pictures and maps of `scenes` as the VAE sees them, held in memory as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...methods.maps import MAPS
from ...scenes import SceneMaps, render_scenes
from ..scene_maps import scene_picture

# Seeds of the splits: held-out scenes are never trained on by anything.
HELD_OUT_SEEDS = range(0, 1000)
ADAPTER_SEEDS = range(1000, 100_000)
BASE_SEEDS = range(100_000, 1_000_000)


def render_kind(seeds: Sequence[int], size: int, kind: str) -> SceneMaps:
    """Scenes as training sees them: rooms as they were, every other kind with what a camera adds to its pictures."""
    return render_scenes(seeds, size, size, **({} if kind == "room" else {"kind": kind, "camera": True}))


@dataclass(frozen=True)
class PicturePool:
    """uint8 pictures `[kind, scene, 3, h, w]`; kind 0 is the picture, 1.. the maps in the order of MAPS."""

    pictures: Tensor
    captions: tuple[str, ...]

    @classmethod
    def render(cls, seeds: Sequence[int], size: int, kinds: Sequence[str] = ("image", *MAPS), scenes: str = "room") -> "PicturePool":
        """scenes: the kind of scenes; other kinds than rooms are seen as by a camera."""
        parts, captions = [], []
        for start in range(0, len(seeds), 64):
            maps = render_kind(seeds[start : start + 64], size, scenes)
            stacked = torch.stack([scene_picture(maps, kind) for kind in kinds])
            parts.append(rearrange((stacked * 255 + 0.5).to(torch.uint8), "kind b h w c -> kind b c h w").contiguous())
            captions += maps.captions
        return cls(torch.cat(parts, 1), tuple(captions))

    def latents_input(self, kind: int, rows: Sequence[int] | slice) -> Tensor:
        """`[b, 3, h, w]` in -1..1."""
        return self.pictures[kind, rows].float() / 127.5 - 1
