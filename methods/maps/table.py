"""Every kind of map: one entry holds all that is known about it, everything else loops over the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from .files import COLOR_FILES, DEPTH_FILES, GREY_FILES, NORMAL_FILES, PICTURE_FILES, FileConvention
from .losses import mean_squared, normal_loss
from .values import (
    as_is,
    depth_picture,
    grey_from_picture,
    grey_picture,
    linear_from_srgb,
    normal_from_picture,
    normal_picture,
    srgb_from_linear,
)


@dataclass(frozen=True)
class MapKind:
    """One kind of map. What is not said holds for one channel of 0..1 with a scale of its own, such as roughness.

    prompt: of I-LoRA; empty for what no LoRA extracts. meaning: what a pixel says, tooltip: as which numbers; both in a sentence.
    scene_field: the field of `scenes.SceneMaps` that holds it; scene_kind: the kind of scenes in which it varies.
    to_picture / from_picture: data and the VAE's picture.
    vector: a direction in camera space, so a mirrored picture's points the other way along x, and grey is none.
    relative: each forward has a scale and shift of its own, so tiles are brought to those of the whole picture.
    picture_loss: of the decoded map, -1..1 (`losses`). evaluation: see `metrics`. files: see `files`.
    """

    name: str
    prompt: str
    meaning: str
    tooltip: str
    scene_field: str
    scene_kind: str = "world"
    channels: int = 1
    to_picture: Callable[[Tensor], Tensor] = grey_picture
    from_picture: Callable[[Tensor], Tensor] = grey_from_picture
    vector: bool = False
    relative: bool = False
    picture_loss: Callable[[Tensor, Tensor], Tensor] = mean_squared
    evaluation: metrics.Evaluation = metrics.VALUE
    files: FileConvention = GREY_FILES

    def mirrored(self, picture_bhw3: Tensor) -> Tensor:
        """The map's picture seen in a mirror, left and right exchanged."""
        flipped = picture_bhw3.flip(-2)
        # 0..1 stands for -1..1.
        return torch.cat([1 - flipped[..., :1], flipped[..., 1:]], -1) if self.vector else flipped


_LINEAR_COLOR: dict[str, Any] = {"channels": 3, "to_picture": srgb_from_linear, "from_picture": linear_from_srgb, "files": COLOR_FILES}
_PICTURE: dict[str, Any] = {"channels": 3, "to_picture": as_is, "from_picture": as_is, "files": PICTURE_FILES}


def _by_name(*kinds: MapKind) -> dict[str, MapKind]:
    return {kind.name: kind for kind in kinds}


# What a generator can be taught to extract. New ones go to the end: saved graphs know outputs and options by their number.
MAPS = _by_name(
    MapKind(
        "normal",
        "surface normal",
        "The direction surfaces face.",
        "Camera-space unit normals as data, -1..1: x right, y up, z towards the viewer.",
        "normal_bhwc",
        "room",
        channels=3,
        to_picture=normal_picture,
        from_picture=normal_from_picture,
        vector=True,
        picture_loss=normal_loss,
        evaluation=metrics.NORMAL,
        files=NORMAL_FILES,
    ),
    MapKind(
        "depth",
        "depth map",
        "Distance from the camera.",
        "Relative depth as data, about 0..1, larger is farther; three equal channels.",
        "depth_bhw1",
        "room",
        to_picture=depth_picture,
        relative=True,
        evaluation=metrics.DEPTH,
        files=DEPTH_FILES,
    ),
    MapKind(
        "albedo",
        "albedo",
        "Diffuse reflectance: the colour of surfaces without light.",
        "Surface colour without light: linear data, about 0..1.",
        "albedo_bhwc",
        "room",
        evaluation=metrics.COLOR,
        **_LINEAR_COLOR,
    ),
    MapKind(
        "shading",
        "shading",
        "Diffuse illumination: the light that falls on surfaces.",
        "Light without surface colour: linear data, about 0..1.",
        "shading_bhwc",
        "room",
        evaluation=metrics.COLOR,
        **_LINEAR_COLOR,
    ),
    MapKind(
        "roughness",
        "roughness",
        "How widely a surface scatters what it reflects.",
        "Roughness as data, 0..1: 0 mirrors, 1 is matt; three equal channels.",
        "roughness_bhw1",
    ),
    MapKind(
        "metallic",
        "metallic",
        "Whether a surface is metal.",
        "Metallic as data, 0..1: 1 is metal, 0 is not; three equal channels.",
        "metallic_bhw1",
    ),
    MapKind(
        "specular",
        "specular",
        "What surfaces reflect beside their diffuse light: highlights.",
        "Specular residual, 0 or more: linear data, picture = sRGB(albedo x shading + specular).",
        "specular_bhwc",
        **_LINEAR_COLOR,
    ),
)

# What else pairs of pictures and maps hold: other methods' lists name it, no LoRA extracts it.
OTHER_MAPS = _by_name(
    MapKind("image", "", "The picture itself.", "The picture, 0..1.", "image_bhwc", "room", **_PICTURE),
    MapKind("segmentation", "", "Which surface is seen.", "Segments in colours, about 0..1.", "segmentation_bhw", "room", **_PICTURE),
    MapKind(
        "line",
        "",
        "Outlines and creases.",
        "Line drawing, about 0..1, 1 is a line; three equal channels.",
        "line_bhw1",
        "room",
        files=PICTURE_FILES,
    ),
)


def map_kind(name: str) -> MapKind:
    """The entry of a name. Raises ValueError for one that no table holds."""
    kinds = MAPS | OTHER_MAPS
    if name not in kinds:
        raise ValueError(f"there is no map called {name!r}: choose one of {', '.join(kinds)}.")
    return kinds[name]
