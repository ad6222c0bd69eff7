"""Query-broadcast and cross-intrinsic attention against float64, and the copies that they do not make."""

import math

import pytest
import torch
from einops import repeat
from intrinsic_lab.kernels import cpu_attention
from intrinsic_lab.kernels.query_broadcast import cross_intrinsic_attention, query_broadcast_attention

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
BACKENDS = [
    *((backend, dtype) for backend in ("reference", "torch") for dtype in TOLERANCE),
    ("triton", torch.float32),
    ("triton", torch.float16),
]


def attention(query, key, value):
    return (query.double() @ key.double().mT / math.sqrt(query.shape[-1])).softmax(-1) @ value.double()


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def operands(dtype, group=2, maps=3, heads=2, tokens=33, text=0, dim=40):
    """Query, key, value, text query; keys and values as views of [.., tokens, heads, dim] storage."""
    query = torch.randn(group, tokens, heads, dim).to(dtype).transpose(1, 2)
    key, value = (torch.randn(group, maps, text + tokens, heads, dim).to(dtype).transpose(2, 3) for _ in range(2))
    return query, key, value, torch.randn(group, maps, heads, text, dim).to(dtype) if text else None


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("group, text", [(1, 0), (2, 0), (1, 13), (2, 13)])
def test_every_map_is_read_with_the_colour_maps_query(backend, dtype, group, text):
    query, key, value, text_query = operands(dtype, group=group, text=text)
    found = query_broadcast_attention(query, key, value, text_query=text_query, backend=backend)
    per_map = repeat(query, "g h n d -> g m h n d", m=3)
    expected = attention(per_map if text_query is None else torch.cat([text_query, per_map], -2), key, value)
    assert found.dtype == dtype and found.shape == expected.shape
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens, text, dim", [(1, 0, 64), (63, 1, 72), (64, 0, 80), (257, 7, 128), (1, 64, 160), (1000, 24, 64)])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_every_token_count_and_head_dim_equals_float64_and_every_output_is_written(tokens, text, dim, backend, monkeypatch):
    query, key, value, text_query = operands(torch.float16, group=1, maps=2, heads=1, tokens=tokens, text=text, dim=dim)
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size, **kinds: empty(self, *size, **kinds).fill_(math.nan))
    found = query_broadcast_attention(query, key, value, text_query=text_query, backend=backend)
    per_map = repeat(query, "g h n d -> g m h n d", m=2)
    expected = attention(per_map if text_query is None else torch.cat([text_query, per_map], -2), key, value)
    assert relative_error(found, expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_scores_beyond_float16_stay_finite(backend):
    query, key, value, _ = operands(torch.float16)
    query[..., 0], key[..., 0] = 240.0, 300.0
    expected = attention(repeat(query, "g h n d -> g m h n d", m=3), key, value)
    assert relative_error(query_broadcast_attention(query, key, value, backend=backend), expected) < 1e-2
    own = cross_intrinsic_attention(key, key, value, backend=backend)
    assert own.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_autocast_casts_normed_queries_and_keys_to_the_values_dtype(backend):
    query, key, value, text_query = operands(torch.float32, text=5)
    with torch.autocast("cpu", torch.float16):
        found = query_broadcast_attention(query, key, value.half(), text_query=text_query, backend=backend)
        across = cross_intrinsic_attention(key, key, value.half(), backend=backend)
    assert found.dtype == across.dtype == torch.float16
    low = [t.half() for t in (query, key, value, text_query)]
    assert relative_error(found, query_broadcast_attention(*low[:3], text_query=low[3], backend="reference").double()) < 2e-3


@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_cross_intrinsic_queries_read_the_keys_of_all_maps(backend, dtype):
    _, key, value, _ = operands(dtype)
    query = torch.randn(2, 3, 2, 21, 40).to(dtype)
    found = cross_intrinsic_attention(query, key, value, backend=backend)
    for index in range(3):
        expected = attention(query[:, index], torch.cat(key.unbind(1), -2), torch.cat(value.unbind(1), -2))
        assert relative_error(found[:, index], expected) < TOLERANCE[dtype]


def test_the_query_reaches_attention_as_a_view_without_a_copy_per_map(monkeypatch):
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(cpu_attention.F, "scaled_dot_product_attention", lambda q, k, v, **kw: seen.append(q) or plain(q, k, v, **kw))
    query, key, value, _ = operands(torch.float32, group=2)
    query_broadcast_attention(query, key, value, backend="torch")
    assert [(q.stride(0), q.untyped_storage().data_ptr()) for q in seen] == [(0, query.untyped_storage().data_ptr())] * 2


def test_a_nan_in_one_map_stays_in_it():
    query, key, value, _ = operands(torch.float32)
    key[:, 1] = math.nan
    for backend in ("torch", "triton"):
        found = query_broadcast_attention(query, key, value, backend=backend)
        assert found[:, [0, 2]].isfinite().all() and found[:, 1].isnan().all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_pass_gradcheck(backend):
    shapes = ((2, 1, 3, 4), (2, 2, 1, 5, 4), (2, 2, 1, 5, 4), (2, 2, 1, 2, 4))
    query, key, value, text = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def broadcast(query, key, value, text):
        return query_broadcast_attention(query, key, value, text_query=text, backend=backend)

    assert torch.autograd.gradcheck(broadcast, (query, key, value, text))
    assert torch.autograd.gradcheck(lambda *x: cross_intrinsic_attention(*x, backend=backend), (text, key, value))


def test_triton_gradients_equal_the_torch_paths():
    tensors = operands(torch.float32, text=5)
    gradients = []
    for backend in ("triton", "torch"):
        query, key, value, text = [t.detach().clone().requires_grad_() for t in tensors]
        out = query_broadcast_attention(query, key, value, text_query=text, backend=backend)
        gradients.append(torch.autograd.grad(out.square().sum(), (query, key, value, text)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_second_derivative_of_a_triton_forward_is_refused_instead_of_wrong():
    query, key, value, _ = operands(torch.float32)
    query.requires_grad_()
    (first,) = torch.autograd.grad(query_broadcast_attention(query, key, value, backend="triton").square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_shapes_that_do_not_fit_are_refused():
    query, key, value, text = operands(torch.float32, text=5)
    for wrong in ({"query": query[0]}, {"value": value[:, :, :, :3]}, {"text_query": text[:, :1]}, {"scale": 0.0}, {"key": key.half()}):
        with pytest.raises(ValueError):
            query_broadcast_attention(**{"query": query, "key": key, "value": value, "text_query": text, **wrong})
    with pytest.raises(ValueError, match="Expected query, key, value"):
        cross_intrinsic_attention(query, key, value)
