"""What a map is: its name, its prompt, its values as data, its look as the picture a generator's VAE sees, and all else (`table`).

Data (what nodes pass on) is linear float, `bhwc`, never clamped:

========= ======== ============================================================================================
map       channels values
========= ======== ============================================================================================
normal    3        unit vectors in camera space, -1..1: x right, y up, z towards the viewer (OpenGL)
depth     1        relative depth, larger is farther; nominally 0..1 (nearest..farthest of one picture)
albedo    3        linear reflectance, nominally 0..1
shading   3        linear irradiance, nominally 0..1: picture = sRGB(albedo x shading + specular)
roughness 1        0..1 from mirror to matt (microfacet roughness)
metallic  1        0..1 from dielectric to metal
specular  3        linear residual beside the diffuse light, 0 or more
========= ======== ============================================================================================

The picture form is what the VAE encodes after `2 x - 1`: nominally 0..1, three channels, sRGB for colours.

A ComfyUI IMAGE that carries a map always has three channels: `map_from_image` and `image_from_map` go between the two.
"""

from .bundle import MapBundle, bundle_names
from .images import image_from_map, map_from_image, require_map, require_normals
from .table import MAPS, OTHER_MAPS, MapKind, map_kind
from .values import (
    linear_from_srgb,
    normal_from_picture,
    normal_picture,
    relative_depth,
    srgb_from_linear,
    unit_normals,
)

__all__ = [
    "MAPS",
    "OTHER_MAPS",
    "MapBundle",
    "MapKind",
    "bundle_names",
    "image_from_map",
    "linear_from_srgb",
    "map_from_image",
    "map_kind",
    "normal_from_picture",
    "normal_picture",
    "relative_depth",
    "require_map",
    "require_normals",
    "srgb_from_linear",
    "unit_normals",
]
