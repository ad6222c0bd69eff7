"""Maps as the textures that other programs expect: which files, which channels, which colour space, whose normals.

Pictures of a surface seen from the front: there, camera-space normals are what those programs call tangent-space normals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import DepthRange, format_normals, normalize_depth, range_per_picture
from .maps import map_kind
from .maps.bundle import PICTURE

OPENGL, DIRECTX = "OpenGL (Y up)", "DirectX (Y down)"
SRGB, LINEAR = "sRGB", "linear"


@dataclass(frozen=True)
class Plane:
    """What one channel holds: a one-channel map or its opposite, and a constant where that map is not there.

    called: the channel's name in the other program.
    """

    name: str
    otherwise: float
    called: str
    opposite: bool = False

    def values(self, maps: Mapping[str, Tensor]) -> Tensor:
        """`[b, h, w, 1]`."""
        if self.name not in maps:
            some = next(iter(maps.values()))
            return torch.full_like(some[..., :1], self.otherwise)
        return 1 - maps[self.name] if self.opposite else maps[self.name]

    def meaning(self, maps: Mapping[str, Tensor]) -> str:
        if self.name not in maps:
            return f"{self.called}: {self.otherwise:g} everywhere, there is no such map"
        return f"{self.called} = 1 - {self.name}" if self.opposite else self.called


@dataclass(frozen=True)
class Texture:
    """One picture file. suffix: of its name. needs: it is made where one of these maps is there.

    pixels: of the maps, `[b, h, w, 1, 3 or 4]` in 0..1 (not clamped). meaning: of the maps, in words. deep: 8 bits are never enough.
    """

    suffix: str
    needs: tuple[str, ...]
    color_space: str
    pixels: Callable[[Mapping[str, Tensor]], Tensor]
    meaning: Callable[[Mapping[str, Tensor]], str]
    deep: bool = False


def _plain(name: str, suffix: str) -> Texture:
    """A map as its own picture: colours in sRGB, one channel as it is."""
    kind = map_kind(name)
    color_space = SRGB if kind.channels == 3 else LINEAR
    return Texture(suffix, (name,), color_space, lambda maps: kind.to_picture(maps[name])[..., : kind.channels], lambda maps: kind.meaning)


def _normal(suffix: str, convention: str) -> Texture:
    return Texture(
        suffix,
        ("normal",),
        LINEAR,
        lambda maps: format_normals(maps["normal"], convention),
        lambda maps: f"Normals, (n + 1) / 2, {convention}.",
    )


def depth_span(maps: Mapping[str, Tensor]) -> DepthRange:
    """What black (near) and white (far) of the depth texture stand for, in each picture."""
    return range_per_picture()(maps["depth"])


def _depth(suffix: str) -> Texture:
    return Texture(
        suffix,
        ("depth",),
        LINEAR,
        lambda maps: normalize_depth(maps["depth"], depth_span(maps)),
        lambda maps: "Depth along the optical axis, nearest black, farthest white.",
        deep=True,
    )


def _packed(suffix: str, **planes: Plane) -> Texture:
    """Channels of different maps in one file, by the letters R, G, B, A."""
    # What is never there, such as occlusion, is no reason to write a file.
    needs = tuple(plane.name for plane in planes.values() if plane.name)
    return Texture(
        suffix,
        needs,
        LINEAR,
        lambda maps: torch.cat([plane.values(maps) for plane in planes.values()], -1),
        lambda maps: "; ".join(f"{letter} {plane.meaning(maps)}" for letter, plane in planes.items()),
    )


_OCCLUSION = Plane("", 1.0, "occlusion")
_ROUGHNESS = Plane("roughness", 1.0, "roughness")
_METALLIC = Plane("metallic", 0.0, "metallic")
_ORM = {"R": _OCCLUSION, "G": _ROUGHNESS, "B": _METALLIC}
# Unity's lit materials read metallic from R, occlusion from G, a mask of details from B, smoothness from A.
_UNITY_MASK = {
    "R": _METALLIC,
    "G": _OCCLUSION,
    "B": Plane("", 0.0, "mask of details"),
    "A": Plane("roughness", 0.0, "smoothness", opposite=True),
}


def _others(shading: str, specular: str, picture: str) -> tuple[Texture, ...]:
    return _plain("shading", shading), _plain("specular", specular), _plain(PICTURE, picture)


@dataclass(frozen=True)
class Target:
    """A program's textures. prefix: of every file's name. axes: of its normals."""

    prefix: str
    axes: str
    textures: tuple[Texture, ...]

    def wanted(self, maps: Mapping[str, Tensor]) -> list[Texture]:
        """Those for which there are maps. Raises ValueError if there are none."""
        wanted = [texture for texture in self.textures if any(name in maps for name in texture.needs)]
        if not wanted:
            raise ValueError(f"none of these maps ({', '.join(maps)}) becomes a texture: connect others.")
        return wanted


TARGETS = {
    "Unreal": Target(
        "T_",
        DIRECTX,
        (
            _plain("albedo", "_BC"),
            _normal("_N", DIRECTX),
            _packed("_ORM", **_ORM),
            _depth("_D"),
            *_others("_Shading", "_Specular", "_Picture"),
        ),
    ),
    "Unity": Target(
        "",
        OPENGL,
        (
            _plain("albedo", "_BaseMap"),
            _normal("_Normal", OPENGL),
            _packed("_MaskMap", **_UNITY_MASK),
            _depth("_Depth"),
            *_others("_Shading", "_Specular", "_Picture"),
        ),
    ),
    "Blender": Target(
        "",
        OPENGL,
        (
            _plain("albedo", "_BaseColor"),
            _normal("_Normal", OPENGL),
            _plain("roughness", "_Roughness"),
            _plain("metallic", "_Metallic"),
            _depth("_Depth"),
            *_others("_Shading", "_Specular", "_Picture"),
        ),
    ),
    "glTF": Target(
        "",
        OPENGL,
        (
            _plain("albedo", "_baseColor"),
            _normal("_normal", OPENGL),
            _packed("_occlusionRoughnessMetallic", **_ORM),
            _depth("_depth"),
            *_others("_shading", "_specular", "_picture"),
        ),
    ),
}
