"""LumiX on native FLUX and Stable Diffusion against float64 oracles, and everything around it."""

from pathlib import Path
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import comfy.sd
import diffusers
import folder_paths
import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from intrinsic_lab.kernels.flops import saved_query_flops
from intrinsic_lab.methods.lumix.design import ATTENTIONS, LORAS, MAP_NAMES, Design
from intrinsic_lab.methods.lumix.tensor_lora.config import AdapterConfig
from intrinsic_lab.methods.lumix.tensor_lora.file import file_state
from intrinsic_lab.methods.lumix.tensor_lora.layer import Adapter
from intrinsic_lab.nodes import lumix
from intrinsic_lab.nodes.native import lumix_rows, lumix_sampling
from intrinsic_lab.nodes.native.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.lumix import load_adapter
from intrinsic_lab.tests.nodes.conftest import randn
from intrinsic_lab.tests.nodes.lumix_oracle import FluxOracle, UNetMaps, dense
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import nodes as comfyui

STEPS, CFG, GUIDANCE, SEED = 4, 2.5, 3.5, 7
WIDTH, MAPS, COLOR = 32, len(MAP_NAMES), MAP_NAMES.index("color")
PIXELS = {"width": 96, "height": 64}


def config_of(lora="tensor", attention="query-broadcast", **changes):
    design = Design(attention, lora, changes.pop("maps", MAP_NAMES), changes.pop("adapt_query", False))
    sizes = {"width": WIDTH, "double_blocks": 2, "single_blocks": 2, "rank": 3, "other_rank": 2 if lora == "hybrid" else 0}
    return AdapterConfig(design, **{**sizes, **changes})


def write_adapter(path, config, seed=0):
    """A random adapter, strong enough to matter."""
    adapter = Adapter(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            size = 0.5 if name.endswith(("G3", "up")) else parameter.shape[-2] ** -0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=draw))
    tensors, header = file_state(adapter)
    save_file(tensors, path, header)
    return adapter


@pytest.fixture(scope="session")
def world(flux_folder):
    """The tiny FLUX natively, its prompts, and the adapter of the default design."""
    return SimpleNamespace(
        folder=flux_folder,
        model=load_pipeline(flux_folder, dtype=torch.float32, text_dtype=torch.float32).model,
        prompts=[(randn(1, 9, 32, seed=seed), randn(1, 32, seed=seed + 10)) for seed in (1, 2)],
    )


@pytest.fixture(autouse=True)
def lora_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with torch.inference_mode():
        yield tmp_path


def conditions(world):
    return [[[context, {"pooled_output": pooled}]] for context, pooled in world.prompts]


def patched(model, folder, config=None, strength=1.0, **options):
    """The node's MODEL with a random adapter."""
    with torch.inference_mode(False):
        write_adapter(folder / "lumix.safetensors", config or config_of())
    return lumix.ApplyTensorLoRA.execute(model, "lumix.safetensors", strength, **options)[0]


def latents(model, **given):
    return lumix.MapLatents.execute(model, **PIXELS, batch_size=1, **given)[0]


def joint(model, world, latent=None, cfg=CFG, sampler="euler", steps=STEPS, prompts=None):
    """The Joint Sampler's batch, in the model's own latent scale."""
    settings = dict(steps=steps, guidance=GUIDANCE, cfg=cfg, sampler_name=sampler, seed=SEED)
    output = lumix.JointSampler.execute(model, *(prompts or conditions(world)), **PIXELS, latent=latent, **settings)
    return model.model.process_latent_in(output[5]["samples"])


def relative_error(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def oracle_of(world, adapter, strength=1.0, blocks=None):
    """The oracle of an adapter; blocks: {(kind, number)} that are changed, None for all."""
    config, network = adapter.config, diffusers.FluxTransformer2DModel.from_pretrained(world.folder / "transformer")

    def deltas(kind, number, place):
        layer = getattr(getattr(adapter, f"{kind}_blocks")[number], place)
        outputs = 1 if place == "proj" else config.input_outputs
        return dense(layer.named_parameters(), config.design.lora, outputs, len(config.design.maps), WIDTH)

    return FluxOracle(network, config.design.attention, config.design.color_row, deltas, strength)


def wanted_by(oracle, world, latent, clean=None):
    noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent["batch_index"])
    sigmas = lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0]
    return oracle.euler(noise, sigmas, *world.prompts, GUIDANCE, CFG, clean)


DESIGNS = [(attention, lora, False) for attention in ATTENTIONS for lora in LORAS] + [
    ("query-broadcast", "tensor", True),
    ("separate", "fused", True),
]


