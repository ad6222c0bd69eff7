"""Multi-step intrinsic LoRAs on a tiny random Stable Diffusion: core's samplers against diffusers on the same weights."""

import logging
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import comfy.model_base
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
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.methods.lora.reading import read_deltas
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes import extract_in_steps
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA
from intrinsic_lab.nodes.extract_in_steps import DecodeIntrinsicMap, ExtractMapsInSteps
from intrinsic_lab.nodes.native.backbones.unet.loading import unet_config
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.loading.folder_files import read_config, read_weights, rename
from intrinsic_lab.nodes.native.loading.patcher import build_patcher
from intrinsic_lab.training.backbones.backbone import TextEmbeddings
from intrinsic_lab.training.intrinsic_lora import SingleStepBase, add_adapter, load_adapter, predict_maps_in_steps
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import ATTENTION, embed, extract, folders, hooks_left, peft_unet, save_lora, tiny, to_model

UPSTREAM = dict(steps=25, cfg=3.0, guidance_rescale=0.7, sampler_name="dpmpp_2m", scheduler="simple", denoise=1.0)
WHOLE = dict(processing_resolution=0, tile_size=0, tile_overlap=16, mirrored_average=False)
NOISE = Noise()


def picture_weight(seed):
    """A random weight by which the picture comes in."""
    return 0.1 * torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


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


def apply(model, name, map_name="auto"):
    return ApplyIntrinsicLoRA.execute(model, f"{name}.safetensors", map_name, 1.0)[0]


def trainers_base(tiny, lora):
    with torch.inference_mode(False):
        unet = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder / "unet").eval()
        add_adapter(unet, "attention", 3, 0)
        load_adapter(unet, read_lora(lora))
    return SingleStepBase(unet, tiny.vae, lambda prompt: TextEmbeddings(embed(tiny, prompt)))


@pytest.fixture
def augmented(tiny, folders):
    """An augmented file (its LoRA, the weight for the picture, its header) and the diffusers UNet that it makes."""
    unet, state = peft_unet(tiny, ATTENTION, seed=0)
    weight = picture_weight(5)
    header = {"method": "augmented", "noise": NOISE.header()}
    save_lora(folders, "normal", state | {PICTURE_KEY: weight}, **header)
    return SimpleNamespace(unet=widened(unet, weight), state=state, weight=weight, header=header)


def test_25_steps_equal_diffusers_by_the_node_and_by_core_s_own(tiny, augmented, folders):
    """The base is one of noise prediction without zero SNR: both come with the file.

    What is left: core's last alpha is 4.9e-8, diffusers' 6e-8, which moves the first step by 2e-5.
    """
    image = torch.rand(1, 48, 64, 3)
    before = {name: tensor.clone() for name, tensor in tiny.model.model.state_dict().items()}
    model = apply(tiny.model, "normal")
    wanted = sampled_by_diffusers(tiny, augmented.unet, image, "normal")
    sampled = ksampler(tiny, model, image)
    assert (to_model(tiny, sampled) - wanted).abs().max() < 1e-4
    by_trainer = predict_maps_in_steps(trainers_base(tiny, folders / "normal.safetensors"), NOISE, image.movedim(-1, 1), "normal")
    by_decode = DecodeIntrinsicMap.execute(model, tiny.native_vae, {"samples": sampled})[0]
    by_node = in_steps(tiny, model, image)["normal"]
    assert torch.equal(by_decode, by_node)
    assert max((maps - decoded(tiny, wanted, "normal")).abs().max() for maps in (by_node, by_trainer)) < 2e-3
    # Nothing of it stays: the MODEL from before is as it was, also once it is loaded again.
    untouched = ksampler(tiny, tiny.model, image, steps=2, condition=False)
    again = ksampler(tiny, load_pipeline(tiny.folder, dtype=torch.float32).model, image, steps=2, condition=False)
    assert torch.equal(untouched, again) and hooks_left(tiny.model) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.model.state_dict().items())


