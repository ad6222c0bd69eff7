"""Cross-domain attention: the torch and Triton paths against the equation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from intrinsic_lab.kernels.cross_domain_attention import Segment, cross_domain_attention, fast, fused, joint_attention
from intrinsic_lab.kernels.cross_domain_attention.segments import active_segments, per_row

HEAD_DIMS = (40, 64, 72, 80, 128, 160)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def operands(rows, heads, tokens, other, dim, dtype=torch.float64):
    """Query, key, value, other key, other value as views of [rows, tokens, heads, dim] storage, as a model hands them over."""
    shapes = (tokens, tokens, tokens, other, other)
    return [torch.randn(rows, n, heads, dim, dtype=torch.float64).to(dtype).transpose(1, 2) for n in shapes]


def oracle(query, key, value, other_key, other_value, weights):
    """Row by row in float64, by definition: duplicate-free softmax over own and weighted other keys."""
    rows = []
    for index, weight in enumerate(weights):
        q, k, v, ok, ov = (t[index].double() for t in (query, key, value, other_key, other_value))
        if weight == 0:
            ok, ov = ok[:, :0], ov[:, :0]
        own, other = q @ k.mT / math.sqrt(q.shape[-1]), q @ ok.mT / math.sqrt(q.shape[-1])
        top = torch.cat([own, other], -1).amax(-1, keepdim=True)
        own, other = (own - top).exp(), weight * (other - top).exp()
        rows.append((own @ v + other @ ov) / (own.sum(-1, keepdim=True) + other.sum(-1, keepdim=True)))
    return torch.stack(rows)


def segments_of(weights, others=None):
    """One segment per row."""
    pairs = zip(others or range(len(weights)), weights, strict=True)
    return [Segment(slice(row, row + 1), slice(other, other + 1), weight) for row, (other, weight) in enumerate(pairs)]


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_close(found, expected, dtype):
    assert found.dtype == dtype and found.shape == expected.shape
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_reference_and_torch_path_equal_float64_at_every_head_dim(backend, dim, dtype):
    tensors = operands(4, 2, 63, 64, dim, dtype)
    weights = [0.0, 1e-30, 0.5, 1.0]
    assert_close(cross_domain_attention(*tensors, segments_of(weights), backend=backend), oracle(*tensors, weights), dtype)


@pytest.mark.parametrize("tokens, other", [(1, 1), (1, 64), (63, 1), (64, 257), (257, 63), (1000, 1000), (257, 0)])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_unequal_lengths_and_odd_token_counts_equal_float64(tokens, other, backend):
    for dtype in (torch.float64, torch.float32):
        tensors = operands(2, 1, tokens, other, 40, dtype)
        assert_close(cross_domain_attention(*tensors, 0.3, backend=backend), oracle(*tensors, [0.3, 0.3]), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_triton_writes_every_output_and_log_sum_exp_and_nothing_else(dim, dtype):
    from intrinsic_lab.kernels.cross_domain_attention.triton_kernel import launch

    weights = (0.0, 1e-30, 0.5, 1.0)
    tensors = operands(4, 1, 63, 64, dim, dtype)
    storage = torch.full((4, 65, 3, dim + 8), math.nan, dtype=dtype)
    output = storage[:, 1:64, 1:2, 4:-4].transpose(1, 2)
    _, lse = launch(*tensors, weights, None, dim**-0.5, output=output)
    assert_close(output, oracle(*tensors, weights), dtype)
    assert storage.isfinite().sum() == output.numel()
    scores = [(tensors[0].double() @ k.double().mT) * dim**-0.5 for k in (tensors[1], tensors[3])]
    scores[1] = scores[1] + torch.tensor(weights, dtype=torch.float64).log()[:, None, None, None]
    assert relative_error(lse, torch.cat(scores, -1).logsumexp(-1)) < 1e-6


@pytest.mark.parametrize("tokens, other", [(1, 1), (1, 65), (64, 1), (257, 63), (63, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_triton_equals_float64_at_odd_and_unequal_lengths(tokens, other, dtype):
    tensors = operands(1, 2, tokens, other, 72, dtype)
    assert_close(cross_domain_attention(*tensors, 0.5, backend="triton"), oracle(*tensors, [0.5]), dtype)


def test_triton_equals_float64_at_a_thousand_tokens():
    tensors = operands(1, 1, 1000, 1000, 64, torch.float16)
    assert_close(cross_domain_attention(*tensors, 0.5, backend="triton"), oracle(*tensors, [0.5]), torch.float16)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_a_row_of_weight_zero_never_reads_the_other_domain(backend):
    tensors = operands(3, 2, 33, 47, 40, torch.float32)
    for other in tensors[3:]:
        other[1] = math.nan
    weights = [0.5, 0.0, 1.0]
    assert_close(cross_domain_attention(*tensors, segments_of(weights), backend=backend), oracle(*tensors, weights), torch.float32)
    everywhere = [t.fill_(math.nan) if index > 2 else t for index, t in enumerate(tensors)]
    assert cross_domain_attention(*everywhere, 0.0, backend=backend).isfinite().all()


def test_weight_zero_on_the_torch_path_is_plain_attention_bit_for_bit():
    tensors = operands(2, 2, 65, 65, 64, torch.bfloat16)
    plain = F.scaled_dot_product_attention(*tensors[:3])
    assert torch.equal(cross_domain_attention(*tensors, 0.0), plain)
    mixed = cross_domain_attention(*tensors, segments_of([0.0, 0.7]))
    assert torch.equal(mixed[0], plain[0]) and not torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_weight_one_is_plain_attention_on_both_domains(backend):
    query, key, value, other_key, other_value = operands(2, 2, 33, 20, 64, torch.float32)
    both = F.scaled_dot_product_attention(query, torch.cat([key, other_key], 2), torch.cat([value, other_value], 2))
    found = cross_domain_attention(query, key, value, other_key, other_value, 1.0, backend=backend)
    torch.testing.assert_close(found, both, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("own_level, other_level", [(300.0, -300.0), (-300.0, 300.0), (300.0, 300.0)])
@pytest.mark.parametrize("dtype, query_level, tolerance", [(torch.float32, 8.0, 1e-4), (torch.float16, 240.0, 1e-2)], ids=str)
def test_log_sum_exp_merge_holds_at_extreme_scores(own_level, other_level, backend, dtype, query_level, tolerance):
    tensors = operands(1, 1, 17, 19, 64, dtype)
    # In float16 the products, 72,000, are beyond its largest number.
    tensors[0][..., 0] = query_level
    tensors[1][..., 0], tensors[3][..., 0] = own_level, other_level
    found = cross_domain_attention(*tensors, 1e-30, backend=backend)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), oracle(*tensors, [1e-30]), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", [(2, 2, 0, 16), (2, 0, 9, 16), (0, 2, 9, 16)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_no_query_no_head_or_no_row_gives_an_empty_result(shape, backend):
    rows, heads = shape[:2]
    keys = [torch.randn(rows, heads, 9, 16) for _ in range(4)]
    assert cross_domain_attention(torch.randn(shape), *keys, 0.5, backend=backend).shape == shape


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_autocast_casts_operands_of_any_weight_as_it_does_for_plain_attention(weight, backend):
    """A norm leaves queries and keys in float32, a projection gives values in 16 bits."""
    tensors = [t.half() if index in (2, 4) else t for index, t in enumerate(operands(2, 2, 17, 9, 40, torch.float32))]
    with pytest.raises(ValueError, match="one dtype"):
        cross_domain_attention(*tensors, weight, backend=backend)
    leaves = [t.clone().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.float16):
        assert F.scaled_dot_product_attention(*tensors[:3]).dtype == torch.float16
        found = cross_domain_attention(*leaves, weight, backend=backend)
        joint = joint_attention(*tensors[:3], segments_of([weight, 1.0], [1, 0]), backend=backend)
    assert joint.dtype == torch.float16
    assert_close(found, oracle(*(t.half() for t in tensors), [weight] * 2), torch.float16)
    reached = leaves if weight else leaves[:3]
    gradients = torch.autograd.grad(found.float().square().sum(), reached)
    assert [g.dtype for g in gradients] == [leaf.dtype for leaf in reached] and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strides_of_any_kind_give_the_same_numbers(backend):
    contiguous = [t.contiguous() for t in operands(2, 2, 33, 33, 40, torch.float32)]
    expected = cross_domain_attention(*contiguous, 0.4, backend="reference")
    fused_qkv = torch.cat([rearrange(t, "b h n d -> b n (h d)") for t in contiguous], -1)
    sliced = [rearrange(t, "b n (h d) -> b h n d", h=2) for t in fused_qkv.chunk(5, -1)]
    transposed = [t.mT.contiguous().mT for t in contiguous]
    broadcast = [contiguous[0], *(t[:1].expand(2, -1, -1, -1) for t in contiguous[1:])]
    for views in (sliced, transposed):
        torch.testing.assert_close(cross_domain_attention(*views, 0.4, backend=backend), expected, atol=1e-6, rtol=1e-5)
    assert_close(cross_domain_attention(*broadcast, 0.4, backend=backend), oracle(*broadcast, [0.4, 0.4]), torch.float32)


PAIRINGS = [
    ([0.3, 0.3, 1.0, 1.0], [2, 3, 0, 1]),
    ([0.0, 1.0, 0.0, 1.0], [1, 0, 3, 2]),
    ([0.5, 0.0, 1.0, 0.25], [3, 2, 1, 0]),
    ([0.0, 0.0, 0.0, 0.0], [1, 0, 3, 2]),
    ([1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0]),
]


@pytest.mark.parametrize("weights, partner", PAIRINGS)
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_joint_form_pairs_the_rows_of_both_domains(weights, partner, backend):
    query, key, value = (t.float() for t in operands(4, 2, 31, 31, 40)[:3])
    found = joint_attention(query, key, value, segments_of(weights, partner), backend=backend)
    assert_close(found, oracle(query, key, value, key[partner], value[partner], weights), torch.float32)


LAYOUTS = {
    "pictures, then intrinsics": ([Segment(slice(0, 3), slice(3, 6), 0.4), Segment(slice(3, 6), slice(0, 3), 1.0)], [3, 4, 5, 0, 1, 2]),
    "alternating": (
        [Segment(slice(0, None, 2), slice(1, None, 2), 0.4), Segment(slice(1, None, 2), slice(0, None, 2), 1.0)],
        [1, 0, 3, 2, 5, 4],
    ),
    "two rows read one": ([Segment(slice(1, 2), slice(4, 5), 0.3), Segment(slice(5, 6), slice(4, 5), 0.6)], [0, 4, 2, 3, 4, 4]),
    "none": ([Segment(slice(0, 0), slice(2, 2), 1.0), Segment(slice(None), slice(None), 0.0)], [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_segments_of_many_rows_give_each_row_its_weight_and_its_partner(backend, layout):
    segments, partner = LAYOUTS[layout]
    query, key, value = (t.float() for t in operands(6, 1, 17, 17, 40)[:3])
    weights = [sum(s.weight for s in segments if row in range(6)[s.rows]) for row in range(6)]
    assert per_row(active_segments(segments, 6), 6) == (weights, partner)
    found = joint_attention(query, key, value, segments, backend=backend)
    assert_close(found, oracle(query, key, value, key[partner], value[partner], weights), torch.float32)


def test_the_torch_path_makes_one_pass_per_segment_and_none_for_weight_zero(monkeypatch):
    passes, fused_forward = [], fast.fused_forward
    monkeypatch.setattr(fast, "fused_forward", lambda query, *rest: passes.append(len(query)) or fused_forward(query, *rest))
    tensors = operands(6, 1, 9, 9, 40)[:3]
    for weight, expected in ((0.4, [6, 3, 3]), (0.0, [6, 3])):
        joint_attention(*tensors, [Segment(slice(0, 3), slice(3, 6), weight), Segment(slice(3, 6), slice(0, 3), 1.0)])
        assert passes == expected
        passes.clear()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_pass_gradcheck_in_float64(backend):
    tensors = [t.detach().requires_grad_() for t in operands(3, 1, 5, 4, 3)]
    segments = segments_of([0.0, 0.3, 1.0])
    assert torch.autograd.gradcheck(lambda *x: cross_domain_attention(*x, segments, backend=backend), tensors)
    joint = [t.detach().requires_grad_() for t in operands(4, 1, 4, 4, 3)[:3]]
    segments = segments_of([0.5, 0.0, 1.0, 1.0], [2, 3, 0, 1])
    assert torch.autograd.gradcheck(lambda *x: joint_attention(*x, segments, backend=backend), joint)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_equal_the_references_and_do_not_leak_from_unread_rows(backend):
    tensors = operands(3, 2, 33, 47, 40, torch.float32)
    tensors[3][0], tensors[4][0] = math.nan, math.nan
    segments = segments_of([0.0, 0.4, 1.0])
    grad_output = torch.randn(3, 2, 33, 40)
    gradients = []
    for name in (backend, "reference"):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        gradients.append(torch.autograd.grad(cross_domain_attention(*leaves, segments, backend=name), leaves, grad_output))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_backward_in_plain_products_equals_the_fused_one():
    query, key, value = operands(2, 2, 33, 33, 40, torch.float64)[:3]
    own = fast.fused_forward(query, key, value, 0.2, "cpu")
    arguments = (torch.randn_like(query), query, key, value, own.output, own.lse, 0.2, None)
    for found, expected in zip(fast._chunked_backward(*arguments, chunk=10), fast.fused_backward(*arguments), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_second_derivative_is_refused_instead_of_wrong(backend):
    leaves = [t.requires_grad_() for t in operands(1, 1, 5, 5, 16, torch.float32)]
    first = torch.autograd.grad(cross_domain_attention(*leaves, 0.5, backend=backend).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.square().sum() for g in first).backward()


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_cuda_passes_fit_this_torchs_signatures_and_layouts(kernel, monkeypatch):
    """Without a GPU: fake tensors go through torch's own shape and layout rules of the CUDA kernels."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(fast, "forward_kernel", lambda *_: kernel)
    with FakeTensorMode():
        tensors = [torch.empty(4, 33, 2, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(5)]
        results = [fast.cross_domain_attention_torch(*tensors, (Segment(slice(None), slice(None), 0.5),), 0.125)]
        joint = Segment(slice(0, 2), slice(2, 4), 0.5), Segment(slice(2, 4), slice(0, 2), 1.0)
        results.append(fast.cross_domain_attention_torch(*tensors[:3], *tensors[1:3], joint, 0.125))
        if fused.has_backward(kernel):
            passed = fused.fused_forward(*tensors[:3], 0.125, kernel)
            results += fused.fused_backward(results[0], *tensors[:3], passed.output, passed.lse - 0.5, 0.125, passed.flash_state)
    for tensor in results:
        assert tensor.shape == (4, 2, 33, 64) and tensor.dtype == torch.bfloat16 and tensor.device.type == "cuda"


def test_devices_without_a_log_sum_exp_get_the_same_values_and_gradients(monkeypatch):
    tensors = operands(4, 2, 20, 13, 40)
    weights = [0.5, 0.0, 1.0, 0.25]
    calls = []
    concatenated = fast._concatenated
    monkeypatch.setattr(fast, "forward_kernel", lambda *_: None)
    monkeypatch.setattr(fast, "_concatenated", lambda *a: calls.append(1) or concatenated(*a))
    leaves = [t.detach().requires_grad_() for t in tensors]
    found = cross_domain_attention(*leaves, segments_of(weights), backend="torch")
    torch.testing.assert_close(found.detach(), oracle(*tensors, weights), atol=1e-6, rtol=1e-5)
    found.sum().backward()
    gradients = [leaf.grad.clone() for leaf in leaves]
    expected = torch.autograd.grad(cross_domain_attention(*leaves, segments_of(weights), backend="reference").sum(), leaves)
    torch.testing.assert_close(gradients, list(expected), atol=1e-6, rtol=1e-5)
    assert calls


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {"weight": 1.5}, "must be in"),
        (lambda t: {"weight": math.nan}, "must be in"),
        (lambda t: {"weight": [Segment(slice(0, 1), slice(0, 1), -0.1)]}, "must be in"),
        (lambda t: {"weight": [Segment(slice(0, 2), slice(0, 1), 1.0)]}, "as many others"),
        (lambda t: {"weight": [Segment(slice(0, 1), slice(2, 3), 1.0)]}, "as many others"),
        (lambda t: {"weight": [Segment(slice(0, 2), slice(0, 2), 1.0), Segment(slice(1, 2), slice(1, 2), 0.5)]}, "at most once"),
        (lambda t: {"weight": [Segment(slice(None, None, -1), slice(None), 1.0)]}, "counting upwards"),
        (lambda t: {"scale": -1.0}, "positive finite"),
        (lambda t: {"backend": "cuda"}, "expected one of"),
        (lambda t: {"key": t[1][..., :0, :], "value": t[2][..., :0, :]}, "no tokens"),
        (lambda t: {"key": t[1].half()}, "one dtype"),
        (lambda t: {"query": t[0][0]}, r"batch, heads, tokens, dim"),
        (lambda t: {"other_key": t[3][:1], "other_value": t[4][:1]}, "one row of the other domain"),
        (lambda t: {"value": t[2][..., :4]}, "must agree"),
    ],
)
def test_operands_that_do_not_fit_are_refused_with_what_came_and_what_was_wanted(change, words):
    tensors = operands(2, 2, 5, 5, 8, torch.float32)
    given = dict(zip(("query", "key", "value", "other_key", "other_value"), tensors, strict=True), weight=0.5)
    with pytest.raises(ValueError, match=words):
        cross_domain_attention(**{**given, **change(tensors)})
