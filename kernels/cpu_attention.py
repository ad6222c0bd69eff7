"""Attention in bfloat16 on CPUs that multiply it natively: two matrix products and a softmax, by parts that stay near the cores.

PyTorch's own attention multiplies bfloat16 there at a third of the rate of its matrix products. Those round scores to bfloat16, which
alone would cost a score of 16 an error of 0.03. A softmax does not see a number that is taken from all scores of a query, so its expected
score, estimated on a few keys, is taken from them inside the product, before they are rounded: what matters most is then near zero,
where bfloat16 is finest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .operands import CPU_PRODUCT_DTYPES, any_requires_grad

# Measured on two cores: with fewer multiplications a head, few keys or small heads, the calls weigh more than what they save.
LEAST_PRODUCTS, LEAST_KEYS, LEAST_DIM = 2**25, 256, 64
# Of a part, 8 MB: fewer and larger products gain more than a smaller cache would.
SCORES_AT_ONCE = 2**22
KEYS_PER_SAMPLE = 16


def attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """softmax(q k^T * scale) v: query [batch, heads, tokens, dim], key and value [batch, heads, key tokens, dim]; any strides.

    `scaled_dot_product_attention`, except where `attention_by_parts` is faster. Differentiable.
    """
    (tokens, dim), keys = query.shape[-2:], key.shape[-2]
    large = tokens * keys * dim >= LEAST_PRODUCTS and keys >= LEAST_KEYS and dim >= LEAST_DIM
    native = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.bfloat16 in CPU_PRODUCT_DTYPES
    if large and native and not any_requires_grad((query, key, value)) and not torch.compiler.is_compiling():
        return attention_by_parts(query, key, value, scale=scale)
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def attention_by_parts(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """The same by matrix products in the tensors' own dtype, without a graph for a backward; shapes as `attention`."""
    out, (tokens, keys) = query.new_empty(query.shape), (query.shape[-2], key.shape[-2])
    at_once = max(1, min(tokens, SCORES_AT_ONCE // keys))
    # Used again for every head: new memory costs a process more time than a product.
    memory = query.new_empty(2, at_once, keys)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            expected = _expected_score(query[row, head], key[row, head], scale)
            for start in range(0, tokens, at_once):
                part = slice(start, min(start + at_once, tokens))
                scores, shares = memory[:, : part.stop - start]
                torch.addmm(expected[part], query[row, head, part], key[row, head].t(), beta=-1, alpha=scale, out=scores)
                torch.softmax(scores, dim=-1, out=shares)
                torch.mm(shares, value[row, head], out=out[row, head, part])
    return out


def _expected_score(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """[tokens, 1]: of each query's softmax over a few of the keys."""
    few = torch.mm(query, key[::KEYS_PER_SAMPLE].contiguous().t()).float().mul_(scale)
    return torch.linalg.vecdot(torch.softmax(few, dim=-1), few).to(query.dtype).unsqueeze(-1)
