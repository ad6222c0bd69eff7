"""Cross-domain attention among everything else: clones, ControlNets, LoRAs, fp8, memory, compiling; and what it refuses, in words."""

import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from intrinsic_lab.methods.ildm import joint_forward, schedules
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict, parse_lora
from intrinsic_lab.methods.rows import Rows
from intrinsic_lab.nodes import lumix
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA
from intrinsic_lab.nodes.ildm import CrossDomainAttention
from intrinsic_lab.nodes.native.joint_sampling import cross_domain
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import randn
from safetensors.torch import load_file, save_file

import nodes as comfyui

sys.path.insert(0, str(Path(__file__).parent))
from ildm_world import (  # noqa: F401 - fixtures
    FAMILIES,
    SCHEDULES,
    SIDES,
    joint_latent,
    ksample,
    make_lora_folder,
    make_worlds,
    native_conditions,
    network_of,
    patched,
    random_lora,
    relative_error,
    save_lora,
)


def with_model(world, model):
    """The same prompts and names for another MODEL."""
    return SimpleNamespace(**{**vars(world), "model": model})


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


def test_a_controlnet_steers_the_picture_and_leaves_its_intrinsics_to_the_exchange(worlds):
    world = worlds("sd21")
    height, width = (8 * side for side in SIDES["sd21"])
    hint = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(1))
    control = tiny_controlnet(world)
    plain = native_conditions(world)
    steered = comfyui.ControlNetApplyAdvanced().apply_controlnet(*plain, control, hint, 1.0, 0.0, 1.0)
    latent, lora = joint_latent(world), random_lora(network_of(world.folder), 5)

    base = ksample(world.model, world, latent, conditions=steered)
    assert relative_error(base[:1], ksample(world.model, world, latent, conditions=plain)[:1]) > 0.01
    zero = ksample(patched(world, schedules.constant_schedule(0.0), lora), world, latent, conditions=steered)
    assert torch.equal(zero[:1], base[:1])
    residual = torch.ones(4, 2, 3, 3)
    [[kept, nothing]] = cross_domain._for_pictures({"input": [residual, None]}, Rows(joint_forward.DOMAINS, 2, 1)).values()
    assert kept.flatten(1).any(1).tolist() == [True, False, True, False] and nothing is None


@pytest.mark.parametrize("family", FAMILIES)
def test_core_loras_stack_before_and_after_it_and_a_picture_lora_acts_on_pictures_only(family, worlds, lora_folder):
    world, zero = worlds(family), schedules.constant_schedule(0.0)
    latent, network = joint_latent(world), network_of(world.folder)
    hand = random_lora(network, 8, match="to_q") | random_lora(network, 9, match="ff.net.2")
    save_lora(lora_folder / "hand.safetensors", hand, family)
    state = load_file(lora_folder / "hand.safetensors")
    load = partial(comfy.sd.load_lora_for_models, clip=None, lora=state, strength_model=1.0, strength_clip=0.0)
    merged = with_model(world, load(world.model)[0])
    wanted = ksample(merged.model, world, latent)
    stacked = ksample(patched(merged, zero), world, latent)
    assert torch.equal(stacked[:1], wanted[:1])
    assert torch.equal(ksample(load(patched(world, zero))[0], world, latent), stacked)
    own = ksample(patched(world, zero, picture_lora_name="hand.safetensors"), world, latent)
    assert relative_error(own[:1], wanted[:1]) < 1e-4
    assert relative_error(own[1:], stacked[1:]) > 1e-3
    if family == "pixart":
        # Core's bypass leaves out LoRAs on a part of a fused layer.
        return
    bypass = partial(comfy.sd.load_bypass_lora_for_models, clip=None, lora=state, strength_model=1.0, strength_clip=0.0)
    lora = random_lora(network, 5)
    both = ksample(patched(merged, SCHEDULES["gaussian"][0], lora), world, latent)
    for model in (
        patched(with_model(world, bypass(world.model)[0]), SCHEDULES["gaussian"][0], lora),
        bypass(patched(world, SCHEDULES["gaussian"][0], lora))[0],
    ):
        assert relative_error(ksample(model, world, latent), both) < 1e-4


