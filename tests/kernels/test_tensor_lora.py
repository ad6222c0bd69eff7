"""Tensor LoRA: the merged, in-place order and the fused key pass against the literal contraction in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from intrinsic_lab.kernels.tensor_lora import expand_, merge_cores, norm_lora_rotary, shrink, tensor_lora_
from intrinsic_lab.kernels.tensor_lora.reference import tensor_lora_reference

MAPS, RANK, SCALE = 5, 8, 8**-0.5
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
BACKENDS = [
    *((backend, dtype) for backend in ("reference", "torch") for dtype in TOLERANCE),
    ("triton", torch.float32),
    ("triton", torch.float16),
]


def cores(d_in, d_out, maps=MAPS, rank=RANK):
    """g1, g2, g3 in float64, sized so that the update is of the order of its input."""
    g1 = torch.randn(maps, maps, rank, dtype=torch.float64) / maps
    g2 = torch.randn(maps, d_in, rank, rank, dtype=torch.float64) / math.sqrt(d_in * rank)
    return g1, g2, torch.randn(maps, d_out, rank, dtype=torch.float64)


def loops(x, g1, g2, g3, scale):
    """The published sum, index by index over maps and ranks."""
    maps, _, rank = g1.shape
    y = torch.zeros(*x.shape[:-1], g3.shape[1], dtype=x.dtype)
    for i in range(maps):
        for j in range(maps):
            for r in range(rank):
                for q in range(rank):
                    inner = x[j] @ g2[i, :, r, q]
                    y[i] += scale * g1[i, j, q] * inner[:, None] * g3[i, :, r]
    return y


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def test_the_reference_is_the_published_sum():
    g1, g2, g3 = cores(6, 7, maps=3, rank=2)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(tensor_lora_reference(x, g1, g2, g3, 0.7), loops(x, g1, g2, g3, 0.7))


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("tokens, group", [(1, None), (63, 2), (64, None), (257, None), (1000, None)])
def test_every_path_adds_the_published_update_in_place(backend, dtype, tokens, group):
    g1, g2, g3 = cores(72, 80)
    lead = () if group is None else (group,)
    x = torch.randn(*lead, MAPS, tokens, 72, dtype=torch.float64)
    before = torch.randn(*lead, MAPS, tokens, 80, dtype=torch.float64)
    expected = before + tensor_lora_reference(x, g1, g2, g3, SCALE)
    out = before.clone().to(dtype)
    result = tensor_lora_(out, x.to(dtype), merge_cores(g1, g2).to(dtype), g3.to(dtype), SCALE, backend=backend)
    assert result.data_ptr() == out.data_ptr()
    assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_strided_views_are_updated_and_nothing_around_them(backend):
    g1, g2, g3 = cores(40, 48)
    qkv = torch.full((MAPS, 33, 3 * 48), math.nan)
    out = qkv[..., 48:96]
    out.copy_(torch.randn(MAPS, 33, 48))
    x = torch.randn(33, MAPS, 40).transpose(0, 1)
    expected = out.double() + tensor_lora_reference(x.double(), g1, g2, g3, SCALE)
    tensor_lora_(out, x, merge_cores(g1, g2).float(), g3.float(), SCALE, backend=backend)
    assert relative_error(out, expected) < 2e-6
    assert qkv.isnan().sum() == qkv.numel() * 2 // 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_triton_writes_every_hidden_value(dtype, monkeypatch):
    from intrinsic_lab.kernels.tensor_lora import triton_kernel

    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size, **kinds: empty(self, *size, **kinds).fill_(math.nan))
    g1, g2, _ = cores(72, 8)
    x = torch.randn(MAPS, 37, 72, dtype=torch.float64)
    hidden = triton_kernel.shrink_triton(x.to(dtype), merge_cores(g1, g2).to(dtype))
    assert relative_error(hidden, shrink(x, merge_cores(g1, g2), backend="reference")) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_pass_gradcheck_through_merge_shrink_and_expand(backend):
    leaves = [t.requires_grad_() for t in (*cores(4, 5, maps=2, rank=2), torch.randn(2, 3, 4, dtype=torch.float64))]
    base = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def update(g1, g2, g3, x, base):
        return tensor_lora_(base.clone(), x, merge_cores(g1, g2), g3, 0.7, backend=backend)

    assert torch.autograd.gradcheck(update, (*leaves, base))


def test_triton_gradients_equal_the_references():
    g1, g2, g3 = (t.float() for t in cores(40, 48))
    x, grad_output = torch.randn(MAPS, 17, 40), torch.randn(MAPS, 17, 48)
    gradients = []
    for backend in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in (g1, g2, g3, x)]
        out = tensor_lora_(torch.zeros(MAPS, 17, 48), leaves[3], merge_cores(*leaves[:2]), leaves[2], SCALE, backend=backend)
        gradients.append(torch.autograd.grad(out, leaves, grad_output))
    for found, expected in zip(*gradients, strict=True):
        assert relative_error(found, expected) < 1e-5


def key_case(group, tokens=33, heads=3, dim=40):
    lead = () if group is None else (group,)
    key = torch.randn(*lead, MAPS, tokens, heads, dim, dtype=torch.float64).transpose(-2, -3)
    hidden = torch.randn(*lead, MAPS, tokens, RANK, dtype=torch.float64)
    g3 = torch.randn(MAPS, heads * dim, RANK, dtype=torch.float64)
    angle = torch.rand(tokens, dim // 2, dtype=torch.float64) * 6.28
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    return key, torch.randn(dim, dtype=torch.float64), hidden, g3, rotation


def key_pass_step_by_step(key, norm_weight, hidden, g3, rotation):
    """Norm, delta and rotary as a FLUX block does them, one after the other, the rotary by complex numbers."""
    normed = F.rms_norm(key, key.shape[-1:], norm_weight, 1e-6)
    delta = SCALE * (hidden @ g3.mT)
    shifted = normed + delta.unflatten(-1, (key.shape[-3], key.shape[-1])).transpose(-2, -3)
    turn = torch.complex(rotation[..., 0, 0], rotation[..., 1, 0])
    return torch.view_as_real(torch.view_as_complex(shifted.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("group", [None, 2])
def test_the_key_pass_is_norm_then_delta_then_rotary(backend, dtype, group):
    key, norm_weight, hidden, g3, rotation = key_case(group)
    expected = key_pass_step_by_step(key, norm_weight, hidden, g3, rotation)
    low = [t.to(dtype) for t in (key, norm_weight, hidden, g3)]
    found = norm_lora_rotary(*low, rotation, SCALE, backend=backend)
    assert found.dtype == dtype and found.shape == key.shape
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens, heads, dim", [(1, 1, 40), (63, 5, 64), (64, 2, 72), (257, 1, 80), (17, 4, 128), (5, 3, 160)])
def test_the_triton_key_pass_writes_every_output_at_any_size(tokens, heads, dim, monkeypatch):
    key, norm_weight, hidden, g3, rotation = key_case(None, tokens, heads, dim)
    expected = key_pass_step_by_step(key, norm_weight, hidden, g3, rotation)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **kinds: empty_like(tensor, **kinds).fill_(math.nan))
    low = [t.half() for t in (key, norm_weight, hidden, g3)]
    assert relative_error(norm_lora_rotary(*low, rotation, SCALE, backend="triton"), expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_autocast_may_leave_keys_and_hidden_values_in_different_dtypes(backend):
    key, norm_weight, hidden, g3, rotation = key_case(None)
    expected = key_pass_step_by_step(key, norm_weight, hidden, g3, rotation)
    with torch.autocast("cpu", torch.float16):
        found = norm_lora_rotary(key.float(), norm_weight.float(), hidden.half(), g3.float(), rotation, SCALE, backend=backend)
    assert found.dtype == torch.float32 and relative_error(found, expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_key_pass_is_differentiable(backend):
    key, norm_weight, hidden, g3, rotation = key_case(None, tokens=2, heads=1, dim=4)
    leaves = [t.detach().clone().requires_grad_() for t in (key, norm_weight, hidden, g3)]
    assert torch.autograd.gradcheck(lambda *x: norm_lora_rotary(*x, rotation, SCALE, backend=backend), leaves)


def test_the_triton_key_pass_has_the_torch_paths_gradients():
    key, norm_weight, hidden, g3, rotation = (t.float() for t in key_case(None))
    gradients = []
    for backend in ("triton", "torch"):
        leaves = [t.detach().clone().requires_grad_() for t in (key, norm_weight, hidden, g3)]
        out = norm_lora_rotary(*leaves, rotation, SCALE, backend=backend)
        gradients.append(torch.autograd.grad(out.square().sum(), leaves))
    for found, expected in zip(*gradients, strict=True):
        assert relative_error(found, expected) < 1e-5


def test_the_in_place_order_needs_almost_no_memory_beside_its_operands():
    from torch.profiler import ProfilerActivity, profile

    g1, g2, g3 = (t.float() for t in cores(256, 256))
    x, out, merged = torch.randn(MAPS, 512, 256), torch.zeros(MAPS, 512, 256), merge_cores(g1, g2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        tensor_lora_(out, x, merged, g3, SCALE, backend="torch")
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())
    assert 0 < allocated < out.numel() * 4


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: merge_cores(torch.zeros(5, 4, 8), torch.zeros(5, 3, 8, 8)), "Expected g1"),
        (lambda: shrink(torch.zeros(5, 7, 3), torch.zeros(5, 4, 5, 8)), "Expected x"),
        (lambda: expand_(torch.zeros(5, 7, 6), torch.zeros(5, 7, 8), torch.zeros(5, 5, 8), 1.0), "expected hidden"),
        (
            lambda: norm_lora_rotary(
                torch.zeros(5, 2, 7, 6), torch.ones(6), torch.zeros(5, 7, 8), torch.zeros(5, 12, 8), torch.zeros(7, 2, 2, 2), 1.0
            ),
            "rotation",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_in_place_keep_the_graph_when_only_the_update_needs_a_gradient(dtype):
    hidden, g3 = torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True), torch.randn(3, 6, 4, dtype=dtype, requires_grad=True)
    out = expand_(torch.zeros(2, 3, 5, 6, dtype=dtype), hidden, g3, 0.5, backend="torch")
    grads = torch.autograd.grad(out.float().square().sum(), (hidden, g3))
    plain = 0.5 * torch.einsum("gilr,ior->gilo", hidden.float(), g3.float())
    for found, wanted in zip(grads, torch.autograd.grad(plain.square().sum(), (hidden, g3)), strict=True):
        assert (found.float() - wanted.float()).norm() < 2e-2 * wanted.float().norm()
