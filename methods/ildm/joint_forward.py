"""What self-attention needs to know while picture and intrinsic rows go through one forward, and the attention itself.

A joint batch holds, for each condition that core batches, all pictures and then all their intrinsics in the same order: a batch of
conditions or hints that core repeats over the rows then meets both members of a pair.
"""

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...kernels.cross_domain_attention import Segment, cross_domain_attention, joint_attention
from .schedules import Block, WeightSchedule

PICTURE, INTRINSIC = "picture", "intrinsic"
# A weight this small moves no float32 result; the picture then runs alone, through the attention that core chose.
NEGLIGIBLE_WEIGHT = 1e-12

OwnAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class JointForward:
    """One forward: `groups` times `pairs` picture rows and `pairs` intrinsic rows, at timestep t (0..999)."""

    groups: int
    pairs: int
    t: float
    schedule: WeightSchedule

    @property
    def rows(self) -> int:
        return 2 * self.groups * self.pairs

    def domain_of_row(self, wanted: Collection[str]) -> tuple[str | None, ...]:
        """The domain of each row, None for domains that are not `wanted`."""
        group = [domain if domain in wanted else None for domain in (PICTURE, INTRINSIC) for _ in range(self.pairs)]
        return tuple(group * self.groups)

    def segments(self, windows: int, weight: float) -> list[Segment]:
        """Pictures read their intrinsics with `weight` (I-LDM, eq. 4), intrinsics their pictures with 1 (eq. 1), `windows` rows of each."""
        rows = self.pairs * windows
        if rows == 1:
            # Single rows alternate over the groups: a domain is one slice.
            pictures, intrinsics = [slice(0, None, 2)], [slice(1, None, 2)]
        else:
            starts = range(0, 2 * rows * self.groups, 2 * rows)
            pictures = [slice(start, start + rows) for start in starts]
            intrinsics = [slice(start + rows, start + 2 * rows) for start in starts]
        pairs = list(zip(pictures, intrinsics, strict=True))
        return [Segment(picture, intrinsic, weight) for picture, intrinsic in pairs] + [Segment(i, p, 1.0) for p, i in pairs]


# Of the forward that this thread is in. PixArt hands its blocks nothing else to tell it by.
CURRENT: ContextVar[JointForward] = ContextVar("intrinsic_lab_joint_forward")


def exchange(
    step: JointForward, block: Block, query: Tensor, key: Tensor, value: Tensor, heads: int, own_attention: OwnAttention
) -> Tensor:
    """Self-attention of both domains (I-LDM, eq. 1 and 4).

    query, key, value [rows, token, heads x dim]; own_attention: core's, on the same layout. Returns [rows, token, heads x dim].
    Where the schedule gives 0, picture rows are core's own attention and nothing else. Raises ValueError for a wrong number of rows.
    """
    # Patches that cut pictures into windows put the windows of one row next to each other.
    windows, rest = divmod(query.shape[0], step.rows)
    if rest or not windows:
        raise ValueError(
            f"Self-attention ran on {query.shape[0]} rows, a multiple of {step.rows} was expected: remove patches that merge rows."
        )
    weight = step.schedule(block, step.t)
    rows = step.pairs * windows
    if abs(weight) < NEGLIGIBLE_WEIGHT:
        by_domain = [
            rearrange(x, "(group domain row) token c -> domain (group row) token c", domain=2, row=rows) for x in (query, key, value)
        ]
        (query_x, query_i), (key_x, key_i), (value_x, value_i) = by_domain
        picture = own_attention(query_x, key_x, value_x)
        split = [_split_heads(x, heads) for x in (query_i, key_i, value_i, key_x, value_x)]
        intrinsic = _merge_heads(cross_domain_attention(*split, 1.0))
        return rearrange(torch.stack([picture, intrinsic]), "domain (group row) token c -> (group domain row) token c", row=rows)
    query, key, value = (_split_heads(x, heads) for x in (query, key, value))
    return _merge_heads(joint_attention(query, key, value, step.segments(windows, weight)))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "row token (head dim) -> row head token dim", head=heads)


def _merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "row head token dim -> row token (head dim)")
