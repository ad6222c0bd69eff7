"""A small procedural world whose intrinsic maps are exact: the pack's own ground truth.

>>> maps = render_scenes([0, 1, 2], height=128, width=128)
>>> maps.image_bhwc.shape, maps.captions[0]
"""

from .parameters import Scenes, Style, sample_scenes
from .render import SceneMaps, render, render_scenes, segmentation_colors, srgb_from_linear

__all__ = ["SceneMaps", "Scenes", "Style", "render", "render_scenes", "sample_scenes", "segmentation_colors", "srgb_from_linear"]