def test_maps_pictures_and_tiles_sampled_together_equal_each_alone(tiny, augmented, folders):
    _, state = peft_unet(tiny, ATTENTION, seed=1)
    save_lora(folders, "albedo", state | {PICTURE_KEY: picture_weight(6)}, **augmented.header)
    image = torch.rand(2, 32, 48, 3)
    normal, albedo = apply(tiny.model, "normal"), apply(tiny.model, "albedo")
    few = dict(steps=3, sampler_name="euler", seed=7)
    together = in_steps(tiny, apply(normal, "albedo"), image, **few)
    for name, model in (("normal", normal), ("albedo", albedo)):
        alone = torch.cat([in_steps(tiny, model, picture[None], **few)[name] for picture in image])
        # Rounding grows where normals are short.
        assert (together[name] - alone).abs().max() < 5e-3
    assert (together["albedo"] - in_steps(tiny, normal, image, **few)["normal"]).abs().max() > 0.1
    wide = in_steps(tiny, normal, image, tile_size=32, **few)["normal"]
    left = in_steps(tiny, normal, image[:, :, :32], **few)["normal"]
    # Before the next tile begins.
    assert wide.shape == image.shape and (wide[:, :, :16] - left[:, :, :16]).abs().max() < 5e-3


def core_detects(folder, weights_from):
    """The MODEL that core's checkpoint loader makes of this UNet as SD 2: to it every further channel means inpainting."""

    class AnySD20(comfy.supported_models.SD20):
        unet_extra_config: ClassVar[dict] = {}

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType.EPS

    native = unet_config(read_config(folder / "unet"))
    weights = {name: tensor.detach() for name, tensor in weights_from.state_dict().items()}
    renamed = rename(weights, comfy.utils.unet_to_diffusers(native), "UNet")
    return build_patcher(AnySD20(native), renamed, "UNet", torch.float32)


def test_a_widened_model_takes_the_picture_by_channels_of_its_own(tiny, augmented, folders, tmp_path):
    """As a diffusers folder, and as core's loaders take a single file; 9 channels are an inpainting model's."""
    plain = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder / "unet")
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "pix2pix"))
    bare = widened(plain, augmented.weight)
    bare.save_pretrained(folder / "unet")
    named = augmented.header | {"map": "normal"}
    save_lora(folders, "bare", augmented.state, **named)
    save_lora(folders, "single", augmented.state, map="normal", method="single")
    save_file(augmented.state, folders / "headerless.safetensors")
    image = torch.rand(1, 32, 32, 3)
    few = dict(steps=3)
    wanted = in_steps(tiny, apply(tiny.model, "normal"), image, **few)["normal"]
    by_core = core_detects(folder, bare)
    assert by_core.model.concat_keys == ("mask", "masked_image")
    for model in (load_pipeline(folder, dtype=torch.float32).model, by_core):
        maps = in_steps(tiny, apply(model, "bare"), image, **few)["normal"]
        assert (maps - wanted).abs().max() < 2e-3
        assert (
            ksampler(tiny, apply(model, "bare"), image, steps=3) - ksampler(tiny, apply(tiny.model, "normal"), image, steps=3)
        ).abs().max() < 1e-4
        with pytest.raises(ValueError, match=r"normal.safetensors brings weights.*takes 8 input channels.*load the plain model"):
            apply(model, "normal")
        # Without a header it is the MODEL that tells the method; the noise is then upstream's.
        assert torch.equal(in_steps(tiny, apply(model, "headerless", "normal"), image, **few)["normal"], maps)
        with pytest.raises(ValueError, match="8 input channels, 4 were expected"):
            apply(model, "single")
    with pytest.raises(ValueError, match=r"bare.safetensors holds no weights.*takes 4 input channels.*inpainting one 9.*load the widened"):
        apply(tiny.model, "bare")
    inpainting = core_detects(folder, bare)
    inpainting.model.diffusion_model.in_channels = 9
    for name in ("bare", "normal"):
        with pytest.raises(ValueError, match=r"takes 9 input channels .*an inpainting one 9"):
            apply(inpainting, name)


