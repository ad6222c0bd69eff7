"""Path traces what Blender holds: the picture and its exact maps. Needs `bpy` and `OpenEXR`."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from . import appearance

# Cycles writes this depth, or more, where a ray meets nothing.
NOTHING_AT = 1e9
# The narrowest filter Cycles has, in pixels: a ray through the middle of the pixel.
MIDDLE = 0.01


@dataclass(frozen=True)
class Maps:
    """A picture and its maps, linear float32 `[h, w, channels]`, of one scale of light: picture = albedo (1 - metallic) shading + specular.

    picture: what the camera sees. shading: irradiance / pi, with all light that other surfaces send, on a white matte surface in
    that place. specular: what is left of the picture: highlights, reflections, glass, lamps; a little below 0 where a gloss takes
    light from the colour beneath, and by the noise. albedo: base colour (of metals too), 0 for glass. normal: unit vectors, camera
    space (x right, y up, z towards the viewer), smooth shading included, bump maps not. depth: metres along the optical axis.
    mask: whether a surface is there.

    normal, depth and mask are those at the middle of the pixel; the others are means over the part of the pixel's filter that
    shows a surface. Where none is (the sky): normal (0, 0, 1), depth of the farthest surface, albedo the picture's colour,
    shading 1, roughness 1, metallic 0, specular what is left.
    """

    picture: numpy.ndarray
    normal: numpy.ndarray
    depth: numpy.ndarray
    albedo: numpy.ndarray
    shading: numpy.ndarray
    specular: numpy.ndarray
    roughness: numpy.ndarray
    metallic: numpy.ndarray
    mask: numpy.ndarray
    exposure: float


def use_cycles(size: int, threads: int = 1) -> None:
    """Set the scene to the shorter side `size`, and to what all passes share; the picture keeps its aspect."""
    import bpy

    scene = bpy.context.scene
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    scale = size / min(render.resolution_x, render.resolution_y)
    render.resolution_x, render.resolution_y = round(render.resolution_x * scale), round(render.resolution_y * scale)
    render.resolution_percentage, render.pixel_aspect_x, render.pixel_aspect_y = 100, 1, 1
    render.use_border = render.use_motion_blur = render.use_compositing = render.use_sequencer = render.use_multiview = False
    render.use_freestyle = render.film_transparent = False
    render.use_single_layer = render.use_persistent_data = True
    render.threads_mode, render.threads = "FIXED", threads
    if hasattr(render.image_settings, "media_type"):  # Blender 5
        render.image_settings.media_type = "MULTI_LAYER_IMAGE"
    render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
    render.image_settings.color_depth, render.image_settings.exr_codec = "32", "ZIP"
    cycles.device, cycles.shading_system = "CPU", False
    cycles.use_adaptive_sampling = cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.time_limit = 0
    cycles.denoiser = "OPENIMAGEDENOISE"


def expose_materials() -> list[str]:
    """Make every material readable. Returns a sentence about each whose values must be taken from Cycles' own passes instead."""
    import bpy

    layer = bpy.context.view_layer
    layer.use_pass_z = layer.use_pass_normal = layer.use_pass_diffuse_color = True
    layer.pass_alpha_threshold = appearance.OPAQUE
    layer.material_override = None
    for name, kind in appearance.AOVS.items():
        aov = layer.aovs.add()
        aov.name, aov.type = appearance.PREFIX + name, kind
    _clothe_bare_objects()
    unread = []
    for material in bpy.data.materials:
        if material.is_grease_pencil:
            continue
        try:
            appearance.expose(material)
        except appearance.Unread as error:
            unread.append(f"material {material.name!r} has {error}")
    return unread


def _clothe_bare_objects() -> None:
    """Give what has no material the gray that Cycles shows it in, so that it is read like all else."""
    import bpy

    gray = bpy.data.materials.new(f"{appearance.PREFIX}gray")
    gray.use_nodes = True
    for thing in bpy.data.objects:
        if thing.type not in ("MESH", "CURVE", "SURFACE", "META", "FONT") or thing.data.library:
            continue
        if not thing.material_slots:
            thing.data.materials.append(gray)
        for slot in thing.material_slots:
            slot.material = slot.material or gray


def path_trace(samples: int, seed: int = 0, denoise: bool = True) -> Maps:
    """The maps of the active camera's view, at the current frame, after `use_cycles` and `expose_materials`.

    samples: paths a pixel, of the picture and again of the irradiance. denoise: both by Open Image Denoise, which halves the error of
    32 paths in rooms and shifts constants by up to 1 %; without it the irradiance is unbiased.
    """
    import bpy

    scene = bpy.context.scene
    scene.camera.data.dof.use_dof = False
    scene.cycles.seed = seed
    with _filter(width=MIDDLE):
        middle = _render(1, denoise=False)
    seen = _render(samples, denoise=denoise)
    _show_light(bpy.data.materials, True)
    scene.render.film_transparent = True
    light = _render(samples, denoise=denoise)
    scene.render.film_transparent = False
    _show_light(bpy.data.materials, False)

    return _maps(middle, seen, light, numpy.array(scene.camera.matrix_world.to_3x3().normalized().inverted(), numpy.float32))


