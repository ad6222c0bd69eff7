"""Cross-domain attention on native models against a float64 oracle, and everything around it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.sample
import comfy.samplers
import comfy.sd
import diffusers
import folder_paths
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from intrinsic_lab.methods.ildm import schedules
from intrinsic_lab.methods.intrinsic_lora.lora_file import LoraLayer, kohya_state_dict
from intrinsic_lab.nodes import ildm
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA
from intrinsic_lab.nodes.native import cross_domain, joint_forward, shared_noise
from intrinsic_lab.nodes.native.diffusers_folder import load_pipeline
from safetensors.torch import save_file

import nodes as comfyui

sys.path.insert(0, str(Path(__file__).parent))
from ildm_oracle import Oracle

STEPS, CFG, SEED = 3, 2.5, 7
FAMILIES = ("sd21", "sdxl", "pixart")
# The picture's sides in latent pixels: native PixArt refuses small ones.
SIDES = {"sd21": (16, 8), "sdxl": (16, 8), "pixart": (64, 48)}
PIXEL_WIDTH, PIXEL_HEIGHT = 384, 512


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network_of(folder):
    if (folder / "unet").is_dir():
        return diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    return diffusers.PixArtTransformer2DModel.from_pretrained(folder / "transformer")


def random_lora(network, seed, match=".attn1.to_"):
    """{module name: (down, up, scale)} of rank 3 on diffusers' names, strong enough to matter."""
    linear = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear) and match in name}
    draw = torch.Generator().manual_seed(seed)

    def half(rows, columns):
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    return {name: (half(3, module.in_features), 0.5 * half(module.out_features, 3), 1.5) for name, module in linear.items()}


def save_lora(path, lora, family):
    if family == "pixart":
        state = {}
        for name, (down, up, scale) in lora.items():
            state |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            state[f"base_model.model.{name}.alpha"] = torch.tensor(3 * scale)
    else:
        state = kohya_state_dict({name: LoraLayer(*parts) for name, parts in lora.items()})
    save_file(state, path)


@pytest.fixture(scope="session")
def worlds(sd21_folder, sdxl_folder, pixart_folder):
    """Each family natively, its conditioning, and the names its oracle needs."""
    folders = dict(zip(FAMILIES, (sd21_folder, sdxl_folder, pixart_folder), strict=True))
    made = {}

    def make(family):
        if family not in made:
            context_width = {"sd21": 32, "sdxl": 96, "pixart": 32}[family]
            made[family] = SimpleNamespace(
                family=family,
                folder=folders[family],
                model=load_pipeline(folders[family], dtype=torch.float32, text_dtype=torch.float32).model,
                contexts=[randn(1, 9, context_width, seed=seed) for seed in (1, 2)],
                pooled=[randn(1, 48, seed=seed) for seed in (3, 4)],
            )
        return made[family]

    return make


@pytest.fixture(autouse=True)
def lora_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    with torch.inference_mode():
        yield tmp_path


def native_conditions(world):
    """Positive and negative CONDITIONING."""
    made = []
    for context, pooled in zip(world.contexts, world.pooled, strict=True):
        extra = {"width": PIXEL_WIDTH, "height": PIXEL_HEIGHT}
        if world.family == "sdxl":
            extra["pooled_output"] = pooled
        made.append([[context, extra]])
    return made


def oracle_conditions(world):
    size = torch.tensor([[float(PIXEL_HEIGHT), PIXEL_WIDTH]])
    extras = {
        "sd21": [{}, {}],
        "sdxl": [
            {"text_embeds": pooled, "time_ids": torch.tensor([[PIXEL_HEIGHT, PIXEL_WIDTH, 0, 0, PIXEL_HEIGHT, PIXEL_WIDTH]])}
            for pooled in world.pooled
        ],
        "pixart": [{"resolution": size, "aspect_ratio": torch.tensor([[PIXEL_HEIGHT / PIXEL_WIDTH]])}] * 2,
    }[world.family]
    return list(zip(world.contexts, extras, strict=True))


def empty_latent(world, pairs=1):
    return {"samples": torch.zeros(pairs, 4, *SIDES[world.family])}


def joint_latent(world, pairs=1):
    return ildm.JointLatent.execute(empty_latent(world, pairs))[0]