@pytest.mark.parametrize(("attention", "lora", "adapt_query"), DESIGNS)
def test_four_guided_steps_of_every_design_equal_the_paper_in_float64(attention, lora, adapt_query, world, lora_folder):
    config = config_of(lora, attention, adapt_query=adapt_query)
    model = patched(world.model, lora_folder, config, strength=0.8)
    with torch.inference_mode(False):
        oracle = oracle_of(world, write_adapter(lora_folder / "same.safetensors", config), strength=0.8)
    latent = latents(model)
    found = joint(model, world)
    assert relative_error(found, wanted_by(oracle, world, latent)) < 1e-4
    assert relative_error(found, wanted_by(FluxOracle(oracle.network, "separate", COLOR, lambda *place: None), world, latent)) > 0.02


def test_maps_given_are_seen_clean_at_t_0_and_come_back_exactly(world, lora_folder):
    model = patched(world.model, lora_folder)
    with torch.inference_mode(False):
        oracle = oracle_of(world, write_adapter(lora_folder / "same.safetensors", config_of()))
    for names in (("color",), ("depth", "normal")):
        given = {name: {"samples": randn(1, 16, 8, 12, seed=20 + place)} for place, name in enumerate(names)}
        latent = latents(model, **given)
        into = world.model.model.process_latent_in
        clean = {MAP_NAMES.index(name): into(value["samples"][0]) for name, value in given.items()}
        output = lumix.JointSampler.execute(
            model, *conditions(world), 0, 0, steps=STEPS, guidance=GUIDANCE, cfg=CFG, sampler_name="euler", seed=SEED, latent=latent
        )
        for name, value in given.items():
            assert torch.equal(output[MAP_NAMES.index(name)]["samples"], value["samples"])
        found = model.model.process_latent_in(output[5]["samples"])
        assert relative_error(found, wanted_by(oracle, world, latent, clean)) < 1e-4
        assert relative_error(found, wanted_by(oracle, world, latent)) > 0.05


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde"])
def test_stock_samplers_keep_given_maps_and_share_their_noise_between_the_others(sampler, world, lora_folder):
    model = patched(world.model, lora_folder)
    given = {"samples": randn(1, 16, 8, 12, seed=3)}
    latent = latents(model, color=given)
    [result] = comfyui.common_ksampler(model, SEED, 3, CFG, sampler, "simple", *conditions(world), latent)
    assert torch.equal(result["samples"][COLOR], given["samples"][0]) and result["samples"].isfinite().all()
    # Without an update, with separate attention, maps can only part where their noise does.
    alike = patched(world.model, lora_folder, strength=0.0, attention="separate")
    [result] = comfyui.common_ksampler(alike, SEED, 3, CFG, sampler, "simple", *conditions(world), latents(alike))
    assert all(relative_error(row, result["samples"][0]) < 1e-4 for row in result["samples"][1:])


def test_a_prompt_with_a_time_range_is_not_dropped_while_a_map_is_clean(world, lora_folder):
    model = patched(world.model, lora_folder)
    positive, negative = conditions(world)
    latent = latents(model, albedo={"samples": randn(1, 16, 8, 12, seed=3)})
    # The clean rows come first in the batch; core judges ranges by the first row's noise level.
    late = node_helpers.conditioning_set_values(negative, {"start_percent": 0.5, "end_percent": 1.0})
    early = node_helpers.conditioning_set_values(positive, {"start_percent": 0.0, "end_percent": 0.5})
    whole = joint(model, world, latent)
    both = joint(model, world, latent, prompts=(early + late, negative))
    assert relative_error(both, whole) > 0.01
    every = [node_helpers.conditioning_set_values(positive, {"start_percent": 0.0, "end_percent": 1.0}), negative]
    assert torch.equal(joint(model, world, latent, prompts=every), whole)
    # The first half of the steps is under the first prompt: what differs begins after it.
    sigmas = lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0]
    middle = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    until = int((sigmas >= middle).sum())
    assert 1 < until < STEPS
    halves = [advanced(model, latent, sigmas[:until], prompts) for prompts in ((early + late, negative), (positive, negative))]
    assert torch.equal(*halves)


