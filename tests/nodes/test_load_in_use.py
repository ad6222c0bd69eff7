"""What a natively loaded model is used for: LoRAs, sampling, number formats, clones; against diffusers where it can do it."""

import json
from itertools import pairwise

import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from einops import rearrange
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import copy_of, largest_difference, randn

TOLERANCE = 1e-5


def with_random_lora(reference, targets, rank=4):
    """The reference with an added peft LoRA of random weights, and its state dict `{layer.lora_A.weight: ...}`."""
    from peft import LoraConfig, get_peft_model_state_dict

    reference.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    draw = torch.Generator().manual_seed(11)
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    state = get_peft_model_state_dict(reference)
    assert len(state) > 20
    return reference, state


def kohya(state, prefix="lora_unet_"):
    """Names of kohya's scripts, which ComfyUI and most trainers share."""
    names = {"lora_A": "lora_down", "lora_B": "lora_up"}
    renamed = {}
    for name, weight in state.items():
        layer, kind, _ = name.rsplit(".", 2)
        renamed[f"{prefix}{layer.replace('.', '_')}.{names[kind]}.weight"] = weight
    return renamed


def patched(pipeline, lora):
    """A clone with a LoRA by core's own loader; fails when a weight of the file finds no place."""
    layers = {name.rsplit(".lora_", 1)[0].rsplit("_lora.", 1)[0] for name in lora}
    model, _ = comfy.sd.load_lora_for_models(pipeline.model, None, lora, 1.0, 0.0)
    assert len(model.patches) > 0
    assert sum(len(patches) for patches in model.patches.values()) == len(layers)
    return model


def run(model, *inputs, **conditions):
    """Forward of a MODEL's network with its patches applied; the unpatched weights are put back for the next test."""
    comfy.model_management.load_models_gpu([model])
    try:
        return model.model.diffusion_model(*inputs, **conditions)
    finally:
        comfy.model_management.unload_all_models()


UNET_LORA = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "all": [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
        "proj_in",
        "proj_out",
        "conv",
    ],
}


@pytest.mark.parametrize("family", ["sd15", "sd21", "nano"])
@pytest.mark.parametrize("layers", UNET_LORA)
@torch.no_grad()
def test_a_kohya_lora_finds_every_layer_and_has_the_effect_it_has_in_diffusers(layers, family, folders, loaded):
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel.from_pretrained(folders[family] / "unet")
    latent, context = randn(1, reference.config.in_channels, 16, 16), randn(1, 77, 32, seed=1)
    plain = reference(latent, torch.tensor(500), context).sample
    reference, state = with_random_lora(reference, UNET_LORA[layers])
    expected = reference(latent, torch.tensor(500), context).sample
    inputs = latent, torch.tensor([500.0]), context
    native = run(patched(loaded(family), kohya(state)), *inputs)
    assert largest_difference(expected, plain) > 0.05
    assert largest_difference(native, expected) <= 10 * TOLERANCE
    assert largest_difference(run(loaded(family).model, *inputs), plain) <= TOLERANCE


@torch.no_grad()
def test_a_lora_in_diffusers_older_names_finds_every_layer(nano_folder, loaded):
    from diffusers import UNet2DConditionModel

    reference, state = with_random_lora(UNet2DConditionModel.from_pretrained(nano_folder / "unet"), UNET_LORA["attention"])
    latent, context = randn(1, 16, 16, 16), randn(1, 77, 32, seed=1)
    names = {"lora_A": "down", "lora_B": "up"}
    old = {}
    for name, weight in state.items():
        layer, kind, _ = name.rsplit(".", 2)
        block, projection = layer.replace("to_out.0", "to_out").rsplit(".", 1)
        old[f"unet.{block}.processor.{projection}_lora.{names[kind]}.weight"] = weight
    native = run(patched(loaded("nano"), old), latent, torch.tensor([500.0]), context)
    assert largest_difference(native, reference(latent, torch.tensor(500), context).sample) <= 10 * TOLERANCE


