"""Maps out of a generator in a single step (Intrinsic LoRA, section 4): the recipe as plain functions.

Picture -> VAE mode -> UNet at t = 999, no noise -> the raw output is the map's latent -> VAE decode. The model is three callables,
so nothing here knows which program holds it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..maps import map_kind
from .tiles import Tile, TileGrid, fit_scale_and_shift, join_tiles, tile_grid

# A picture of this many pixels and its maps still fit an ordinary machine; beyond it something is wrong with the aspect ratio.
MAX_PROCESSED_PIXELS = 2**27
# Squares of the processing resolution that a picture is enlarged to at most; longer ones are processed thinner.
LARGEST_ENLARGED = 64
# Smaller latents leave a UNet's deepest layers with a single cell, which group normalisation refuses.
MIN_LATENT_CELLS = 4


@dataclass(frozen=True)
class Generator:
    """The model as callables.

    encode: pictures bhw3 in 0..1 -> image latents bchw (the VAE's mode).
    predict: image latents bchw, and for each the index of the map to make of it -> map latents of the same shape.
    predict_anchored: the same, and for each the row whose keys it reads too (`anchor`); None where that was not asked for.
    decode: map latents -> pictures bhw3, nominally 0..1, not clamped.
    downscale: pixels per latent cell.
    to_own: by map, the picture that is decoded to the map's own (`maps.files`), where the model learnt it in another convention.
    """

    encode: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor, list[int]], Tensor]
    decode: Callable[[Tensor], Tensor]
    downscale: int = 8
    to_own: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    predict_anchored: Callable[[Tensor, list[int], list[int]], Tensor] | None = None


@dataclass(frozen=True)
class ExtractSettings:
    """How a picture is processed.

    processing_resolution: short side in pixels at which the model sees the picture; 0 keeps the picture's own size.
    tile_size, tile_overlap: pixels; 0 processes the picture whole, long thin ones in tiles along their long side.
    mirrored_average: also run the mirrored picture and average.
    """

    processing_resolution: int = 512
    tile_size: int = 0
    tile_overlap: int = 64
    mirrored_average: bool = False

    def __post_init__(self):
        for name in ("processing_resolution", "tile_size", "tile_overlap"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 or more pixels.")
        if self.tile_size and self.tile_overlap > self.tile_size // 2:
            raise ValueError(f"Tiles of {self.tile_size} pixels overlap by {self.tile_overlap}: choose an overlap of at most half a tile.")


@dataclass(frozen=True)
class Extraction:
    """`maps[name]`: data as in `methods.maps`, bhwc at the picture's exact size. `latents`: raw map latents, `(map b) c h w`."""

    maps: dict[str, Tensor]
    latents: Tensor


def processed_size(height: int, width: int, processing_resolution: int) -> tuple[int, int]:
    """Height and width at which the model sees a picture, the aspect kept. Raises ValueError where that would be absurdly large."""
    if processing_resolution:
        # A thin line is not blown up to a wide band: enlarged pictures have at most so many pixels.
        most = max(height * width, LARGEST_ENLARGED * processing_resolution**2)
        factor = min(processing_resolution / min(height, width), math.sqrt(most / (height * width)))
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
    if height * width > MAX_PROCESSED_PIXELS:
        raise ValueError(
            f"The picture would be processed at {width} x {height} pixels, more than {MAX_PROCESSED_PIXELS // 2**20} megapixels: "
            "lower processing_resolution, or crop a very long picture into pieces."
        )
    return height, width


def resize(picture_bhwc: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, antialiased, unclamped; the same tensor when the size fits already."""
    if picture_bhwc.shape[1:3] == (height, width):
        return picture_bhwc
    resized = F.interpolate(
        rearrange(picture_bhwc, "b h w c -> b c h w"), (height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return rearrange(resized, "b c h w -> b h w c")


def padded_side(length: int, downscale: int) -> int:
    """A side in pixels rounded up to whole latent cells, and to the fewest a UNet can work on."""
    return max(MIN_LATENT_CELLS, math.ceil(length / downscale)) * downscale


def pad_to_cells(picture_bhwc: Tensor, downscale: int) -> Tensor:
    """Repeats the last row and column up to `padded_side`."""
    height, width = picture_bhwc.shape[1:3]
    below, right = padded_side(height, downscale) - height, padded_side(width, downscale) - width
    if not (below or right):
        return picture_bhwc
    padded = F.pad(rearrange(picture_bhwc, "b h w c -> b c h w"), (0, right, 0, below), mode="replicate")
    return rearrange(padded, "b c h w -> b h w c")


@dataclass(frozen=True)
class Plan:
    """How a batch goes through the model.

    grid: the tiles (often one) of every picture, in pixels of the processed, padded one. pictures: in one forward. rows: latents in one
    prediction; a forward with more of them (one picture, more maps than fit) makes several. forwards_of_group: of pictures together,
    one per tile, and one more where relative maps are aligned. forwards: of the whole batch.
    """

    grid: TileGrid
    pictures: int
    rows: int
    forwards_of_group: int
    forwards: int


def plan_extraction(
    image_bhw3: Tensor,
    map_names: Sequence[str],
    settings: ExtractSettings,
    downscale: int,
    rows_that_fit: Callable[[int, int], int] | None = None,
) -> Plan:
    """Cuts a batch of pictures into what fits.

    rows_that_fit: latents of this height and width that one prediction may take, a row per picture, map and mirror image (None: all).
    """
    batch, height, width = image_bhw3.shape[:3]
    height, width = (padded_side(side, downscale) for side in processed_size(height, width, settings.processing_resolution))
    grid = tile_grid(height, width, settings.tile_size, settings.tile_overlap, downscale)
    rows_of_picture = len(map_names) * (2 if settings.mirrored_average else 1)
    rows = batch * rows_of_picture
    if rows_that_fit is not None:
        rows = min(rows, rows_that_fit(grid.tile_height // downscale, grid.tile_width // downscale))
    pictures = max(1, rows // rows_of_picture)
    forwards_of_group = len(grid) + (len(grid) > 1 and bool(_relative_rows(map_names)))
    return Plan(grid, pictures, rows, forwards_of_group, math.ceil(batch / pictures) * forwards_of_group)


def extract(
    image_bhw3: Tensor,
    map_names: Sequence[str],
    generator: Generator,
    settings: ExtractSettings,
    plan: Plan | None = None,
    on_forward: Callable[[], None] = lambda: None,
) -> Extraction:
    """All maps of all pictures.

    plan: from `plan_extraction` (None: all pictures together). `on_forward` is called after each of its forwards. A tile of a relative map
    (depth) has a scale and shift of its own, so each is brought to those of the whole picture seen at a tile's number of pixels.
    """
    plan = plan or plan_extraction(image_bhw3, map_names, settings, generator.downscale)
    results = [extract_group(group, map_names, generator, settings, plan, on_forward) for group in image_bhw3.split(plan.pictures)]
    maps = {name: torch.cat([maps[index] for maps, _ in results]) for index, name in enumerate(map_names)}
    # Groups follow each other within each map.
    latents = torch.cat([rearrange(latents, "(map b) c h w -> map b c h w", map=len(map_names)) for _, latents in results], dim=1)
    return Extraction(maps, rearrange(latents, "map b c h w -> (map b) c h w"))


def extract_group(
    image_bhw3: Tensor,
    map_names: Sequence[str],
    generator: Generator,
    settings: ExtractSettings,
    plan: Plan,
    on_forward: Callable[[], None] = lambda: None,
) -> tuple[list[Tensor], Tensor]:
    """Maps, in the order of their names, and raw latents `(map b) c h w` of pictures that go through the model together.

    Where the generator has `predict_anchored`, the first picture is the anchor of all.
    """

    def run(picture_bhw3: Tensor) -> tuple[Tensor, Tensor]:
        result = _forward(picture_bhw3, map_names, generator, settings.mirrored_average, plan.rows)
        on_forward()
        return result

    _, height, width, _ = image_bhw3.shape
    small = resize(image_bhw3, *processed_size(height, width, settings.processing_resolution))
    padded = pad_to_cells(small, generator.downscale)
    pictures, latents = run(padded) if len(plan.grid) == 1 else _tiled(padded, plan.grid, map_names, generator.downscale, run)
    unpadded = pictures[:, :, : small.shape[1], : small.shape[2]]
    return [map_kind(name).from_picture(resize(picture, height, width)) for name, picture in zip(map_names, unpadded, strict=True)], latents


def _relative_rows(map_names: Sequence[str]) -> list[int]:
    return [row for row, name in enumerate(map_names) if map_kind(name).relative]


def _forward(
    picture_bhw3: Tensor, map_names: Sequence[str], generator: Generator, mirrored_average: bool, rows: int
) -> tuple[Tensor, Tensor]:
    """Pictures `map b h w c` and raw latents `(map b) c h w` of one forward; `rows`: of one prediction."""
    maps = len(map_names)
    seen = torch.cat([picture_bhw3, picture_bhw3.flip(2)]) if mirrored_average else picture_bhw3
    repeated = repeat(generator.encode(seen), "b c h w -> (map b) c h w", map=maps)
    if generator.predict_anchored is not None:
        # An anchor and the rows that read it stay together.
        rows = max(1, rows // len(picture_bhw3)) * len(picture_bhw3)
    parts = zip(repeated.split(rows), torch.arange(maps).repeat_interleave(len(seen)).split(rows), strict=True)
    latents = torch.cat([_predict(generator, part, map_of_row.tolist(), len(picture_bhw3)) for part, map_of_row in parts])
    pictures = rearrange(generator.decode(latents), "(map b) h w c -> map b h w c", map=maps)
    for row, name in enumerate(map_names):
        if to_own := generator.to_own.get(name):
            pictures[row] = to_own(pictures[row])
    if mirrored_average:
        plain, mirrored = pictures.chunk(2, dim=1)
        mirrored = torch.stack([map_kind(name).mirrored(picture) for name, picture in zip(map_names, mirrored, strict=True)])
        pictures = (plain + mirrored) / 2
        latents = rearrange(latents, "(map two b) c h w -> map two b c h w", map=maps, two=2)[:, 0].flatten(0, 1)
    return pictures, latents


def _predict(generator: Generator, latents: Tensor, map_of_row: list[int], pictures: int) -> Tensor:
    if generator.predict_anchored is None:
        return generator.predict(latents, map_of_row)
    return generator.predict_anchored(latents, map_of_row, [row // pictures * pictures for row in range(len(map_of_row))])


def _tiled(
    padded: Tensor, grid: TileGrid, map_names: Sequence[str], downscale: int, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    relative = _relative_rows(map_names)
    guides = _guides(padded, grid, relative, downscale, run) if relative else []
    tile_latents: dict[tuple[int, int], Tensor] = {}

    def tile_pictures(tile: Tile) -> Tensor:
        pictures, latents = run(tile.of(padded))
        for row, guide_bhw1 in zip(relative, guides, strict=True):
            pictures[row] = _align(pictures[row], tile.of(guide_bhw1))
        tile_latents[tile.top // downscale, tile.left // downscale] = rearrange(latents, "n c h w -> n h w c")
        return pictures

    pictures = join_tiles(tile_pictures, grid)
    latents = join_tiles(lambda tile: tile_latents.pop((tile.top, tile.left)), grid.scaled(downscale))
    return pictures, rearrange(latents, "n h w c -> n c h w")


def _guides(
    padded: Tensor, grid: TileGrid, rows: Sequence[int], downscale: int, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Some maps of the whole picture seen at a tile's number of pixels, each bhw1 at the picture's size: coarse, but consistent."""
    height, width = padded.shape[1:3]
    factor = math.sqrt(grid.tile_height * grid.tile_width / (height * width))
    small = resize(padded, max(1, round(height * factor)), max(1, round(width * factor)))
    pictures, _ = run(pad_to_cells(small, downscale))
    return [resize(pictures[row][:, : small.shape[1], : small.shape[2]].mean(-1, keepdim=True), height, width) for row in rows]


def _align(picture_bhwc: Tensor, guide_bhw1: Tensor) -> Tensor:
    """A tile's relative map on the guide's scale."""
    values = rearrange(picture_bhwc.mean(-1), "b h w -> b (h w)")
    scale, shift = fit_scale_and_shift(values, rearrange(guide_bhw1, "b h w 1 -> b (h w)"))
    return picture_bhwc * scale[:, :, None, None] + shift[:, :, None, None]
