"""Attention by parts on a CPU against float64: scores are rounded to bfloat16 only after what matters most in them is near zero."""

import math

import pytest
import torch
from intrinsic_lab.kernels import cpu_attention


def exact(query, key, value):
    return (query.double() @ key.double().mT / math.sqrt(query.shape[-1])).softmax(-1) @ value.double()


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def operands(tokens=300, keys=500, dim=64, spread=1.0, common=0.0, dtype=torch.bfloat16):
    """Views of [batch, tokens, heads, dim]; spread: deviation of the scores; common: what all keys and queries share."""
    query, key = (torch.randn(2, count, 3, dim) * spread**0.5 + common for count in (tokens, keys))
    return tuple(x.to(dtype).transpose(1, 2) for x in (query, key, torch.randn(2, keys, 3, dim)))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("tokens, keys", [(300, 500), (1, 257), (77, 1)])
def test_parts_equal_float64(dtype, tolerance, tokens, keys, monkeypatch):
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", 20_000)
    query, key, value = operands(tokens, keys, dtype=dtype)
    found = cpu_attention.attention_by_parts(query, key, value, scale=query.shape[-1] ** -0.5)
    assert found.dtype == dtype and found.shape == query.shape
    assert relative_error(found, exact(query, key, value)) < tolerance


@pytest.mark.parametrize("kind", [{"spread": 3.0}, {"spread": 6.0}, {"spread": 2.0, "common": 1.5}])
def test_large_scores_lose_no_more_than_a_rounding_of_the_output(kind):
    query, key, value = operands(**kind)
    expected = exact(query, key, value)
    found = cpu_attention.attention_by_parts(query, key, value, scale=query.shape[-1] ** -0.5)
    rounded = ((query * query.shape[-1] ** -0.5) @ key.mT).softmax(-1) @ value
    assert relative_error(found, expected) < 6e-3 < relative_error(rounded, expected) / 1.5


@pytest.mark.parametrize("native", [True, False])
def test_it_is_chosen_for_large_bfloat16_without_a_gradient(native, monkeypatch):
    ran = []

    def by_parts(*args, scale):
        ran.append(True)
        return args[0]

    monkeypatch.setattr(cpu_attention, "attention_by_parts", by_parts)
    monkeypatch.setattr(cpu_attention, "CPU_PRODUCT_DTYPES", frozenset({torch.bfloat16} if native else ()))
    query, key, value = operands(1024, 1024, dim=64)
    small = operands()
    for call in ((query, key, value), (query.float(), key.float(), value.float()), (query.clone().requires_grad_(), key, value), small):
        cpu_attention.attention(*call, scale=0.1)
    assert ran == [True] * native


def test_it_equals_pytorchs_attention_where_that_runs():
    query, key, value = (x.double().requires_grad_() for x in operands(9, 11))
    found = cpu_attention.attention(query, key, value, scale=64**-0.5)
    assert relative_error(found, exact(query, key, value)) < 1e-12
    assert torch.autograd.grad(found.sum(), query)[0].abs().sum() > 0
