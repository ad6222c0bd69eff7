"""Attention of the maps of one picture, in the three ways of the paper's design matrix (LumiX, section 3.2)."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from ...kernels import cpu_attention
from ...kernels.query_broadcast import cross_intrinsic_attention, query_broadcast_attention
from .design import CROSS_INTRINSIC, QUERY_BROADCAST, SEPARATE


def attend_maps(attention: str, query: Tensor, key: Tensor, value: Tensor, *, text_query: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v for the maps of each group; a group is the maps of one picture under one prompt.

    key, value [group, map, head, token, dim]: text tokens first where there are any, rotary embedding applied.
    query: for "query-broadcast" the colour map's alone, [group, head, token, dim]; else [group, map, head, token, dim].
    text_query [group, map, head, text, dim]: queries of text tokens, which stay per map in FLUX's double-stream blocks; without it (in
    single-stream blocks, and in the other two ways) `query` covers all tokens. Returns [group, map, head, (text +) token, dim].
    Raises ValueError for an unknown `attention` and for shapes that do not fit.
    """
    if attention == QUERY_BROADCAST:
        return query_broadcast_attention(query, key, value, text_query=text_query)
    if text_query is not None:
        query = torch.cat([text_query, query], dim=-2)
    if attention == CROSS_INTRINSIC:
        return cross_intrinsic_attention(query, key, value)
    if attention != SEPARATE:
        raise ValueError(f"attention is {attention!r}: choose one of {SEPARATE}, {CROSS_INTRINSIC}, {QUERY_BROADCAST}.")
    rows = [rearrange(x, "group map head token dim -> (group map) head token dim") for x in (query, key, value)]
    output = cpu_attention.attention(*rows, scale=query.shape[-1] ** -0.5)
    return rearrange(output, "(group map) head token dim -> group map head token dim", map=key.shape[1])


def images_of_all(x: Tensor, text: int) -> Tensor:
    """[group, map, head, text + token, dim] -> [group, map, head, text + map * token, dim]: each map's own text, then all maps' images.

    What IntrinsiX's queries read in double-stream blocks, and with text = 0 all that there is.
    """
    joined = repeat(x[..., text:, :], "group map head token dim -> group copy head (map token) dim", copy=x.shape[1])
    return torch.cat([x[..., :text, :], joined], dim=-2) if text else joined
