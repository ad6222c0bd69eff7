"""The transformers of 2026: loaded natively they are diffusers' own, and Intrinsic LoRA's single step on them is its trainer's."""

import copy
import re

import comfy.latent_formats
import comfy.sd
import folder_paths
import peft
import pytest
import torch
from comfy.ldm.wan.vae import WanVAE
from diffusers import Lumina2Transformer2DModel
from intrinsic_lab.methods.intrinsic_lora.recipe import READINGS, Recipe
from intrinsic_lab.methods.lora.lora_file import peft_state_dict
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA, ExtractIntrinsicMaps
from intrinsic_lab.nodes.native import vaes
from intrinsic_lab.nodes.native.backbones import SINGLE_STEP, require
from intrinsic_lab.nodes.native.joint_sampling.single_step import RowForward, as_model_takes, make_generator
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.loading.folder_files import ModelFolderError, read_config
from intrinsic_lab.nodes.native.loading.latent_format import latent_format_of
from intrinsic_lab.nodes.native.loading.text_encoder import TextPart, sentence_pieces
from intrinsic_lab.nodes.native.loading.vae import load_vae
from intrinsic_lab.nodes.native.paths import bundled_file
from intrinsic_lab.tests.nodes import flow_world
from intrinsic_lab.tests.nodes.conftest import largest_difference, randn
from intrinsic_lab.training.backbones.flux2 import PatchVae
from intrinsic_lab.training.backbones.qwen_image import FrameVae
from intrinsic_lab.training.intrinsic_lora import (
    IntrinsicLoraConfig,
    add_adapter,
    load_base,
    lora_layers,
    map_latent,
    predict_maps,
    save_lora,
)
from intrinsic_lab.training.intrinsic_lora.latents import model_latents, vae_latents
from intrinsic_lab.training.intrinsic_lora.run import train_intrinsic_lora
from intrinsic_lab.training.loop import LoopConfig
from intrinsic_lab.training.pairs import SceneData
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """Each tiny network by its name: diffusers' and the MODEL, made when asked for."""
    made = {}

    def find(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("flows") / name
            folder.mkdir()
            made[name] = flow_world.build(name, folder), flow_world.load(name, folder)
        return made[name]

    return find


@pytest.mark.parametrize("name", flow_world.TINY)
@torch.no_grad()
def test_native_transformers_equal_diffusers(name, flows):
    network, model = flows(name)
    latent, context, pooled = flow_world.inputs(name)
    for time in (0.0, 0.3, 1.0):
        times = torch.full((2,), time)
        expected = flow_world.TINY[name].velocity(network, latent, times, context, pooled)
        native = flow_world.native_velocity(name, model, latent, times, context, pooled)
        assert expected.std() > 0.01
        assert largest_difference(native, expected) <= 1e-5


PICTURES = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module", params=["flux", "sd35", "z_image", "flux2", "lumina2"])
def whole(request, tmp_path_factory):
    """A whole small folder, loaded natively and by the trainer, which has a random LoRA."""
    folder = bundled_file("nano_flux") if request.param == "flux" else tmp_path_factory.mktemp("whole")
    if request.param != "flux":
        flow_world.write_pipeline(request.param, folder)
    base = load_base(folder)
    plain = copy.deepcopy(base.network)
    add_adapter(base.network, "wide", 3, 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in base.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return base, plain, load_pipeline(folder, dtype=torch.float32, text_dtype=torch.float32), folder


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_trainer(whole):
    base, _, native, _ = whole
    for prompt in ("surface normal", "albedo"):
        wanted = base.embed(prompt)
        context, extra = native.clip.encode_from_tokens_scheduled(native.clip.tokenize(prompt))[0]
        assert largest_difference(context, wanted.context) < 1e-4 and wanted.context.std() > 0.01
        if wanted.pooled is not None:
            assert largest_difference(extra["pooled_output"], wanted.pooled) < 1e-4


@torch.no_grad()
def test_what_the_trainer_predicts_is_what_extract_gives_however_the_output_is_read(whole, tmp_path, monkeypatch):
    base, plain, native, _ = whole
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    readings, model = dict(zip(("depth", "albedo", "shading"), READINGS, strict=True)), native.model
    for name, reading in readings.items():
        header = {"intrinsic_lab.map": name, "intrinsic_lab.reading": reading}
        save_lora(base.network, tmp_path / f"{name}.safetensors", header)
        model = ApplyIntrinsicLoRA.execute(model, f"{name}.safetensors", "auto", 1.0)[0]
    output = ExtractIntrinsicMaps.execute(model, native.clip, native.vae, PICTURES, 0, 0, 0, False, "none")
    pictures_bchw = PICTURES.movedim(-1, 1)
    latent = model_latents(base.vae, base.vae.encode(2 * pictures_bchw - 1).latent_dist.mode())
    found = model_latents(base.vae, output[4]["samples"])
    for row, (name, reading) in enumerate((name, readings[name]) for name in MAPS if name in readings):
        text = base.embed(MAPS[name].prompt)
        wanted = map_latent(base.network, latent, text, reading)
        rows = found[2 * row : 2 * row + 2]
        assert largest_difference(rows, wanted) < 1e-4, name
        assert largest_difference(rows, map_latent(plain, latent, text, reading)) > 0.02, "the LoRA says too little"
        picture = predict_maps(base.network, base.vae, text, pictures_bchw, name, reading=reading)
        assert largest_difference(output[list(MAPS).index(name)][..., : picture.shape[-1]], picture) < 1e-3


@torch.no_grad()
def test_the_trainers_files_are_loaded_by_core_and_by_diffusers(whole, tmp_path):
    base, plain, native, _ = whole
    save_lora(base.network, tmp_path / "lora.safetensors", {})
    state, text = load_file(tmp_path / "lora.safetensors"), base.embed("albedo")
    latent = randn(1, base.vae.config.latent_channels, 8, 12)
    wanted = map_latent(base.network, latent, text)
    again = copy.deepcopy(plain)
    again.load_lora_adapter(dict(state), prefix="transformer")
    assert largest_difference(map_latent(again, latent, text), wanted) < 1e-5
    merged, _ = comfy.sd.load_lora_for_models(native.model, None, state, 1.0, 0.0)
    if isinstance(plain, Lumina2Transformer2DModel):
        # Core's LoraLoader knows none of diffusers' names of Lumina 2; Apply Intrinsic LoRA does.
        assert not merged.patches
        return
    assert len(merged.patches) == len({name.rsplit(".lora_", 1)[0] for name in state}) or len(merged.patches) > 0
    plan = make_generator(merged, native.clip, native.vae, {"albedo": Recipe("albedo", "albedo")}, assign=False)
    found = model_latents(base.vae, plan.predict(vae_latents(base.vae, latent), [0]))
    assert largest_difference(found, wanted) < 1e-4


def test_two_steps_of_training_on_a_folder_write_a_file_that_moves_its_map(whole, tmp_path):
    _, plain, _, folder = whole
    config = IntrinsicLoraConfig(
        folder, "depth", LoopConfig(tmp_path, 2, 1e-2), data=SceneData(count=2, size=32), kind="wide", rank=2, batch=1
    )
    trained = train_intrinsic_lora(config)
    state, again = load_file(trained.weights), copy.deepcopy(plain)
    again.load_lora_adapter(dict(state), prefix="transformer")
    text, latent = trained.base.embed("depth map"), randn(1, trained.base.vae.config.latent_channels, 4, 4)
    with torch.no_grad():
        found = map_latent(again, latent, text)
        assert largest_difference(found, map_latent(trained.base.network, latent, text)) < 1e-5
        assert largest_difference(found, map_latent(plain, latent, text)) > 1e-3


@pytest.mark.parametrize("name", ["qwen_image", "flux2", "lumina2"])
@torch.no_grad()
def test_a_lora_of_every_block_and_prompts_of_other_lengths_keep_to_their_rows(name, flows, tmp_path, monkeypatch):
    """Transformers whose text encoders are read by core: the network's own part of the single step."""
    network, model = flows(name)
    network, tiny = copy.deepcopy(network), flow_world.TINY[name]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    torch.manual_seed(2)
    inside = [part for part, module in network.named_modules() if isinstance(module, torch.nn.Linear) and re.search(r"\.\d+\.", part)]
    network.add_adapter(peft.LoraConfig(r=3, lora_alpha=3, target_modules=inside, init_lora_weights=False))
    save_file(peft_state_dict(lora_layers(network), "transformer."), tmp_path / "one.safetensors", {"intrinsic_lab.map": "depth"})
    carrying = ApplyIntrinsicLoRA.execute(model, "one.safetensors", "auto", 1.0)[0]
    carrying = ApplyIntrinsicLoRA.execute(carrying, "one.safetensors", "albedo", 0.0)[0]
    single_step, clone = require(carrying, SINGLE_STEP), carrying.clone()
    clone.add_object_patch("model_sampling", single_step.model_sampling(carrying))
    texts = [(randn(1, tokens, tiny.text, seed=tokens), {}) for tokens in (20, 12)]
    levels = single_step.noise_levels(clone, torch.tensor([999.0, 999.0]))
    forward = RowForward(clone, ("depth", "albedo"), texts, True, levels, ("raw", "data"), single_step.joint_text)
    latent = randn(3, tiny.channels, 8, 12, seed=5)
    found, rows = forward(latent, [1, 0, 1]), [1, 0, 1]
    of_model = clone.get_model_object("latent_format")
    seen = of_model.process_in(as_model_takes(clone, latent)).view(latent.shape)
    for place, row in enumerate(rows):
        context = texts[row][0]
        if name == "flux2":
            # What core does with FLUX.2's text.
            context = torch.nn.functional.pad(context, (0, 0, 512 - context.shape[1], 0))
        one = seen[place : place + 1]
        # That of albedo has no strength.
        (network.enable_adapters if row == 0 else network.disable_adapters)()
        output = tiny.velocity(network, one, torch.ones(1), context, None)
        wanted = READINGS[("raw", "data")[row]](output, one)
        wanted = of_model.process_out(as_model_takes(clone, wanted)).view(one.shape)
        assert largest_difference(found[place : place + 1], wanted) < 1e-4
    network.enable_adapters()
    assert largest_difference(tiny.velocity(network, one, torch.ones(1), context, None), output) > 0.05


@torch.no_grad()
def test_pictures_are_no_frames_of_a_video_to_qwen_images_vae():
    from diffusers import AutoencoderKLQwenImage

    pictures = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]).state_dict()
        # Core's layers begin as whatever memory held.
        weights = {part: 0.1 * torch.randn(weight.shape) for part, weight in weights.items()}
        network = AutoencoderKLQwenImage(base_dim=8, z_dim=16).eval()
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    latents = vaes.encode_pictures(vae, pictures)
    assert latents.shape == (2, 16, 4, 6)
    assert torch.equal(latents[1:], vae.encode(pictures[1:])[:, :, 0])
    assert largest_difference(vaes.decode_pictures(vae, latents)[1], vae.decode(latents[1:].unsqueeze(2))[0, 0]) < 1e-5
    # The trainer's, in the model's own scale.
    mean, std = (torch.tensor(values).view(1, 16, 1, 1) for values in (network.config.latents_mean, network.config.latents_std))
    own = network.encode(2 * pictures.movedim(-1, 1).unsqueeze(2) - 1).latent_dist
    frames, made = FrameVae(network), FrameVae(network).encode(2 * pictures.movedim(-1, 1) - 1).latent_dist
    torch.testing.assert_close(made.mode(), (own.mode()[:, :, 0] - mean) / std)
    torch.testing.assert_close(made.std, own.std[:, :, 0] / std)
    decoded = network.decode(own.mode()).sample[:, :, 0]
    torch.testing.assert_close(frames.decode(made.mode()).sample, decoded, rtol=0, atol=1e-5)


