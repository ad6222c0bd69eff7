"""What self-attention needs to know while picture and intrinsic rows (`methods.rows`) go through one forward, and the attention itself."""

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...kernels.cross_domain_attention import Segment, cross_domain_attention, joint_attention
from ..rows import Rows, in_query_windows
from .schedules import Block, WeightSchedule

DOMAINS = PICTURE, INTRINSIC = "picture", "intrinsic"
# A weight this small moves no float32 result; the picture then runs alone, through the attention that core chose.
NEGLIGIBLE_WEIGHT = 1e-12

OwnAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
MaskedAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class JointForward:
    """One forward: rows of the DOMAINS, at timestep t (0..999)."""

    rows: Rows
    t: float
    schedule: WeightSchedule


# Of the forward that this thread is in. PixArt hands its blocks nothing else to tell it by.
CURRENT: ContextVar[JointForward] = ContextVar("intrinsic_lab_joint_forward")


def running() -> JointForward:
    """The forward that runs here. Raises ValueError where none does: the exchange sits in a network that nobody told of it."""
    try:
        return CURRENT.get()
    except LookupError:
        raise ValueError(
            "The network runs with Cross-Domain Attention's patches and without what tells them which rows are pictures: a node after it "
            "made this MODEL anew from parts (AnimateDiff's Unload does). Put that node before Cross-Domain Attention."
        ) from None


def exchange(
    step: JointForward, block: Block, query: Tensor, key: Tensor, value: Tensor, heads: int, own_attention: OwnAttention
) -> Tensor:
    """Self-attention of both domains (I-LDM, eq. 1 and 4).

    query, key, value [rows, token, heads x dim]; own_attention: core's, on the same layout. Returns [rows, token, heads x dim].
    Where the schedule gives 0, picture rows are core's own attention and nothing else. Raises ValueError for a wrong number of rows.
    """
    rows = step.rows.seen_by("Self-attention", query.shape[0])
    key, value = in_query_windows(query, key, value)
    weight = step.schedule(block, step.t)
    if abs(weight) < NEGLIGIBLE_WEIGHT:
        query_x, key_x, value_x = (rows.of(PICTURE, x) for x in (query, key, value))
        picture = own_attention(query_x, key_x, value_x)
        query_i, key_i, value_i = (_split_heads(rows.of(INTRINSIC, x), heads) for x in (query, key, value))
        key_x, value_x = (_split_heads(x, heads) for x in (key_x, value_x))
        intrinsic = _merge_heads(cross_domain_attention(query_i, key_i, value_i, key_x, value_x, 1.0))
        return rows.join(rearrange([picture, intrinsic], "domain group token c -> group domain token c"))
    pairs = list(zip(rows.slices(PICTURE), rows.slices(INTRINSIC), strict=True))
    segments = [Segment(picture, intrinsic, weight) for picture, intrinsic in pairs]
    segments += [Segment(intrinsic, picture, 1.0) for picture, intrinsic in pairs]
    query, key, value = (_split_heads(x, heads) for x in (query, key, value))
    return _merge_heads(joint_attention(query, key, value, segments))


def exchange_pictures(
    step: JointForward,
    block: Block,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    picture: slice,
    own_attention: MaskedAttention,
    mask: Tensor | None = None,
    through_own: bool = False,
) -> Tensor:
    """The same where tokens of text and of pictures of reference stand beside the picture's: of the other domain only `picture` is read.

    query, key, value [row, head, token, dim]; mask [row or 1, 1, query or 1, key], additive. own_attention: core's, of these four ->
    [row, token, head x dim]; with `through_own`, or a mask, it also attends where domains meet. Returns [row, token, head x dim].
    """
    rows, weight = step.rows.seen_by("Attention", query.shape[0]), step.schedule(block, step.t)
    masks = {domain: _mask_of(domain, mask, rows) for domain in DOMAINS}

    def attended(domain: str, other: str, weight: float) -> Tensor:
        q, k, v = (rows.of(domain, x) for x in (query, key, value))
        if abs(weight) < NEGLIGIBLE_WEIGHT:
            return own_attention(q, k, v, masks[domain])
        read_k, read_v = (rows.of(other, x[:, :, picture]) for x in (key, value))
        if mask is None and not through_own:
            return _merge_heads(cross_domain_attention(q, k, v, read_k, read_v, weight))
        joined = _joined_mask(masks[domain], masks[other], picture, k, read_k, weight)
        return own_attention(q, torch.cat([k, read_k], dim=2), torch.cat([v, read_v], dim=2), joined)

    out = [attended(PICTURE, INTRINSIC, weight), attended(INTRINSIC, PICTURE, 1.0)]
    return rows.join(rearrange(out, "domain group token c -> group domain token c"))


def _mask_of(domain: str, mask: Tensor | None, rows: Rows) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else rows.of(domain, mask)


def _joined_mask(own: Tensor | None, other: Tensor | None, picture: slice, key: Tensor, read: Tensor, weight: float) -> Tensor | None:
    """Additive, of the own keys and the `picture` ones of the other domain; None where there is nothing to add."""
    if own is None or other is None:
        if weight == 1:
            return None
        own, seen = key.new_zeros(1, 1, 1, key.shape[2]), read.new_zeros(1, 1, 1, read.shape[2])
    else:
        seen = other[..., picture]
    return torch.cat([own, seen + math.log(weight)], dim=-1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "row token (head dim) -> row head token dim", head=heads)


def _merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "row head token dim -> row token (head dim)")
