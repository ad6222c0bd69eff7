"""Reading the kinds of files that data sets are made of. Each function raises ValueError, which names the file and says what to do."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..methods.extras import extra
from ..methods.plain_files import open_regular, read_text

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}

# FFmpeg's names of 16-bit pixels, less their byte order.
_CHANNELS_16_BIT = {"gray16": 1, "ya16": 2, "rgb48": 3, "rgba64": 4}


def read_picture(path: Path) -> Tensor:
    """A picture file as `[3, h, w]` float32 in 0..1, all 16 bits of a 16-bit PNG kept; alpha is dropped. Raises ValueError."""
    try:
        if _is_16_bit_png(path):
            return _turned(_read_16_bit(path), _orientation(path))
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has pixels of kind {picture.mode}: save it as an 8- or 16-bit PNG.")
            pixels = numpy.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}): replace or remove it.") from None
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


def read_pixels(path: Path) -> Tensor:
    """A picture file as `[h, w, 3]`, see `read_picture`."""
    return read_picture(path).movedim(0, -1).contiguous()


def _is_16_bit_png(path: Path) -> bool:
    with open_regular(path) as file:
        head = file.read(25)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] == b"\x10"


def _orientation(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)


def _turned(picture_chw: Tensor, orientation: int) -> Tensor:
    """As EXIF's orientation 1 to 8 asks for: a mirror image, upside down, on its side."""
    if orientation in (5, 6, 7, 8):
        picture_chw = picture_chw.transpose(1, 2)
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return picture_chw.flip(flipped).contiguous()


def _read_16_bit(path: Path) -> Tensor:
    """Pillow would cut a 16-bit colour PNG down to 8 bits; PyAV, which ComfyUI needs too, keeps them."""
    import av

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
    except (av.FFmpegError, StopIteration) as error:
        raise OSError(error) from None
    # The decoder's own samples: PyAV's conversions know no grey with alpha, and FFmpeg's lost rows of it.
    layout, order = frame.format.name[:-2], frame.format.name[-2:]
    if layout not in _CHANNELS_16_BIT:
        raise OSError(f"its pixels are {frame.format.name}")
    channels = _CHANNELS_16_BIT[layout]
    samples = numpy.frombuffer(frame.planes[0], {"be": ">u2", "le": "<u2"}[order]).reshape(frame.height, -1)
    pixels = samples[:, : frame.width * channels].reshape(frame.height, frame.width, channels).astype(numpy.float32) / 65535
    color = pixels[..., :1] if channels < 3 else pixels[..., :3]
    return torch.from_numpy(color).movedim(-1, 0).expand(3, -1, -1).contiguous()


def read_npy(path: Path, channels: int) -> numpy.ndarray:
    """A NumPy file of one map as `[h, w, channels]` float32; one channel may have no axis of its own."""
    try:
        values = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}): replace or remove it.") from None
    return _of_one_map(path, values, channels)


def _of_one_map(path: Path, values: numpy.ndarray, channels: int) -> numpy.ndarray:
    if channels == 1 and values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] != channels or values.dtype.kind not in "fiub":
        raise ValueError(f"{path} has the shape {list(values.shape)} of {values.dtype}: numbers [height, width, {channels}] are wanted.")
    return values.astype(numpy.float32)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, or MATLAB's of version 7.3, to read from."""
    h5py = extra("h5py", "Reading HDF5")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as HDF5 ({error}): replace or remove it.") from None


def read_hdf5(path: Path, channels: int) -> numpy.ndarray:
    """The array `dataset` of an HDF5 file of one map as `[h, w, channels]` float32; one channel may have no axis of its own."""
    with open_hdf5(path) as file:
        values = file["dataset"][()]
    return _of_one_map(path, values, channels)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, which must have these columns."""
    rows = csv.DictReader(read_text(path).splitlines())
    if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
        raise ValueError(f"{path} has no column {missing[0]}: copy the published table there.")
    return [row for row in rows if all(row[name] for name in columns)]


def read_exr(path: Path, channels: Sequence[str] = ("R", "G", "B")) -> numpy.ndarray:
    """Channels of an EXR file as `[h, w, channels]` float32; a file of one channel, whatever its name, gives it for each."""
    openexr = extra("OpenEXR", "Reading EXR")
    try:
        found = openexr.File(str(path), separate_channels=True).channels()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as EXR ({error}): replace or remove it.") from None
    if len(found) == 1:
        (only,) = found.values()
        return numpy.stack([only.pixels.astype(numpy.float32)] * len(channels), -1)
    if missing := [name for name in channels if name not in found]:
        raise ValueError(f"{path} has the channels {', '.join(sorted(found))}, {', '.join(missing)} is missing: export it again.")
    return numpy.stack([found[name].pixels.astype(numpy.float32) for name in channels], -1)


def read_radiance(path: Path) -> numpy.ndarray:
    """A Radiance picture (.hdr) as `[h, w, 3]` float32 of linear light."""
    import av

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        if frame.format.name != "gbrpf32le":
            raise OSError(f"its pixels are {frame.format.name}")
    except (av.FFmpegError, StopIteration, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Radiance picture ({error}): replace or remove it.") from None
    planes = [numpy.frombuffer(plane, "<f4").reshape(frame.height, -1)[:, : frame.width] for plane in frame.planes]
    green, blue, red = planes
    return numpy.stack([red, green, blue], -1)
