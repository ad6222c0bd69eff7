"""The native loader against diffusers and transformers on the same tiny random folders, float32."""

import json
import shutil
from pathlib import Path

import comfy.latent_formats
import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.loading.latent_format import AnyLatent, preview_colors
from intrinsic_lab.tests.nodes.conftest import FAMILIES, copy_of, edit_json, largest_difference, randn
from latent_preview import Latent2RGBPreviewer
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
PROMPT = "a red ball, blue box"


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
