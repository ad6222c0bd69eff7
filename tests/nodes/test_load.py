"""The native loader against diffusers and transformers on the same tiny random folders, float32."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from intrinsic_lab.nodes.load import LoadIntrinsicModel
from intrinsic_lab.nodes.native import paths
from intrinsic_lab.nodes.native.diffusers_folder import detect_family, load_pipeline
from intrinsic_lab.nodes.native.folder_files import ModelFolderError
from intrinsic_lab.nodes.native.latent_format import AnyLatent, preview_colors
from latent_preview import Latent2RGBPreviewer
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
PROMPT = "a red ball, blue box"
FAMILIES = ("sd15", "sd21", "sdxl", "pixart", "flux", "nano")


@pytest.fixture(scope="session")
def folders(sd15_folder, sd21_folder, sdxl_folder, pixart_folder, flux_folder, nano_folder):
    found = (sd15_folder, sd21_folder, sdxl_folder, pixart_folder, flux_folder, nano_folder)
    return dict(zip(FAMILIES, found, strict=True))


@pytest.fixture(scope="session")
def loaded(folders):
    """Each family's folder, loaded once in float32."""
    pipelines = {}

    def load(family):
        if family not in pipelines:
            pipelines[family] = load_pipeline(folders[family], dtype=torch.float32, text_dtype=torch.float32)
        return pipelines[family]

    return load


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(one, other):
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "model"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# The diffusion model


@pytest.mark.parametrize("family", ["sd15", "sd21", "nano"])
@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
@torch.no_grad()
def test_native_unet_equals_diffusers(family, timestep, folders, loaded):
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel.from_pretrained(folders[family] / "unet")
    latent = randn(2, reference.config.in_channels, 16, 24)
    context = randn(2, 77, reference.config.cross_attention_dim, seed=1)
    expected = reference(latent, torch.tensor(timestep), context).sample
    native = loaded(family).model.model.diffusion_model(latent, torch.full((2,), float(timestep)), context)
    assert expected.std() > 0.01
    assert largest_difference(native, expected) <= TOLERANCE


@pytest.mark.parametrize("timestep", [0, 500, 999])
@torch.no_grad()
def test_native_sdxl_unet_equals_diffusers_with_its_size_conditions(timestep, folders, loaded):
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel.from_pretrained(folders["sdxl"] / "unet")
    model = loaded("sdxl").model.model
    latent, context, pooled = randn(2, 4, 16, 24), randn(2, 77, 96, seed=1), randn(2, 48, seed=2)
    # ComfyUI: height, width, crop, target height and width; SDXL's time_ids in diffusers have the same order.
    vector = model.encode_adm(pooled_output=pooled, height=128, width=192, device="cpu")
    conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 192, 0, 0, 128, 192]] * 2)}
    expected = reference(latent, torch.tensor(timestep), context, added_cond_kwargs=conditions).sample
    native = model.diffusion_model(latent, torch.full((2,), float(timestep)), context, y=vector)
    assert largest_difference(native, expected) <= TOLERANCE


@pytest.mark.parametrize("timestep", [1, 500, 999])
@torch.no_grad()
def test_native_pixart_equals_diffusers(timestep, folders, loaded):
    from diffusers import PixArtTransformer2DModel

    reference = PixArtTransformer2DModel.from_pretrained(folders["pixart"] / "transformer")
    latent, context = randn(2, 4, 64, 48), randn(2, 20, 32, seed=1)
    conditions = {"resolution": torch.tensor([[512.0, 384]] * 2), "aspect_ratio": torch.tensor([[64 / 48]] * 2)}
    expected = reference(latent, context, timestep=torch.tensor([timestep] * 2), added_cond_kwargs=conditions).sample
    native = loaded("pixart").model.model.diffusion_model(latent, torch.full((2,), float(timestep)), context)
    assert largest_difference(native, expected[:, :4]) <= TOLERANCE


