"""Sockets for maps: one map as an IMAGE, or whole maps, of which a node takes what it needs."""

from comfy_api.latest import io
from torch import Tensor

from ...methods.maps import MapBundle, image_from_map, map_from_image, map_kind, require_normals

Maps = io.Custom("INTRINSIC_MAPS")


def map_input(name: str, tooltip: str, **more) -> io.Input:
    """An input for one map that takes whole maps too."""
    return io.MultiType.Input(name, [io.Image, Maps], tooltip=f"{tooltip} Whole maps work too: what is needed is taken from them.", **more)


def image_of(given: Tensor | MapBundle, name: str) -> Tensor:
    """What came through `map_input`, as an IMAGE. Raises ValueError for whole maps without this one."""
    return image_from_map(given[name]) if isinstance(given, MapBundle) else given


def data_of(name: str, image: Tensor) -> Tensor:
    """The data of one map that an IMAGE carries. Raises ValueError as `map_from_image`, and for a picture where normals are wanted."""
    kind = map_kind(name)
    values = map_from_image(image, kind.channels, name, grey=not kind.vector)
    if kind.vector:
        require_normals(values, name)
    return values
