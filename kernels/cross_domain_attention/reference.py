"""Cross-domain attention, spelled as the equation (I-LDM, eq. 4)."""

import torch
from torch import Tensor

from .segments import Segment, per_row


def cross_domain_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
) -> Tensor:
    """softmax([q k^T, q k'^T] * scale + [0, log w]) [v, v'].

    query [batch, heads, tokens, dim], key/value [batch, heads, own, dim], other_key/other_value [batch, heads, other, dim]. Rows of
    weight 0 are computed on their own keys alone, so nothing of the other domain can reach them. Computed in float32 or wider, rounded
    once: scores of half precision overflow at 65,504.
    """
    dtype, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    row_weights, others = per_row(segments, query.shape[0])
    weights = torch.tensor(row_weights, dtype=wide, device=query.device)[:, None, None, None]
    query, key, value = (tensor.to(wide) for tensor in (query, key, value))
    # Zeros instead of the unread keys: 0 * NaN would be NaN, forward and in the gradient.
    other_key, other_value = (torch.where(weights > 0, tensor[others].to(wide), 0) for tensor in (other_key, other_value))
    own_scores = query @ key.transpose(-1, -2) * scale
    other_scores = query @ other_key.transpose(-1, -2) * scale + weights.log()
    probabilities = torch.cat([own_scores, other_scores], dim=-1).softmax(dim=-1)
    return (probabilities @ torch.cat([value, other_value], dim=-2)).to(dtype)
