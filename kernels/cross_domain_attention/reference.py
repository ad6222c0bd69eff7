"""Cross-domain attention, spelled as the equation (I-LDM, eq. 4)."""

import torch
from torch import Tensor


def cross_domain_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """softmax([q k^T, q k'^T] * scale + [0, log w]) [v, v'].

    query [batch, heads, tokens, dim], key/value [batch, heads, own, dim], other_key/other_value [batch, heads, other, dim], weights
    [batch] in [0, 1]. Rows of weight 0 are computed on their own keys alone, so nothing of the other domain can reach them. Computed in
    float32 or wider, rounded once: scores of half precision overflow at 65,504.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    dtype = query.dtype
    query, key, value, other_key, other_value = (tensor.to(wide) for tensor in (query, key, value, other_key, other_value))
    active = (weights > 0)[:, None, None, None]
    # Zeros instead of the unread keys: 0 * NaN would be NaN, forward and in the gradient.
    other_key = torch.where(active, other_key, 0)
    other_value = torch.where(active, other_value, 0)
    log_weight = weights.to(query.device, wide).log()[:, None, None, None]
    own_scores = query @ key.transpose(-1, -2) * scale
    other_scores = query @ other_key.transpose(-1, -2) * scale + log_weight
    probabilities = torch.cat([own_scores, other_scores], dim=-1).softmax(dim=-1)
    return (probabilities @ torch.cat([value, other_value], dim=-2)).to(dtype)
