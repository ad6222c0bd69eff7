"""Query-broadcast and cross-intrinsic attention, spelled as their equations (LumiX; IntrinsiX for the baseline)."""

import torch
from einops import rearrange, repeat
from torch import Tensor


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Computed in float32 or wider, rounded once: scores of half precision overflow at 65,504."""
    wide = torch.promote_types(query.dtype, torch.float32)
    probabilities = (query.to(wide) @ key.to(wide).transpose(-1, -2) * scale).softmax(dim=-1)
    return (probabilities @ value.to(wide)).to(query.dtype)


def query_broadcast_reference(query: Tensor, key: Tensor, value: Tensor, text_query: Tensor | None, scale: float) -> Tensor:
    """Every map attends to its own keys with a copy of the colour map's query; shapes as `query_broadcast_attention`."""
    per_map_query = repeat(query, "group head token dim -> group map head token dim", map=key.shape[1])
    if text_query is not None:
        per_map_query = torch.cat([text_query, per_map_query], dim=-2)
    return _attention(per_map_query, key, value, scale)


def cross_intrinsic_reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Every map's queries attend to the keys of all maps, one copy of them per map; shapes as `cross_intrinsic_attention`."""
    maps = key.shape[1]
    every_key, every_value = (
        repeat(rearrange(t, "group map head token dim -> group head (map token) dim"), "group ... -> group map ...", map=maps)
        for t in (key, value)
    )
    return _attention(query, every_key, every_value, scale)
