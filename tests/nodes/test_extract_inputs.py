"""What Apply Intrinsic LoRA and Extract Intrinsic Maps take: files, headers, pictures, models; and what they refuse, in words."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import diffusers
import folder_paths
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA, ExtractIntrinsicMaps
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.tests.nodes.conftest import tiny_clip, tiny_schedule, tiny_vae, write_model_folder, write_own_tokenizer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from nodes import CheckpointLoaderSimple

sys.path.insert(0, str(Path(__file__).parent))
from extract_world import ATTENTION, apply, both_worlds, error, extract, folders, maps_of, normal_model, peft_unet, save_lora, tiny


def test_one_file_gives_the_same_in_lora_loader_in_diffusers_and_here(tiny, folders):
    """Kohya's spelling, all layers: what the trainer writes."""
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "shading", state, prompt="shading", rank="3")
    image = torch.rand(1, 32, 32, 3)
    here = extract(tiny, apply(tiny.model, "shading"), image)
    merged, _ = comfy.sd.load_lora_for_models(tiny.model, None, comfy.utils.load_torch_file(str(folders / "shading.safetensors")), 1.0, 0.0)
    assert len(merged.patches) == len(state) // 3 > 80
    in_core = extract(tiny, merged, image, merged_map="shading")
    with torch.inference_mode(False):
        loaded = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder / "unet").eval()
        pipeline = diffusers.StableDiffusionPipeline(
            vae=None, text_encoder=None, tokenizer=None, unet=loaded, scheduler=None, safety_checker=None, feature_extractor=None
        )
        pipeline.load_lora_weights(str(folders), weight_name="shading.safetensors")
    for output in (here, in_core):
        assert error(tiny, output, unet, image, "shading") < 1e-4
        assert error(tiny, output, loaded, image, "shading") < 1e-4


@pytest.fixture(scope="module")
def published_widths(tmp_path_factory):
    """A UNet that core's own detection takes for Stable Diffusion 1.5: its channels and text width, but a single level."""
    folder = tmp_path_factory.mktemp("models") / "sd15-widths"
    vocabulary = write_own_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(7)
        parts = {
            "unet": diffusers.UNet2DConditionModel(
                block_out_channels=(320,),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D",),
                up_block_types=("CrossAttnUpBlock2D",),
                cross_attention_dim=768,
                attention_head_dim=8,
            ),
            "vae": tiny_vae(),
            "text_encoder": tiny_clip(width=768, layers=2, vocabulary=vocabulary),
        }
    return write_model_folder(folder, parts, tiny_schedule(), "StableDiffusionPipeline")


def test_a_checkpoint_of_cores_own_loader_gives_the_maps_of_diffusers(published_widths, folders, monkeypatch):
    world = both_worlds(published_widths)
    unet, state = peft_unet(world, "all", seed=0)
    save_lora(folders, "normal", state)
    names = comfy.utils.unet_to_diffusers(world.model.model.model_config.unet_config)
    weights = load_file(published_widths / "unet/diffusion_pytorch_model.safetensors")
    save_file({f"model.diffusion_model.{names[name]}": weight for name, weight in weights.items()}, folders / "checkpoint.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(folders)], {".safetensors"}))
    model, clip, _ = CheckpointLoaderSimple().load_checkpoint("checkpoint.safetensors")
    assert type(model.model.model_config).__name__ == "SD15" and clip is None
    image = torch.rand(1, 32, 48, 3)
    output = extract(world, apply(model, "normal"), image)
    assert error(world, output, unet, image, "normal") < 1e-4
    unet.disable_adapters()
    assert error(world, output, unet, image, "normal") > 0.05


def test_published_attention_processor_keys_in_a_bin_give_the_same_maps(tiny, folders):
    unet, _ = peft_unet(tiny, ATTENTION, seed=0)
    state = {}
    for key, value in get_peft_model_state_dict(unet).items():
        module, side = key.removesuffix(".weight").rsplit(".lora_", 1)
        block, projection = module.removesuffix(".0").rsplit(".", 1)
        # These files carry no alpha; the random LoRA's scale of 2 goes into one factor.
        state[f"{block}.processor.{projection}_lora.{'down' if side == 'A' else 'up'}.weight"] = value * (2 if side == "B" else 1)
    torch.save(state, folders / "normal.bin")
    with pytest.raises(ValueError, match=r"normal\.bin does not say which map it makes"):
        ApplyIntrinsicLoRA.execute(tiny.model, "normal.bin", "auto", 1.0)
    # As the pack's own, what is drawn is compared; `test_extract_conventions.py` has the axes that these files mean.
    model = ApplyIntrinsicLoRA.execute(tiny.model, "normal.bin", "normal", 1.0, "opengl")[0]
    image = torch.rand(1, 32, 32, 3)
    assert error(tiny, extract(tiny, model, image), unet, image, "normal") < 1e-4


def test_header_sets_prompt_timestep_and_processing_resolution(tiny, folders):
    unet, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "albedo", state, prompt="flat colours, please", timestep="500", resolution="40")
    other, other_state = peft_unet(tiny, ATTENTION, seed=1)
    save_lora(folders, "shading", other_state)
    image = torch.rand(1, 48, 40, 3)
    output = extract(tiny, apply(apply(tiny.model, "albedo"), "shading"), image, processing_resolution=-1)
    assert output[4]["samples"].shape[-2:] == (6, 5)
    assert error(tiny, output, unet, image, "albedo", "flat colours, please", 500) < 1e-4
    assert error(tiny, output, other, image, "shading") < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (64, 200)])