def advanced(model, latent, sigmas, prompts, cfg=CFG):
    """Core's SamplerCustomAdvanced on the parts."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*(node_helpers.conditioning_set_values(prompt, {"guidance": GUIDANCE}) for prompt in prompts))
    guider.set_cfg(cfg)
    noise, euler = nodes_custom_sampler.Noise_RandomNoise(SEED), comfy.samplers.sampler_object("euler")
    return nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent)[0]["samples"]


@pytest.mark.parametrize("given", [False, True])
def test_the_joint_sampler_equals_cores_sampler_with_the_parts(given, world, lora_folder):
    model = patched(world.model, lora_folder)
    latent = latents(model, **({"color": {"samples": randn(1, 16, 8, 12, seed=3)}} if given else {}))
    parts = advanced(model, latent, lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0], conditions(world))
    settings = dict(steps=STEPS, guidance=GUIDANCE, cfg=CFG, sampler_name="euler", seed=SEED)
    whole = lumix.JointSampler.execute(model, *conditions(world), **PIXELS, latent=latent if given else None, **settings)
    assert torch.equal(whole[5]["samples"], parts)
    split = lumix.SplitMaps.execute({**latent, "samples": parts})
    for place in range(MAPS):
        assert torch.equal(whole[place]["samples"], parts[place : place + 1])
        assert torch.equal(split[place]["samples"], parts[place : place + 1])


def test_zero_strength_and_separate_attention_are_the_base_model_bit_for_bit(world, lora_folder):
    model = patched(world.model, lora_folder, strength=0.0, attention="separate")
    latent = latents(model)
    sigmas = lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0]
    assert torch.equal(advanced(model, latent, sigmas, conditions(world)), advanced(world.model, latent, sigmas, conditions(world)))


def test_blocks_outside_the_ranges_are_the_base_models(world, lora_folder):
    model = patched(world.model, lora_folder, double_blocks="1", single_blocks="0-1")
    replaced = model.model_options["transformer_options"]["patches_replace"]["dit"]
    assert set(replaced) == {("double_block", 1), ("single_block", 0), ("single_block", 1)}
    assert relative_error(joint(model, world), joint(patched(world.model, lora_folder), world)) > 1e-3
    with pytest.raises(ValueError, match="no single block 2: this MODEL has 2"):
        patched(world.model, lora_folder, single_blocks="0-2")


def test_several_pictures_in_a_batch_are_what_each_is_alone(world, lora_folder):
    model = patched(world.model, lora_folder)
    both = lumix.MapLatents.execute(model, **PIXELS, batch_size=2)[0]
    assert both["samples"].shape == (2 * MAPS, 16, 8, 12) and both["batch_index"] == [0, 1] * MAPS
    found = lumix.JointSampler.execute(
        model, *conditions(world), 0, 0, steps=2, guidance=GUIDANCE, cfg=CFG, sampler_name="euler", seed=SEED, latent=both
    )
    for picture in range(2):
        latent = {**latents(model), "batch_index": [picture] * MAPS}
        alone = lumix.JointSampler.execute(
            model, *conditions(world), 0, 0, steps=2, guidance=GUIDANCE, cfg=CFG, sampler_name="euler", seed=SEED, latent=latent
        )
        for place in range(MAPS):
            assert relative_error(found[place]["samples"][picture], alone[place]["samples"][0]) < 1e-5


def test_guidance_in_one_forward_or_in_two_gives_the_same(world, lora_folder, monkeypatch):
    model = patched(world.model, lora_folder)
    batched = joint(model, world)
    rows = []
    hook = world.model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e15)
    try:
        split = joint(model, world)
        assert rows == [MAPS] * 2 * STEPS
        joint(model, world, cfg=1.0)
        assert rows[2 * STEPS :] == [MAPS] * STEPS
    finally:
        hook.remove()
    assert relative_error(split, batched) < 1e-5


def linear_flops(model, world):
    """Floating-point operations of all Linears in one step of all maps."""
    with FlopCounterMode(display=False) as counter:
        joint(model, world, steps=1, cfg=1.0)
    return sum(count for operation, count in counter.get_flop_counts()["Global"].items() if str(operation) in ("aten.mm", "aten.addmm"))


def test_a_broadcast_query_is_projected_for_one_map_only(world, lora_folder):
    broadcast, separate = (lumix.JoinMaps.execute(world.model, way, ", ".join(MAP_NAMES))[0] for way in ("query-broadcast", "separate"))
    image, text, blocks = 24, 9, 2
    saved = saved_query_flops(image, WIDTH, MAPS) + saved_query_flops(image + text, WIDTH, MAPS)
    assert linear_flops(separate, world) - linear_flops(broadcast, world) == blocks * saved


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
    assert len(seen) == 4 * STEPS
    if how.startswith("attn1"):
        assert set(seen) == {(9, 33)}, "text and image tokens, as core tells them"


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


def test_an_attn1_patch_that_changes_keys_has_its_effect(world, lora_folder):
    model = patched(world.model, lora_folder).clone()
    wanted = joint(model, world)
    model.set_model_attn1_patch(lambda q, k, v, pe=None, attn_mask=None, extra_options=None: {"k": 2 * k})
    assert relative_error(joint(model, world), wanted) > 1e-3


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


def test_a_lora_of_cores_loader_acts_on_all_maps_merged_or_bypassed_in_memory(world, lora_folder):
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
    albedo, irradiance, color, depth, normal = lumix.DecodeMaps.execute(latent, pipeline.vae).args
    assert "makes no irradiance" in irradiance.message and "makes no depth" in depth.message
    picture = pipeline.vae.decode(latent["samples"])
    torch.testing.assert_close(color, picture[1:2])
    assert torch.allclose(normal.norm(dim=-1), torch.ones(1, 64, 96), atol=1e-4)
    dark = picture[2:3] <= 0.04045
    assert torch.allclose(albedo[dark], picture[2:3][dark] / 12.92, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_rows_of_stable_diffusion_meet_as_the_paper_defines_it(family, attention, folders, loaded):
    model = lumix.JoinMaps.execute(loaded(family).model, attention, "depth, color, normal")[0]
    network = diffusers.UNet2DConditionModel.from_pretrained(folders[family] / "unet").double().eval()
    processor = UNetMaps(attention, color=1)
    network.set_attn_processor({name: processor if ".attn1." in name else own for name, own in network.attn_processors.items()})
    x, context, t = randn(3, 4, 16, 8), randn(3, 9, network.config.cross_attention_dim, seed=1), 500
    pooled, sizes = randn(3, 48, seed=2), torch.tensor([[128.0, 64, 0, 0, 128, 64]]).expand(3, -1)
    extra = {"added_cond_kwargs": {"text_embeds": pooled.double(), "time_ids": sizes.double()}} if family == "sdxl" else {}
    wanted = network(x.double(), t, context.double(), return_dict=False, **extra)[0]
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma(torch.tensor([float(t)]))
    native = {}
    if family == "sdxl":
        native["y"] = loaded(family).model.model.encode_adm(pooled_output=pooled, width=64, height=128)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    options["wrappers"] = {kind: dict(by_key) for kind, by_key in model.wrappers.items()}
    comfy.model_management.load_models_gpu([model])
    denoised = model.model.apply_model(
        x * (sigma**2 + 1).sqrt(), sigma.expand(3), c_crossattn=context, transformer_options=options, **native
    )
    given = sampling.calculate_denoised(sigma.expand(3), wanted.float(), x * (sigma**2 + 1).sqrt())
    assert processor.calls == sum(".attn1." in name for name in network.attn_processors)
    assert relative_error(denoised, given) < 1e-4


def test_stable_diffusion_samples_joined_rows_and_keeps_given_ones(loaded):
    model = lumix.JoinMaps.execute(loaded("sd21").model, "query-broadcast", ", ".join(MAP_NAMES))[0]
    given = {"samples": randn(1, 4, 8, 12, seed=3)}
    prompts = [[[randn(1, 9, 32, seed=seed), {}]] for seed in (1, 2)]
    output = lumix.JointSampler.execute(
        model, *prompts, 96, 64, steps=3, guidance=1.0, cfg=CFG, sampler_name="euler", seed=SEED, latent=latents(model, normal=given)
    )
    assert torch.equal(output[4]["samples"], given["samples"]) and output[5]["samples"].isfinite().all()


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
        with pytest.raises(ValueError, match=r"lumix\.safetensors was trained on a FLUX of width"):
            patched(world.model, lora_folder, config_of(**sizes))
    with pytest.raises(ValueError, match=r"belong to FLUX\.1"):
        patched(loaded("sd15").model, lora_folder)
    with pytest.raises(ValueError, match=r"maps can meet in FLUX\.1 and in Stable Diffusion"):
        lumix.JoinMaps.execute(loaded("pixart").model, "query-broadcast", "color, depth")
    with pytest.raises(ValueError, match="different ones of"):
        lumix.JoinMaps.execute(world.model, "query-broadcast", "depth, depth")
    replaced = loaded("sd15").model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="already replaces self-attention"):
        lumix.JoinMaps.execute(replaced, "cross-intrinsic", "color, depth")
    assert Path(lora_folder / "lumix.safetensors").is_file()
