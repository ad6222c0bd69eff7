"""LumiX on native FLUX and Stable Diffusion against float64 oracles, and against core's own sampling."""

import sys
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import diffusers
import node_helpers
import pytest
import torch
from intrinsic_lab.kernels.flops import saved_query_flops
from intrinsic_lab.methods.lumix.design import ATTENTIONS, LORAS, MAP_NAMES
from intrinsic_lab.nodes import lumix
from intrinsic_lab.tests.nodes.conftest import randn
from intrinsic_lab.tests.nodes.lumix_oracle import FluxOracle, UNetMaps
from torch.utils.flop_counter import FlopCounterMode

import nodes as comfyui

sys.path.insert(0, str(Path(__file__).parent))
from lumix_world import (  # noqa: F401 - fixtures
    CFG,
    COLOR,
    GUIDANCE,
    MAPS,
    PIXELS,
    SEED,
    STEPS,
    WIDTH,
    advanced,
    conditions,
    config_of,
    joint,
    latents,
    make_lora_folder,
    make_world,
    oracle_of,
    patched,
    relative_error,
    wanted_by,
    write_adapter,
)

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
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    # A Linear on a slice of a stream is a bmm. So is the weighted sum of core's attention on a CPU, as costly as its scores, a baddbmm.
    return counts["aten.addmm"] + counts.get("aten.bmm", 0) - counts.get("aten.baddbmm", 0)


def test_a_broadcast_query_is_projected_for_one_map_only(world, lora_folder):
    broadcast, separate = (lumix.JoinMaps.execute(world.model, way, ", ".join(MAP_NAMES))[0] for way in ("query-broadcast", "separate"))
    image, text, blocks = 24, 9, 2
    saved = saved_query_flops(image, WIDTH, MAPS) + saved_query_flops(image + text, WIDTH, MAPS)
    assert linear_flops(separate, world) - linear_flops(broadcast, world) == blocks * saved


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
