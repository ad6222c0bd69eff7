"""Training pairs from a folder of pictures and maps.

Two layouts, told apart by whether the map has a folder of its own; pairs share the name:

    image/kitchen.jpg  normal/kitchen.png  depth/kitchen.png       or       kitchen.jpg  kitchen_normal.png  kitchen_depth.png

Pictures: anything Pillow reads. Maps: 8- or 16-bit PNG (or anything Pillow reads), in the conventions that `FolderData` names.
Captions, for trainers that use them: NAME.txt beside the picture. Where one map is learnt, the prompt is its name.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from ..methods.maps import MAPS, OTHER_MAPS, map_kind
from ..methods.maps.files import FileConvention
from .pairs import IMAGE

_LOG = logging.getLogger(__name__)
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}

# FFmpeg's names of 16-bit pixels, less their byte order.
_CHANNELS_16_BIT = {"gray16": 1, "ya16": 2, "rgb48": 3, "rgba64": 4}


@dataclass(frozen=True)
class FolderData:
    """A folder of pairs, read as squares: the short side is resized to `size`, the centre is cropped; no flips.

    normals, depth, colors (of albedo, shading and specular): a convention of the map's entry (`methods.maps.files`), camera space; what
    is learnt is the map's own picture whatever the files hold. Depth is stretched to 0..1 in each crop. Raises ValueError for other values.
    """

    folder: Path
    size: int = 512
    normals: str = "opengl"
    depth: str = "near_dark"
    colors: str = "srgb"

    def __post_init__(self) -> None:
        for files in (kind.files for kind in MAPS.values()):
            if self.chosen(files) not in files.readings:
                raise ValueError(f"{files.setting} is {self.chosen(files)!r}: choose {' or '.join(files.readings)}.")
        if self.size < 8:
            raise ValueError(f"the size is {self.size} pixels: at least 8 are needed.")

    def chosen(self, files: FileConvention) -> str:
        """What this folder's files of a map mean: a key of the convention's readings."""
        return getattr(self, files.setting) if files.setting else ""

    def source(self, map_name: str) -> "FolderPairs":
        """The pairs of pictures and `map_name`. Raises ValueError, saying what was looked for, if there are none."""
        if not self.folder.is_dir():
            raise ValueError(f"the data folder {self.folder} does not exist: give a folder that holds pictures and their maps.")
        own = self.folder / map_name
        if own.is_dir():
            pictures, maps, wanted = _by_stem(self.folder / IMAGE), _by_stem(own), f"{IMAGE}/NAME.png with {map_name}/NAME.png"
        else:
            files, wanted = _by_stem(self.folder), f"NAME.png with NAME_{map_name}.png, or {IMAGE}/NAME.png with {map_name}/NAME.png"
            ending = f"_{map_name}"
            maps = {stem.removesuffix(ending): path for stem, path in files.items() if stem.endswith(ending)}
            # A picture may be called like a map (finish_line.png); then it has a map of its own.
            of_maps = tuple(f"_{name}" for name in MAPS | OTHER_MAPS if name != IMAGE)
            pictures = {stem.removesuffix(f"_{IMAGE}"): path for stem, path in files.items() if stem in maps or not stem.endswith(of_maps)}
        names = sorted(pictures.keys() & maps.keys())
        if not names:
            raise ValueError(f"{self.folder} holds {len(pictures)} pictures and {len(maps)} {map_name} maps but no pair: wanted {wanted}.")
        if alone := len(pictures.keys() ^ maps.keys()):
            _LOG.warning("%d files in %s have no partner for %s and are left out (%d pairs)", alone, self.folder, map_name, len(names))
        return FolderPairs(self, map_name, tuple(pictures[name] for name in names), tuple(maps[name] for name in names))

    def aligned(self, map_names: Sequence[str]) -> "AlignedPairs":
        """The pictures that have each of several maps. Raises ValueError if no picture has all of them, or none is asked for."""
        if not map_names:
            raise ValueError("no map was asked for: name at least one beside the picture.")
        sources = {name: self.source(name) for name in map_names}
        pictures = sorted(set.intersection(*(set(source.pictures) for source in sources.values())))
        if not pictures:
            raise ValueError(f"no picture in {self.folder} has all of {', '.join(map_names)}: leave out those you do not have.")
        aligned = {}
        for name, source in sources.items():
            maps = dict(zip(source.pictures, source.maps, strict=True))
            aligned[name] = FolderPairs(self, name, tuple(pictures), tuple(maps[picture] for picture in pictures))
        return AlignedPairs(aligned)


@dataclass(frozen=True)
class FolderPairs:
    """A `pairs.PairSource`: files of one map and of their pictures, read when asked for."""

    data: FolderData
    map_name: str
    pictures: tuple[Path, ...]
    maps: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        """See `PairSource.read`. Raises ValueError naming a file that cannot be read or does not fit its partner."""
        return torch.stack([self._picture(row) if kind == IMAGE else self._map(row) for row in rows])

    def identity(self, kind: str) -> dict[str, Any]:
        files = [
            (path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in (self.pictures if kind == IMAGE else self.maps)
        ]
        settings = {name: value for name, value in asdict(self.data).items() if name != "folder"}
        return {"files": files, "kind": kind, "settings": settings}

    def _picture(self, row: int) -> Tensor:
        return _square(read_picture(self.pictures[row]), self.data.size).clamp(0, 1)

    def _map(self, row: int) -> Tensor:
        path = self.maps[row]
        values = read_picture(path)
        with Image.open(self.pictures[row]) as picture:
            # Only the header is read; a turned photograph shows its sides the other way round.
            width, height = ImageOps.exif_transpose(picture).size
        if abs(width * values.shape[1] - height * values.shape[2]) > max(width, height):
            raise ValueError(
                f"{path} is {values.shape[2]} x {values.shape[1]}, its picture {width} x {height}: a pair must show the same view."
            )
        files = map_kind(self.map_name).files
        pixels_bhw3 = rearrange(_square(values, self.data.size), "c h w -> 1 h w c")
        return rearrange(files.readings[self.data.chosen(files)](pixels_bhw3), "1 h w c -> c h w")


@dataclass(frozen=True)
class AlignedPairs:
    """A `pairs.CaptionedSource`: the same pictures with each of several maps, by its name."""

    maps: Mapping[str, FolderPairs]

    @property
    def pictures(self) -> tuple[Path, ...]:
        return self.of(IMAGE).pictures

    @property
    def captions(self) -> tuple[str, ...]:
        """The text in NAME.txt beside each picture, on one line; empty where there is none, which is logged."""
        texts = [path.with_suffix(".txt") for path in self.pictures]
        captions = tuple(" ".join(path.read_text(encoding="utf-8").split()) if path.is_file() else "" for path in texts)
        if empty := captions.count(""):
            _LOG.warning("%d of %d pictures in %s have no caption (NAME.txt)", empty, len(captions), self.pictures[0].parent)
        return captions

    def __len__(self) -> int:
        return len(self.pictures)

    def of(self, kind: str) -> FolderPairs:
        """The pairs from which a kind of picture is read."""
        return next(iter(self.maps.values())) if kind == IMAGE else self.maps[kind]

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        return self.of(kind).read(kind, rows)

    def identity(self, kind: str) -> dict[str, Any]:
        return self.of(kind).identity(kind)


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending. Raises ValueError if the folder is missing or a name is double."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: put the pictures there, under the same names as their maps.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _SUFFIXES:
            if path.stem in files:
                raise ValueError(f"{files[path.stem].name} and {path.name} in {folder} have the same name: keep one of them.")
            files[path.stem] = path
    return files


def read_picture(path: Path) -> Tensor:
    """A picture file as `[3, h, w]` float32 in 0..1, all 16 bits of a 16-bit PNG kept; alpha is dropped. Raises ValueError."""
    try:
        if _is_16_bit_png(path):
            return _read_16_bit(path)
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has pixels of kind {picture.mode}: save it as an 8- or 16-bit PNG.")
            pixels = numpy.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}): replace or remove it.") from None
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


def _is_16_bit_png(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(25)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] == b"\x10"


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


def _square(picture_chw: Tensor, size: int) -> Tensor:
    """Short side to `size` (antialiased), centre crop."""
    height, width = picture_chw.shape[1:]
    scale = size / min(height, width)
    resized = picture_chw[None]
    if scale != 1:
        sides = [max(size, round(side * scale)) for side in (height, width)]
        resized = functional.interpolate(resized, sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((side - size) // 2 for side in resized.shape[2:])
    return resized[0, :, top : top + size, left : left + size]
