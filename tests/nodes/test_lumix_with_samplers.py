"""Ways in which people sample maps: several scenes with maps given, odd sizes, two samplings in a row, part of the way, two stages."""

import sys
from pathlib import Path

import comfy.sample
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from intrinsic_lab.methods.lumix.design import MAP_NAMES
from intrinsic_lab.nodes import lumix
from intrinsic_lab.tests.nodes.conftest import randn

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
    advanced,
    conditions,
    joint,
    latents,
    make_lora_folder,
    make_world,
    patched,
    relative_error,
)


def given(pictures=1, height=8, width=12, seed=3):
    return {"samples": randn(pictures, 16, height, width, seed=seed)}


def sampled(model, world, latent, **changes):
    """What KSampler makes of a latent."""
    settings = {"seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple", **changes}
    prompts = [node_helpers.conditioning_set_values(prompt, {"guidance": GUIDANCE}) for prompt in conditions(world)]
    order = ("seed", "steps", "cfg", "sampler_name", "scheduler")
    rest = {name: value for name, value in settings.items() if name not in order}
    return comfyui.common_ksampler(model, *(settings[name] for name in order), *prompts, latent, **rest)[0]


def test_scenes_of_a_batch_with_given_maps_are_what_each_is_alone(world, lora_folder):
    model = patched(world.model, lora_folder)
    colors = given(3)
    latent = lumix.MapLatents.execute(model, 0, 0, 1, color=colors)[0]
    assert latent["samples"].shape[0] == 3 * MAPS
    together = sampled(model, world, latent)["samples"].unflatten(0, (MAPS, 3))
    assert torch.equal(together[COLOR], colors["samples"])
    for picture in range(3):
        one = {"samples": colors["samples"][picture : picture + 1]}
        alone = {**latents(model, color=one), "batch_index": [picture] * MAPS}
        assert relative_error(together[:, picture], sampled(model, world, alone)["samples"]) < 1e-5


@pytest.mark.parametrize("attention", ["query-broadcast", "cross-intrinsic", "separate"])
def test_odd_latents_are_padded_as_core_pads_them(attention, world, lora_folder):
    alike = patched(world.model, lora_folder, strength=0.0, attention=attention)
    for height, width in ((9, 13), (8, 11)):
        latent = latents(alike, depth=given(1, height, width))
        result = sampled(alike, world, latent)["samples"]
        assert result.shape == (MAPS, 16, height, width) and result.isfinite().all()
        # Without an update the colour map, reading with its own queries, is the base model's picture.
        if attention != "cross-intrinsic":
            row = {"samples": torch.zeros(1, 16, height, width)}
            assert relative_error(result[COLOR], sampled(world.model, world, row)["samples"][0]) < 1e-5
    sigmas = lumix.MapSigmas.execute(latent, STEPS, lumix.PUBLISHED, 0.0)[0]
    whole = joint(alike, world, latent)
    assert torch.equal(whole, alike.model.process_latent_in(advanced(alike, latent, sigmas, conditions(world))))


def test_a_sampling_leaves_nothing_behind_for_the_next(world, lora_folder):
    model = patched(world.model, lora_folder)
    plain, conditioned = latents(model), latents(model, color=given())
    first = [sampled(model, world, latent)["samples"] for latent in (plain, conditioned)]
    assert relative_error(*first) > 0.05
    for latent, before in ((plain, first[0]), (conditioned, first[1]), (plain, first[0])):
        assert torch.equal(sampled(model, world, latent)["samples"], before)
    # The base, sampled in between, neither.
    row = {"samples": torch.zeros(1, 16, 8, 12)}
    base = sampled(world.model, world, row)["samples"]
    sampled(model, world, conditioned)
    assert torch.equal(sampled(world.model, world, row)["samples"], base)


def test_part_of_the_way_starts_from_all_maps_and_keeps_given_ones(world, lora_folder):
    model = patched(world.model, lora_folder)
    made = sampled(model, world, latents(model))
    weak, strong = (sampled(model, world, made, denoise=denoise, seed=SEED + 1)["samples"] for denoise in (0.1, 0.7))
    assert 0 < relative_error(weak, made["samples"]) < relative_error(strong, made["samples"])
    maps = dict(zip(MAP_NAMES, lumix.SplitMaps.execute(made).args[:MAPS], strict=True))
    kept = {**latents(model, color=maps["color"]), "samples": made["samples"]}
    result = sampled(model, world, kept, denoise=0.5)["samples"]
    assert torch.equal(result[COLOR], maps["color"]["samples"][0])
    assert all(relative_error(result[row], made["samples"][row]) > 1e-3 for row in range(MAPS) if row != COLOR)


def test_two_stages_give_what_one_gives(world, lora_folder):
    model = patched(world.model, lora_folder)
    for latent in (latents(model), latents(model, normal=given())):
        whole = sampled(model, world, latent)["samples"]
        first = sampled(model, world, latent, start_step=0, last_step=2)
        second = sampled(model, world, first, start_step=2, last_step=STEPS, disable_noise=True)
        assert relative_error(second["samples"], whole) < 1e-4


def test_a_negative_prompt_counts_at_cfg_other_than_1_only(world, lora_folder):
    model = patched(world.model, lora_folder)
    positive, negative = conditions(world)
    pairs = (positive, negative), (positive, positive)
    with_1, with_2 = ([joint(model, world, cfg=cfg, prompts=prompts) for prompts in pairs] for cfg in (1.0, 2.0))
    assert torch.equal(*with_1) and relative_error(*with_2) > 1e-3


