"""LumiX among everything else: other packs' patches, masks, LoRAs, fp8, memory, clones; and what it refuses, in words."""

import os
import sys
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import node_helpers
import pytest
import torch
from intrinsic_lab.methods.lumix.design import ATTENTIONS
from intrinsic_lab.nodes import lumix
from intrinsic_lab.nodes.native.batch_rows import lumix_rows
from intrinsic_lab.nodes.native.joint_sampling import lumix_sampling
from intrinsic_lab.nodes.native.joint_sampling.lumix import load_adapter
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import randn

sys.path.insert(0, str(Path(__file__).parent))
from lumix_world import (  # noqa: F401 - fixtures
    GUIDANCE,
    MAPS,
    STEPS,
    WIDTH,
    advanced,
    conditions,
    config_of,
    joint,
    latents,
    make_lora_folder,
    make_world,
    patched,
    relative_error,
    write_adapter,
)


def core_route(model, how):
    """The same MODEL in a state in which something else has a say in its attention, without changing a number."""
    clone = model.clone()
    seen = []
    if how == "override":

        def override(function, *args, **kwargs):
            seen.append(how)
            return function(*args, **kwargs)

        clone.model_options["transformer_options"]["optimized_attention_override"] = override
    elif how == "attn1_patch":

        def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
            seen.append(tuple(extra_options["img_slice"]))
            return {"q": q, "k": k}

        clone.set_model_attn1_patch(patch)
    elif how == "attn1_output_patch":

        def output(out, options):
            seen.append(tuple(options["img_slice"]))
            return out

        clone.set_model_attn1_output_patch(output)
    return clone, seen


