"""Training pairs from a folder of pictures and maps.

Two layouts, told apart by whether the map has a folder of its own; pairs share the name:

    image/kitchen.jpg  normal/kitchen.png  depth/kitchen.png       or       kitchen.jpg  kitchen_normal.png  kitchen_depth.png

Pictures: anything Pillow reads. Maps: 8- or 16-bit PNG (or anything Pillow reads), in the conventions that `FolderData` names.
Masks, where there are any (`data.folder`): mask/kitchen.png or kitchen_mask.png, white where the maps count.
Captions, for trainers that use them: NAME.txt beside the picture. Where one map is learnt, the prompt is its name.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ..data.files import read_picture
from ..data.folder import mask_file, matched, read_mask
from ..methods.maps import MAPS, map_kind
from ..methods.maps.files import FileConvention
from ..methods.plain_files import read_text
from .pairs import IMAGE, Aligned

_LOG = logging.getLogger(__name__)
# A map's side is at least 1 / so much of its picture's.
_SMALLEST_SHARE = 8


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
        pairs = matched(self.folder, map_name)
        pictures, maps, masks = (tuple(files) for files in zip(*((pair.picture, pair.map, mask_file(pair)) for pair in pairs), strict=True))
        return MaskedPairs(self, map_name, pictures, maps, masks) if any(masks) else FolderPairs(self, map_name, pictures, maps)

    def aligned(self, map_names: Sequence[str]) -> "AlignedPairs":
        """The pictures that have each of several maps. Raises ValueError if no picture has all of them, or none is asked for."""
        if not map_names:
            raise ValueError("no map was asked for: name at least one beside the picture.")
        # All of the folder's pairs, whichever of them are used.
        sources = {name: FolderData.source(self, name) for name in map_names}
        pictures = sorted(set.intersection(*(set(source.pictures) for source in sources.values())))
        if not pictures:
            raise ValueError(f"no picture in {self.folder} has all of {', '.join(map_names)}: leave out those you do not have.")
        aligned = {}
        for name, source in sources.items():
            row_of = {picture: row for row, picture in enumerate(source.pictures)}
            aligned[name] = source.chosen([row_of[picture] for picture in pictures])
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

    def chosen(self, rows: Sequence[int]) -> "FolderPairs":
        """Some of the pairs."""
        return replace(self, pictures=tuple(self.pictures[row] for row in rows), maps=tuple(self.maps[row] for row in rows))

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
        return square(read_picture(self.pictures[row]), self.data.size).clamp(0, 1)

    def _map(self, row: int) -> Tensor:
        return self._tidied(self._pixels(row))

    def _pixels(self, row: int) -> Tensor:
        path = self.maps[row]
        values = read_picture(path)
        with Image.open(self.pictures[row]) as picture:
            # Only the header is read; a turned photograph shows its sides the other way round.
            width, height = ImageOps.exif_transpose(picture).size
        too_small = _SMALLEST_SHARE * min(values.shape[1:]) < min(width, height)
        if too_small or abs(width * values.shape[1] - height * values.shape[2]) > max(width, height):
            raise ValueError(
                f"{path} is {values.shape[2]} x {values.shape[1]}, its picture {width} x {height}: a pair must show the same view, at a "
                "similar size."
            )
        return square(values, self.data.size)

    def _tidied(self, pixels_chw: Tensor) -> Tensor:
        files = map_kind(self.map_name).files
        return rearrange(files.readings[self.data.chosen(files)](rearrange(pixels_chw, "c h w -> 1 h w c")), "1 h w c -> c h w")


@dataclass(frozen=True)
class MaskedPairs(FolderPairs):
    """A `pairs.MaskedSource` of a folder. mask_files: of each pair; None where every pixel counts."""

    mask_files: tuple[Path | None, ...] = ()

    def chosen(self, rows: Sequence[int]) -> "MaskedPairs":
        pairs = super().chosen(rows)
        assert isinstance(pairs, MaskedPairs)
        return replace(pairs, mask_files=tuple(self.mask_files[row] for row in rows))

    def read(self, kind: str, rows: Sequence[int]) -> Tensor:
        """See `PairSource.read`; a map is black where it does not count. Raises ValueError also for a mask of another size."""
        pictures = super().read(kind, rows)
        return pictures if kind == IMAGE else pictures.masked_fill(~self.masks(rows), 0)

    def masks(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([self._mask(row) for row in rows])

    def identity(self, kind: str) -> dict[str, Any]:
        of_masks = [path and (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.mask_files]
        return super().identity(kind) | ({} if kind == IMAGE else {"masks": of_masks})

    def _mask(self, row: int) -> Tensor:
        """`[1, size, size]`: a pixel counts if all that it is made of counts."""
        if (path := self.mask_files[row]) is None:
            return torch.ones(1, self.data.size, self.data.size, dtype=torch.bool)
        return square(read_mask(path)[None].float(), self.data.size) > 0.999

    def _map(self, row: int) -> Tensor:
        pixels, known = self._pixels(row), self._mask(row)[0]
        if path := self.mask_files[row]:
            with Image.open(path) as mask, Image.open(self.maps[row]) as values:
                if mask.size != values.size:
                    sizes = [" x ".join(map(str, size)) for size in (mask.size, values.size)]
                    raise ValueError(f"{path} is {sizes[0]}, {self.maps[row].name} {sizes[1]}: a mask must have its map's size.")
        # Depth is stretched over what counts.
        return self._tidied(torch.where(known, pixels, pixels[:, known][:, :1, None])) if known.any() else torch.zeros_like(pixels)


@dataclass(frozen=True)
class AlignedPairs(Aligned[FolderPairs]):
    """A `pairs.CaptionedSource` of a folder."""

    @property
    def pictures(self) -> tuple[Path, ...]:
        return self.of(IMAGE).pictures

    @property
    def captions(self) -> tuple[str, ...]:
        """The text in NAME.txt beside each picture, on one line; empty where there is none, which is logged."""
        texts = [path.with_suffix(".txt") for path in self.pictures]
        captions = tuple(" ".join(read_text(path).split()) if path.is_file() else "" for path in texts)
        if empty := captions.count(""):
            _LOG.warning("%d of %d pictures in %s have no caption (NAME.txt)", empty, len(captions), self.pictures[0].parent)
        return captions


@dataclass(frozen=True)
class FewPairs(FolderData):
    """Some of a folder's pairs, see `few_rows`."""

    count: int = 0
    labels: int = 0
    seed: int = 0

    def source(self, map_name: str) -> FolderPairs:
        pairs = super().source(map_name)
        return pairs.chosen(few_rows(len(pairs), self.count, self.labels, self.seed))

    def aligned(self, map_names: Sequence[str]) -> AlignedPairs:
        pairs = super().aligned(map_names)
        rows = few_rows(len(pairs), self.count, self.labels, self.seed)
        return AlignedPairs({name: source.chosen(rows) for name, source in pairs.maps.items()})


def few_rows(pairs: int, count: int, labels: int, seed: int) -> list[int]:
    """Rows of the first `count` pairs, or of `labels` of these, drawn by `seed`; 0: all.

    Raises ValueError for negative numbers, and for more labels than there are pairs.
    """
    if min(count, labels) < 0:
        raise ValueError(f"{count} pairs with {labels} labels were asked for: both must be at least 1.")
    rows = list(range(pairs))[: count or None]
    if not labels:
        return rows
    if labels > len(rows):
        raise ValueError(f"{labels} labels were asked for, there are {len(rows)} pairs: ask for fewer.")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:labels]
    return sorted(drawn.tolist())


def square(picture_chw: Tensor, size: int) -> Tensor:
    """Short side to `size` (antialiased), centre crop."""
    height, width = picture_chw.shape[1:]
    scale = size / min(height, width)
    resized = picture_chw[None]
    if scale != 1:
        sides = [max(size, round(side * scale)) for side in (height, width)]
        resized = functional.interpolate(resized, sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((side - size) // 2 for side in resized.shape[2:])
    return resized[0, :, top : top + size, left : left + size]