def test_guidance_reaches_the_models_embedding(world, lora_folder):
    model = patched(world.model, lora_folder)
    settings = dict(steps=2, cfg=1.0, sampler_name="euler", seed=SEED)
    low, high = (lumix.JointSampler.execute(model, *conditions(world), **PIXELS, guidance=value, **settings)[5] for value in (1.0, 9.0))
    assert relative_error(low["samples"], high["samples"]) > 1e-3


def test_several_prompts_at_once_and_a_guider_of_one_prompt_see_all_maps(world, lora_folder):
    model = patched(world.model, lora_folder)
    positive, negative = conditions(world)
    assert relative_error(joint(model, world, prompts=(positive + positive, negative)), joint(model, world)) < 1e-5
    latent = latents(model)
    sigmas = lumix.MapSigmas.execute(latent, 2, lumix.PUBLISHED, 0.0)[0]
    guider = nodes_custom_sampler.Guider_Basic(model)
    guider.set_conds(node_helpers.conditioning_set_values(positive, {"guidance": GUIDANCE}))
    noise, euler = nodes_custom_sampler.Noise_RandomNoise(SEED), comfy.samplers.sampler_object("euler")
    found = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, euler, sigmas, latent)[0]["samples"]
    assert torch.equal(found, advanced(model, latent, sigmas, (positive, negative), cfg=1.0))


def test_a_prompt_per_scene_meets_every_map_of_its_scene(world, lora_folder):
    model = patched(world.model, lora_folder)
    latent = lumix.MapLatents.execute(model, **PIXELS, batch_size=2)[0]
    (context, pooled), (other_context, other_pooled) = world.prompts
    two = [[torch.cat([context, other_context]), {"pooled_output": torch.cat([pooled, other_pooled])}]]
    together = joint(model, world, latent, cfg=1.0, prompts=(two, two)).unflatten(0, (MAPS, 2))
    for picture, prompt in enumerate(conditions(world)):
        alone = {**latents(model), "batch_index": [picture] * MAPS}
        assert relative_error(together[:, picture], joint(model, world, alone, cfg=1.0, prompts=(prompt, prompt))) < 1e-5


def test_a_part_of_a_given_map_is_freed_by_its_mask(world, lora_folder):
    model = patched(world.model, lora_folder)
    mask = torch.zeros(1, 64, 96)
    mask[..., 48:] = 1
    latent = latents(model, color={**given(), "noise_mask": mask})
    result = sampled(model, world, latent)["samples"]
    assert torch.allclose(result[COLOR][..., :5], latent["samples"][COLOR][..., :5], atol=1e-4)
    assert relative_error(result[COLOR][..., 7:], latent["samples"][COLOR][..., 7:]) > 0.1


def test_every_map_is_sampled_under_its_own_prompt(world, lora_folder):
    names = ("depth", "color", "normal")
    model = lumix.JoinMaps.execute(world.model, "separate", ", ".join(names))[0]
    shared, own = conditions(world)
    longer = [[torch.cat([own[0][0]] * 2, dim=1), own[0][1]]]
    latent = lumix.MapLatents.execute(model, **PIXELS, batch_size=2)[0]
    prompts = lumix.MapPrompts.execute(latent, shared, depth=longer, color=None)[0]
    [[context, told]] = prompts
    assert context.shape == (6, 18, 32) and told["pooled_output"].shape == (6, 32)
    rows = joint(model, world, latent, cfg=1.0, prompts=(prompts, prompts)).unflatten(0, (3, 2))
    for place, prompt in ((0, longer), (1, [[context[2:3], shared[0][1]]])):
        for picture in range(2):
            row = {"samples": torch.zeros(1, 16, 8, 12), "batch_index": [picture]}
            sigmas = lumix.MapSigmas.execute(row, STEPS, lumix.PUBLISHED, 0.0)[0]
            alone = world.model.model.process_latent_in(advanced(world.model, row, sigmas, (prompt, prompt), cfg=1.0))
            assert relative_error(rows[place, picture], alone[0]) < 1e-5
    assert torch.equal(rows[1], rows[2]) and relative_error(rows[0], rows[1]) > 1e-3


def test_prompts_per_map_make_joined_rows_of_stable_diffusion_differ(loaded):
    model = lumix.JoinMaps.execute(loaded("sd15").model, "query-broadcast", "color, depth")[0]
    latent = latents(model)
    shared, own = ([[randn(1, 9, 32, seed=seed), {}]] for seed in (1, 2))
    settings = dict(steps=2, guidance=1.0, cfg=CFG, sampler_name="euler", seed=SEED)
    alike = lumix.JointSampler.execute(model, shared, own, 0, 0, latent=latent, **settings)[5]["samples"]
    assert relative_error(*alike) < 1e-5
    prompts = lumix.MapPrompts.execute(latent, shared, depth=own)[0]
    color, depth = lumix.JointSampler.execute(model, prompts, own, 0, 0, latent=latent, **settings)[5]["samples"]
    # The picture itself does not change: its own queries, its own keys.
    assert relative_error(color, alike[0]) < 1e-5 and relative_error(depth, color) > 1e-3


def test_prompts_that_do_not_fit_the_maps_are_refused_in_words(world, lora_folder):
    model = lumix.JoinMaps.execute(world.model, "separate", "color, depth")[0]
    prompt, other = conditions(world)
    with pytest.raises(ValueError, match="has no albedo; its maps are color, depth"):
        lumix.MapPrompts.execute(latents(model), prompt, albedo=other)
    with pytest.raises(ValueError, match=r"The prompt of depth has 2 parts.*after this node"):
        lumix.MapPrompts.execute(latents(model), prompt, depth=other + prompt)
