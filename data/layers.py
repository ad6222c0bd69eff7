"""Maps as the layers of one EXR file, by the names that Blender and Nuke know."""

from collections.abc import Mapping
from pathlib import Path

import numpy
from torch import Tensor

from ..methods.extras import extra
from ..methods.formats import format_normals
from ..methods.maps import linear_from_srgb, map_kind
from ..methods.maps.bundle import PICTURE

# Primaries and white of sRGB and Rec. 709, as x and y: red, green, blue, white.
REC_709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
DEPTH_CHANNEL = "Z"


def channels_of(name: str) -> list[str]:
    """The channels of a map: R, G, B for the picture, Z for depth, Normal.X, Albedo.R, Roughness.V ... for the others."""
    if name == PICTURE:
        return ["R", "G", "B"]
    if name == "depth":
        return [DEPTH_CHANNEL]
    kind = map_kind(name)
    letters = "XYZ" if kind.vector else "RGB" if kind.channels == 3 else "V"
    return [f"{name.capitalize()}.{letter}" for letter in letters]


def write_layers(path: Path, maps: Mapping[str, Tensor], convention: str, half: bool, vertical_fov_degrees: float) -> None:
    """Maps of one picture, each `[h, w, channels]`, as one EXR file of scene-linear values, the picture too; nothing is clamped.

    convention: of the normals (`formats.NORMAL_CONVENTIONS`). half: 16-bit floats, save for depth, which always has 32.
    Raises ValueError where OpenEXR is not installed, OSError where the file cannot be written.
    """
    openexr = extra("OpenEXR", "Writing EXR")
    planes = {}
    for name, values in maps.items():
        if map_kind(name).vector:
            values = format_normals(values, convention, renormalize=False, as_color=False)
        linear = linear_from_srgb(values) if name == PICTURE else values
        for channel, plane in zip(channels_of(name), linear.unbind(-1), strict=True):
            exact = numpy.float32 if channel == DEPTH_CHANNEL or not half else numpy.float16
            planes[channel] = numpy.ascontiguousarray(plane.cpu().numpy().astype(exact))
    header = {
        "compression": openexr.ZIP_COMPRESSION,
        "type": openexr.scanlineimage,
        "chromaticities": REC_709,
        "verticalFieldOfView": float(vertical_fov_degrees),
        "normalConvention": convention,
    }
    with openexr.File(header, planes) as file:
        file.write(str(path))
