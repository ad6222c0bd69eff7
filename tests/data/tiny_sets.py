"""Made-up data sets, each in the layout in which it is published, of two small pictures. Every function returns what was written."""

import json
from pathlib import Path

import h5py
import numpy
import OpenEXR
import torch
from intrinsic_lab.scenes.pictures import sixteen_bit_png
from PIL import Image

HEIGHT, WIDTH = 12, 16


def numbers(seed: int = 0) -> numpy.random.Generator:
    return numpy.random.default_rng(seed)


def unit_vectors(draw: numpy.random.Generator, shape=(HEIGHT, WIDTH)) -> numpy.ndarray:
    """Vectors that face the viewer: x right, y up, z above 0."""
    vectors = draw.normal(size=(*shape, 3)).astype(numpy.float32)
    vectors[..., 2] = numpy.abs(vectors[..., 2]) + 0.1
    return vectors / numpy.linalg.norm(vectors, axis=-1, keepdims=True)


def write_png(path: Path, pixels: numpy.ndarray) -> numpy.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(numpy.uint8)).save(path)
    return pixels.astype(numpy.float32) / 255


def write_16_bit_png(path: Path, values: numpy.ndarray) -> numpy.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sixteen_bit_png(torch.from_numpy(values)))
    return (values * 65535).round().astype(numpy.float32) / 65535


def write_hdf5(path: Path, values: numpy.ndarray) -> numpy.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = values.astype(numpy.float16)
    return values.astype(numpy.float16).astype(numpy.float32)


def write_exr(path: Path, values: numpy.ndarray) -> numpy.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.ascontiguousarray(values, dtype=numpy.float32)
    channels = {"RGB": values} if values.ndim == 3 else {"Y": values}
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels).write(str(path))
    return values


def write_diode(folder: Path, pictures: int = 2, split: str = "val", shape=(HEIGHT, WIDTH)) -> list[dict[str, numpy.ndarray]]:
    draw, written = numbers(), []
    for number in range(pictures):
        stem = folder / split / "indoors" / "scene_00019" / f"scan_0018{number}" / f"0001{number}_indoors_000_010"
        image = write_png(stem.with_suffix(".png"), draw.integers(0, 256, (*shape, 3)))
        depth = (1 + 4 * draw.random((*shape, 1))).astype(numpy.float32)
        mask = (draw.random(shape) > 0.3).astype(numpy.float32)
        depth[mask == 0] = 0
        normal = unit_vectors(draw, shape)
        normal[draw.random(shape) < 0.2] = 0
        for ending, values in (("depth", depth), ("depth_mask", mask), ("normal", normal)):
            numpy.save(stem.with_name(f"{stem.name}_{ending}.npy"), values)
        written.append({"image": image, "depth": depth, "mask": mask, "normal": normal})
    return written


def write_hypersim(folder: Path, preview: bool = False) -> dict[str, numpy.ndarray]:
    """One frame; a pixel of its distance is NaN, one of its reflectance infinite."""
    draw, images = numbers(1), folder / "ai_001_001" / "images"
    geometry, final = images / "scene_cam_00_geometry_hdf5", images / "scene_cam_00_final_hdf5"
    distance = 1 + draw.random((HEIGHT, WIDTH))
    distance[2, 3] = numpy.nan
    albedo, light, residual = draw.random((HEIGHT, WIDTH, 3)), 5 * draw.random((HEIGHT, WIDTH, 3)), 0.1 * draw.random((HEIGHT, WIDTH, 3))
    color = albedo * light + residual
    albedo[0, 0, 1] = numpy.inf
    written = {
        "distance": write_hdf5(geometry / "frame.0007.depth_meters.hdf5", distance),
        "normal": write_hdf5(geometry / "frame.0007.normal_cam.hdf5", unit_vectors(draw)),
        "albedo": write_hdf5(final / "frame.0007.diffuse_reflectance.hdf5", albedo),
        "shading": write_hdf5(final / "frame.0007.diffuse_illumination.hdf5", light),
        "specular": write_hdf5(final / "frame.0007.residual.hdf5", residual),
        "color": write_hdf5(final / "frame.0007.color.hdf5", color),
    }
    write_png(images / "scene_cam_00_final_preview" / "frame.0007.tonemap.jpg", numpy.full((HEIGHT, WIDTH, 3), 100))
    return written


def write_nyuv2(folder: Path) -> dict[str, numpy.ndarray]:
    from scipy.io import savemat

    draw = numbers(2)
    images, depths = draw.integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=numpy.uint8), (0.5 + draw.random((3, HEIGHT, WIDTH)))
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1).astype(numpy.float32)
    savemat(folder / "splits.mat", {"trainNdxs": numpy.array([[1]]), "testNdxs": numpy.array([[2], [3]])})
    return {"images": images, "depths": depths.astype(numpy.float32)}


