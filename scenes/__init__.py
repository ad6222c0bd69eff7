"""A small procedural world whose intrinsic maps are exact: the pack's own ground truth.

>>> maps = render_scenes([0, 1, 2], height=128, width=128, kind="world")
>>> maps.image_bhwc.shape, maps.captions[0]

ComfyUI loads this package to offer kinds of scenes: the renderer is imported by the first call for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .names import KINDS, ROOM, WORLD

if TYPE_CHECKING:
    from .parameters import Scenes, Style
    from .rendering import SceneMaps, render, render_scenes, segmentation_colors, srgb_from_linear
    from .sampling import Worlds, sample_scenes
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

# No module here may have the name of something it offers: importing it would hide that.
_HOMES = {
    ".parameters": ("Scenes", "Style"),
    ".rendering": ("SceneMaps", "render", "render_scenes", "segmentation_colors", "srgb_from_linear"),
    ".sampling": ("Worlds", "sample_scenes"),
    ".world.trace": ("SKY_DEPTH",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
