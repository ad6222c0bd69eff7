"""A small procedural world whose intrinsic maps are exact: the pack's own ground truth.

>>> maps = render_scenes([0, 1, 2], height=128, width=128, kind="world")
>>> maps.image_bhwc.shape, maps.captions[0]
"""

from .parameters import Scenes, Style
from .render import SceneMaps, render, render_scenes, segmentation_colors, srgb_from_linear
from .sampling import KINDS, ROOM, WORLD, Worlds, sample_scenes
from .world.trace import SKY_DEPTH

__all__ = [
    "KINDS",
    "ROOM",
    "SKY_DEPTH",
    "WORLD",
    "SceneMaps",
    "Scenes",
    "Style",
    "Worlds",
    "render",
    "render_scenes",
    "sample_scenes",
    "segmentation_colors",
    "srgb_from_linear",
]