def denoised_once(model, world):
    """One denoising call on a pair, with whatever is loaded now."""
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    options["wrappers"] = {kind: dict(by_key) for kind, by_key in model.wrappers.items()}
    x = randn(1, 4, *SIDES[world.family], seed=1).expand(2, -1, -1, -1)
    context = world.contexts[0].expand(2, -1, -1)
    return model.model.apply_model(x, torch.full((2,), 3.0), c_crossattn=context, transformer_options=options)


def test_a_partly_loaded_model_exchanges_like_a_loaded_one(worlds):
    world = worlds("sd21")
    network, schedule = network_of(world.folder), schedules.constant_schedule(0.5)
    state = kohya_state_dict({name: LoraLayer(*parts) for name, parts in random_lora(network, 8, match="to_q").items()})
    base = with_model(world, comfy.sd.load_lora_for_models(world.model, None, state, 1.0, 0.0)[0])
    model = patched(base, schedule, random_lora(network, 5))
    comfy.model_management.load_models_gpu([model])
    wanted, plain = denoised_once(model, world), denoised_once(base.model, world)
    comfy.model_management.unload_all_models()
    # Weights that stay behind, cast and patched layer by layer in each forward.
    model.load(device_to=torch.device("cpu"), lowvram_model_memory=1)
    try:
        layer = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
        assert layer.weight_function, "the merged LoRA is applied in each forward"
        assert relative_error(denoised_once(model, world), wanted) < 1e-5
    finally:
        model.detach()
    assert relative_error(plain, wanted) > 0.01


@pytest.mark.parametrize("family", ["sd21", "pixart"])
def test_fp8_weights_give_what_the_same_numbers_give_in_float32(family, worlds):
    world, schedule = worlds(family), SCHEDULES["gaussian"][0]
    lora = random_lora(network_of(world.folder), 5)
    small = load_pipeline(world.folder, dtype=torch.float8_e4m3fn).model
    rounded = load_pipeline(world.folder, dtype=torch.float32).model
    for weight in rounded.model.diffusion_model.parameters():
        weight.copy_(weight.to(torch.float8_e4m3fn).float())
    assert next(small.model.diffusion_model.parameters()).dtype == torch.float8_e4m3fn
    latent = joint_latent(world)
    base = relative_error(*(ksample(model, world, latent) for model in (small, rounded)))
    found, wanted = (ksample(patched(with_model(world, model), schedule, lora), world, latent) for model in (small, rounded))
    # Native PixArt in fp8 is a little off by itself.
    assert base < (1e-4 if family == "sd21" else 0.01) and relative_error(found, wanted) < max(2 * base, 1e-4)
    assert relative_error(found, ksample(patched(world, schedule, lora), world, latent)) > 0.01


def test_a_compiled_model_exchanges_like_any_other_and_says_that_it_runs_uncompiled(worlds, caplog):
    world, latent, lora = worlds("sd21"), joint_latent(worlds("sd21")), random_lora(network_of(worlds("sd21").folder), 5)
    model = patched(world, SCHEDULES["gaussian"][0], lora)
    caplog.set_level(logging.INFO)
    wanted = ksample(model, world, latent)
    assert "uncompiled" not in caplog.text
    compiled_after = model.clone()
    set_torch_compile_wrapper(compiled_after, backend="eager")
    assert relative_error(ksample(compiled_after, world, latent), wanted) < 1e-5
    assert "uncompiled" in caplog.text
    compiled_before = world.model.clone()
    set_torch_compile_wrapper(compiled_before, backend="eager")
    compiled = patched(with_model(world, compiled_before), SCHEDULES["gaussian"][0], lora)
    assert relative_error(ksample(compiled, world, latent), wanted) < 1e-5


def test_extra_weights_are_in_comfyuis_accounts(worlds):
    world = worlds("sd21")
    lora = random_lora(network_of(world.folder), 5)
    model = patched(world, schedules.constant_schedule(1.0), lora)
    [patcher] = model.get_additional_models_with_key(cross_domain.KEY)
    comfy.model_management.unload_all_models()
    ksample(model, world, joint_latent(world))
    loaded = {id(entry.model.model): entry.model_loaded_memory() for entry in comfy.model_management.current_loaded_models}
    assert loaded[id(patcher.model)] == patcher.model_size()
    assert patcher.model_size() == 4 * sum(down.numel() + up.numel() for down, up, _ in lora.values())


