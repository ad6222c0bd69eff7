"""Query-broadcast attention on PyTorch's own attention: the shared query is a view with a stride of 0 over maps."""

import torch
from einops import rearrange
from torch import Tensor

from ..cpu_attention import attention


def query_broadcast_torch(query: Tensor, key: Tensor, value: Tensor, text_query: Tensor | None, scale: float) -> Tensor:
    """One call per group: a stride of 0 over maps cannot be folded with the group's, and a group is one prompt (one, or two with CFG)."""
    maps = key.shape[1]
    image = [attention(q.expand(maps, -1, -1, -1), k, v, scale=scale) for q, k, v in zip(query, key, value, strict=True)]
    output = torch.stack(image) if len(image) > 1 else image[0].unsqueeze(0)
    if text_query is None:
        return output
    rows = [rearrange(t, "group map head token dim -> (group map) head token dim") for t in (text_query, key, value)]
    text = rearrange(attention(*rows, scale=scale), "(group map) head token dim -> group map head token dim", map=maps)
    return torch.cat([text, output], dim=-2)


def cross_intrinsic_torch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """All maps share one set of keys, so their queries are one longer sequence: no copy of the keys per map."""
    joined = [rearrange(t, "group map head token dim -> group head (map token) dim") for t in (query, key, value)]
    output = attention(*joined, scale=scale)
    return rearrange(output, "group head (map token) dim -> group map head token dim", map=query.shape[1])
