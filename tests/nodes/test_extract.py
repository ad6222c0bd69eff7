"""Apply Intrinsic LoRA and Extract Intrinsic Maps on a tiny random Stable Diffusion, against diffusers + peft on the same weights."""

import gc
import os
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.nodes import extract as extract_nodes
from intrinsic_lab.nodes.native.backbones.unet import ImageToImage
from intrinsic_lab.nodes.native.batch_rows import row_lora
from intrinsic_lab.nodes.native.joint_sampling import single_step
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from peft.utils import get_peft_model_state_dict

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import (
    ATTENTION,
    FOUR_MAPS,
    apply,
    both_worlds,
    error,
    extract,
    folders,
    hooks_left,
    normal_model,
    peft_unet,
    save_lora,
    tiny,
)


@pytest.fixture(scope="module")
def nano_like(nano_folder):
    return both_worlds(nano_folder)


@contextmanager
def counted_forwards(model):
    rows = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.fixture(params=["attention", "all"])
def four_maps(request, tiny, folders):
    """A MODEL with four maps applied, and the four diffusers UNets with the same LoRAs."""
    model, unets = tiny.model, {}
    for seed, name in enumerate(FOUR_MAPS):
        unets[name], state = peft_unet(tiny, ATTENTION if request.param == "attention" else "all", seed)
        save_lora(folders, name, state)
        model = apply(model, name)
    return model, unets


def test_four_maps_in_one_forward_equal_four_diffusers_and_peft_forwards(tiny, four_maps):
    model, unets = four_maps
    image = torch.rand(2, 40, 56, 3)
    with counted_forwards(tiny.model) as rows:
        output = extract(tiny, model, image)
    assert rows == [8]
    for name, unet in unets.items():
        assert error(tiny, output, unet, image, name) < 1e-4
        unet.disable_adapters()
        assert error(tiny, output, unet, image, name) > 0.05, "the LoRA is too weak for this comparison to mean anything"
    assert output[0].shape == output[1].shape == (2, 40, 56, 3)
    assert torch.equal(output[1][..., 0], output[1][..., 2])
    assert len(output.ui.as_dict()["images"]) == 1


def test_a_model_with_its_own_latents_and_vocabulary_gives_diffusers_maps(nano_like, folders):
    """The shape of the bundled model: 16 latent channels with a shift, widths that are no whole multiples, its own tokenizer."""
    model, unets = nano_like.model, {}
    for seed, name in enumerate(FOUR_MAPS):
        unets[name], state = peft_unet(nano_like, "all", seed)
        save_lora(folders, name, state)
        model = apply(model, name)
    image = torch.rand(2, 40, 56, 3)
    output = extract(nano_like, model, image)
    for name, unet in unets.items():
        assert error(nano_like, output, unet, image, name) < 1e-4


def test_four_maps_in_one_forward_equal_four_merged_passes(tiny, four_maps, folders):
    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    together = extract(tiny, model, image)
    for index, name in enumerate(unets):
        lora = comfy.utils.load_torch_file(str(folders / f"{name}.safetensors"))
        merged, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0.0)
        alone = extract(tiny, merged, image, merged_map=name)
        assert (together[4]["samples"][index] - alone[4]["samples"][0]).abs().max() * tiny.vae.config.scaling_factor < 1e-4
        others = [output for position, output in enumerate(alone.args[:4]) if position != index]
        assert all(isinstance(other, ExecutionBlocker) for other in others)


def test_pictures_and_rows_that_do_not_fit_run_one_after_the_other(tiny, four_maps, monkeypatch):
    model, _ = four_maps
    image = torch.rand(3, 32, 32, 3)
    whole = extract(tiny, model, image)
    for fitting, wanted in ((8, [8, 4]), (3, [3, 1] * 3)):
        monkeypatch.setattr(extract_nodes, "rows_per_forward", lambda model, height, width, fitting=fitting: fitting)
        with counted_forwards(tiny.model) as rows:
            split = extract(tiny, model, image)
        assert rows == wanted
        assert (whole[4]["samples"] - split[4]["samples"]).abs().max() * tiny.vae.config.scaling_factor < 1e-4


def test_a_forward_that_runs_out_of_memory_is_tried_again_in_halves(tiny, four_maps):
    model, _ = four_maps
    image = torch.rand(1, 32, 32, 3)
    whole = extract(tiny, model, image)

    def run_out(module, args):
        if args[0].shape[0] > 2:
            raise comfy.model_management.OOM_EXCEPTION("no memory for this many rows")

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(run_out)
    try:
        with counted_forwards(tiny.model) as rows:
            halves = extract(tiny, model, image)
    finally:
        handle.remove()
    assert rows == [2, 2] and hooks_left(tiny.model) == 0
    assert (whole[4]["samples"] - halves[4]["samples"]).abs().max() * tiny.vae.config.scaling_factor < 1e-5