def ksample(model, world, latent, cfg=CFG, sampler="euler", denoise=1.0):
    """What KSampler gives, in the model's own latent scale."""
    positive, negative = native_conditions(world)
    [result] = comfyui.common_ksampler(model, SEED, STEPS, cfg, sampler, "normal", positive, negative, latent, denoise)
    return model.model.process_latent_in(result["samples"])


def patched(world, schedule, lora=None, **options):
    """The node's MODEL; lora: as of `random_lora`, in a file of its own."""
    name = ildm.NO_LORA
    if lora is not None:
        [folder] = folder_paths.get_folder_paths("loras")
        save_lora(Path(folder) / "intrinsic.safetensors", lora, world.family)
        name = "intrinsic.safetensors"
    return ildm.CrossDomainAttention.execute(world.model, schedule, name, 1.0, **options)[0]


def rows_seen(model):
    """Numbers of rows of the network's forwards from now on."""
    rows = []
    model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    return rows


def relative_error(one, other):
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


SCHEDULES = {
    "drop": (
        schedules.drop_schedule(schedules.at_stages((1, 2)), 600),
        lambda index, stage, t: 1.0 if stage in (1, 2) and t <= 600 else 0.0,
    ),
    "drop by block": (
        schedules.drop_schedule(schedules.at_blocks((1,)), 900),
        lambda index, stage, t: 1.0 if index == 1 and t <= 900 else 0.0,
    ),
    "gaussian": (
        schedules.gaussian_schedule(0.8, 600, 300),
        lambda index, stage, t: 0.8 * torch.exp(torch.tensor(-((t - 600) ** 2) / 300**2, dtype=torch.float64)).item(),
    ),
    "one": (schedules.constant_schedule(1.0), lambda index, stage, t: 1.0),
    "zero": (schedules.constant_schedule(0.0), lambda index, stage, t: 0.0),
}


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
        return [
            (part, number, inner, block.stage)
            for (part, number, inner), block in cross_domain.cross_domain_unet.block_addresses(network).items()
        ]

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


def advanced_sample(model, world, latent, sampler):
    positive, negative = native_conditions(world)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    sigmas = comfy.samplers.calculate_sigmas(world.model.model.model_sampling, "normal", STEPS)
    noise = nodes_custom_sampler.Noise_RandomNoise(SEED)
    result = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)
    return model.model.process_latent_in(result[0]["samples"])


def test_sampler_custom_advanced_gives_what_ksampler_gives(worlds):
    world = worlds("sd21")
    model, latent = patched(world, SCHEDULES["drop"][0], random_lora(network_of(world.folder), 5)), joint_latent(world)
    assert torch.equal(advanced_sample(model, world, latent, comfy.samplers.sampler_object("euler")), ksample(model, world, latent))


STOCHASTIC = (
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "ddpm",
    "lcm",
    "er_sde",
    "sa_solver",
)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_share_their_noise_between_the_domains(sampler, worlds):
    world = worlds("sd21")
    latent = joint_latent(world)
    # Without a LoRA and with weight 1 both domains compute the same thing, so they can only part where their noise does.
    picture, intrinsic = ksample(patched(world, schedules.constant_schedule(1.0)), world, latent, sampler=sampler, denoise=0.75)
    assert relative_error(intrinsic, picture) < 1e-4
    stock_picture, stock_other = ksample(world.model, world, latent, sampler=sampler, denoise=0.75)
    assert relative_error(stock_other, stock_picture) > 0.1, "this sampler draws noise per row where nobody shares it"
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


def test_every_deterministic_core_sampler_is_let_through():
    refused = []
    for name in comfy.samplers.SAMPLER_NAMES:
        try:
            shared_noise.sharing_noise(comfy.samplers.sampler_object(name))
        except ValueError:
            refused.append(name)
    assert refused == []


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


def leftovers(model):
    return [name for name, module in model.model.diffusion_model.named_modules() if module._forward_hooks]


