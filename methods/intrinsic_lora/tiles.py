"""Large pictures in overlapping tiles, joined without seams.

Neighbours are joined by linear interpolation, `a + (b - a) * ramp`, row by row and then rows among each other: where two tiles agree the
result is exactly their value, which a sum of windows divided by its normaliser is not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

# Up to this aspect a picture is seen whole. Cells of a tile's long side, at least.
LONGEST_ASPECT, TILE_ASPECT, SHORTEST_TILE = 4, 2, 64


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture, in pixels; `height` and `width` are its size."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture_bhwc: Tensor) -> Tensor:
        return picture_bhwc[:, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class TileGrid:
    """The tops and lefts of equally large tiles that cover a picture; every number is a multiple of the grid's `multiple`."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    tile_height: int
    tile_width: int

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def tiles(self) -> list[Tile]:
        """Row by row from the top left."""
        return [Tile(top, left, self.tile_height, self.tile_width) for top, left in product(self.tops, self.lefts)]

    def scaled(self, divisor: int) -> "TileGrid":
        """The same grid in cells of `divisor` pixels, e.g. of a latent."""
        return TileGrid(
            tuple(top // divisor for top in self.tops),
            tuple(left // divisor for left in self.lefts),
            self.tile_height // divisor,
            self.tile_width // divisor,
        )


def tile_grid(height: int, width: int, tile_size: int, overlap: int, multiple: int = 8) -> TileGrid:
    """Tiles of about `tile_size` pixels a side that overlap by at least `overlap`.

    `tile_size` 0 means one tile, but for a long thin picture: attention grows with the square of its length, so it is cut along its long
    side into tiles of the aspect that models know, TILE_ASPECT to 1.
    height and width must be multiples of `multiple`. Raises ValueError when they are not, or the overlap leaves no progress.
    """
    if height % multiple or width % multiple:
        raise ValueError(f"A {width} x {height} picture cannot be tiled on a grid of {multiple}: pad it first.")
    if tile_size <= 0:
        short, long = sorted((height, width))
        if long <= max(LONGEST_ASPECT * short, SHORTEST_TILE * multiple):
            return TileGrid((0,), (0,), height, width)
        tile_size = max(TILE_ASPECT * short, SHORTEST_TILE * multiple)
        overlap = min(overlap, tile_size // 2)
    tile_size = max(multiple, tile_size // multiple * multiple)
    if not 0 <= overlap < tile_size:
        raise ValueError(f"Tiles of {tile_size} pixels cannot overlap by {overlap}: choose an overlap from 0 to {tile_size - multiple}.")
    return TileGrid(
        _starts(height, tile_size, overlap, multiple),
        _starts(width, tile_size, overlap, multiple),
        min(tile_size, height),
        min(tile_size, width),
    )


def _starts(length: int, tile: int, overlap: int, multiple: int) -> tuple[int, ...]:
    if length <= tile:
        return (0,)
    stride = max(multiple, (tile - overlap) // multiple * multiple)
    count = math.ceil((length - tile) / stride) + 1
    last = (length - tile) // multiple
    # Spread evenly: no two neighbours then overlap much more than the others.
    return tuple(round(last * index / (count - 1)) * multiple for index in range(count))


def join_tiles(tile_bhwc: Callable[[Tile], Tensor], grid: TileGrid) -> Tensor:
    """Asks for every tile once, row by row, and blends them; tiles may have any leading dimensions before (h, w, c).

    Only one row of tiles is held at a time besides the result.
    """
    rows = (
        _join([tile_bhwc(Tile(top, left, grid.tile_height, grid.tile_width)) for left in grid.lefts], grid.lefts, dim=-2)
        for top in grid.tops
    )
    return _join(rows, grid.tops, dim=-3)


def _join(strips, starts: tuple[int, ...], dim: int) -> Tensor:
    """Strips along `dim` to one tensor; each overlap is a linear ramp from one strip to the next."""
    strips = iter(strips)
    joined = next(strips)
    pieces = []
    for here, after in pairwise(starts):
        strip = next(strips)
        # What lies before the next strip is final; only the overlap still changes.
        final = after - here
        pieces.append(joined.narrow(dim, 0, final))
        shared = joined.shape[dim] - final
        fading, rising = joined.narrow(dim, final, shared), strip.narrow(dim, 0, shared)
        ramp = (torch.arange(shared, device=strip.device, dtype=strip.dtype) + 0.5) / max(shared, 1)
        ramp = ramp.reshape([-1] + [1] * (-dim - 1))
        joined = torch.cat([fading + (rising - fading) * ramp, strip.narrow(dim, shared, strip.shape[dim] - shared)], dim)
    return torch.cat([*pieces, joined], dim) if pieces else joined


def fit_scale_and_shift(values: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares `scale * values + shift ~ reference` per leading index; both are [..., n]. Returns [..., 1] each.

    A fit with no slope of its own (flat values), or one that would turn the values over, keeps scale 1 and only shifts.
    """
    mean_value, mean_reference = values.mean(-1, keepdim=True), reference.mean(-1, keepdim=True)
    centred = values - mean_value
    variance = (centred**2).mean(-1, keepdim=True)
    scale = (centred * (reference - mean_reference)).mean(-1, keepdim=True) / variance.clamp(min=1e-12)
    scale = torch.where((variance > 1e-8) & (scale > 0), scale, torch.ones_like(scale))
    return scale, mean_reference - scale * mean_value