def test_the_base_model_is_bit_equal_after_a_run_and_keeps_no_hook(tiny, four_maps):
    model, _ = four_maps
    before = {key: value.clone() for key, value in tiny.model.model.state_dict().items()}
    extract(tiny, model, torch.rand(1, 32, 32, 3))
    after = tiny.model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert hooks_left(tiny.model) == 0
    assert row_lora.carried_maps(tiny.model) == {} and not tiny.model.additional_models and row_lora.KEY not in str(tiny.model.wrappers)


def test_clones_do_not_leak_into_each_other(tiny, four_maps):
    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    normal_only = apply(tiny.model, "normal")
    albedo_only = apply(tiny.model, "albedo", strength=0.5)
    first = extract(tiny, normal_only, image)
    extract(tiny, albedo_only, image)
    extract(tiny, model, image)
    again = extract(tiny, normal_only, image)
    assert torch.equal(first[0], again[0])
    assert list(row_lora.carried_maps(normal_only)) == ["normal"] and list(row_lora.carried_maps(model)) == list(FOUR_MAPS)
    assert error(tiny, again, unets["normal"], image, "normal") < 1e-4


def test_strength_scales_the_lora_and_zero_is_the_base_model(tiny, folders):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "albedo", state)
    image = torch.rand(1, 32, 32, 3)
    half = extract(tiny, apply(tiny.model, "albedo", strength=0.5), image)
    zero = extract(tiny, apply(tiny.model, "albedo", strength=0.0), image)
    unet.disable_adapters()
    assert error(tiny, zero, unet, image, "albedo") < 1e-4
    unet.enable_adapters()
    unet.set_adapters("default", 0.5)
    assert error(tiny, half, unet, image, "albedo") < 1e-4


@pytest.mark.parametrize("order", ["lora_loader_on_top", "lora_loader_below"])
def test_a_lora_loader_lora_has_its_effect_beside_ours(tiny, folders, order):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "depth", state)
    other, other_state = peft_unet(tiny, "all", seed=9)
    if order == "lora_loader_on_top":
        model, _ = comfy.sd.load_lora_for_models(apply(tiny.model, "depth"), None, other_state, 0.7, 0.0)
    else:
        model = apply(comfy.sd.load_lora_for_models(tiny.model, None, other_state, 0.7, 0.0)[0], "depth")
    image = torch.rand(1, 32, 32, 3)
    output = extract(tiny, model, image)
    assert error(tiny, output, unet, image, "depth") > 1e-2
    with torch.inference_mode(False):
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=other.peft_config["default"].target_modules)
        unet.add_adapter(config, "other")
        peft.set_peft_model_state_dict(unet, get_peft_model_state_dict(other), "other")
        unet.set_adapters(["default", "other"], [1.0, 0.7])
    assert error(tiny, output, unet, image, "depth") < 1e-4


def test_fp8_weights_carry_loras_too(tiny, folders):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "albedo", state)
    model = load_pipeline(tiny.folder, dtype=torch.float8_e4m3fn).model
    assert model.model.diffusion_model.input_blocks[1][0].in_layers[2].weight.dtype == torch.float8_e4m3fn
    with torch.inference_mode(False):
        for name, parameter in unet.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    image = torch.rand(1, 32, 32, 3)
    output = extract(tiny, apply(model, "albedo"), image)
    assert error(tiny, output, unet, image, "albedo") < 1e-4


def test_prompts_of_different_token_counts_share_a_forward(tiny, folders):
    _, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "albedo", state, prompt="colour " * 100)
    other, other_state = peft_unet(tiny, ATTENTION, seed=1)
    save_lora(folders, "shading", other_state)
    image = torch.rand(1, 32, 32, 3)
    with counted_forwards(tiny.model) as rows:
        output = extract(tiny, apply(apply(tiny.model, "albedo"), "shading"), image)
    assert rows == [2]
    assert error(tiny, output, other, image, "shading") < 1e-4


def test_a_stock_sampler_runs_a_single_map_on_every_row_and_refuses_several(tiny, normal_model, folders):
    assert row_lora._map_of_row({"normal": None}, torch.zeros(2, 4, 2, 2), {}) == ("normal", "normal")
    save_lora(folders, "depth", peft_unet(tiny, ATTENTION, seed=1)[1])
    both = apply(normal_model, "depth")
    clone = both.clone()
    clone.add_object_patch("model_sampling", ImageToImage(tiny.model.model.model_config))
    forward = single_step.RowForward(clone, ("normal",), [(torch.randn(1, 77, 32), {})], False, torch.tensor([14.6]), ("raw",))
    with pytest.raises(ValueError, match="a sampler cannot know which row is which"):
        forward(torch.randn(2, 4, 2, 2), [0, 0])
    assert hooks_left(tiny.model) == 0


