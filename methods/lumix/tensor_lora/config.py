"""What a LumiX adapter looks like: its design, its ranks, and the FLUX it belongs to."""

from dataclasses import dataclass, field

from ..design import HYBRID, Design


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter. The defaults are the published one: five maps, Tensor LoRA of rank 8, FLUX.1.

    width: channels of a token. double_blocks, single_blocks: how many FLUX has of each; all are adapted.
    rank: R of the paper (R1, on the diagonal, for "hybrid"). other_rank: R2, between different maps, for "hybrid" only.
    Raises ValueError for sizes that make no adapter.
    """

    design: Design = field(default_factory=Design)
    width: int = 3072
    double_blocks: int = 19
    single_blocks: int = 38
    rank: int = 8
    other_rank: int = 0

    def __post_init__(self):
        if min(self.width, self.rank) < 1 or min(self.double_blocks, self.single_blocks, self.double_blocks + self.single_blocks - 1) < 0:
            raise ValueError(
                f"An adapter of width {self.width}, rank {self.rank}, {self.double_blocks} double and {self.single_blocks} single blocks "
                "cannot be made: give positive sizes."
            )
        if (self.other_rank > 0) != (self.design.lora == HYBRID):
            raise ValueError(
                f"other_rank is {self.other_rank} for a {self.design.lora} LoRA: it belongs to 'hybrid', and is positive there."
            )

    @property
    def input_outputs(self) -> int:
        """How many projections of the block's input are adapted: key and value, with adapt_query also the query."""
        return 3 if self.design.adapt_query else 2
