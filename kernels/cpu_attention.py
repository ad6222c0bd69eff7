"""Attention in bfloat16 on CPUs that multiply it natively: two matrix products and a softmax, by parts that stay near the cores.

PyTorch's own attention multiplies bfloat16 there at a third of the rate of its matrix products. Those round scores to bfloat16, which
alone would cost a score of 16 an error of 0.03. A softmax does not see a number that is taken from all scores of a query, so its expected
score, estimated on a few keys, is taken from them inside the product, before they are rounded: what matters most is then near zero,
where bfloat16 is finest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .operands import any_requires_grad
from .tensor_lora.fast import CPU_PRODUCT_DTYPES

# Measured on two cores: below this many multiplications a head, or with few keys, the calls weigh more than what they save.
LEAST_PRODUCTS, LEAST_KEYS = 2**25, 256
# Of a part, 8 MB: fewer and larger products gain more than a smaller cache would.
SCORES_AT_ONCE = 2**22
KEYS_PER_SAMPLE = 16


def attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """softmax(q k^T * scale) v: query [batch, heads, tokens, dim], key and value [batch, heads, key tokens, dim]; any strides.

    `scaled_dot_product_attention`, except where `attention_by_parts` is faster. Differentiable.
    """
    products = query.shape[-2] * key.shape[-2] * query.shape[-1]
    large = products >= LEAST_PRODUCTS and key.shape[-2] >= LEAST_KEYS
    native = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.bfloat16 in CPU_PRODUCT_DTYPES
    if large and native and not any_requires_grad((query, key, value)) and not torch.compiler.is_compiling():
        return attention_by_parts(query, key, value, scale=scale)
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def attention_by_parts(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """The same by matrix products in the tensors' own dtype, without a graph for a backward; shapes as `attention`."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    at_once = max(1, SCORES_AT_ONCE // key.shape[-2])
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            keys, values = key[batch, head].t(), value[batch, head]
            few = torch.mm(query[batch, head], key[batch, head, ::KEYS_PER_SAMPLE].contiguous().t()).float().mul_(scale)
            expected = torch.linalg.vecdot(torch.softmax(few, dim=-1), few).to(query.dtype).unsqueeze(-1)
            for start in range(0, query.shape[2], at_once):
                part = (batch, head, slice(start, start + at_once))
                scores = torch.addmm(expected[part[-1]], query[part], keys, beta=-1, alpha=scale)
                torch.mm(torch.softmax(scores, dim=-1), values, out=out[part])
    return out
