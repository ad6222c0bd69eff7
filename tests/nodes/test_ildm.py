"""Cross-domain attention on native models against a float64 oracle; samplers and their noise; joint latents; schedules."""

import sys
from pathlib import Path

import comfy.sample
import comfy.samplers
import pytest
import torch
from intrinsic_lab.methods.ildm import joint_forward, schedules
from intrinsic_lab.nodes import ildm
from intrinsic_lab.nodes.native.backbones.unet.attention import block_addresses
from intrinsic_lab.tests.nodes.conftest import randn

sys.path.insert(0, str(Path(__file__).parent))
from ildm_oracle import Oracle
from ildm_world import (  # noqa: F401 - fixtures
    CFG,
    FAMILIES,
    SCHEDULES,
    SEED,
    STEPS,
    advanced_sample,
    empty_latent,
    joint_latent,
    ksample,
    make_lora_folder,
    make_worlds,
    network_of,
    oracle_conditions,
    patched,
    random_lora,
    relative_error,
    rows_seen,
)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_three_guided_steps_equal_equations_1_and_4_in_float64(family, schedule, worlds):
    world = worlds(family)
    native_schedule, w = SCHEDULES[schedule]
    pairs = 2 if family == "sd21" else 1
    network = network_of(world.folder)
    lora = random_lora(network, seed=5)
    latent = joint_latent(world, pairs)
    noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent["batch_index"])
    sampling = world.model.model.model_sampling
    # The last three of four steps: the first, at the sigma of zero-SNR models, is beyond float32 in any sampler.
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS + 1)[1:]
    timesteps = [float(t) for t in sampling.timestep(sigmas[:-1])]
    oracle = Oracle(network, lora, w)
    prediction = "v_prediction" if family == "sd21" else "epsilon"
    wanted = oracle.euler(noise, sigmas, timesteps, *oracle_conditions(world), CFG, prediction)
    result = ksample(patched(world, native_schedule, lora), world, latent, denoise=STEPS / (STEPS + 1))
    assert oracle.calls == STEPS * 2 * sum(".attn1." in name for name in network.attn_processors)
    assert relative_error(result[:pairs], wanted[:pairs]) < 1e-4
    assert relative_error(result[pairs:], wanted[pairs:]) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_weight_leaves_the_picture_bit_identical_with_the_lora_on(family, worlds):
    world = worlds(family)
    latent = joint_latent(world, 2)
    base = ksample(world.model, world, latent)
    joint = ksample(patched(world, schedules.constant_schedule(0.0), random_lora(network_of(world.folder), 5)), world, latent)
    assert torch.equal(joint[:2], base[:2])
    assert relative_error(joint[2:], base[2:]) > 0.01
    alone = ksample(world.model, world, empty_latent(world, 2))
    assert relative_error(joint[:2], alone) < 1e-5


def test_blocks_and_stages_are_those_of_the_network(worlds):
    def addresses(family):
        network = worlds(family).model.get_model_object("diffusion_model")
        return [(part, number, inner, block.stage) for (part, number, inner), block in block_addresses(network).items()]

    assert addresses("sd21") == [
        ("input", 1, 0, 0), ("input", 3, 0, 1), ("middle", 1 - 1, 0, 2),
        ("output", 0, 0, 3), ("output", 1, 0, 3), ("output", 2, 0, 4), ("output", 3, 0, 4),
    ]  # fmt: skip
    assert [stage for *_, stage in addresses("sdxl")] == [1] * 2 + [2] * 3 + [3] * 3 + [4] * 6 + [5] * 4


def test_guidance_in_one_forward_or_in_two_gives_the_same(worlds, monkeypatch):
    world = worlds("sd21")
    model = patched(world, SCHEDULES["gaussian"][0], random_lora(network_of(world.folder), 5))
    latent = joint_latent(world, 2)
    rows = rows_seen(model)
    batched = ksample(model, world, latent)
    assert set(rows) == {8}
    rows.clear()
    monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e15)
    split = ksample(model, world, latent)
    assert set(rows) == {4} and len(rows) == 2 * STEPS
    assert relative_error(split, batched) < 1e-5
    rows.clear()
    ksample(model, world, latent, cfg=1.0)
    assert rows == [4] * STEPS