@pytest.mark.parametrize("family", ["sd21", "pixart"])
def test_clones_never_leak_and_the_base_is_restored(family, worlds):
    world = worlds(family)
    latent = joint_latent(world)
    before = ksample(world.model, world, latent)
    weights = {name: tensor.clone() for name, tensor in world.model.model.state_dict().items()}
    options = dict(world.model.model_options["transformer_options"])
    one = patched(world, schedules.constant_schedule(1.0), random_lora(network_of(world.folder), 5))
    two = patched(world, schedules.constant_schedule(0.25), random_lora(network_of(world.folder), 6))
    first, second = ksample(one, world, latent), ksample(two, world, latent)
    assert relative_error(second, first) > 1e-3
    assert torch.equal(ksample(one, world, latent), first)
    broken, _ = cross_domain.exchange_domains(world.model, lambda block, t: 2.0, {})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ksample(broken, world, latent)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        patched(world, lambda block, t: 2.0)
    assert torch.equal(ksample(world.model, world, latent), before)
    assert world.model.model_options["transformer_options"] == options and not world.model.object_patches
    assert all(cross_domain.KEY not in by_key for by_key in world.model.wrappers.values()) and leftovers(world.model) == []
    assert all(torch.equal(tensor, weights[name]) for name, tensor in world.model.model.state_dict().items())
    assert joint_forward.CURRENT.get(None) is None


def tiny_controlnet(world):
    config = {name: value for name, value in world.model.model.model_config.unet_config.items() if name != "out_channels"}
    draw = torch.Generator().manual_seed(9)
    with torch.inference_mode(False), torch.no_grad():
        network = comfy.cldm.cldm.ControlNet(**{**config, "hint_channels": 3, "dtype": torch.float32}, operations=comfy.ops.manual_cast)
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"), manual_cast_dtype=torch.float32)


def test_a_controlnet_steers_the_picture_and_leaves_its_intrinsics_to_the_exchange(worlds, monkeypatch):
    world = worlds("sd21")
    height, width = (8 * side for side in SIDES["sd21"])
    hint = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(1))
    control = tiny_controlnet(world)
    plain = native_conditions(world)
    steered = comfyui.ControlNetApplyAdvanced().apply_controlnet(*plain, control, hint, 1.0, 0.0, 1.0)
    latent, lora = joint_latent(world), random_lora(network_of(world.folder), 5)

    def run(model, conditions):
        monkeypatch.setattr(sys.modules[__name__], "native_conditions", lambda world: conditions)
        return ksample(model, world, latent)

    base = run(world.model, steered)
    assert relative_error(base[:1], run(world.model, plain)[:1]) > 0.01
    zero = run(patched(world, schedules.constant_schedule(0.0), lora), steered)
    assert torch.equal(zero[:1], base[:1])
    residual = torch.ones(4, 2, 3, 3)
    step = joint_forward.JointForward(2, 1, 500.0, schedules.constant_schedule(0.0))
    [[kept, nothing]] = cross_domain._for_pictures({"input": [residual, None]}, step).values()
    assert kept.flatten(1).any(1).tolist() == [True, False, True, False] and nothing is None


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_core_loras_stack_under_it_and_a_picture_lora_acts_on_pictures_only(family, worlds, lora_folder):
    world = worlds(family)
    network = network_of(world.folder)
    latent = joint_latent(world)
    hand = random_lora(network, 8, match="to_q") | random_lora(network, 9, match="ff.net.2")
    save_lora(lora_folder / "hand.safetensors", hand, family)
    state = kohya_state_dict({name: LoraLayer(*parts) for name, parts in hand.items()})
    merged = SimpleNamespace(**{**vars(world), "model": comfy.sd.load_lora_for_models(world.model, None, state, 1.0, 0.0)[0]})
    wanted = ksample(merged.model, world, latent)
    stacked = ksample(patched(merged, schedules.constant_schedule(0.0)), world, latent)
    assert torch.equal(stacked[:1], wanted[:1])
    own = ksample(patched(world, schedules.constant_schedule(0.0), picture_lora_name="hand.safetensors"), world, latent)
    assert relative_error(own[:1], wanted[:1]) < 1e-4
    assert relative_error(own[1:], stacked[1:]) > 1e-3


def test_fp8_weights_sample(sd21_folder, worlds):
    world = worlds("sd21")
    small = SimpleNamespace(**{**vars(world), "model": load_pipeline(sd21_folder, dtype=torch.float8_e4m3fn).model})
    result = ksample(patched(small, schedules.constant_schedule(1.0), random_lora(network_of(sd21_folder), 5)), small, joint_latent(world))
    wanted = ksample(patched(world, schedules.constant_schedule(1.0), random_lora(network_of(sd21_folder), 5)), world, joint_latent(world))
    assert relative_error(result, wanted) < 0.3


