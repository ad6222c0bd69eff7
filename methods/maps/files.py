"""What files of a map hold: pixels 0..1, `bhwc` with three channels, to the map's picture (`maps`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .values import as_is, depth_picture, grey_from_picture, grey_picture, normal_from_picture, normal_picture, srgb_from_linear

Reading = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FileConvention:
    """What a file's pixels may mean. readings: by the convention's name, the usual one first.

    setting: what the choice is called where a folder is described; empty where there is nothing to choose.
    """

    setting: str
    readings: Mapping[str, Reading]


def _opengl(pixels_bhw3: Tensor) -> Tensor:
    # Resizing shortens vectors where they differ.
    return normal_picture(normal_from_picture(pixels_bhw3))


def _directx(pixels_bhw3: Tensor) -> Tensor:
    x, y, z = pixels_bhw3.unbind(-1)
    return _opengl(torch.stack([x, 1 - y, z], -1))


def _near_dark(pixels_bhw3: Tensor) -> Tensor:
    return depth_picture(grey_from_picture(pixels_bhw3))


def _near_bright(pixels_bhw3: Tensor) -> Tensor:
    return depth_picture(1 - grey_from_picture(pixels_bhw3))


def _clamped(read: Reading) -> Reading:
    return lambda pixels_bhw3: read(pixels_bhw3).clamp(0, 1)


NORMAL_FILES = FileConvention("normals", {"opengl": _opengl, "directx": _directx})
DEPTH_FILES = FileConvention("depth", {"near_dark": _near_dark, "near_bright": _near_bright})
COLOR_FILES = FileConvention("colors", {"srgb": _clamped(as_is), "linear": _clamped(srgb_from_linear)})
GREY_FILES = FileConvention("", {"": _clamped(lambda pixels_bhw3: grey_picture(grey_from_picture(pixels_bhw3)))})
PICTURE_FILES = FileConvention("", {"": _clamped(as_is)})