@torch.no_grad()
def test_pictures_go_through_flux2s_vae_as_by_the_pipeline(tmp_path):
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline

    network = flow_world.flux2_vae()
    network.save_pretrained(tmp_path)
    pipeline = Flux2KleinPipeline(scheduler=None, vae=network, text_encoder=None, tokenizer=None, transformer=None)
    wanted = pipeline._encode_vae_image(2 * PICTURES.movedim(-1, 1) - 1, None)
    config = read_config(tmp_path)
    native = load_vae(tmp_path, config, torch.float32)
    latents = native.encode(PICTURES)
    assert latents.shape == wanted.shape == (2, 32, 4, 6) and largest_difference(latents, wanted) < 1e-5
    mean, variance = (part.view(1, -1, 1, 1) for part in (network.bn.running_mean, network.bn.running_var))
    decoded = network.decode(pipeline._unpatchify_latents(wanted * (variance + 1e-4).sqrt() + mean)).sample
    assert largest_difference(native.decode(latents), (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)) < 1e-5
    # The trainer's.
    frame = PatchVae(AutoencoderKLFlux2.from_pretrained(tmp_path))
    assert largest_difference(frame.encode(2 * PICTURES.movedim(-1, 1) - 1).latent_dist.mode(), wanted) < 1e-5
    assert largest_difference(frame.decode(wanted).sample, decoded) < 1e-5
    formats = [comfy.latent_formats.SD15, comfy.latent_formats.Flux2]
    assert isinstance(latent_format_of(config | {"latent_channels": 32}, native, formats), comfy.latent_formats.Flux2)
    assert latent_format_of(config, native, formats).spacial_downscale_ratio == 16
    with pytest.raises(ModelFolderError, match="The VAE has patch_size = \\[4, 4\\], ComfyUI's native layers need"):
        load_vae(tmp_path, config | {"patch_size": [4, 4]})


def test_sentence_pieces_that_are_missing_damaged_or_of_another_encoder_are_refused(tmp_path):
    part = TextPart("gemma2_2b", "text_encoder", "tokenizer", pieces="tokenizer.model")
    for change, vocabulary, told in (
        (lambda path: None, 408, "tokenizer has no tokenizer.model of a usual size: copy the folder again"),
        (lambda path: path.write_bytes(b"no pieces"), 408, "tokenizer.model is damaged"),
        (flow_world.write_pieces, 100, "tokenizer knows \\d+ tokens, text_encoder knows 100"),
    ):
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        change(tmp_path / "tokenizer/tokenizer.model")
        with pytest.raises(ModelFolderError, match=told):
            sentence_pieces(tmp_path, part, {"vocab_size": vocabulary})
