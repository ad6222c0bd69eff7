"""Frames of a sequence that also read an anchor frame: I-LDM's cross-domain attention (eq. 4) with another frame in the domain's place."""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from ...kernels.cross_domain_attention import Segment, joint_attention
from ..rows import in_query_windows, windows_per_row


@dataclass(frozen=True)
class AnchoredForward:
    """One forward. anchor_of_row: the row whose keys each row reads too; an anchor's is itself. weight: of those keys, in (0, 1]."""

    anchor_of_row: tuple[int, ...]
    weight: float


def attend_with_anchor(step: AnchoredForward, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax([q k^T, q k'^T] / sqrt(dim) + [0, log w]) [v, v'] with the anchor's k', v'; an anchor reads its own keys alone.

    query, key, value [row, token, heads x dim]. Returns the same shape. Raises ValueError for a wrong number of rows.
    """
    windows = windows_per_row("Self-attention", query.shape[0], len(step.anchor_of_row))
    key, value = in_query_windows(query, key, value)
    segments = [
        Segment(_windows(row, windows), _windows(anchor, windows), step.weight)
        for row, anchor in enumerate(step.anchor_of_row)
        if anchor != row
    ]
    query, key, value = (rearrange(x, "row token (head dim) -> row head token dim", head=heads) for x in (query, key, value))
    return rearrange(joint_attention(query, key, value, segments), "row head token dim -> row token (head dim)")


def _windows(row: int, windows: int) -> slice:
    return slice(row * windows, (row + 1) * windows)
