"""Maps of one picture as files for other programs. Each function writes whole files or none, and says what is in them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data.layers import channels_of, write_layers
from ...methods.depth_mesh import DepthMesh
from ...methods.maps import map_kind, srgb_from_linear
from ...methods.maps.bundle import PICTURE
from ...methods.textures import LINEAR, SRGB, TARGETS, depth_span
from ...scenes.pictures import eight_bit_png, sixteen_bit_png
from ...training.atomic import write_atomically

About = dict[str, Any]
"""What a file holds, for people and programs: written as JSON beside it."""


def write_exr(path: Path, maps: Mapping[str, Tensor], convention: str, half: bool, vertical_fov_degrees: float) -> About:
    """All maps `[1, h, w, channels]` as the layers of one EXR file, see `data/layers.py`."""
    of_picture = {name: values[0] for name, values in maps.items()}
    write_atomically(path, lambda unfinished: write_layers(unfinished, of_picture, convention, half, vertical_fov_degrees))
    layers = [_layer(name, convention) for name in maps]
    return {"file": path.name, "color_space": LINEAR, "primaries": "Rec. 709", "normals": convention, "layers": layers}


def _layer(name: str, convention: str) -> About:
    axes = f" In {convention} axes, -1 to 1." if map_kind(name).vector else ""
    unit = " In metres along the optical axis." if name == "depth" else ""
    return {"map": name, "channels": channels_of(name), "holds": map_kind(name).meaning + axes + unit}


def write_textures(folder: Path, material: str, maps: Mapping[str, Tensor], target_name: str, bits: int) -> list[About]:
    """The textures of one of `TARGETS` for maps `[1, h, w, channels]`, 8 or 16 bits a channel (depth always 16), cut to 0..1."""
    target = TARGETS[target_name]
    written = []
    for texture in target.wanted(maps):
        path = folder / f"{target.prefix}{material}{texture.suffix}.png"
        deep = bits == 16 or texture.deep
        encoded = (sixteen_bit_png if deep else eight_bit_png)(texture.pixels(maps)[0].cpu())
        write_atomically(path, partial(Path.write_bytes, data=encoded))
        about: About = {"file": path.name, "holds": texture.meaning(maps), "color_space": texture.color_space, "bits": 16 if deep else 8}
        if "depth" in texture.needs:
            span = depth_span(maps)
            about["metres"] = {"black": span.near.item(), "white": span.far.item()}
        written.append(about)
    return written


def write_mesh(path: Path, mesh: DepthMesh, maps: Mapping[str, Tensor]) -> About:
    """A mesh with the picture (else the albedo) of maps `[1, h, w, channels]` on it, by ComfyUI's own writer of GLB files.

    Raises ValueError where there is neither, and where this ComfyUI's writer knows no textures.
    """
    try:
        from comfy_extras.nodes_save_3d import save_glb
    except ImportError:
        raise ValueError(
            "this ComfyUI writes no meshes with a picture on them: update ComfyUI (0.30.0 does), or set mesh to none."
        ) from None
    look = next((name for name in (PICTURE, "albedo") if name in maps), None)
    if look is None:
        raise ValueError(f"there is no picture for the mesh (the maps are {', '.join(maps)}): connect image or albedo.")
    values = maps[look][0] if look == PICTURE else srgb_from_linear(maps[look][0])
    texture = Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    write_atomically(
        path, lambda unfinished: save_glb(mesh.vertices_n3, mesh.faces_m3, str(unfinished), uvs=mesh.uvs_n2, texture_image=texture)
    )
    holds = "The depth as a mesh of triangles, in metres: x right, y up, z towards the viewer, the camera at 0."
    return {"file": path.name, "holds": holds, "texture": look, "color_space": SRGB, "triangles": len(mesh.faces_m3)}