def test_a_patch_that_would_take_its_place_later_is_refused_and_guidance_by_perturbed_attention_works(worlds):
    world, latent = worlds("sd21"), joint_latent(worlds("sd21"))
    model = patched(world, schedules.constant_schedule(1.0))
    for address in (("middle", 0), ("output", 1, 0)):
        later = model.clone()
        later.set_model_attn1_replace(lambda q, k, v, options: q, *address)
        with pytest.raises(ValueError, match=r"after Cross-Domain Attention replaces self-attention .*1 blocks.*remove one"):
            ksample(later, world, latent)
    perturbed = PerturbedAttentionGuidance.execute(model, 3.0)[0]
    assert relative_error(ksample(perturbed, world, latent), ksample(model, world, latent)) > 0.01


def as_diffusers(lora):
    return {
        f"transformer.{name}.lora_{side}.weight": half
        for name, (down, up, scale) in lora.items()
        for side, half in (("A", down), ("B", scale * up))
    }


def as_old_diffusers(lora):
    return {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): half for key, half in as_diffusers(lora).items()}


def as_kohya(lora):
    layers = kohya_state_dict({name: LoraLayer(*parts) for name, parts in lora.items()})
    return {key.replace("lora_unet_", "lora_transformer_"): half for key, half in layers.items()}


@pytest.mark.parametrize("spell", [as_diffusers, as_old_diffusers, as_kohya])
def test_pixart_loras_that_name_the_transformer_sample_as_those_that_do_not(spell, worlds, lora_folder):
    world = worlds("pixart")
    lora, latent = random_lora(network_of(world.folder), 5), joint_latent(world)
    wanted = ksample(patched(world, SCHEDULES["one"][0], lora), world, latent)
    assert list(parse_lora(spell(lora)).layers) == list(lora)
    save_file(spell(lora), lora_folder / "intrinsic.safetensors")
    model = CrossDomainAttention.execute(world.model, SCHEDULES["one"][0], "intrinsic.safetensors", 1.0)[0]
    assert relative_error(ksample(model, world, latent), wanted) < 1e-5
    assert relative_error(ksample(patched(world, SCHEDULES["one"][0]), world, latent), wanted) > 0.01


def test_what_cannot_work_together_is_refused_in_words(worlds, flux_folder, lora_folder):
    world, one = worlds("sd21"), schedules.constant_schedule(1.0)
    twice = with_model(world, patched(world, one))
    with pytest.raises(ValueError, match="already has cross-domain attention"):
        patched(twice, one)
    replaced = world.model.clone()
    replaced.set_model_attn1_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="already replaces self-attention"):
        patched(with_model(world, replaced), one)
    joined = lumix.JoinMaps.execute(load_pipeline(flux_folder, dtype=torch.float32).model, "query-broadcast", "color, depth")[0]
    with pytest.raises(ValueError, match="samples maps together"):
        patched(SimpleNamespace(family="flux", model=joined), one)
    with pytest.raises(ValueError, match="samples pictures and intrinsics in pairs"):
        lumix.JoinMaps.execute(patched(world, one), "query-broadcast", "color, depth")
    with pytest.raises(ValueError, match="made for"):
        patched(worlds("sdxl"), one, random_lora(network_of(world.folder), 5))
    with pytest.raises(ValueError, match="made for another model"):
        patched(worlds("pixart"), one, random_lora(network_of(world.folder), 5))
    with pytest.raises(ValueError, match="all rows together"):
        patched(worlds("pixart"), one, random_lora(network_of(worlds("pixart").folder), 5, match="attn2.to_k"))
    save_lora(lora_folder / "normal.safetensors", random_lora(network_of(world.folder), 5), "sd21")
    carrying = ApplyIntrinsicLoRA.execute(world.model, "normal.safetensors", "normal", 1.0)[0]
    with pytest.raises(ValueError, match="Apply Intrinsic LoRA"):
        patched(with_model(world, carrying), one)