@pytest.mark.parametrize("how", ["override", "attn1_patch", "attn1_output_patch"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_others_put_into_the_attention_still_runs(attention, how, world, lora_folder):
    model = patched(world.model, lora_folder, config_of(attention=attention))
    clone, seen = core_route(model, how)
    assert relative_error(joint(clone, world), joint(model, world)) < 1e-5
    base, seen_in_core = core_route(world.model, how)
    advanced(base, latents(model), torch.linspace(1, 0, STEPS + 1), conditions(world))
    # Old versions of core run no attn1_patch in FLUX.
    assert seen == seen_in_core and (seen or how == "attn1_patch")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_attention_mask_that_hides_text_is_as_good_as_less_text(attention, world, lora_folder):
    model = patched(world.model, lora_folder, config_of(attention=attention))
    # Core hands masks on as numbers, which are added to the scores.
    mask = torch.zeros(1, 33, 33)
    mask[:, :, 5:9] = -1e9
    entries = {"attention_mask": mask, "attention_mask_img_shape": (4, 6)}
    masked = [node_helpers.conditioning_set_values(prompt, entries) for prompt in conditions(world)]
    short = [[[context[:, :5], {"pooled_output": pooled}]] for context, pooled in world.prompts]
    found = joint(model, world, prompts=masked)
    assert relative_error(found, joint(model, world, prompts=short)) < 1e-5
    assert relative_error(found, joint(model, world)) > 1e-4


def test_an_attn1_patch_that_changes_keys_has_its_effect_where_core_gives_it_one(world, lora_folder):
    model, sigmas = patched(world.model, lora_folder), torch.linspace(1, 0, STEPS + 1)
    latent = latents(model)
    changes = []
    for either in (world.model, model):
        clone = either.clone()
        clone.set_model_attn1_patch(lambda q, k, v, pe=None, attn_mask=None, extra_options=None: {"k": 2 * k})
        plain, other = (advanced(one, latent, sigmas, conditions(world)) for one in (either, clone))
        changes.append(relative_error(other, plain) > 1e-3)
    assert changes[0] == changes[1]


def test_another_block_replacement_stays_around_ours_and_one_that_hides_ours_is_refused(world, lora_folder):
    calls = []

    def outer(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    base = world.model.clone()
    base.set_model_patch_replace(outer, "dit", "single_block", 1)
    found = joint(patched(base, lora_folder), world)
    assert len(calls) == STEPS and torch.equal(found, joint(patched(world.model, lora_folder), world))
    hidden = patched(world.model, lora_folder).clone()
    for kind in ("double_block", "single_block"):
        for number in range(2):
            hidden.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", kind, number)
    with pytest.raises(ValueError, match="put that node before"):
        joint(hidden, world)


def test_a_lora_of_cores_loader_acts_on_all_maps_merged_bypassed_or_partly_loaded(world, lora_folder):
    layers = {"double_blocks.0.img_attn.qkv": 96, "single_blocks.1.linear1": 224, "double_blocks.1.img_attn.proj": 32}
    state = {}
    for place, (name, outputs) in enumerate(layers.items()):
        state[f"diffusion_model.{name}.lora_A.weight"] = randn(2, WIDTH, seed=place) / 4
        state[f"diffusion_model.{name}.lora_B.weight"] = randn(outputs, 2, seed=9 + place) / 2
    merged = load_pipeline(world.folder, dtype=torch.float32, text_dtype=torch.float32).model
    weights = merged.model.diffusion_model.state_dict()
    for name in layers:
        weights[f"{name}.weight"] += state[f"diffusion_model.{name}.lora_B.weight"] @ state[f"diffusion_model.{name}.lora_A.weight"]
    wanted = joint(patched(merged, lora_folder), world)
    before, _ = comfy.sd.load_lora_for_models(world.model, None, state, 1.0, 0.0)
    after, _ = comfy.sd.load_lora_for_models(patched(world.model, lora_folder), None, state, 1.0, 0.0)
    assert relative_error(joint(patched(before, lora_folder), world), wanted) < 1e-5
    assert relative_error(joint(after, world), wanted) < 1e-5
    for base in (world.model, patched(world.model, lora_folder)):
        bypassed, _ = comfy.sd.load_bypass_lora_for_models(base, None, state, 1.0, 0.0)
        both = patched(bypassed, lora_folder) if base is world.model else bypassed
        assert relative_error(joint(both, world), wanted) < 1e-5
    assert relative_error(joint(patched(world.model, lora_folder), world), wanted) > 1e-3
    comfy.model_management.unload_all_models()
    # Weights that stay behind, cast and patched layer by layer in each forward.
    partly = patched(before, lora_folder)
    partly.load(device_to=torch.device("cpu"), lowvram_model_memory=1)
    layer = partly.model.diffusion_model.double_blocks[0].img_attn.qkv
    try:
        assert layer.weight_function, "the LoRA is not merged but applied in each forward"
        found = denoised_once(partly, world)
    finally:
        partly.detach()
    whole = patched(merged, lora_folder)
    comfy.model_management.load_models_gpu([whole])
    assert relative_error(found, denoised_once(whole, world)) < 1e-5


def denoised_once(model, world):
    """One denoising call on all maps, with whatever is loaded now."""
    context, pooled = world.prompts[0]
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    options["wrappers"] = {kind: dict(by_key) for kind, by_key in model.wrappers.items()}
    x = randn(1, 16, 8, 12, seed=1).expand(MAPS, -1, -1, -1)
    extra = {"y": pooled.expand(MAPS, -1), "guidance": torch.full((MAPS,), GUIDANCE), "c_crossattn": context.expand(MAPS, -1, -1)}
    return model.model.apply_model(x, torch.full((MAPS,), 0.7), transformer_options=options, **extra)


def test_fp8_weights_sample(world, lora_folder):
    small = load_pipeline(world.folder, dtype=torch.float8_e4m3fn).model
    found, wanted = (joint(patched(model, lora_folder), world) for model in (small, world.model))
    assert small.model.diffusion_model.single_blocks[0].linear1.weight.dtype == torch.float8_e4m3fn
    assert 0 < relative_error(found, wanted) < 0.3


def test_weights_are_merged_once_a_file_and_in_comfyuis_accounts(world, lora_folder):
    model = patched(world.model, lora_folder)
    path = lora_folder / "lumix.safetensors"
    [patcher] = model.get_additional_models_with_key(lumix_rows.KEY)
    per_block = 2 * MAPS * WIDTH * MAPS * 3 + MAPS * 3 * WIDTH * 3
    assert patcher.model_size() == 4 * 4 * per_block
    again = lumix.ApplyTensorLoRA.execute(world.model, path.name, 0.5)[0]
    assert again.get_additional_models_with_key(lumix_rows.KEY) == [patcher] and load_adapter(path) is patcher
    with torch.inference_mode(False):
        write_adapter(path, config_of(rank=4))
    assert load_adapter(path) is not patcher


def test_clones_never_leak_and_the_base_is_restored(world, lora_folder):
    model = patched(world.model, lora_folder)
    latent = latents(model)
    sigmas = lumix.MapSigmas.execute(latent, 2, lumix.PUBLISHED, 0.0)[0]
    weights = {name: tensor.clone() for name, tensor in world.model.model.state_dict().items()}
    before = advanced(world.model, latent, sigmas, conditions(world))
    first = advanced(model, latent, sigmas, conditions(world))
    other = advanced(patched(world.model, lora_folder, strength=-1.0), latent, sigmas, conditions(world))
    assert relative_error(other, first) > 1e-3
    assert torch.equal(advanced(model, latent, sigmas, conditions(world)), first)
    assert torch.equal(advanced(world.model, latent, sigmas, conditions(world)), before)
    assert not world.model.model_options["transformer_options"].get("patches_replace")
    assert all(lumix_rows.KEY not in by_key for by_key in world.model.wrappers.values())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in world.model.model.state_dict().items())


def test_previews_show_all_maps_of_the_first_picture_side_by_side():
    shown = []
    callback = lumix_sampling.side_by_side(lambda step, x0, x, total: shown.append(x0), 3)
    x0 = randn(6, 4, 5, 7)
    callback(0, x0, x0, 1)
    assert torch.equal(shown[0], torch.cat([x0[0], x0[2], x0[4]], dim=2)[None])


def test_decoded_maps_are_data_and_missing_ones_stop_what_hangs_on_them(world, lora_folder):
    pipeline = load_pipeline(world.folder, dtype=torch.float32, text_dtype=torch.float32)
    maps = ("normal", "color", "albedo")
    model = patched(world.model, lora_folder, config_of(maps=maps))
    latent = {**latents(model), "samples": randn(3, 16, 8, 12, seed=2)}
    albedo, irradiance, color, depth, normal, *_ = lumix.DecodeMaps.execute(latent, pipeline.vae).args
    assert "makes no irradiance" in irradiance.message and "makes no depth" in depth.message
    picture = pipeline.vae.decode(latent["samples"])
    torch.testing.assert_close(color, picture[1:2])
    assert torch.allclose(normal.norm(dim=-1), torch.ones(1, 64, 96), atol=1e-4)
    dark = picture[2:3] <= 0.04045
    assert torch.allclose(albedo[dark], picture[2:3][dark] / 12.92, atol=1e-6)


def test_what_cannot_work_is_refused_in_words(world, lora_folder, loaded):
    model = patched(world.model, lora_folder)
    prompts = conditions(world)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    five = latents(model)
    with pytest.raises(ValueError, match=r"has 4 rows, .*Make Map Latents"):
        advanced(model, {"samples": torch.zeros(4, 16, 8, 12)}, sigmas, prompts)
    with pytest.raises(ValueError, match=r"same noise.*Make Map Latents"):
        advanced(model, {"samples": five["samples"]}, sigmas, prompts)
    with pytest.raises(ValueError, match="samples maps together already"):
        patched(model, lora_folder)
    with pytest.raises(ValueError, match="samples single pictures"):
        latents(world.model)
    with pytest.raises(ValueError, match="has no irradiance"):
        latents(patched(world.model, lora_folder, config_of(maps=("color", "depth"))), irradiance={"samples": torch.zeros(1, 16, 8, 12)})
    with pytest.raises(ValueError, match="of one size"):
        latents(model, color={"samples": torch.zeros(1, 16, 8, 12)}, depth={"samples": torch.zeros(1, 16, 8, 8)})
    with pytest.raises(ValueError, match="with 16 channels"):
        latents(model, color={"samples": torch.zeros(1, 4, 8, 12)})
    with pytest.raises(ValueError, match="multiple of 5"):
        lumix.SplitMaps.execute({"samples": torch.zeros(4, 16, 8, 12)})
    for sizes in ({"width": 64}, {"double_blocks": 1}, {"single_blocks": 3}):
        with pytest.raises(ValueError, match=r"lumix\.safetensors was trained on a transformer of width"):
            patched(world.model, lora_folder, config_of(**sizes))
    with pytest.raises(ValueError, match=r"belong to FLUX\.1"):
        patched(loaded("sd15").model, lora_folder)
    with pytest.raises(ValueError, match=r"maps can meet in Stable Diffusion UNets .* and Z-Image"):
        lumix.JoinMaps.execute(loaded("pixart").model, "query-broadcast", "color, depth")
    with pytest.raises(ValueError, match="different ones of"):
        lumix.JoinMaps.execute(world.model, "query-broadcast", "depth, depth")
    replaced = loaded("sd15").model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="already replaces self-attention"):
        lumix.JoinMaps.execute(replaced, "cross-intrinsic", "color, depth")
    assert Path(lora_folder / "lumix.safetensors").is_file()


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_compiled_model_samples_maps_as_an_uncompiled_one_in_both_orders(order, world, lora_folder):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # What dynamo does not take stops under every backend; core's own, inductor, takes minutes and a compiler.
    backend = os.environ.get("INTRINSIC_LAB_COMPILE_BACKEND", "eager")
    wanted = joint(patched(world.model, lora_folder), world, steps=1, cfg=1.0)
    base = world.model.clone()
    model = base if order == "before" else patched(base, lora_folder)
    set_torch_compile_wrapper(model, backend=backend)
    compiled = patched(model, lora_folder) if order == "before" else model
    assert relative_error(joint(compiled, world, steps=1, cfg=1.0), wanted) < 1e-4
    torch.compiler.reset()
