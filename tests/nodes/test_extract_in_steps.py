"""Multi-step intrinsic LoRAs on a tiny random Stable Diffusion: core's samplers against diffusers on the same weights."""

import json
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import diffusers
import pytest
import torch
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_model_advanced import RescaleCFG
from intrinsic_lab.methods.intrinsic_lora.multi_step import PICTURE_KEY, Noise
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes import extract as extract_nodes
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA
from intrinsic_lab.nodes.extract_in_steps import DecodeIntrinsicMap, ExtractMapsInSteps
from intrinsic_lab.nodes.native.backbones.unet.loading import unet_config
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.loading.folder_files import read_config, read_weights, rename
from intrinsic_lab.nodes.native.loading.patcher import build_patcher
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import ATTENTION, apply, embed, extract, folders, hooks_left, peft_unet, save_lora, tiny, to_model

UPSTREAM = dict(steps=25, cfg=3.0, guidance_rescale=0.7, sampler_name="dpmpp_2m", scheduler="simple", denoise=1.0)
WHOLE = dict(processing_resolution=0, tile_size=0, tile_overlap=16, mirrored_average=False)
NOISE = Noise()


def picture_weight(unet, seed=5):
    """A random weight by which the picture comes in."""
    return 0.1 * torch.randn(unet.conv_in.weight.shape, generator=torch.Generator().manual_seed(seed))


def widened(unet, weight):
    """The same diffusers UNet with one first convolution of both latents."""
    unet, narrow = deepcopy(unet), unet.conv_in
    with torch.inference_mode(False):
        unet.conv_in = torch.nn.Conv2d(2 * narrow.in_channels, narrow.out_channels, 3, padding=1)
        unet.conv_in.weight = torch.nn.Parameter(torch.cat([narrow.weight, weight], 1))
        unet.conv_in.bias = narrow.bias
    unet.register_to_config(in_channels=2 * narrow.in_channels)
    return unet


def sampled_by_diffusers(tiny, unet, image, map_name, steps=25, guidance=3.0, rescale=0.7, seed=0):
    """Upstream's sampling, written out: scaled latents of the map, one noise for all pictures."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=NOISE.first_beta,
        beta_end=NOISE.last_beta,
        beta_schedule=NOISE.betas,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    picture = tiny.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    noise = torch.randn(picture[:1].shape, generator=torch.manual_seed(seed))
    latent = noise.expand(picture.shape)
    text, empty = (embed(tiny, words).expand(len(picture), -1, -1) for words in (MAPS[map_name].prompt, ""))
    for timestep in scheduler.timesteps:
        seen = torch.cat([latent, picture], 1)
        positive, negative = (unet(seen, timestep, words).sample for words in (text, empty))
        output = negative + guidance * (positive - negative)
        again = output * (positive.std((1, 2, 3), keepdim=True) / output.std((1, 2, 3), keepdim=True))
        latent = scheduler.step(rescale * again + (1 - rescale) * output, timestep, latent).prev_sample
    return latent


def decoded(tiny, latent, map_name):
    config = tiny.vae.config
    pictures = tiny.vae.decode(latent / config.scaling_factor + (config.shift_factor or 0)).sample
    return MAPS[map_name].from_picture(pictures.movedim(1, -1) / 2 + 0.5)


def in_steps(tiny, model, image, **settings):
    output = ExtractMapsInSteps.execute(model, tiny.clip, tiny.native_vae, image, **({"seed": 0} | UPSTREAM | WHOLE | settings))
    return dict(zip(MAPS, output.args, strict=True))


def ksampler(tiny, model, image, map_name="normal", steps=25, condition=True):
    """The same by core's own nodes, up to the latent."""
    positive, negative = (tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(words)) for words in (MAPS[map_name].prompt, ""))
    latent = {"samples": torch.zeros_like(tiny.native_vae.encode(image))}
    if condition:
        positive, negative, latent = InstructPixToPixConditioning.execute(positive, negative, image, tiny.native_vae).args
    model = RescaleCFG().patch(model, 0.7)[0]
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    return comfy.sample.sample(model, noise, steps, 3.0, "dpmpp_2m", "simple", positive, negative, latent["samples"], seed=0)


@pytest.fixture
def augmented(tiny, folders):
    """An augmented file (its LoRA, the weight for the picture, its header) and the diffusers UNet that it makes."""
    unet, state = peft_unet(tiny, ATTENTION, seed=0)
    weight = picture_weight(unet)
    header = {"method": "augmented", "noise": NOISE.header(), "convention": "opengl"}
    save_lora(folders, "normal", state | {PICTURE_KEY: weight}, **header)
    return SimpleNamespace(unet=widened(unet, weight), state=state, weight=weight, header=header)


def test_25_steps_equal_diffusers_by_the_node_and_by_core_s_own(tiny, augmented):
    """The base is one of noise prediction without zero SNR: both come with the file.

    What is left: core's last alpha is 4.9e-8, diffusers' 6e-8, which moves the first step by 2e-5.
    """
    image = torch.rand(1, 48, 64, 3)
    before = {name: tensor.clone() for name, tensor in tiny.model.model.state_dict().items()}
    model = apply(tiny.model, "normal")
    wanted = sampled_by_diffusers(tiny, augmented.unet, image, "normal")
    sampled = ksampler(tiny, model, image)
    assert (to_model(tiny, sampled) - wanted).abs().max() < 1e-4
    by_decode = DecodeIntrinsicMap.execute(model, tiny.native_vae, {"samples": sampled})[0]
    by_node = in_steps(tiny, model, image)["normal"]
    assert torch.equal(by_decode, by_node)
    assert (by_node - decoded(tiny, wanted, "normal")).abs().max() < 2e-3
    # Nothing of it stays: the MODEL from before is as it was, also once it is loaded again.
    untouched = ksampler(tiny, tiny.model, image, steps=2, condition=False)
    again = ksampler(tiny, load_pipeline(tiny.folder, dtype=torch.float32).model, image, steps=2, condition=False)
    assert torch.equal(untouched, again) and hooks_left(tiny.model) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.model.state_dict().items())
