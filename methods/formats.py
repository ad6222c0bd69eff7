"""From map data to the look another program expects, and back: conventions, ranges, transfer curves, colour maps.

Nothing here clamps unless asked to; map data is as `maps` defines it (`bhwc`, linear float).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from .maps import map_kind, normal_picture, srgb_from_linear, unit_normals
from .maps.files import NORMAL_AXES

_SIGNS = {
    "OpenGL (Y up)": NORMAL_AXES["opengl"],
    "DirectX (Y down)": NORMAL_AXES["directx"],
    "OpenCV (Y down, Z away)": NORMAL_AXES["opencv"],
}
NORMAL_CONVENTIONS = tuple(_SIGNS)


def _axis_signs(convention: str, flip_x: bool, flip_y: bool, flip_z: bool, like: Tensor) -> Tensor:
    if convention not in NORMAL_CONVENTIONS:
        raise ValueError(f"there is no normal convention {convention!r}: choose one of {', '.join(NORMAL_CONVENTIONS)}.")
    flips = (flip_x, flip_y, flip_z)
    return like.new_tensor([-sign if flip else sign for sign, flip in zip(_SIGNS[convention], flips, strict=True)])


def format_normals(
    normal_bhw3: Tensor,
    convention: str = NORMAL_CONVENTIONS[0],
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    flip_z: bool = False,
    renormalize: bool = True,
    as_color: bool = True,
) -> Tensor:
    """Normal data (camera space, OpenGL, -1..1) in a convention, as colours 0..1 or as data.

    Flips come on top of the convention. Raises ValueError for an unknown convention.
    """
    normal = unit_normals(normal_bhw3) if renormalize else normal_bhw3
    normal = normal * _axis_signs(convention, flip_x, flip_y, flip_z, normal)
    return normal_picture(normal) if as_color else normal


def normals_from_color(
    picture_bhw3: Tensor,
    convention: str = NORMAL_CONVENTIONS[0],
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    flip_z: bool = False,
    renormalize: bool = True,
) -> Tensor:
    """A normal-map picture (colours 0..1, in `convention`) as normal data; undoes `format_normals`."""
    normal = picture_bhw3 * 2 - 1
    normal = normal * _axis_signs(convention, flip_x, flip_y, flip_z, normal)
    return unit_normals(normal) if renormalize else normal


@dataclass(frozen=True)
class DepthRange:
    """The depths that become 0 and 1, each `[b, 1, 1, 1]`."""

    near: Tensor
    far: Tensor


RangeRule = Callable[[Tensor], DepthRange]
"""From depth data `[b, h, w, 1]` to the range in which it is shown."""


def _percentiles(values: Tensor, low: float, high: float) -> tuple[float, float]:
    # torch.quantile of older versions refuses more than 16 million values, which a short video has.
    if (low, high) == (0, 100):
        return float(values.min()), float(values.max())
    near, far = numpy.percentile(values.cpu().numpy(), [low, high])
    return float(near), float(far)


def _require_percentiles(low: float, high: float) -> None:
    if not 0 <= low < high <= 100:
        raise ValueError(f"the percentiles came as {low:g} and {high:g}: 0 <= low < high <= 100 is wanted.")


def range_per_picture(low: float = 0, high: float = 100) -> RangeRule:
    """Each picture from its own low to its own high percentile (0 and 100: nearest and farthest)."""
    _require_percentiles(low, high)

    def rule(depth_bhw1: Tensor) -> DepthRange:
        pairs = depth_bhw1.new_tensor([_percentiles(picture, low, high) for picture in depth_bhw1])
        return DepthRange(pairs[:, 0].reshape(-1, 1, 1, 1), pairs[:, 1].reshape(-1, 1, 1, 1))

    return rule


def range_per_sequence(low: float = 0, high: float = 100) -> RangeRule:
    """One range for the whole batch, so that a video does not flicker."""
    _require_percentiles(low, high)
    return lambda depth_bhw1: range_fixed(*_percentiles(depth_bhw1, low, high), flat=True)(depth_bhw1)


def range_fixed(near: float, far: float, *, flat: bool = False) -> RangeRule:
    """A given range for every picture. Raises ValueError unless near < far (`flat` allows near = far)."""
    if not (near < far or (flat and near == far)):
        raise ValueError(f"the fixed range came as near {near:g}, far {far:g}: near must be smaller than far.")

    def rule(depth_bhw1: Tensor) -> DepthRange:
        filled = depth_bhw1.new_ones(len(depth_bhw1), 1, 1, 1)
        return DepthRange(filled * near, filled * far)

    return rule


def normalize_depth(depth_bhw1: Tensor, span: DepthRange) -> Tensor:
    """Near to 0, far to 1, larger is farther; values outside the range leave 0..1. A range of no length gives 0."""
    length = span.far - span.near
    return torch.where(length > 0, (depth_bhw1 - span.near) / length.masked_fill(length <= 0, 1.0), torch.zeros_like(depth_bhw1))


def near_bright(depth_bhw1: Tensor, low: Tensor | float = 0.0, high: Tensor | float = 1.0) -> Tensor:
    """Depth mirrored inside low..high, so that the nearest is the brightest."""
    return low + high - depth_bhw1


def format_color(linear_bhw3: Tensor, *, srgb: bool = True, exposure_stops: float = 0.0, clamp: bool = False) -> Tensor:
    """Linear albedo or shading times 2^stops, as sRGB for the eye or linear for calculation; `clamp` cuts to 0..1 at the end."""
    exposed = linear_bhw3 * 2.0**exposure_stops
    color = srgb_from_linear(exposed) if srgb else exposed
    return color.clamp(0, 1) if clamp else color


def picture_of(name: str, data_bhwc: Tensor) -> Tensor:
    """A map's data as a picture to look at and to feed a ControlNet, `[b, h, w, 3]` in 0..1.

    Normals as OpenGL colours, depth from each picture's nearest (bright) to its farthest, colours as sRGB, the others as grey.
    """
    kind = map_kind(name)
    if kind.vector:
        picture = format_normals(data_bhwc)
    elif kind.relative:
        picture = near_bright(normalize_depth(data_bhwc, range_per_picture()(data_bhwc))).expand(-1, -1, -1, 3)
    else:
        picture = kind.to_picture(data_bhwc)
    return picture.clamp(0, 1)


# Every fifth colour of the published 256-colour tables, sRGB; linear interpolation stays within 1/255 of them.
# viridis, magma: S. van der Walt and N. Smith, 2015 (CC0). turbo: A. Mikhailov, Google, 2019 (Apache-2.0).
_COLOR_TABLES: dict[str, str] = {
    "turbo": (
        "30123b 36215f 3b2f80 3f3e9c 424bb5 4559cb 4666dd 4773eb 4680f6 458cfd 4099ff 38a5fb 2fb2f4 27bee9 1fc9dd 1ad4d0 18ddc2 1ae4b6 "
        "22ebaa 2ff19b 3ff68a 52fa7a 65fd69 79fe59 8bff4b 9cfe40 a9fb39 b7f735 c3f134 d0ea34 dbe236 e5d938 eecf3a f5c53a faba39 fdae35 "
        "fea130 fe932a fc8423 f9751d f46617 ef5811 e84b0c e14109 d83706 ce2d04 c32503 b71d02 a91601 9b0f01 8b0902 7a0403"
    ),
    "viridis": (
        "440154 46085c 471063 481769 481d6f 482475 472a7a 46307e 453781 433d84 414287 3f4889 3d4e8a 3a538b 38598c 355e8d 33638d 31688e "
        "2e6d8e 2c718e 2a768e 297b8e 27808e 25848e 23898e 218e8d 20928c 1f978b 1e9c89 1fa188 21a585 24aa83 28ae80 2eb37c 35b779 3dbc74 "
        "46c06f 50c46a 5ac864 65cb5e 70cf57 7cd250 89d548 95d840 a2da37 b0dd2f bddf26 cae11f d8e219 e5e419 f1e51d fde725"
    ),
    "magma": (
        "000004 02020b 050416 090720 0e0b2b 140e36 1a1042 21114e 29115a 311165 390f6e 420f75 4a1079 52137c 5a167e 621980 6a1c81 721f81 "
        "792282 812581 892881 912b81 992d80 a1307e aa337d b2357b ba3878 c23b75 ca3e72 d2426f d9466b e04c67 e75263 ec5860 f1605d f4695c "
        "f7725c f97b5d fb8560 fc8e64 fd9869 fea16e feaa74 feb47b febd82 fec68a fecf92 fed89a fde2a3 fdebac fcf4b6 fcfdbf"
    ),
    "grey": "000000 ffffff",
}
COLOR_MAPS = tuple(_COLOR_TABLES)


def color_map(values_bhw1: Tensor, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
    """One-channel data as sRGB colours `[b, h, w, 3]`: low gets the map's first colour, high its last, and so does what lies beyond.

    low > high turns the map round. Raises ValueError for an unknown map or low = high.
    """
    if name not in _COLOR_TABLES:
        raise ValueError(f"there is no colour map {name!r}: choose one of {', '.join(COLOR_MAPS)}.")
    if low == high:
        raise ValueError(f"the colour map's low and high are both {low:g}: they must differ.")
    colors = [tuple(bytes.fromhex(word)) for word in _COLOR_TABLES[name].split()]
    table = values_bhw1.new_tensor(colors) / 255
    place = ((values_bhw1[..., 0] - low) / (high - low)).clamp(0, 1) * (len(table) - 1)
    below = place.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None])