@pytest.mark.parametrize("family", ["sd21_folder", "sdxl_folder"])
def test_four_maps_on_sd21_and_sdxl_equal_four_merged_passes(family, request, folders):
    native = load_pipeline(request.getfixturevalue(family), dtype=torch.float32, text_dtype=torch.float32)
    other = SimpleNamespace(folder=request.getfixturevalue(family), model=native.model, clip=native.clip, native_vae=native.vae)
    image, model = torch.rand(1, 64, 64, 3), native.model
    for seed, name in enumerate(FOUR_MAPS):
        save_lora(folders, name, peft_unet(other, "all", seed)[1])
        model = apply(model, name)
    with counted_forwards(native.model) as rows:
        together = extract(other, model, image)[4]["samples"]
    assert rows == [4]
    for row, name in enumerate(FOUR_MAPS):
        lora = comfy.utils.load_torch_file(str(folders / f"{name}.safetensors"))
        merged, _ = comfy.sd.load_lora_for_models(native.model, None, lora, 1.0, 0.0)
        alone = extract(other, merged, image, merged_map=name)[4]["samples"][0]
        assert (together[row] - alone).abs().max() < 1e-4 * alone.abs().max()
        assert (together[row] - together[row - 1]).abs().max() > 0.1


def test_an_interrupt_stops_within_a_tile_and_leaves_no_hook(tiny, normal_model):
    interrupted = []

    def interrupt(module, args):
        interrupted.append(1)
        if len(interrupted) == 2:
            comfy.model_management.interrupt_current_processing(True)

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extract(tiny, normal_model, torch.rand(1, 64, 96, 3), tile_size=32, tile_overlap=8)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(interrupted) == 2 and hooks_left(tiny.model) == 0


def test_a_compiled_model_does_not_lose_its_lora(tiny, four_maps):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    by_core, by_another_pack = model.clone(), model.clone()
    set_torch_compile_wrapper(by_core, backend="eager")
    by_another_pack.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend="eager"))
    for compiled in (by_core, by_another_pack):
        output = extract(tiny, compiled, image)
        for name, unet in unets.items():
            assert error(tiny, output, unet, image, name) < 1e-4


def test_a_patch_of_another_node_that_fails_in_the_single_step_is_named(tiny, normal_model):
    def halves_share_a_style(query, key, value, options):
        style = key[[0, key.shape[0] // 2]].unsqueeze(1).expand(2, key.shape[0] // 2, *key.shape[1:])
        return query, style.reshape(key.shape), value

    halves_share_a_style.__module__ = "/custom_nodes/style_aligned"
    styled = normal_model.clone()
    styled.set_model_attn1_patch(halves_share_a_style)
    with pytest.raises(ValueError, match=r"failed under patches of other nodes .*\(style_aligned\.test_a_patch.*MODEL from before"):
        extract(tiny, styled, torch.rand(1, 32, 32, 3))
    assert hooks_left(tiny.model) == 0


def test_the_adapters_are_in_cores_memory_accounting(tiny, four_maps):
    model, _ = four_maps
    patchers = model.get_nested_additional_models()
    assert len(patchers) == 4
    layers = sum(1 for _ in patchers[0].model.named_deltas())
    assert layers >= 32 and patchers[0].model_size() == sum(parameter.nbytes for parameter in patchers[0].model.parameters())
    extract(tiny, model, torch.rand(1, 32, 32, 3))
    loaded = [entry.model.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert all(patcher.model in loaded for patcher in patchers)


def test_a_patched_model_is_gone_with_its_owner_without_waiting_for_the_garbage_collector(tiny, normal_model):
    """Core collects all garbage at every load while a patched clone is dead and still listed: each forward would take many times longer."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            model = normal_model.clone()
            gone = weakref.ref(model)
            extract(tiny, model, torch.rand(1, 32, 32, 3))
            del model
            assert gone() is None
        assert not any(entry.model is None for entry in comfy.model_management.current_loaded_models)
    finally:
        gc.enable()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_300_extractions_do_not_grow_memory(tiny, normal_model, monkeypatch):
    # Core collects all garbage at every load while a model of an earlier test is half gone: minutes of it here.
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    image = torch.rand(1, 32, 32, 3)
    for _ in range(30):
        extract(tiny, normal_model, image)
    gc.collect()
    before, modules = resident_bytes(), len(comfy.model_management.current_loaded_models)
    for _ in range(300):
        extract(tiny, normal_model, image)
    gc.collect()
    assert len(comfy.model_management.current_loaded_models) <= modules
    assert resident_bytes() - before < 16 * 2**20
