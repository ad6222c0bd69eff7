"""A rendered scene's maps, by the names of the table of maps."""

from torch import Tensor

from ..methods.maps import map_kind
from ..scenes import SceneMaps, segmentation_colors


def scene_data(scenes: SceneMaps, map_name: str) -> Tensor:
    """The exact map data, `bhwc` (`methods.maps`; depth in metres, a surface's id as its colour)."""
    values = getattr(scenes, map_kind(map_name).scene_field)
    return segmentation_colors(values) if not values.is_floating_point() else values


def scene_picture(scenes: SceneMaps, map_name: str) -> Tensor:
    """The map (or "image", the picture itself) in picture form, `[b, h, w, 3]`, 0..1: brighter highlights are cut."""
    return map_kind(map_name).to_picture(scene_data(scenes, map_name)).clamp(0, 1)
