"""LumiX's updates across maps against dense float64 matrices, and the file they are kept in."""

from dataclasses import replace

import pytest
import torch
from intrinsic_lab.methods.lumix import schedule
from intrinsic_lab.methods.lumix.attention import attend_maps
from intrinsic_lab.methods.lumix.design import ATTENTIONS, LORAS, MAP_NAMES, Design
from intrinsic_lab.methods.lumix.tensor_lora.config import AdapterConfig
from intrinsic_lab.methods.lumix.tensor_lora.file import ATTENTION_ENTRY, MAPS_ENTRY, adapter_from_state, file_state, read_adapter
from intrinsic_lab.methods.lumix.tensor_lora.layer import Adapter, make_layer
from intrinsic_lab.tests.nodes.lumix_oracle import dense
from safetensors.torch import save_file

WIDTH, MAPS, TOKENS = 6, 5, 7


def config_of(lora, **changes):
    sizes = {"width": WIDTH, "double_blocks": 1, "single_blocks": 2, "rank": 3, "other_rank": 2 if lora == "hybrid" else 0}
    return AdapterConfig(Design(lora=lora, adapt_query=changes.pop("adapt_query", False)), **{**sizes, **changes})


def randomised(module, seed=0):
    """Every parameter drawn, so that nothing is zero at the start."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 2)
    return module


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("lora", LORAS)
def test_each_structure_equals_its_dense_matrix(lora, outputs, groups):
    layer = randomised(make_layer(config_of(lora), outputs)).double()
    x = torch.randn(*groups, MAPS, TOKENS, WIDTH, dtype=torch.float64)
    wanted = 0.5 * torch.einsum("oidje,...jte->o...itd", dense(layer.named_parameters(), lora, outputs, MAPS, WIDTH), x)
    updates = layer(x, strength=0.5)
    assert len(updates) == outputs
    for update, expected in zip(updates, wanted, strict=True):
        found = update.add_to_(torch.ones(*groups, MAPS, TOKENS, WIDTH, dtype=torch.float64))
        torch.testing.assert_close(found - 1, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lora", LORAS)
def test_an_adapter_starts_at_zero_and_its_gradient_reaches_what_it_must(lora):
    layer = make_layer(config_of(lora), 2)
    x = torch.randn(MAPS, TOKENS, WIDTH)
    assert all(update.add_to_(torch.zeros_like(x)).count_nonzero() == 0 for update in layer(x))
    randomised(layer)
    sum(update.add_to_(torch.zeros_like(x)).square().sum() for update in layer(x)).backward()
    assert all(parameter.grad.count_nonzero() for parameter in layer.parameters())


def test_merged_cores_give_the_same_update():
    adapter = randomised(Adapter(config_of("tensor"))).double()
    x = torch.randn(MAPS, TOKENS, WIDTH, dtype=torch.float64)

    def outputs():
        block = adapter.single_blocks[1]
        return [u.add_to_(torch.zeros_like(x)).detach() for u in (*block.input(x), *block.proj(x))]

    before = outputs()
    adapter.merge_()
    assert not any(name.endswith(("G1", "G2")) for name, _ in adapter.named_parameters())
    for merged, plain in zip(outputs(), before, strict=True):
        torch.testing.assert_close(merged, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("lora", "sizes", "adapt_query", "published"),
    [
        ("tensor", {"rank": 8}, False, 2.34e6),
        ("tensor", {"rank": 8}, True, 2.46e6),
        ("tensor", {"rank": 4}, False, 0.68e6),
        ("tensor", {"rank": 12}, False, 4.98e6),
        ("separate", {"rank": 32}, False, 2.95e6),
    ],
)
def test_a_block_has_the_published_number_of_parameters(lora, sizes, adapt_query, published):
    with torch.device("meta"):
        adapter = Adapter(AdapterConfig(Design(lora=lora, adapt_query=adapt_query), double_blocks=1, single_blocks=0, **sizes))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == pytest.approx(published, abs=5e3)


def test_the_default_adapter_is_the_published_one():
    with torch.device("meta"):
        tensors, _ = file_state(Adapter(AdapterConfig()))
    assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(133.1e6, rel=1e-3)
    places = [("double_blocks", n) for n in range(19)] + [("single_blocks", n) for n in range(38)]
    shapes = {"kv_tt_lora": 2 * 3072, "proj_tt_lora": 3072}
    wanted = {
        f"{part}.{n}.processor.{layer}.{core}": shape
        for part, n in places
        for layer, d_out in shapes.items()
        for core, shape in (("G1", (5, 5, 8)), ("G2", (5, 3072, 8, 8)), ("G3", (5, d_out, 8)))
    }
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == wanted


def published_like(seed=3):
    """A small file as the authors write it: published names, no header."""
    tensors, _ = file_state(randomised(Adapter(config_of("tensor")), seed))
    return tensors


def test_a_file_without_a_header_is_read_as_the_published_design(tmp_path):
    save_file({key: tensor.bfloat16() for key, tensor in published_like().items()}, tmp_path / "lumix.safetensors")
    adapter = read_adapter(tmp_path / "lumix.safetensors")
    assert adapter.config == config_of("tensor")
    assert adapter.config.design == Design("query-broadcast", "tensor", MAP_NAMES)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("adapt_query", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("lora", LORAS)
def test_every_design_survives_its_file(lora, attention, adapt_query, tmp_path):
    config = config_of(lora, adapt_query=adapt_query)
    maps = ("normal", "color", "depth")
    adapter = randomised(Adapter(replace(config, design=replace(config.design, attention=attention, maps=maps))))
    tensors, header = file_state(adapter)
    save_file(tensors, tmp_path / "a.safetensors", header)
    again = read_adapter(tmp_path / "a.safetensors")
    assert again.config == adapter.config
    for (name, one), (other_name, other) in zip(adapter.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other)


def without(tensors, end):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(end)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without(t, "single_blocks.0.processor.proj_tt_lora.G2"), r"1 of 18 weights are missing .*single_blocks\.0"),
        (lambda t: without(t, "G2"), "G2.*missing"),
        (lambda t: {}, "no weights"),
        (lambda t: {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "Load LoRA"),
        (lambda t: {**t, "double_blocks.0.processor.other": torch.zeros(1)}, "does not know"),
        (lambda t: {**t, "double_blocks.0.processor.kv_fused_lora.up": torch.zeros(1)}, "mixes"),
        (lambda t: {**t, "double_blocks.0.processor.kv_tt_lora.G3": torch.zeros(5, WIDTH, 3)}, r"\[5, 6, 3\].*\[5, 12, 3\]"),
        (lambda t: {**t, "double_blocks.0.processor.kv_tt_lora.G1": torch.full((5, 5, 3), torch.nan)}, "diverged"),
        (lambda t: {key: tensor[:4] for key, tensor in t.items()}, "4 maps, 5 were expected"),
    ],
)
def test_files_that_are_not_whole_are_refused_in_words(change, words, tmp_path):
    save_file({key: tensor.contiguous() for key, tensor in change(published_like()).items()}, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=rf"broken\.safetensors: .*{words}"):
        read_adapter(tmp_path / "broken.safetensors")


def test_headers_that_do_not_fit_are_refused_in_words(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.safetensors cannot be read"):
        read_adapter(tmp_path / "text.safetensors")
    for header, words in (
        ({MAPS_ENTRY: "albedo, color"}, "5 maps, 2 were expected"),
        ({MAPS_ENTRY: "albedo,irradiance,color,depth,heat"}, "different ones of"),
        ({ATTENTION_ENTRY: "global"}, "attention is 'global'"),
    ):
        with pytest.raises(ValueError, match=words):
            adapter_from_state(published_like(), header)


def test_sizes_that_make_no_adapter_are_refused():
    for change, words in (
        ({"rank": 0}, "rank 0"),
        ({"other_rank": 2}, "belongs to 'hybrid'"),
        ({"double_blocks": 0, "single_blocks": 0}, "0"),
    ):
        with pytest.raises(ValueError, match=words):
            config_of("tensor", **change)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_maps_attend_as_the_paper_defines_it(attention):
    groups, heads, text, image, dim, color = 2, 3, 4, 6, 8, 2
    query, key, value = (torch.randn(groups, MAPS, heads, text + image, dim, dtype=torch.float64) for _ in range(3))
    wanted = torch.empty_like(query)
    for g in range(groups):
        for i in range(MAPS):
            own = query[g, i].clone()
            if attention == "query-broadcast":
                own[:, text:] = query[g, color, :, text:]
            read = range(MAPS) if attention == "cross-intrinsic" else (i,)
            keys, values = (torch.cat([x[g, j] for j in read], dim=1) for x in (key, value))
            wanted[g, i] = (own @ keys.mT / dim**0.5).softmax(-1) @ values
    image_query = query[:, color, :, text:] if attention == "query-broadcast" else query[..., text:, :]
    found = attend_maps(attention, image_query, key, value, text_query=query[..., :text, :])
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="choose one of"):
        attend_maps("global", query, key, value)


def test_sigmas_are_those_of_fluxs_scheduler_with_the_published_shift():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    mu = schedule.published_shift(1024)
    assert mu == pytest.approx(0.5 + (64 * 64 // 256 - 256) * (1.15 - 0.5) / (4096 - 256)) == pytest.approx(0.46, abs=1e-3)
    assert schedule.shift_by_tokens(256) == pytest.approx(0.5) and schedule.shift_by_tokens(4096) == pytest.approx(1.15)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 7, 7).tolist(), mu=mu)
    torch.testing.assert_close(schedule.shifted_sigmas(7, mu), scheduler.sigmas.float())
    with pytest.raises(ValueError, match="at least 1"):
        schedule.shifted_sigmas(0, mu)
