"""Triton: the cross-domain attention kernel with one segment, several rows of keys reading one row of queries.

Text and image queries write straight into their parts of one output, so nothing is concatenated afterwards.
"""

from einops import rearrange
from torch import Tensor

from ..cross_domain_attention.triton_kernel import launch


def query_broadcast_triton(query: Tensor, key: Tensor, value: Tensor, text_query: Tensor | None, scale: float) -> Tensor:
    """Shapes as `query_broadcast_attention`; forward only."""
    groups, maps, heads, _, dim = key.shape
    text_tokens = 0 if text_query is None else text_query.shape[-2]
    key_rows, value_rows = (rearrange(t, "group map head token dim -> (group map) head token dim") for t in (key, value))
    output = query.new_empty(groups * maps, text_tokens + query.shape[-2], heads, dim).transpose(1, 2)
    launch(query, key_rows, value_rows, None, None, None, None, scale, output=output[..., text_tokens:, :])
    if text_query is not None:
        text_rows = rearrange(text_query, "group map head token dim -> (group map) head token dim")
        launch(text_rows, key_rows, value_rows, None, None, None, None, scale, output=output[..., :text_tokens, :])
    return rearrange(output, "(group map) head token dim -> group map head token dim", group=groups)


def cross_intrinsic_triton(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Shapes as `cross_intrinsic_attention`; forward only."""
    queries, keys, values = (rearrange(t, "group map head token dim -> group head (map token) dim") for t in (query, key, value))
    output, _ = launch(queries, keys, values, None, None, None, None, scale)
    return rearrange(output, "group head (map token) dim -> group map head token dim", map=query.shape[1])
