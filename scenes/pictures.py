"""Scenes as files: the look of each map, the gallery sheet, 16-bit PNGs."""

import json
import os
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .names import ROOM
from .rendering import SceneMaps, render_scenes, segmentation_colors, srgb_from_linear
from .sampling import Worlds

CAPTION_POINTS, MARGIN, LINE_HEIGHT = 13, 6, 17


def map_looks(maps: SceneMaps) -> dict[str, Tensor]:
    """The picture and every map as something to look at, `[b, h, w, 1 or 3]` in 0..1.

    image, albedo, shading: sRGB. depth: each picture's nearest (dark) to farthest. normal: (n + 1) / 2. segmentation: a colour
    per surface. line: white on black. Of other scenes than rooms also specular (sRGB), roughness and metallic as they are.
    """
    depth = maps.depth_bhw1
    nearest, farthest = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    looks = {
        "image": maps.image_bhwc,
        "albedo": srgb_from_linear(maps.albedo_bhwc),
        "shading": srgb_from_linear(maps.shading_bhwc),
        "depth": (depth - nearest) / (farthest - nearest).clamp(min=1e-12),
        "normal": (maps.normal_bhwc + 1) / 2,
        "segmentation": segmentation_colors(maps.segmentation_bhw),
        "line": maps.line_bhw1,
    }
    if isinstance(maps.scenes, Worlds):
        looks |= {"specular": srgb_from_linear(maps.specular_bhwc), "roughness": maps.roughness_bhw1, "metallic": maps.metallic_bhw1}
    return looks


def gallery(seeds: Sequence[int], size: int = 128, kind: str = ROOM) -> Image.Image:
    """A sheet with a row per scene: the picture, every map, and the caption below."""
    maps = render_scenes(seeds, size, size, kind=kind)
    looks = map_looks(maps)
    font = ImageFont.load_default(CAPTION_POINTS)
    row_height = size + LINE_HEIGHT + MARGIN
    sheet = Image.new("RGB", (MARGIN + len(looks) * (size + MARGIN), MARGIN + LINE_HEIGHT + len(seeds) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(looks.items()):
        left = MARGIN + column * (size + MARGIN)
        draw.text((left, MARGIN), name, font=font, fill="black")
        for row, picture in enumerate(pictures):
            sheet.paste(_eight_bit(picture), (left, MARGIN + LINE_HEIGHT + row * row_height))
    for row, caption in enumerate(maps.captions):
        shown = textwrap.shorten(caption, len(caption) * sheet.width // max(1, round(draw.textlength(caption, font))), placeholder=" ...")
        draw.text((MARGIN, LINE_HEIGHT + MARGIN + row * row_height + size), shown, font=font, fill="#444444")
    return sheet


def save_scene(seed: int, size: int, folder: Path, kind: str = ROOM) -> list[Path]:
    """Write a scene's picture and maps as `scene_SEED.png`, `scene_SEED_normal.png`, ... (16-bit) and what they show as JSON.

    The looks are those of `map_looks`; the JSON file holds the caption, the camera and the depth in metres of black and white.
    """
    maps = render_scenes([seed], size, size, kind=kind)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"scene_{seed}"
    written = []
    for look, picture in map_looks(maps).items():
        path = folder / (f"{name}.png" if look == "image" else f"{name}_{look}.png")
        write_file(path, sixteen_bit_png(picture[0]))
        written.append(path)
    about = {
        "seed": seed,
        "caption": maps.captions[0],
        "vertical_fov_degrees": maps.scenes.vertical_fov_degrees[0].item(),
        "depth_metres": [maps.depth_bhw1.min().item(), maps.depth_bhw1.max().item()],
    }
    path = folder / f"{name}.json"
    write_file(path, (json.dumps(about, indent=2) + "\n").encode())
    return [*written, path]


def save_picture(picture: Image.Image | Tensor, path: Path) -> None:
    """Write a picture (`[h, w, 3]` in 0..1, or Pillow's) with 8 bits; JPEG or PNG by the name. Raises ValueError for other names."""
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path.name} is no picture file that can be written: name it .png or .jpg.")
    if isinstance(picture, Tensor):
        picture = _eight_bit(picture)
    encoded = BytesIO()
    picture.save(encoded, formats[path.suffix.lower()], quality=88, optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encoded.getvalue())


def write_file(path: Path, data: bytes) -> None:
    """Write all of a file or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _eight_bit(picture_hwc: Tensor) -> Image.Image:
    picture = picture_hwc.expand(*picture_hwc.shape[:2], 3)
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


# FFmpeg's names of 16-bit pixels, less their byte order.
_PIXELS_16_BIT = {1: "gray16", 3: "rgb48", 4: "rgba64"}


def sixteen_bit_png(picture_hwc: Tensor) -> bytes:
    """PNG with 16 bits a channel: grey, colour, or colour with alpha. Pillow has no 16-bit colour; PyAV, which ComfyUI needs too, has."""
    import av

    values = (picture_hwc.double().clamp(0, 1) * 65535).round().numpy().astype(numpy.uint16)
    height, width, channels = values.shape
    pixels = rearrange(values, "h w 1 -> h w") if channels == 1 else values
    frame = av.VideoFrame.from_ndarray(pixels, format=_PIXELS_16_BIT[channels] + "le")
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, _PIXELS_16_BIT[channels] + "be"
    return b"".join(bytes(packet) for packet in [*codec.encode(frame.reformat(format=codec.pix_fmt)), *codec.encode(None)])


def eight_bit_png(picture_hwc: Tensor) -> bytes:
    """PNG with 8 bits a channel: grey, colour, or colour with alpha."""
    values = (picture_hwc.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    encoded = BytesIO()
    Image.fromarray(rearrange(values, "h w 1 -> h w") if values.shape[-1] == 1 else values).save(encoded, "PNG")
    return encoded.getvalue()
