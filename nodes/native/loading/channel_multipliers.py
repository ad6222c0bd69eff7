"""Channel widths that are no whole multiple of the first one, in ComfyUI's layers, which take multiples."""

from collections.abc import Sequence
from fractions import Fraction

from .folder_files import ModelFolderError

NORM_GROUPS = 32


class ChannelMultiplier(Fraction):
    """A width as an exact multiple of the first width: 64 * ChannelMultiplier(96, 64) is the integer 96."""

    def __mul__(self, other):
        product = super().__mul__(other)
        return int(product) if isinstance(product, Fraction) and product.denominator == 1 else product

    __rmul__ = __mul__


def channel_multipliers(widths: Sequence[int], part: str) -> list[int | ChannelMultiplier]:
    """`channel_mult` for `widths`. Raises ModelFolderError for widths that GroupNorm with 32 groups cannot divide."""
    bad = [width for width in widths if width % NORM_GROUPS]
    if bad:
        raise ModelFolderError(
            f"The {part} has widths {list(widths)}: ComfyUI normalises in {NORM_GROUPS} groups, so every width must be a multiple of "
            f"{NORM_GROUPS}, {bad[0]} is not."
        )
    return [width // widths[0] if width % widths[0] == 0 else ChannelMultiplier(width, widths[0]) for width in widths]
