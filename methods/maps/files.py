"""In which conventions files hold a map: what the pixels of a picture file mean, and the pictures that a LoRA file makes a generator draw.

All bring pictures 0..1, `bhwc` with three channels, to the map's own picture (`maps`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .values import as_is, depth_picture, grey_from_picture, grey_picture, normal_from_picture, normal_picture, srgb_from_linear

Reading = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Convention:
    """meaning: in words. to_own: a picture in this convention to the map's own; nothing is clamped, so it serves what generators draw."""

    meaning: str
    to_own: Reading


@dataclass(frozen=True)
class FileConvention:
    """What a file of a map may mean.

    setting: what the choice is called where a folder is described; empty where there is nothing to choose. choices: by the convention's
    name, the map's own first. tidy: what the pixels of a picture file need beside, once they are in the map's own convention.
    """

    setting: str
    choices: Mapping[str, Convention]
    tidy: Reading

    @property
    def own(self) -> str:
        """The name of the convention that the map's own picture has."""
        return next(iter(self.choices))

    @property
    def header(self) -> dict[str, str]:
        """What a file says that holds the map's own convention; nothing where there is no choice."""
        return {"convention": self.own} if self.setting else {}

    @property
    def meanings(self) -> str:
        """All choices in words."""
        return "; ".join(f"{name}: {choice.meaning}" for name, choice in self.choices.items())

    @property
    def readings(self) -> dict[str, Reading]:
        """By the convention's name: the pixels of a picture file to the map's own picture."""
        return {name: self._then_tidy(choice.to_own) for name, choice in self.choices.items()}

    def _then_tidy(self, to_own: Reading) -> Reading:
        return lambda pixels_bhw3: self.tidy(to_own(pixels_bhw3))


# Signs of x, y, z beside the pack's own normals.
NORMAL_AXES = {"opengl": (1, 1, 1), "directx": (1, -1, 1), "opencv": (1, -1, -1)}


def _turned(name: str) -> Reading:
    negated = [sign < 0 for sign in NORMAL_AXES[name]]
    # 0..1 stands for -1..1.
    return lambda picture_bhw3: torch.where(torch.tensor(negated, device=picture_bhw3.device), 1 - picture_bhw3, picture_bhw3)


def _unit(pixels_bhw3: Tensor) -> Tensor:
    # Resizing shortens vectors where they differ.
    return normal_picture(normal_from_picture(pixels_bhw3))


def _grey_depth(pixels_bhw3: Tensor) -> Tensor:
    return depth_picture(grey_from_picture(pixels_bhw3))


def _grey(pixels_bhw3: Tensor) -> Tensor:
    return grey_picture(grey_from_picture(pixels_bhw3)).clamp(0, 1)


def _clamped(pixels_bhw3: Tensor) -> Tensor:
    return pixels_bhw3.clamp(0, 1)


_ONLY = {"": Convention("as it is", as_is)}
NORMAL_FILES = FileConvention(
    "normals",
    {
        "opengl": Convention("x right, y up, z to the viewer", as_is),
        "directx": Convention("x right, y down, z to the viewer", _turned("directx")),
        "opencv": Convention("x right, y down, z away", _turned("opencv")),
    },
    _unit,
)
DEPTH_FILES = FileConvention(
    "depth",
    {
        "near_dark": Convention("near is dark", as_is),
        "near_bright": Convention("near is bright", lambda picture_bhw3: 1 - picture_bhw3),
    },
    _grey_depth,
)
COLOR_FILES = FileConvention(
    "colors", {"srgb": Convention("sRGB", as_is), "linear": Convention("linear light", srgb_from_linear)}, _clamped
)
GREY_FILES = FileConvention("", _ONLY, _grey)
PICTURE_FILES = FileConvention("", _ONLY, _clamped)