def _maps(
    middle: dict[str, numpy.ndarray], seen: dict[str, numpy.ndarray], light: dict[str, numpy.ndarray], to_camera: numpy.ndarray
) -> Maps:
    """Maps from the passes of three renderings: through the pixels' middles, of the picture, of white matte surfaces.

    to_camera: [3, 3], from the world's axes to the camera's.
    """
    depth = middle["Depth"]
    mask = depth < NOTHING_AT
    world_normal = numpy.where(_length(middle["normal"]) > 0.5, middle["normal"], middle["Normal"])
    normal = _unit(world_normal @ to_camera.T)

    weight, cover = seen["weight"], light["Combined"][..., 3:]
    read = weight > 1e-3
    share = numpy.where(read, weight, 1)
    albedo = numpy.where(read, seen["albedo"] / share, seen["DiffCol"] / numpy.maximum(cover, 1e-3))
    roughness = numpy.where(read, seen["roughness"] / share, 1)
    metallic = numpy.where(read, seen["metallic"] / share, 0)
    shading = light["Combined"][..., :3] / numpy.maximum(cover, 1e-3)
    picture = seen["Combined"][..., :3]

    exposure = _exposure(shading, picture, mask)
    picture, shading = numpy.maximum(picture, 0) * exposure, numpy.maximum(shading, 0) * exposure
    albedo = numpy.where(mask, albedo, picture.clip(0, 1))
    shading = numpy.where(mask, shading, 1)
    roughness, metallic = numpy.where(mask, roughness, 1), numpy.where(mask, metallic, 0)
    maps = {
        "picture": picture,
        "normal": numpy.where(mask, normal, numpy.array([0, 0, 1])),
        "depth": numpy.where(mask, depth, depth[mask].max() if mask.any() else 1),
        "albedo": albedo,
        "shading": shading,
        "specular": picture - albedo * (1 - metallic) * shading,
        "roughness": roughness,
        "metallic": metallic,
    }
    return Maps(**{name: values.astype(numpy.float32) for name, values in maps.items()}, mask=mask, exposure=exposure)


def _exposure(shading: numpy.ndarray, picture: numpy.ndarray, mask: numpy.ndarray) -> float:
    """The factor that brings the 98th percentile of the irradiance (of the picture, where all is sky) to 1."""
    lit = shading[mask[..., 0]] if mask.any() else picture
    return float(1 / max(numpy.percentile(lit.max(-1), 98), 1e-6))


def _length(vectors: numpy.ndarray) -> numpy.ndarray:
    return numpy.linalg.norm(vectors, axis=-1, keepdims=True)


def _unit(vectors: numpy.ndarray) -> numpy.ndarray:
    return vectors / numpy.maximum(_length(vectors), 1e-6)


def _show_light(materials: Sequence[Any], shown: bool) -> None:
    for material in materials:
        if material.use_nodes:
            appearance.show_light(material, shown)


@contextmanager
def _filter(width: float) -> Iterator[None]:
    """Another width of the pixel's filter, as a box."""
    import bpy

    cycles = bpy.context.scene.cycles
    kept = cycles.pixel_filter_type, cycles.filter_width
    cycles.pixel_filter_type, cycles.filter_width = "BOX", width
    try:
        yield
    finally:
        cycles.pixel_filter_type, cycles.filter_width = kept


def _render(samples: int, denoise: bool) -> dict[str, numpy.ndarray]:
    """One rendering: pass or AOV -> `[h, w, channels]`."""
    import bpy

    scene = bpy.context.scene
    scene.cycles.samples, scene.cycles.use_denoising = samples, denoise
    with tempfile.TemporaryDirectory(prefix="path_traced_") as folder:
        path = Path(folder) / "passes.exr"
        scene.render.filepath, scene.render.use_file_extension = str(path), False
        with _silent():
            bpy.ops.render.render(write_still=True)
        return _read_passes(path, bpy.context.view_layer.name)


def _read_passes(path: Path, layer: str) -> dict[str, numpy.ndarray]:
    import OpenEXR

    planes: dict[str, dict[str, numpy.ndarray]] = {}
    # Blender 5 writes a part for each pass, and this pass's whole name.
    for part in OpenEXR.File(str(path), separate_channels=True).parts:
        for name, channel in part.channels.items():
            of_pass, _, letter = name.removeprefix(f"{layer}.").replace("Diffuse Color", "DiffCol").rpartition(".")
            planes.setdefault(of_pass.removeprefix(appearance.PREFIX), {})[letter] = channel.pixels
    # AOVs have an alpha too, which is of no use.
    order = {"Combined": "RGBA", "Normal": "XYZ", "Depth": "Z"}
    return {
        name: numpy.stack([found[letter] for letter in order.get(name, "RGBXYZV") if letter in found], -1).astype(numpy.float32)
        for name, found in planes.items()
    }


@contextmanager
def _silent() -> Iterator[None]:
    """Blender writes its progress straight to the process's standard output."""
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