@pytest.mark.parametrize("timestep", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_native_flux_equals_diffusers(timestep, folders, loaded):
    from diffusers import FluxTransformer2DModel

    reference = FluxTransformer2DModel.from_pretrained(folders["flux"] / "transformer")
    latent, context, pooled = randn(2, 16, 8, 12), randn(2, 20, 32, seed=1), randn(2, 32, seed=2)
    tokens = rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    positions = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()
    expected = reference(
        tokens,
        context,
        pooled,
        torch.full((2,), timestep),
        img_ids=positions,
        txt_ids=torch.zeros(20, 3),
        guidance=torch.full((2,), 3.5),
    ).sample
    native = loaded("flux").model.model.diffusion_model(
        latent, torch.full((2,), timestep), context, y=pooled, guidance=torch.full((2,), 3.5)
    )
    expected = rearrange(expected, "b (h w) (c p q) -> b c (h p) (w q)", h=4, p=2, q=2)
    assert largest_difference(native, expected) <= TOLERANCE


# The noise schedule


@pytest.mark.parametrize("family", ["sd15", "sd21", "pixart", "nano"])
def test_noise_levels_are_the_scheduler_configs(family, folders, loaded):
    from diffusers import DDIMScheduler

    config = json.loads((folders[family] / "scheduler/scheduler_config.json").read_text())
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr")
    alphas = DDIMScheduler(**{name: config[name] for name in names if name in config}).alphas_cumprod.double()
    expected = ((1 - alphas) / alphas).sqrt()
    sampling = loaded(family).model.get_model_object("model_sampling")
    # A zero terminal signal-to-noise ratio is infinite noise; ComfyUI ends at 4,518 instead.
    last = -1 if config.get("rescale_betas_zero_snr") else None
    assert sampling.sigmas.shape == expected.shape
    torch.testing.assert_close(sampling.sigmas[:last].double(), expected[:last], rtol=2e-4, atol=1e-6)
    assert (sampling.sigmas[-1] > 4000) == bool(last)


def test_prediction_type_comes_from_the_scheduler(loaded):
    sigma, output, noisy = torch.tensor([2.0]), randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    epsilon = loaded("sd15").model.get_model_object("model_sampling").calculate_denoised(sigma, output, noisy)
    velocity = loaded("sd21").model.get_model_object("model_sampling").calculate_denoised(sigma, output, noisy)
    assert largest_difference(epsilon, noisy - 2 * output) <= TOLERANCE
    assert largest_difference(velocity, noisy / 5 - output * 2 / 5**0.5) <= TOLERANCE


def test_flux_takes_its_shift_from_the_scheduler(flux_folder, loaded, tmp_path):
    assert loaded("flux").model.get_model_object("model_sampling").shift == 1.15
    folder = copy_of(flux_folder, tmp_path)
    edit_json(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=False, shift=3.0)
    sampling = load_pipeline(folder).model.get_model_object("model_sampling")
    assert (sampling.shift, sampling.multiplier) == (3.0, 1.0)


# VAE


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_native_vae_equals_diffusers_both_ways(family, folders, loaded):
    from diffusers import AutoencoderKL

    reference = AutoencoderKL.from_pretrained(folders[family] / "vae")
    vae = loaded(family).vae
    image_bhwc = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    expected = reference.encode(rearrange(image_bhwc, "b h w c -> b c h w") * 2 - 1).latent_dist.mode()
    latent = vae.encode(image_bhwc)
    assert latent.shape == (2, reference.config.latent_channels, 8, 12)
    assert largest_difference(latent, expected) <= TOLERANCE
    decoded = rearrange(reference.decode(expected).sample, "b c h w -> b h w c") / 2 + 0.5
    assert largest_difference(vae.decode(expected), decoded.clamp(0, 1)) <= TOLERANCE


@torch.no_grad()
def test_vae_with_three_levels_and_uneven_widths_equals_diffusers(sd15_folder, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(7)
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(64, 96, 32),
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    folder = copy_of(sd15_folder, tmp_path)
    shutil.rmtree(folder / "vae")
    reference.save_pretrained(folder / "vae")
    pipeline = load_pipeline(folder)
    image_bhwc = torch.rand(1, 32, 48, 3)
    expected = reference.encode(rearrange(image_bhwc, "b h w c -> b c h w") * 2 - 1).latent_dist.mode()
    assert expected.shape[-2:] == (8, 12)
    assert largest_difference(pipeline.vae.encode(image_bhwc), expected) <= TOLERANCE
    decoded = rearrange(reference.decode(expected).sample, "b c h w -> b h w c") / 2 + 0.5
    assert largest_difference(pipeline.vae.decode(expected), decoded.clamp(0, 1)) <= TOLERANCE
    assert pipeline.model.get_model_object("latent_format").spacial_downscale_ratio == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_model_latents_are_scaled_and_shifted_as_in_diffusers(family, folders, loaded):
    config = json.loads((folders[family] / "vae/config.json").read_text())
    latent = randn(1, config["latent_channels"], 8, 8)
    model = loaded(family).model.model
    expected = (latent - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    assert largest_difference(model.process_latent_in(latent), expected) <= TOLERANCE
    assert largest_difference(model.process_latent_out(expected), latent) <= TOLERANCE


class LinearDecoder:
    """A decoder whose colours are known: each latent pixel becomes a block of one colour, linear in the VAE's latent."""

    factors, bias = randn(16, 3, seed=1) / 16, torch.tensor([0.4, 0.5, 0.6])

    def decode(self, latent_bchw):
        colors = torch.einsum("bchw,cr->bhwr", latent_bchw, self.factors) + self.bias
        return repeat(colors, "b h w rgb -> b (h p) (w q) rgb", p=8, q=8)


def test_preview_colors_are_the_decoders_own_in_the_models_latent_scale():
    latent_format = AnyLatent(16, scale=0.7, shift=0.2, downscale=8)
    factors, bias = preview_colors(latent_format, LinearDecoder())
    model_latent = randn(1, 16, 8, 8, seed=2)
    shown = Latent2RGBPreviewer(factors, bias).decode_latent_to_preview(model_latent)
    expected = LinearDecoder().decode(latent_format.process_out(model_latent))[0, ::8, ::8].clamp(0, 1) * 255
    assert shown.size == (8, 8)
    assert largest_difference(torch.from_numpy(np.asarray(shown).copy()).float(), expected) <= 1


def test_an_unpublished_vae_has_preview_colors_for_every_channel(loaded):
    latent_format = loaded("nano").model.get_model_object("latent_format")
    assert torch.tensor(latent_format.latent_rgb_factors).shape == (16, 3)
    assert torch.tensor(latent_format.latent_rgb_factors).isfinite().all()
    assert isinstance(loaded("sd15").model.get_model_object("latent_format"), comfy.latent_formats.SD15)


# Text


def clip_embedding(folder, number="", prompt=PROMPT, dtype=torch.float32):
    """last_hidden_state, hidden_states and pooled output by transformers, with the tokens that diffusers' pipeline would use."""
    from comfy import sd1_clip
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    own = folder / f"tokenizer{number}"
    stock = Path(sd1_clip.__file__).parent / "sd1_tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(own if own.exists() else stock)
    config = json.loads((folder / f"text_encoder{number}/config.json").read_text())
    model_class = CLIPTextModelWithProjection if "CLIPTextModelWithProjection" in config["architectures"] else CLIPTextModel
    model = model_class.from_pretrained(folder / f"text_encoder{number}", dtype=dtype).eval()
    pads_with_zero = number == "_2" or config["hidden_act"] == "gelu"
    ids = tokenizer(prompt).input_ids
    ids = ids + [0 if pads_with_zero else tokenizer.eos_token_id] * (77 - len(ids))
    return model(torch.tensor([ids]), output_hidden_states=True)


@pytest.mark.parametrize("family", ["sd15", "sd21", "nano"])
@torch.no_grad()
def test_clip_embedding_and_pooled_output_equal_transformers(family, folders, loaded):
    expected = clip_embedding(folders[family], prompt=PROMPT)
    clip = loaded(family).clip
    embedding, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
    assert largest_difference(embedding, expected.last_hidden_state) <= TOLERANCE
    assert largest_difference(pooled, expected.pooler_output) <= TOLERANCE


@torch.no_grad()
def test_sdxl_takes_the_last_layer_but_one_of_both_encoders_and_the_projected_pool(sdxl_folder, loaded):
    first, second = clip_embedding(sdxl_folder, prompt="a red ball"), clip_embedding(sdxl_folder, "_2", prompt="a red ball")
    clip = loaded("sdxl").clip
    embedding, pooled = clip.encode_from_tokens(clip.tokenize("a red ball"), return_pooled=True)
    expected = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    assert largest_difference(embedding, expected) <= TOLERANCE
    assert pooled.shape == (1, 48)
    assert largest_difference(pooled, second.text_embeds) <= TOLERANCE


def t5_embedding(folder, prompt, length):
    from comfy.text_encoders import t5
    from transformers import T5EncoderModel, T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(Path(t5.__file__).parent / "t5_tokenizer")
    tokens = tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt")
    model = T5EncoderModel.from_pretrained(folder).eval()
    return tokens, model


@torch.no_grad()
def test_pixart_t5_embedding_equals_transformers_where_diffusers_does_not_mask(pixart_folder, loaded):
    clip = loaded("pixart").clip
    embedding = clip.encode_from_tokens(clip.tokenize(PROMPT))
    tokens, model = t5_embedding(pixart_folder / "text_encoder", PROMPT, 120)
    length = int(tokens.attention_mask.sum())
    expected = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert largest_difference(embedding, expected[:, :length]) <= TOLERANCE


@torch.no_grad()
def test_flux_takes_t5_as_context_and_clip_as_pool(flux_folder, loaded):
    tokens, model = t5_embedding(flux_folder / "text_encoder_2", "a red ball", 256)
    clip = loaded("flux").clip
    embedding, pooled = clip.encode_from_tokens(clip.tokenize("a red ball"), return_pooled=True)
    assert largest_difference(embedding, model(tokens.input_ids).last_hidden_state) <= TOLERANCE
    assert largest_difference(pooled, clip_embedding(flux_folder, prompt="a red ball").pooler_output) <= TOLERANCE


def test_own_vocabulary_is_used_for_tokens_and_ends(nano_folder, loaded):
    clip = loaded("nano").clip
    vocabulary = json.loads((nano_folder / "tokenizer/vocab.json").read_text())
    tokens = [token for token, _ in clip.tokenize("red blue")["l"][0]]
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    assert tokens == [start, vocabulary["red</w>"], vocabulary["blue</w>"], end] + [end] * 73
    assert clip.cond_stage_model.clip_l.special_tokens == {"start": start, "end": end, "pad": end}


@torch.no_grad()
def test_half_precision_weights_on_disk_load_and_are_computed_in_float32(nano_folder, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = copy_of(nano_folder, tmp_path)
    for path in folder.rglob("*.safetensors"):
        save_file({name: weight.half() for name, weight in load_file(path).items()}, path)
    reference = UNet2DConditionModel.from_pretrained(folder / "unet").float()
    pipeline = load_pipeline(folder)
    latent, context = randn(1, 16, 16, 16), randn(1, 77, 32, seed=1)
    expected = reference(latent, torch.tensor(500), context).sample
    assert largest_difference(pipeline.model.model.diffusion_model(latent, torch.tensor([500.0]), context), expected) <= TOLERANCE
    embedding = pipeline.clip.encode_from_tokens(pipeline.clip.tokenize("red"))
    assert largest_difference(embedding, clip_embedding(folder, prompt="red").last_hidden_state) <= TOLERANCE


# Working with it


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


# Reading files


def test_sharded_and_fp16_only_weights_load(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    names = sorted(weights)
    parts = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
        "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    text = folder / "text_encoder/model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(text).items()}, folder / "text_encoder/model.fp16.safetensors")
    text.unlink()
    pipeline, original = load_pipeline(folder), load_pipeline(sd15_folder)
    state = pipeline.model.model.diffusion_model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in original.model.model.diffusion_model.state_dict().items())
    assert largest_difference(*(one.clip.encode_from_tokens(one.clip.tokenize("red")) for one in (pipeline, original))) < 1e-2


def refuses(folder, *words):
    with pytest.raises(ModelFolderError) as error:
        load_pipeline(folder)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


def test_every_missing_file_is_named(sd15_folder, tmp_path):
    refuses(tmp_path / "absent", "no folder", "absent")
    for name in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "text_encoder/model.safetensors"):
        folder = Path(shutil.copytree(sd15_folder, tmp_path / name.replace("/", "-")))
        (folder / name).unlink()
        refuses(folder, name.split("/")[0], "copy the folder again")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        folder = Path(shutil.copytree(sd15_folder, tmp_path / name.replace("/", "-")))
        (folder / name).unlink()
        refuses(folder, name.split("/")[-1])


def test_truncated_and_foreign_files_are_named_and_not_opened_as_pickles(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    for wrong in (content[: len(content) // 2], content[:4], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
        path.write_bytes(wrong)
        refuses(folder, "unet/diffusion_pytorch_model.safetensors", f"{len(wrong)} bytes", "again")
    torch.save({"weight": torch.zeros(1)}, path)
    refuses(folder, "unet/diffusion_pytorch_model.safetensors", "not a complete safetensors file")


def test_pickle_only_folders_are_refused_with_advice(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")
    refuses(folder, "vae", "pickle", "diffusion_pytorch_model.bin", "save_pretrained")


def test_an_index_may_not_lead_out_of_its_folder(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "secret.safetensors")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../secret.safetensors"}}))
    refuses(folder, "plain safetensors file name", "../secret.safetensors")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "part.safetensors"}}))
    refuses(folder, "part.safetensors", "missing")


def test_incomplete_and_mismatched_weights_are_refused(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: weight for name, weight in weights.items() if name != "conv_in.weight"}, path)
    refuses(folder, "UNet lacks 1 weights", "input_blocks.0.0.weight")
    save_file({**weights, "conv_in.weight": torch.zeros(32, 4, 1, 1)}, path)
    refuses(folder, "another shape", "[32, 4, 1, 1]")
    save_file({**weights, "adapter.weight": torch.zeros(1)}, path)
    refuses(folder, "adapter.weight")


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"block_out_channels": [48, 96]}, ("UNet", "multiple of 32", "48")),
        ("vae", {"block_out_channels": [16, 32, 32, 32]}, ("VAE", "multiple of 32", "16")),
        ("unet", {"norm_num_groups": 16}, ("norm_num_groups = 16",)),
        ("unet", {"attention_head_dim": [2, 3]}, ("heads",)),
        ("unet", {"in_channels": 5}, ("5 channels", "do not belong together")),
        ("unet", {"class_embed_type": "timestep"}, ("class_embed_type",)),
        ("unet", {"_class_name": "UNet3DConditionModel"}, ("UNet3DConditionModel", "SDXL")),
        ("vae", {"_class_name": "AutoencoderTiny"}, ("AutoencoderTiny", "AutoencoderKL")),
        ("vae", {"latent_channels": 8}, ("VAE", "another shape")),
        ("scheduler", {"prediction_type": "sample"}, ("'sample'", "v_prediction")),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}, ("EDMEulerScheduler",)),
        ("text_encoder", {"hidden_act": "relu"}, ("hidden_act = 'relu'",)),
        ("text_encoder", {"vocab_size": 1000}, ("1000 tokens", "vocab.json")),
    ],
)
def test_what_comfyui_cannot_do_is_explained(part, changes, words, sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    edit_json(next((folder / part).glob("*config.json")), **changes)
    refuses(folder, *words)


def test_a_config_without_an_entry_and_broken_json_are_explained(sd15_folder, tmp_path):
    folder = copy_of(sd15_folder, tmp_path)
    path = folder / "unet/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "block_out_channels"}))
    refuses(folder, "unet/config.json", "block_out_channels")
    path.write_text("{")
    refuses(folder, "unet/config.json", "not readable JSON")


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_told_from_the_configs(family, folders):
    assert detect_family(folders[family]) == ("sd15" if family == "nano" else family)


# The node


@pytest.fixture
def models(sd15_folder, tmp_path, monkeypatch):
    """A models/diffusers of its own, with an extra model path, as extra_model_paths.yaml adds it."""
    import folder_paths

    first, extra = tmp_path / "models/diffusers", tmp_path / "elsewhere"
    shutil.copytree(sd15_folder, first / "tiny")
    shutil.copytree(sd15_folder, extra / "shared/tiny")
    shutil.copytree(sd15_folder, tmp_path / "outside")
    (extra / "loop").symlink_to(extra, target_is_directory=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(first), str(extra)], ["folder"]))
    return first


