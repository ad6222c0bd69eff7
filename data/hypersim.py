"""Hypersim (Roberts et al. 2021): rendered rooms, 768 x 1024, linear light in half floats.

The picture is the light with its 90th percentile of brightness brought to 0.8 and a gamma of 1 / 2.2, as the authors show it;
shading and specular are scaled alike, so that picture = albedo x shading + specular. `depth_meters` is the distance to the camera's
centre: depth along the axis comes by the rays. Normals have x right, y up, z to the viewer. What is NaN or infinite does not count.
"""

from functools import lru_cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..methods.plain_files import visible
from .base import ALL, DataSet, MapData, Pair, depth_data, map_data, normal_data
from .files import read_hdf5, read_pixels, read_table

GAMMA, PERCENTILE, BRIGHTNESS = 2.2, 90, 0.8
# Half the picture's width over the focal length, where no table says otherwise: 60 degrees across.
_HALF_WIDTH = 3**-0.5
SPLITS, CAMERAS = "metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"

# Map -> folder of its files, and their name.
_FILES = {
    "normal": ("geometry", "normal_cam"),
    "depth": ("geometry", "depth_meters"),
    "albedo": ("final", "diffuse_reflectance"),
    "shading": ("final", "diffuse_illumination"),
    "specular": ("final", "residual"),
}


def _find(folder: Path, split: str, map_name: str) -> list[Pair]:
    kind, field = _FILES[map_name]
    pairs = {}
    # The light itself is preferred to the preview.
    for pattern in ("scene_cam_*_final_preview/frame.*.tonemap.jpg", "scene_cam_*_final_hdf5/frame.*.color.hdf5"):
        for path in visible(folder.glob(f"ai_*/images/{pattern}"), folder):
            scene, camera, frame = path.parents[2].name, path.parent.name.split("_final_")[0], path.name.split(".")[1]
            name = f"{scene}/{camera}/frame.{frame}"
            pairs[name] = Pair(name, path, path.parents[1] / f"{camera}_{kind}_hdf5" / f"frame.{frame}.{field}.hdf5")
    if split == ALL:
        return list(pairs.values())
    wanted = _frames_of(folder, split)
    return [pair for name, pair in pairs.items() if name in wanted]


def _frames_of(folder: Path, split: str) -> set[str]:
    """The names of a split's pictures. Raises ValueError if the authors' table is not there."""
    table = folder / SPLITS
    if not table.is_file():
        raise ValueError(f"{table} is missing: copy it from the data set's repository, or take the split {ALL}.")
    rows = read_table(table, ("scene_name", "camera_name", "frame_id", "split_partition_name"))
    return {
        f"{row['scene_name']}/scene_{row['camera_name']}/frame.{row['frame_id'].zfill(4)}"
        for row in rows
        if row["split_partition_name"] == split
    }


def tone_scale(light_hw3: numpy.ndarray) -> float:
    """What the light is multiplied with before the gamma; 0 for a black picture."""
    brightness = light_hw3 @ numpy.array([0.3, 0.59, 0.11], dtype=numpy.float32)
    finite = brightness[numpy.isfinite(brightness)]
    bright = float(numpy.percentile(finite, PERCENTILE)) if finite.size else 0.0
    return BRIGHTNESS**GAMMA / bright if bright > 1e-4 else 0.0


def _picture(pair: Pair) -> Tensor:
    if pair.picture.suffix == ".jpg":
        return read_pixels(pair.picture)
    light = read_hdf5(pair.picture, 3)
    shown = numpy.nan_to_num(light * tone_scale(light), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) ** (1 / GAMMA)
    return torch.from_numpy(shown.astype(numpy.float32))


def planar_depth(distance_hw: numpy.ndarray, uv_to_camera: numpy.ndarray | None = None) -> numpy.ndarray:
    """Depth along the optical axis, out of the distance to the camera's centre.

    uv_to_camera: 3 x 3, from (u, v, 1) with u right and v up in -1..1 to a ray with z to the viewer; default: 60 degrees across.
    """
    height, width = distance_hw.shape
    if uv_to_camera is None:
        uv_to_camera = numpy.diag([_HALF_WIDTH, _HALF_WIDTH * height / width, -1.0])
    u, v = (2 * (numpy.arange(side) + 0.5) / side - 1 for side in (width, height))
    uv1 = numpy.stack([*numpy.meshgrid(u, -v), numpy.ones(distance_hw.shape)], -1)
    rays = uv1 @ uv_to_camera.T
    return distance_hw * numpy.abs(rays[..., 2]) / numpy.linalg.norm(rays, axis=-1)


@lru_cache(maxsize=2)
def _cameras(table: Path) -> dict[str, numpy.ndarray]:
    entries = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    rows = read_table(table, ("scene_name", *entries))
    try:
        return {row["scene_name"]: numpy.array([float(row[entry]) for entry in entries]).reshape(3, 3) for row in rows}
    except ValueError as error:
        raise ValueError(f"{table} holds no cameras ({error}): copy the published table there, or remove it.") from None


def _read(pair: Pair, map_name: str) -> MapData:
    values = read_hdf5(pair.map, 1 if map_name == "depth" else 3)
    if map_name == "normal":
        return normal_data(pair.map, values)
    if map_name == "depth":
        scene = pair.map.parents[2]
        table = scene.parent / CAMERAS
        return depth_data(pair.map, planar_depth(values[..., 0], _cameras(table).get(scene.name) if table.is_file() else None))
    if map_name == "albedo":
        return map_data(pair.map, values)
    light = pair.map.with_name(pair.map.name.replace(_FILES[map_name][1], "color"))
    if not light.is_file():
        raise ValueError(f"{light} is missing: {map_name} is scaled as the picture's light is, unpack it too.")
    return map_data(pair.map, values * tone_scale(read_hdf5(light, 3)))


HYPERSIM = DataSet(
    "hypersim",
    "Hypersim (Roberts et al. 2021)",
    tuple(_FILES),
    (ALL, "train", "val", "test"),
    "ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5 (or scene_cam_00_final_preview/frame.0000.tonemap.jpg) with "
    "scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5",
    _find,
    _picture,
    _read,
)