@pytest.mark.parametrize("settings", [{}, {"processing_resolution": 32}, {"tile_size": 64, "tile_overlap": 8}, {"mirrored_average": True}])
def test_results_have_exactly_the_pictures_size(tiny, normal_model, size, settings):
    output = extract(tiny, normal_model, torch.rand(1, *size, 3), **settings)
    assert output[0].shape == (1, *size, 3) and output[0].dtype == torch.float32
    assert torch.allclose(output[0].norm(dim=-1), torch.ones(1, *size), atol=1e-5)


def test_maps_leave_0_to_1_unclamped(tiny, folders):
    _, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "albedo", state)
    albedo = extract(tiny, apply(tiny.model, "albedo", strength=20), torch.rand(1, 32, 32, 3))[2]
    assert torch.isfinite(albedo).all()
    assert albedo.min() < 0 or albedo.max() > 1


def test_grey_and_rgba_pictures_are_read_as_rgb(tiny, normal_model):
    grey = torch.rand(1, 32, 32, 1)
    rgba = torch.cat([grey.expand(-1, -1, -1, 3), torch.rand(1, 32, 32, 1)], -1)
    wanted = extract(tiny, normal_model, grey.expand(-1, -1, -1, 3))
    for image in (grey, rgba):
        assert (extract(tiny, normal_model, image)[4]["samples"] - wanted[4]["samples"]).abs().max() * tiny.vae.config.scaling_factor < 1e-5


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(0, 16, 16, 3), "empty"),
        (torch.rand(1, 16, 16, 5), "5 channels"),
        (torch.full((1, 16, 16, 3), float("nan")), "NaN"),
    ],
)
def test_pictures_that_are_none_are_refused(tiny, normal_model, image, message):
    with pytest.raises(ValueError, match=message):
        extract(tiny, normal_model, image)


def test_a_map_without_its_lora_blocks_only_its_own_output(tiny, normal_model):
    output = extract(tiny, normal_model, torch.rand(1, 32, 32, 3))
    assert isinstance(output[0], torch.Tensor)
    for name, blocked in maps_of(output).items():
        if name != "normal":
            assert isinstance(blocked, ExecutionBlocker) and f"no LoRA for '{name}'" in blocked.message


def test_models_that_cannot_make_maps_are_refused(tiny, normal_model):
    image = torch.rand(1, 32, 32, 3)
    with pytest.raises(ValueError, match="carries no intrinsic LoRA"):
        extract(tiny, tiny.model, image)
    with pytest.raises(ValueError, match="would add up"):
        extract(tiny, normal_model, image, merged_map="depth")
    with pytest.raises(ValueError, match="already carries a LoRA for 'normal'"):
        apply(normal_model, "normal")