def test_a_naive_lora_starts_from_the_picture_as_img2img_does(tiny, folders):
    unet, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "albedo", state, method="multi")
    image = torch.rand(1, 32, 32, 3)
    model = apply(tiny.model, "albedo")
    found = in_steps(tiny, model, image, steps=10, denoise=0.5, guidance_rescale=0.0)["albedo"]
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps[10:]
    scheduler.set_begin_index(10)
    picture = to_model(tiny, tiny.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode())
    latent = scheduler.add_noise(picture, torch.randn(picture.shape, generator=torch.manual_seed(0)), timesteps[:1])
    text, empty = (embed(tiny, words) for words in ("albedo", ""))
    for timestep in timesteps:
        positive, negative = (unet(latent, timestep, words).sample for words in (text, empty))
        latent = scheduler.step(negative + 3 * (positive - negative), timestep, latent).prev_sample
    assert (found - decoded(tiny, latent, "albedo")).abs().max() < 2e-3
    own = Noise("epsilon", zero_snr=False)
    trained = predict_maps_in_steps(
        trainers_base(tiny, folders / "albedo.safetensors"), own, image.movedim(-1, 1), "albedo", steps=10, rescale=0, strength=0.5
    )
    assert (trained - decoded(tiny, latent, "albedo")).abs().max() < 2e-3


def test_every_wrong_way_is_told_in_words(tiny, augmented, folders):
    image = torch.rand(1, 32, 32, 3)
    model = apply(tiny.model, "normal")
    with pytest.raises(ValueError, match="normal make their map in many steps: use Extract Maps in Steps"):
        extract(tiny, model, image)
    with pytest.raises(ValueError, match="conditioning of the sampler has none: let positive and negative"):
        ksampler(tiny, model, image, condition=False)
    save_lora(folders, "depth", augmented.state)
    with pytest.raises(ValueError, match=r"depth.safetensors works by the method 'single', the LoRA for 'normal'.*by 'augmented'"):
        apply(model, "depth")
    with pytest.raises(ValueError, match="depth make their map in one step"):
        in_steps(tiny, apply(tiny.model, "depth"), image)
    with pytest.raises(ValueError, match="carries no intrinsic LoRA"):
        in_steps(tiny, tiny.model, image)
    changes = {
        "guessed": ({"method": "guessed"}, {}, "works by the method 'guessed', known are single, multi, augmented"),
        "noise": ({"noise": '{"prediction": "sample"}'}, {}, "as intrinsic_lab.noise in its header .*epsilon or v_prediction are known"),
        "width": ({}, {PICTURE_KEY: augmented.weight[:16]}, r"another width: .*\(16, 4, 3, 3\), the MODEL needs \(32, 4, 3, 3\)"),
        "flat": ({}, {PICTURE_KEY: augmented.weight.flatten()}, r"wanted \[width, channels, kernel, kernel\]"),
        "nan": ({}, {PICTURE_KEY: augmented.weight * float("nan")}, "NaN or infinite"),
    }
    for name, (header, tensors, words) in changes.items():
        entries = augmented.header | header | {"map": "normal"}
        save_lora(folders, name, augmented.state | {PICTURE_KEY: augmented.weight} | tensors, **entries)
        with pytest.raises(ValueError, match=words):
            apply(tiny.model, name)


def test_core_s_lora_loader_and_the_index_read_an_augmented_file_but_for_the_picture(tiny, augmented, folders, caplog):
    path = folders / "normal.safetensors"
    with caplog.at_level(logging.WARNING):
        merged, _ = comfy.sd.load_lora_for_models(tiny.model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    named = [record.getMessage() for record in caplog.records if "lora key not loaded" in record.getMessage()]
    assert named == [f"lora key not loaded: {PICTURE_KEY}"]
    assert len(merged.patches) == len(read_lora(path).layers) == len(list(read_deltas(path)))


def test_a_sampling_stops_at_once_when_it_is_cancelled(tiny, augmented, monkeypatch):
    steps = []

    def cancelled():
        steps.append(1)
        if len(steps) > 1:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(extract_in_steps, "interruptible", lambda progress: cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        in_steps(tiny, apply(tiny.model, "normal"), torch.rand(1, 32, 32, 3))
    assert len(steps) == 2 and hooks_left(tiny.model) == 0