def test_node_offers_the_folders_of_every_search_path_once(models):
    names = [name for name in paths.model_folders() if not name.endswith("(bundled)")]
    assert names == ["tiny", "shared/tiny"]
    options = {field.id: field.options for field in LoadIntrinsicModel.define_schema().inputs}
    assert set(names) <= set(options["model"])
    assert options["weight_dtype"] == ["default", "fp32", "fp16", "bf16", "fp8_e4m3fn"]


def test_node_works_without_any_model_folder(monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", (["/nowhere"], ["folder"]))
    monkeypatch.setattr(paths, "BUNDLED", Path("/nowhere"))
    assert paths.model_folders() == {}
    assert LoadIntrinsicModel.define_schema().inputs[0].options == []


@pytest.mark.parametrize("name", ["../outside", "tiny/../../outside", "/etc", "", "tiny/unet", "."])
def test_node_refuses_anything_but_an_offered_name(name, models):
    with pytest.raises(ValueError, match="no model folder"):
        LoadIntrinsicModel.execute(name)


def test_node_gives_three_native_parts_in_the_chosen_dtype(models):
    model, clip, vae = LoadIntrinsicModel.execute("tiny", "bf16").result
    assert model.model.diffusion_model.dtype == torch.bfloat16
    assert model.clone().model is model.model
    assert isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)
    with pytest.raises(ValueError, match="weight_dtype"):
        LoadIntrinsicModel.execute("tiny", "int3")


def test_node_loads_anew_when_a_file_is_replaced(models):
    before = LoadIntrinsicModel.fingerprint_inputs("tiny", "default")
    assert before == LoadIntrinsicModel.fingerprint_inputs("tiny", "default")
    path = models / "tiny/unet/diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)
    after = LoadIntrinsicModel.fingerprint_inputs("tiny", "default")
    assert after != before
    assert LoadIntrinsicModel.fingerprint_inputs("absent") != after


def test_every_input_and_output_has_a_tooltip():
    declared = LoadIntrinsicModel.define_schema()
    assert all(field.tooltip for field in (*declared.inputs, *declared.outputs))