@torch.no_grad()
def test_a_peft_lora_of_flux_finds_every_layer_and_has_the_effect_it_has_in_diffusers(flux_folder, loaded):
    from diffusers import FluxTransformer2DModel

    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp", "ff.net.2"]
    reference, state = with_random_lora(FluxTransformer2DModel.from_pretrained(flux_folder / "transformer"), targets)
    lora = {f"transformer.{name}": weight for name, weight in state.items()}
    latent, context, pooled = randn(1, 16, 4, 4), randn(1, 8, 32, seed=1), randn(1, 32, seed=2)
    time, guidance = torch.tensor([0.5]), torch.tensor([3.5])
    tokens = rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    expected = reference(tokens, context, pooled, time, img_ids=positions, txt_ids=torch.zeros(8, 3), guidance=guidance).sample
    native = run(patched(loaded("flux"), lora), latent, time, context, y=pooled, guidance=guidance)
    native = rearrange(native, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    assert largest_difference(native, expected) <= 10 * TOLERANCE


def encoded(pipeline, text):
    return pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(text))


@torch.no_grad()
def test_ksampler_on_an_empty_sd_latent_equals_a_plain_euler_loop_over_diffusers(nano_folder, loaded):
    from diffusers import UNet2DConditionModel

    import nodes as core

    pipeline, steps, scale = loaded("nano"), 2, 4.0
    empty = core.EmptyLatentImage().generate(128, 128)[0]
    assert empty["samples"].shape == (1, 4, 16, 16)
    positive, negative = encoded(pipeline, "red"), encoded(pipeline, "")
    result = core.common_ksampler(pipeline.model, 7, steps, scale, "euler", "normal", positive, negative, empty)[0]["samples"]

    unet = UNet2DConditionModel.from_pretrained(nano_folder / "unet")
    sampling = pipeline.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    state = torch.randn(1, 16, 16, 16, generator=torch.manual_seed(7)) * (1 + sigmas[0] ** 2) ** 0.5
    context = torch.cat([positive[0][0], negative[0][0]])
    for sigma, after in pairwise(sigmas):
        timestep = (sampling.sigmas - sigma).abs().argmin()
        with_prompt, without = unet((state / (sigma**2 + 1) ** 0.5).repeat(2, 1, 1, 1), timestep, context).sample.chunk(2)
        state = state + (after - sigma) * (without + scale * (with_prompt - without))
    assert result.shape == (1, 16, 16, 16)
    assert largest_difference(result, state / 0.7 + 0.2) <= 1e-3
    other = core.common_ksampler(pipeline.model, 7, steps, scale, "euler", "normal", encoded(pipeline, "blue"), negative, empty)[0][
        "samples"
    ]
    assert largest_difference(result, other) > 1e-3


@torch.no_grad()
def test_a_weight_dtype_is_kept_and_still_computes(nano_folder):
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        model = load_pipeline(nano_folder, dtype=dtype).model
        assert model.model.diffusion_model.input_blocks[0][0].weight.dtype == dtype
        sigma = torch.tensor([1.0])
        assert model.model.apply_model(randn(1, 16, 16, 16), sigma, c_crossattn=randn(1, 77, 32)).isfinite().all()


def test_a_deep_clone_reads_the_untouched_weights_again(nano_folder):
    model = load_pipeline(nano_folder).model
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1], disable_dynamic=True)
    assert again.model is not model.model
    for name, weight in model.model.diffusion_model.state_dict().items():
        assert torch.equal(weight, again.model.diffusion_model.state_dict()[name])


def test_pixart_says_why_it_refuses_a_small_picture(loaded):
    import nodes as core

    pipeline = loaded("pixart")
    empty = {"samples": torch.zeros(1, 4, 32, 32)}
    with pytest.raises(ValueError, match=r"32 x 32.*larger picture"):
        core.common_ksampler(pipeline.model, 0, 1, 1.0, "euler", "normal", encoded(pipeline, "red"), encoded(pipeline, ""), empty)
    larger = {"samples": torch.zeros(1, 4, 40, 32)}
    sampled = core.common_ksampler(pipeline.model, 0, 1, 1.0, "euler", "normal", encoded(pipeline, "red"), encoded(pipeline, ""), larger)
    assert sampled[0]["samples"].isfinite().all()


def test_a_picture_conditioned_unet_takes_its_second_latent(sd21_folder, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = copy_of(sd21_folder, tmp_path)
    config = json.loads((folder / "unet/config.json").read_text())
    torch.manual_seed(8)
    UNet2DConditionModel.from_config({**config, "in_channels": 8}).save_pretrained(folder / "unet")
    model = load_pipeline(folder).model.model
    assert type(model).__name__ == "SD15_instructpix2pix"
    latent, noise = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    assert torch.equal(model.concat_cond(noise=noise, concat_latent_image=latent, device="cpu"), latent)