def test_a_compiled_model_exchanges_like_any_other(worlds):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    world, latent, lora = worlds("sd21"), joint_latent(worlds("sd21")), random_lora(network_of(worlds("sd21").folder), 5)
    model = patched(world, SCHEDULES["gaussian"][0], lora)
    wanted = ksample(model, world, latent)
    compiled_after = model.clone()
    set_torch_compile_wrapper(compiled_after, backend="eager")
    assert relative_error(ksample(compiled_after, world, latent), wanted) < 1e-5
    compiled_before = world.model.clone()
    set_torch_compile_wrapper(compiled_before, backend="eager")
    compiled = patched(SimpleNamespace(**{**vars(world), "model": compiled_before}), SCHEDULES["gaussian"][0], lora)
    assert relative_error(ksample(compiled, world, latent), wanted) < 1e-5


def test_extra_weights_are_in_comfyuis_accounts(worlds):
    world = worlds("sd21")
    lora = random_lora(network_of(world.folder), 5)
    [patcher] = patched(world, schedules.constant_schedule(1.0), lora).get_additional_models_with_key(cross_domain.KEY)
    assert patcher.model_size() == 4 * sum(down.numel() + up.numel() for down, up, _ in lora.values())


def test_what_cannot_work_together_is_refused_in_words(worlds, flux_folder, lora_folder):
    world, one = worlds("sd21"), schedules.constant_schedule(1.0)
    twice = SimpleNamespace(**{**vars(world), "model": patched(world, one)})
    with pytest.raises(ValueError, match="already has cross-domain attention"):
        patched(twice, one)
    replaced = world.model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="already replaces self-attention"):
        patched(SimpleNamespace(**{**vars(world), "model": replaced}), one)
    flux = SimpleNamespace(family="flux", model=load_pipeline(flux_folder, dtype=torch.float32).model)
    with pytest.raises(ValueError, match=r"Stable Diffusion UNets .* and PixArt"):
        patched(flux, one)
    with pytest.raises(ValueError, match="made for"):
        patched(worlds("sdxl"), one, random_lora(network_of(world.folder), 5))
    with pytest.raises(ValueError, match="made for another model"):
        patched(worlds("pixart"), one, random_lora(network_of(world.folder), 5))
    with pytest.raises(ValueError, match="all rows together"):
        patched(worlds("pixart"), one, random_lora(network_of(worlds("pixart").folder), 5, match="attn2.to_k"))
    save_lora(lora_folder / "normal.safetensors", random_lora(network_of(world.folder), 5), "sd21")
    carrying = ApplyIntrinsicLoRA.execute(world.model, "normal.safetensors", "normal", 1.0)[0]
    with pytest.raises(ValueError, match="Apply Intrinsic LoRA"):
        patched(SimpleNamespace(**{**vars(world), "model": carrying}), one)


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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ildm.SplitDomains.execute({"samples": randn(3, 4, 8, 8)}), "3 rows"),
        (lambda: ildm.SplitDomains.execute({"samples": randn(4, 4, 8, 8), "batch_index": [0, 0, 1, 1]}), "Joint Latent"),
        (lambda: ildm.SplitDomains.execute({"samples": randn(4, 4, 1, 8, 8)}), "latents of pictures"),
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
    blocks = schedules.LAYOUTS["SDXL"]
    drop = ildm.DropSchedule.execute("blocks", "3-7", 900.0, "SDXL")
    gaussian = ildm.GaussianSchedule.execute(1.0, 800.0, 100.0, "SDXL")
    settings = dict(factor=0.5, positions="2", over_time="999: 0, 0: 1", preview_model="SDXL")
    combined = ildm.CombineSchedules.execute(ildm.MAXIMUM, where="stages", first=drop[0], second=gaussian[0], **settings)
    constant = ildm.CombineSchedules.execute(ildm.PRODUCT, 0.3, "everywhere", "", "", "SDXL")
    for output in (drop, gaussian, combined, constant):
        [preview] = output.ui.as_dict()["images"]
        assert (lora_folder / "temp" / preview["filename"]).is_file()
    for block in blocks:
        for t in (0, 500, 800, 950):
            d, g = float(3 <= block.index <= 7 and t <= 900), schedules.gaussian_schedule()(block, t)
            assert (drop[0](block, t), gaussian[0](block, t), constant[0](block, t)) == (d, g, 0.3)
            wanted = 0.5 * max(d, g) * (1 - t / 999) if block.stage == 2 else 0
            assert combined[0](block, t) == pytest.approx(wanted)
