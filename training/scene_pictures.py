"""Pictures and maps of `scenes` as trainers see them: which seeds are for what, and pictures held in memory as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..methods.maps import MAPS, map_kind
from ..scenes import ROOM, SKY_DEPTH, SceneMaps, render_scenes, segmentation_colors

# Seeds of the splits: held-out scenes are never trained on by anything.
HELD_OUT_SEEDS = range(0, 1000)
ADAPTER_SEEDS = range(1000, 100_000)
BASE_SEEDS = range(100_000, 1_000_000)
# Maps whose nano adapters are bundled and judged; what comes to the table of maps later is trained when it is asked for.
BUNDLED_MAPS = ("normal", "depth", "albedo", "shading")


# The sky's depth over that of the farthest thing before it.
SKY_BEHIND = 1.2


def near_sky(depth_bhw1: Tensor) -> Tensor:
    """Metres with the sky a little behind the farthest thing of each picture, so that a relative depth still tells near things apart."""
    sky = depth_bhw1 > 0.999 * SKY_DEPTH
    farthest = depth_bhw1.masked_fill(sky, 0).amax((1, 2, 3), keepdim=True)
    return torch.where(sky & (farthest > 0), SKY_BEHIND * farthest, depth_bhw1)


# Fields of the renderer that are not yet a map's data.
_DATA_OF_FIELD = {"depth_bhw1": near_sky, "segmentation_bhw": segmentation_colors}


def scene_data(scenes: SceneMaps, map_name: str) -> Tensor:
    """The exact map data, `bhwc` (`methods.maps`): depth in metres as `near_sky`, a surface's id as its colour."""
    field = map_kind(map_name).scene_field
    values = getattr(scenes, field)
    return _DATA_OF_FIELD[field](values) if field in _DATA_OF_FIELD else values


def scene_picture(scenes: SceneMaps, map_name: str) -> Tensor:
    """The map (or "image", the picture itself) in picture form, `[b, h, w, 3]`, 0..1: brighter highlights are cut."""
    return map_kind(map_name).to_picture(scene_data(scenes, map_name)).clamp(0, 1)


def render_kind(seeds: Sequence[int], size: int, kind: str) -> SceneMaps:
    """Scenes as training sees them: rooms as they were, every other kind with what a camera adds to its pictures."""
    return render_scenes(seeds, size, size, kind=kind, camera=kind != ROOM)


@dataclass(frozen=True)
class PicturePool:
    """uint8 pictures `[kind, scene, 3, h, w]`; kind 0 is the picture, 1.. the maps in the order of MAPS."""

    pictures: Tensor
    captions: tuple[str, ...]

    @classmethod
    def render(cls, seeds: Sequence[int], size: int, kinds: Sequence[str] = ("image", *MAPS), scenes: str = ROOM) -> "PicturePool":
        """scenes: the kind of scenes; other kinds than rooms are seen as by a camera."""
        parts: list[Tensor] = []
        captions: list[str] = []
        for start in range(0, len(seeds), 64):
            maps = render_kind(seeds[start : start + 64], size, scenes)
            stacked = torch.stack([scene_picture(maps, kind) for kind in kinds])
            parts.append(rearrange((stacked * 255 + 0.5).to(torch.uint8), "kind b h w c -> kind b c h w").contiguous())
            captions += maps.captions
        return cls(torch.cat(parts, 1), tuple(captions))

    def latents_input(self, kind: int, rows: Sequence[int] | Tensor | slice) -> Tensor:
        """`[b, 3, h, w]` in -1..1."""
        return self.pictures[kind, rows].float() / 127.5 - 1