def write_interiorverse(folder: Path) -> dict[str, numpy.ndarray]:
    draw, scene = numbers(3), folder / "L3D124S8ENDIMKFP4A"
    written = {"im": 1.5 * draw.random((HEIGHT, WIDTH, 3)), "albedo": draw.random((HEIGHT, WIDTH, 3)), "normal": unit_vectors(draw)}
    written |= {"material": draw.random((HEIGHT, WIDTH, 3)), "depth": 1 + draw.random((HEIGHT, WIDTH))}
    written["mask"] = (draw.random((HEIGHT, WIDTH)) > 0.2).astype(numpy.float32)
    written["albedo"][4, 5], written["mask"][4, 5] = numpy.nan, 1
    (folder / "test.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "test.txt").write_text(f"{scene.name}\n")
    return {name: write_exr(scene / f"000_{name}.exr", values) for name, values in written.items()}


def write_mit(folder: Path) -> dict[str, numpy.ndarray]:
    draw, thing = numbers(4), folder / "MIT-intrinsic" / "data" / "apple"
    albedo = draw.random((HEIGHT, WIDTH, 3))
    shading = numpy.repeat(draw.random((HEIGHT, WIDTH, 1)), 3, -1)
    mask = numpy.where(draw.random((HEIGHT, WIDTH)) > 0.4, 255, 0)
    written = {name: write_16_bit_png(thing / f"{name}.png", values) for name, values in (("reflectance", albedo), ("shading", shading))}
    written["diffuse"] = write_16_bit_png(thing / "diffuse.png", albedo * shading)
    write_16_bit_png(thing / "original.png", albedo * shading)
    return written | {"mask": write_png(thing / "mask.png", mask)}


def write_radiance(path: Path, values: numpy.ndarray) -> numpy.ndarray:
    """Uncompressed, a shared exponent for each pixel (Ward 1991); returns what such a file can hold."""
    exponent = numpy.frexp(values.max(-1))[1].astype(numpy.float64)
    scale = 2.0 ** (exponent - 8)
    mantissa = (values / scale[..., None]).clip(0, 255).astype(numpy.uint8)
    pixels = numpy.concatenate([mantissa, (exponent[..., None] + 128).astype(numpy.uint8)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % values.shape[:2] + pixels.tobytes())
    return mantissa * scale[..., None]


def write_arap(folder: Path) -> dict[str, numpy.ndarray]:
    """A scene under two lights as Radiance files, whose albedo is tiny, and one as 8-bit pictures."""
    draw = numbers(6)
    albedo = 0.005 * (0.1 + draw.random((HEIGHT, WIDTH, 3)))
    written = {"albedo": write_radiance(folder / "kitchen_albedo.hdr", albedo)}
    for light in range(2):
        written[f"light{light}"] = write_radiance(
            folder / f"kitchen_light{light}.hdr", albedo * (0.2 + 9 * draw.random((HEIGHT, WIDTH, 1)))
        )
    written["alley_albedo"] = write_png(folder / "alley_albedo.png", draw.integers(60, 256, (HEIGHT, WIDTH, 3)))
    written["alley"] = write_png(folder / "alley.png", draw.integers(0, 256, (HEIGHT, WIDTH, 3)))
    return written


def write_iiw(folder: Path) -> numpy.ndarray:
    """One photograph of two halves; the left is darker."""
    pixels = numpy.full((HEIGHT, WIDTH, 3), 200)
    pixels[:, : WIDTH // 2] = 100
    points = [{"id": 1, "x": 0.2, "y": 0.5, "opaque": True}, {"id": 2, "x": 0.8, "y": 0.5, "opaque": True}]
    points += [{"id": 3, "x": 0.9, "y": 0.1, "opaque": True}, {"id": 4, "x": 0.1, "y": 0.1, "opaque": False}]
    said = [(1, 2, "1", 0.9), (2, 1, "1", 0.5), (2, 3, "E", 0.6), (1, 4, "2", 0.7), (1, 3, "E", None), (1, 3, "E", 0.0)]
    comparisons = [{"point1": a, "point2": b, "darker": darker, "darker_score": score} for a, b, darker, score in said]
    pixels = write_png(folder / "117.png", pixels)
    (folder / "117.json").write_text(json.dumps({"intrinsic_points": points, "intrinsic_comparisons": comparisons}))
    return pixels


def write_scannet(folder: Path, away: bool) -> numpy.ndarray:
    """away: the file's normals in OpenCV's axes. Returns them with y up and z to the viewer; black at one pixel."""
    draw, scene = numbers(5), folder / "scene0016_02"
    vectors = unit_vectors(draw)
    pixels = numpy.rint((vectors * [1, -1, -1] if away else vectors) * 127.5 + 127.5)
    pixels[3, 3] = 0
    write_png(scene / "frame-000000-normal.png", pixels)
    write_png(scene / "frame-000000-color.png", draw.integers(0, 256, (HEIGHT, WIDTH, 3)))
    return vectors