def test_parts_that_are_missing_or_belong_to_another_model_are_refused_in_words(tiny, normal_model, sdxl_folder, nano_folder):
    def with_parts(**parts):
        return SimpleNamespace(**{"clip": tiny.clip, "native_vae": tiny.native_vae} | parts)

    image = torch.rand(1, 32, 32, 3)
    other_clip, other_vae = load_pipeline(sdxl_folder).clip, load_pipeline(nano_folder).vae
    for parts, message in (
        ({"clip": None}, "no CLIP: the checkpoint"),
        ({"native_vae": None}, "no VAE: the checkpoint"),
        ({"clip": other_clip}, "gives 96 numbers a token, the MODEL takes 32: connect the CLIP"),
        ({"native_vae": other_vae}, "latents of 16 channels, the MODEL takes 4: connect the VAE"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(with_parts(**parts), normal_model, image)


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


def widened(state, ending):
    return {key: value.repeat(1, 2) if key.endswith(ending) else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: renamed(state, "up_blocks_1", "up_blocks_7"), "made for another model: 16 of its"),
        (lambda state: widened(state, "attn1_to_q.lora_down.weight"), "model of another width: 7 of its"),
        (lambda state: {key: value * float("nan") for key, value in state.items()}, "NaN"),
    ],
)
def test_loras_for_other_models_and_broken_ones_are_refused(tiny, folders, change, message):
    _, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "normal", change(state))
    with pytest.raises(ValueError, match=message):
        apply(tiny.model, "normal")


@pytest.mark.parametrize(
    ("header", "message"),
    [({"timestep": "1000"}, "0 to 999"), ({"timestep": "soon"}, "whole number"), ({"map": "smell"}, "known are normal, depth")],
)
def test_headers_that_make_no_sense_are_refused(tiny, folders, header, message):
    save_lora(folders, "normal", peft_unet(tiny, ATTENTION, seed=0)[1], **header)
    with pytest.raises(ValueError, match=message):
        apply(tiny.model, "normal")


OF_UNETS = "Intrinsic LoRA works on Stable Diffusion UNets"


@pytest.mark.parametrize(
    ("family", "told", "told_by_extract"),
    [("pixart_folder", OF_UNETS, OF_UNETS), ("flux_folder", "made for another model: 56 of its 56 layers", "makes latents of 4 channels")],
)
def test_what_does_not_fit_a_model_is_refused_by_name(family, told, told_by_extract, request, tiny, folders):
    model = load_pipeline(request.getfixturevalue(family)).model
    save_lora(folders, "normal", peft_unet(tiny, ATTENTION, seed=0)[1])
    with pytest.raises(ValueError, match=told):
        apply(model, "normal")
    with pytest.raises(ValueError, match=told_by_extract):
        extract(tiny, model, torch.rand(1, 32, 32, 3))


def test_paths_that_leave_the_folder_are_not_found(tiny, folders):
    save_file({"x": torch.ones(1)}, folders.parent / "secret.safetensors")
    for name in ("../secret", "/etc/passwd", str(folders.parent / "secret")):
        with pytest.raises(FileNotFoundError):
            apply(tiny.model, name)


def test_a_changed_file_is_read_again(folders):
    (folders / "normal.safetensors").write_bytes(b"1")
    first = ApplyIntrinsicLoRA.fingerprint_inputs("normal.safetensors", "auto", 1.0)
    (folders / "normal.safetensors").write_bytes(b"12")
    assert ApplyIntrinsicLoRA.fingerprint_inputs("normal.safetensors", "auto", 1.0) != first
    assert ApplyIntrinsicLoRA.fingerprint_inputs("gone.safetensors", "auto", 1.0) == "missing"


def test_schemas_explain_every_input_and_output():
    for node in (ApplyIntrinsicLoRA, ExtractIntrinsicMaps):
        schema = node.define_schema()
        assert schema.description and all(socket.tooltip for socket in [*schema.inputs, *schema.outputs])
        json.dumps(node.GET_NODE_INFO_V1() if hasattr(node, "GET_NODE_INFO_V1") else {}, default=str)