def test_sampler_custom_advanced_gives_what_ksampler_gives(worlds):
    world = worlds("sd21")
    model, latent = patched(world, SCHEDULES["drop"][0], random_lora(network_of(world.folder), 5)), joint_latent(world)
    assert torch.equal(advanced_sample(model, world, latent, comfy.samplers.sampler_object("euler")), ksample(model, world, latent))


# Of core's samplers, those that draw noise as they go.
STOCHASTIC = {
    *("euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    *("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
    *("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "exp_heun_2_x0_sde", "seeds_2", "seeds_3", "er_sde", "sa_solver", "sa_solver_pece"),
    *("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "ddpm", "lcm"),
}


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_under_every_core_sampler_a_picture_and_its_maps_get_one_noise(sampler, worlds):
    world = worlds("sd21")
    latent = joint_latent(world)
    # Without a LoRA and with weight 1 both domains compute the same thing, so they can only part where their noise does.
    picture, intrinsic = ksample(patched(world, schedules.constant_schedule(1.0)), world, latent, sampler=sampler, denoise=0.75)
    assert relative_error(intrinsic, picture) < 1e-4
    stock_picture, stock_other = ksample(world.model, world, latent, sampler=sampler, denoise=0.75)
    assert (relative_error(stock_other, stock_picture) > 0.01) == (sampler in STOCHASTIC), "whether noise parts rows nobody keeps together"
    alone = ksample(world.model, world, empty_latent(world), sampler=sampler, denoise=0.75)
    joint = ksample(patched(world, schedules.constant_schedule(0.0)), world, latent, sampler=sampler, denoise=0.75)
    assert relative_error(joint[:1], alone) < 1e-4, "the picture's noise is what the sampler would draw for it alone"


def own_noise_sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x + torch.randn_like(x)


@pytest.mark.parametrize(
    "sampler",
    [comfy.samplers.KSAMPLER(own_noise_sampler), comfy.samplers.ksampler("euler", {"s_churn": 3.0})],
    ids=["a sampler that calls randn", "euler with churn"],
)
def test_samplers_whose_noise_cannot_be_shared_are_refused_and_others_named(sampler, worlds):
    world = worlds("sd21")
    with pytest.raises(ValueError, match=r"draws noise of its own.*use euler"):
        advanced_sample(patched(world, schedules.constant_schedule(1.0)), world, joint_latent(world), sampler)


def test_latents_that_are_not_pairs_are_refused_in_words(worlds):
    world = worlds("sd21")
    model = patched(world, schedules.constant_schedule(1.0))
    with pytest.raises(ValueError, match=r"has 1 row, .*Joint Latent"):
        ksample(model, world, empty_latent(world))
    with pytest.raises(ValueError, match=r"same noise in pairs.*Joint Latent"):
        ksample(model, world, empty_latent(world, 2))
    with pytest.raises(ValueError, match="same noise in pairs"):
        ksample(model, world, {**empty_latent(world, 4), "batch_index": [0, 0, 1, 1]})
    assert joint_forward.CURRENT.get(None) is None


def test_joint_latents_pair_noise_indices_and_masks_and_split_again():
    samples, intrinsics = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1)
    latent = {"samples": samples, "batch_index": [4, 2, 9], "noise_mask": torch.rand(1, 64, 64), "downscale_ratio_spacial": 8}
    joint = ildm.JointLatent.execute(latent, {"samples": intrinsics})[0]
    assert torch.equal(joint["samples"], torch.cat([samples, intrinsics])) and joint["batch_index"] == [4, 2, 9] * 2
    assert joint["downscale_ratio_spacial"] == 8
    assert torch.equal(joint["noise_mask"], torch.cat([latent["noise_mask"][None].expand(3, -1, -1, -1), torch.ones(3, 1, 64, 64)]))
    noise = comfy.sample.prepare_noise(joint["samples"], 1, joint["batch_index"])
    assert torch.equal(noise[:3], noise[3:]) and not torch.equal(noise[0], noise[1])
    picture, intrinsic = ildm.SplitDomains.execute(joint).args
    assert torch.equal(picture["samples"], samples) and torch.equal(intrinsic["samples"], intrinsics)
    assert picture["batch_index"] == intrinsic["batch_index"] == [4, 2, 9]
    assert torch.equal(picture["noise_mask"][0], latent["noise_mask"]) and intrinsic["noise_mask"].min() == 1
    empty = ildm.JointLatent.execute({"samples": samples})[0]
    assert empty["samples"][3:].count_nonzero() == 0 and empty["batch_index"] == [0, 1, 2, 0, 1, 2] and "noise_mask" not in empty


@pytest.mark.parametrize("kept", ["picture", "intrinsic"])
def test_a_black_mask_keeps_one_domain_and_generates_the_other(kept, worlds):
    world = worlds("sd21")
    given = {"samples": randn(1, 4, 16, 8), "noise_mask": torch.zeros(1, 128, 64)}
    latents = (given, None) if kept == "picture" else (empty_latent(world), given)
    model = patched(world, schedules.constant_schedule(1.0), random_lora(network_of(world.folder), 5))
    rows = ksample(model, world, ildm.JointLatent.execute(*latents)[0])
    place = 0 if kept == "picture" else 1
    assert relative_error(rows[place : place + 1], world.model.model.process_latent_in(given["samples"])) < 1e-4
    other = {**given, "samples": randn(1, 4, 16, 8, seed=1)}
    changed = ksample(model, world, ildm.JointLatent.execute(*(other if latent is given else latent for latent in latents))[0])
    assert relative_error(changed[1 - place], rows[1 - place]) > 1e-3, "what is generated depends on what is kept"


def test_an_empty_latent_of_cores_takes_the_channels_that_given_intrinsics_have():
    intrinsics = {"samples": randn(1, 16, 8, 8)}
    joint = ildm.JointLatent.execute({"samples": torch.zeros(2, 4, 8, 8)}, intrinsics)[0]["samples"]
    assert joint.shape == (4, 16, 8, 8) and not joint[:2].any() and torch.equal(joint[2:], intrinsics["samples"].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="one size"):
        ildm.JointLatent.execute({"samples": randn(2, 4, 8, 8)}, intrinsics)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ildm.SplitDomains.execute({"samples": randn(3, 4, 8, 8)}), "3 rows"),
        (lambda: ildm.SplitDomains.execute({"samples": randn(4, 4, 8, 8), "batch_index": [0, 0, 1, 1]}), "Joint Latent"),
        (lambda: ildm.SplitDomains.execute({"samples": randn(4, 4, 2, 8, 8)}), "latents of pictures"),
        (
            lambda: ildm.JointLatent.execute({"samples": randn(2, 4, 8, 8)}, {"samples": randn(3, 4, 8, 8)}),
            "one intrinsic latent per picture",
        ),
        (lambda: ildm.JointLatent.execute({"samples": randn(2, 4, 8, 8)}, {"samples": randn(2, 4, 8, 9)}), "one size"),
        (lambda: ildm.JointLatent.execute({"samples": randn(2, 4, 8, 8), "noise_mask": torch.ones(3, 8, 8)}), "noise mask"),
    ],
)
def test_latents_that_do_not_fit_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_schedule_nodes_make_the_schedules_and_show_them(lora_folder):
    blocks = ildm.PREVIEWS["SDXL"]
    drop = ildm.DropSchedule.execute("blocks", "3-7", 900.0, "SDXL")
    gaussian = ildm.GaussianSchedule.execute(1.0, 800.0, 100.0, "SDXL")
    settings = dict(factor=0.5, positions="2", over_time="999: 0, 0: 1", preview_model="SDXL")
    combined = ildm.CombineSchedules.execute(ildm.MAXIMUM, where="stages", first=drop[0], second=gaussian[0], **settings)
    constant = ildm.CombineSchedules.execute(ildm.PRODUCT, 0.3, "everywhere", "", "", "SDXL")
    for output in (drop, gaussian, combined, constant):
        [preview] = output.ui["heat_map"]
        assert (lora_folder / "temp" / preview["filename"]).is_file()
    for block in blocks:
        for t in (0, 500, 800, 950):
            d, g = float(3 <= block.index <= 7 and t <= 900), schedules.gaussian_schedule()(block, t)
            assert (drop[0](block, t), gaussian[0](block, t), constant[0](block, t)) == (d, g, 0.3)
            wanted = 0.5 * max(d, g) * (1 - t / 999) if block.stage == 2 else 0
            assert combined[0](block, t) == pytest.approx(wanted)
