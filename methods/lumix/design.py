"""The design matrix of LumiX: how maps meet in attention, and how their low-rank update is structured.

The choices are the paper's (LumiX, section 3 and table 1), by its names:

================ ==============================================================================================
attention        what each map's image tokens attend with and to
================ ==============================================================================================
separate         own queries, own keys ("vanilla"): maps meet only through the noise and the prompt
cross-intrinsic  own queries, keys and values of all maps (IntrinsiX)
query-broadcast  the colour map's queries, own keys and values (LumiX)
================ ==============================================================================================

======== =====================================================================================================
LoRA     the update of output map i from input map j, one [d_out, d_in] block of the whole [M d_out, M d_in]
======== =====================================================================================================
separate rank R for i = j, nothing else
fused    one matrix of rank R over all maps
hybrid   rank R1 for i = j, rank R2 for every other pair
tensor   shared cores (Tensor LoRA): G3[i] (sum_q G1[i,j,q] G2[i,:,:,q])^T
======== =====================================================================================================
"""

from dataclasses import dataclass

ATTENTIONS = SEPARATE, CROSS_INTRINSIC, QUERY_BROADCAST = "separate", "cross-intrinsic", "query-broadcast"
LORAS = SEPARATE, FUSED, HYBRID, TENSOR = "separate", "fused", "hybrid", "tensor"
# How IntrinsiX's released model does it: as cross-intrinsic, but in double-stream blocks each map reads its own text alone.
IMAGE_SHARING = "image-sharing"

# The colour map's queries are the ones that are broadcast.
COLOR = "color"
# The published names of rows, in the published order, and what they are called in the table of maps.
KINDS = {"albedo": "albedo", "irradiance": "shading", COLOR: "image", "depth": "depth", "normal": "normal"}
MAP_NAMES = tuple(KINDS)


@dataclass(frozen=True)
class Design:
    """A cell of the matrix, and the maps whose rows make up one picture, in order.

    adapt_query: the update also acts on queries (the paper's "+ Tune W_Q", which harms alignment).
    Raises ValueError for unknown names, and unless maps are different and `color` is one of them.
    """

    attention: str = QUERY_BROADCAST
    lora: str = TENSOR
    maps: tuple[str, ...] = MAP_NAMES
    adapt_query: bool = False

    def __post_init__(self):
        for field, choices in (("attention", ATTENTIONS), ("lora", LORAS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}: choose one of {', '.join(choices)}.")
        color_row(self.maps)

    @property
    def color_row(self) -> int:
        """The row of the colour map within a picture's rows."""
        return self.maps.index(COLOR)


def color_row(maps: tuple[str, ...]) -> int:
    """The row of the colour map. Raises ValueError for unknown or repeated maps, and without a colour map."""
    unknown = [name for name in maps if name not in MAP_NAMES]
    if unknown or len(set(maps)) != len(maps) or COLOR not in maps:
        raise ValueError(
            f"The maps are {', '.join(maps) or 'none'}: different ones of {', '.join(MAP_NAMES)} are wanted, among them {COLOR}."
        )
    return maps.index(COLOR)
