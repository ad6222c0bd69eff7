"""Apply Intrinsic LoRA and Extract Intrinsic Maps on a tiny random Stable Diffusion, against diffusers + peft on the same weights."""

import gc
import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import diffusers
import folder_paths
import peft
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.methods.intrinsic_lora.lora_file import LoraLayer, kohya_state_dict
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes import extract as extract_nodes
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA, ExtractIntrinsicMaps
from intrinsic_lab.nodes.native import row_lora, single_step
from intrinsic_lab.nodes.native.diffusers_folder import load_pipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def both_worlds(folder):
    """The same random weights in diffusers and natively."""
    native = load_pipeline(folder, dtype=torch.float32, text_dtype=torch.float32)
    return SimpleNamespace(
        folder=folder,
        model=native.model,
        clip=native.clip,
        native_vae=native.vae,
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval(),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
    )


@pytest.fixture(scope="module")
def tiny(sd15_folder):
    return both_worlds(sd15_folder)


@pytest.fixture(scope="module")
def nano_like(nano_folder):
    return both_worlds(nano_folder)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "loras").mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors", ".bin"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    torch.manual_seed(0)
    with torch.inference_mode():
        yield tmp_path / "loras"


def peft_unet(tiny, targets, seed, rank=3):
    """A diffusers UNet with a random LoRA, and that LoRA in kohya's spelling (alpha = 2 x rank, so the scale is 2)."""
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        unet = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder / "unet").eval()
        if targets == "all":
            targets = [name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
        unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False))
    weights = get_peft_model_state_dict(unet)
    names = {key.rsplit(".lora_", 1)[0] for key in weights}
    layers = {name: LoraLayer(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], scale=2.0) for name in names}
    return unet, kohya_state_dict(layers)


def embed(tiny, prompt):
    [chunk] = tiny.clip.tokenize(prompt)["l"]
    tokens = [token for token, _ in chunk]
    return tiny.text_encoder(torch.tensor([tokens])).last_hidden_state


def to_model(tiny, latent):
    """A VAE's latent in the model's own scale."""
    return (latent - (tiny.vae.config.shift_factor or 0)) * tiny.vae.config.scaling_factor


def reference(tiny, unet, image, map_name, prompt=None, timestep=999):
    """The published recipe in diffusers: VAE mode, t = 999, no noise; the scaled latent and the picture of the map."""
    latent = to_model(tiny, tiny.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode())
    context = embed(tiny, prompt or MAPS[map_name].prompt).expand(image.shape[0], -1, -1)
    output = unet(latent, torch.tensor([timestep]), context).sample
    config = tiny.vae.config
    return output, tiny.vae.decode(output / config.scaling_factor + (config.shift_factor or 0)).sample.movedim(1, -1) / 2 + 0.5


def error(tiny, output, unet, image, map_name, prompt=None, timestep=999):
    """Largest difference of the map's scaled latent from the reference's; the decoded map is compared on the way.

    The decoder's random weights magnify the latents' float32 rounding about tenfold, so its own bound is 5e-4. Normals are compared before
    normalisation, which would magnify further where they are short.
    """
    names = [name for name, values in zip(MAPS, output.args, strict=False) if not isinstance(values, ExecutionBlocker)]
    latent, picture = reference(tiny, unet, image, map_name, prompt, timestep)
    values, wanted = output[list(MAPS).index(map_name)], MAPS[map_name].from_picture(picture)
    if map_name == "normal":
        length = (picture * 2 - 1).norm(dim=-1, keepdim=True)
        values, wanted = values * length, wanted * length
    assert values.shape[:3] == image.shape[:3]
    same_map = (values - wanted).abs().max() < 5e-4
    row = names.index(map_name) * image.shape[0]
    difference = (to_model(tiny, output[4]["samples"][row : row + image.shape[0]]) - latent).abs().max()
    assert same_map or difference > 1e-4, "equal latents were decoded to different maps"
    return difference


def save_lora(folder, map_name, state, **header):
    save_file(
        state,
        folder / f"{map_name}.safetensors",
        metadata={"intrinsic_lab.map": map_name} | {f"intrinsic_lab.{k}": v for k, v in header.items()},
    )


def apply(model, lora_name, map_name="auto", strength=1.0):
    return ApplyIntrinsicLoRA.execute(model, f"{lora_name}.safetensors", map_name, strength)[0]


def extract(tiny, model, image, **settings):
    defaults = dict(processing_resolution=0, tile_size=0, tile_overlap=64, mirrored_average=False, merged_map="none")
    return ExtractIntrinsicMaps.execute(model, tiny.clip, tiny.native_vae, image, **(defaults | settings))


@contextmanager
def counted_forwards(model):
    rows = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        yield rows
    finally:
        handle.remove()


def hooks_left(model):
    return sum(len(module._forward_hooks) for module in model.model.diffusion_model.modules())


@pytest.fixture(params=["attention", "all"])
def four_maps(request, tiny, folders):
    """A MODEL with four maps applied, and the four diffusers UNets with the same LoRAs."""
    model, unets = tiny.model, {}
    for seed, name in enumerate(MAPS):
        unets[name], state = peft_unet(tiny, ATTENTION if request.param == "attention" else "all", seed)
        save_lora(folders, name, state)
        model = apply(model, name)
    return model, unets


def test_four_maps_in_one_forward_equal_four_diffusers_and_peft_forwards(tiny, four_maps):
    model, unets = four_maps
    image = torch.rand(2, 40, 56, 3)
    with counted_forwards(tiny.model) as rows:
        output = extract(tiny, model, image)
    assert rows == [8]
    for name, unet in unets.items():
        assert error(tiny, output, unet, image, name) < 1e-4
        unet.disable_adapters()
        assert error(tiny, output, unet, image, name) > 0.05, "the LoRA is too weak for this comparison to mean anything"
    assert output[0].shape == output[1].shape == (2, 40, 56, 3)
    assert torch.equal(output[1][..., 0], output[1][..., 2])
    assert len(output.ui.as_dict()["images"]) == 1


def test_a_model_with_its_own_latents_and_vocabulary_gives_diffusers_maps(nano_like, folders):
    """The shape of the bundled model: 16 latent channels with a shift, widths that are no whole multiples, its own tokenizer."""
    model, unets = nano_like.model, {}
    for seed, name in enumerate(MAPS):
        unets[name], state = peft_unet(nano_like, "all", seed)
        save_lora(folders, name, state)
        model = apply(model, name)
    image = torch.rand(2, 40, 56, 3)
    output = extract(nano_like, model, image)
    for name, unet in unets.items():
        assert error(nano_like, output, unet, image, name) < 1e-4


def test_four_maps_in_one_forward_equal_four_merged_passes(tiny, four_maps, folders):
    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    together = extract(tiny, model, image)
    for index, name in enumerate(unets):
        lora = comfy.utils.load_torch_file(str(folders / f"{name}.safetensors"))
        merged, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0.0)
        alone = extract(tiny, merged, image, merged_map=name)
        assert (together[4]["samples"][index] - alone[4]["samples"][0]).abs().max() * tiny.vae.config.scaling_factor < 1e-4
        others = [output for position, output in enumerate(alone.args[:4]) if position != index]
        assert all(isinstance(other, ExecutionBlocker) for other in others)


def test_pictures_and_rows_that_do_not_fit_run_one_after_the_other(tiny, four_maps, monkeypatch):
    model, _ = four_maps
    image = torch.rand(3, 32, 32, 3)
    whole = extract(tiny, model, image)
    for fitting, wanted in ((8, [8, 4]), (3, [3, 1] * 3)):
        for module in (single_step, extract_nodes):
            monkeypatch.setattr(module, "rows_per_forward", lambda model, height, width, fitting=fitting: fitting)
        with counted_forwards(tiny.model) as rows:
            split = extract(tiny, model, image)
        assert rows == wanted
        assert (whole[4]["samples"] - split[4]["samples"]).abs().max() * tiny.vae.config.scaling_factor < 1e-5


def test_a_forward_that_runs_out_of_memory_is_tried_again_in_halves(tiny, four_maps):
    model, _ = four_maps
    image = torch.rand(1, 32, 32, 3)
    whole = extract(tiny, model, image)

    def run_out(module, args):
        if args[0].shape[0] > 2:
            raise comfy.model_management.OOM_EXCEPTION("no memory for this many rows")

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(run_out)
    try:
        with counted_forwards(tiny.model) as rows:
            halves = extract(tiny, model, image)
    finally:
        handle.remove()
    assert rows == [2, 2] and hooks_left(tiny.model) == 0
    assert (whole[4]["samples"] - halves[4]["samples"]).abs().max() * tiny.vae.config.scaling_factor < 1e-5


def test_the_base_model_is_bit_equal_after_a_run_and_keeps_no_hook(tiny, four_maps):
    model, _ = four_maps
    before = {key: value.clone() for key, value in tiny.model.model.state_dict().items()}
    extract(tiny, model, torch.rand(1, 32, 32, 3))
    after = tiny.model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert hooks_left(tiny.model) == 0
    assert row_lora.carried_maps(tiny.model) == {} and not tiny.model.additional_models and row_lora.KEY not in str(tiny.model.wrappers)


def test_clones_do_not_leak_into_each_other(tiny, four_maps):
    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    normal_only = apply(tiny.model, "normal")
    albedo_only = apply(tiny.model, "albedo", strength=0.5)
    first = extract(tiny, normal_only, image)
    extract(tiny, albedo_only, image)
    extract(tiny, model, image)
    again = extract(tiny, normal_only, image)
    assert torch.equal(first[0], again[0])
    assert list(row_lora.carried_maps(normal_only)) == ["normal"] and list(row_lora.carried_maps(model)) == list(MAPS)
    assert error(tiny, again, unets["normal"], image, "normal") < 1e-4


def test_strength_scales_the_lora_and_zero_is_the_base_model(tiny, folders):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "albedo", state)
    image = torch.rand(1, 32, 32, 3)
    half = extract(tiny, apply(tiny.model, "albedo", strength=0.5), image)
    zero = extract(tiny, apply(tiny.model, "albedo", strength=0.0), image)
    unet.disable_adapters()
    assert error(tiny, zero, unet, image, "albedo") < 1e-4
    unet.enable_adapters()
    unet.set_adapters("default", 0.5)
    assert error(tiny, half, unet, image, "albedo") < 1e-4


@pytest.mark.parametrize("order", ["lora_loader_on_top", "lora_loader_below"])
def test_a_lora_loader_lora_has_its_effect_beside_ours(tiny, folders, order):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "depth", state)
    other, other_state = peft_unet(tiny, "all", seed=9)
    if order == "lora_loader_on_top":
        model, _ = comfy.sd.load_lora_for_models(apply(tiny.model, "depth"), None, other_state, 0.7, 0.0)
    else:
        model = apply(comfy.sd.load_lora_for_models(tiny.model, None, other_state, 0.7, 0.0)[0], "depth")
    image = torch.rand(1, 32, 32, 3)
    output = extract(tiny, model, image)
    assert error(tiny, output, unet, image, "depth") > 1e-2
    with torch.inference_mode(False):
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=other.peft_config["default"].target_modules)
        unet.add_adapter(config, "other")
        peft.set_peft_model_state_dict(unet, get_peft_model_state_dict(other), "other")
        unet.set_adapters(["default", "other"], [1.0, 0.7])
    assert error(tiny, output, unet, image, "depth") < 1e-4


def test_fp8_weights_carry_loras_too(tiny, folders):
    unet, state = peft_unet(tiny, "all", seed=0)
    save_lora(folders, "albedo", state)
    model = load_pipeline(tiny.folder, dtype=torch.float8_e4m3fn).model
    assert model.model.diffusion_model.input_blocks[1][0].in_layers[2].weight.dtype == torch.float8_e4m3fn
    with torch.inference_mode(False):
        for name, parameter in unet.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    image = torch.rand(1, 32, 32, 3)
    output = extract(tiny, apply(model, "albedo"), image)
    assert error(tiny, output, unet, image, "albedo") < 1e-4


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
    model = ApplyIntrinsicLoRA.execute(tiny.model, "normal.bin", "normal", 1.0)[0]
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


def test_prompts_of_different_token_counts_share_a_forward(tiny, folders):
    _, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "albedo", state, prompt="colour " * 100)
    other, other_state = peft_unet(tiny, ATTENTION, seed=1)
    save_lora(folders, "shading", other_state)
    image = torch.rand(1, 32, 32, 3)
    with counted_forwards(tiny.model) as rows:
        output = extract(tiny, apply(apply(tiny.model, "albedo"), "shading"), image)
    assert rows == [2]
    assert error(tiny, output, other, image, "shading") < 1e-4


@pytest.fixture
def normal_model(tiny, folders):
    _, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "normal", state)
    return apply(tiny.model, "normal")


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
    for index, name in enumerate(MAPS):
        if name != "normal":
            assert isinstance(output[index], ExecutionBlocker) and f"no LoRA for '{name}'" in output[index].message


def test_models_that_cannot_make_maps_are_refused(tiny, normal_model):
    image = torch.rand(1, 32, 32, 3)
    with pytest.raises(ValueError, match="carries no intrinsic LoRA"):
        extract(tiny, tiny.model, image)
    with pytest.raises(ValueError, match="would add up"):
        extract(tiny, normal_model, image, merged_map="depth")
    with pytest.raises(ValueError, match="already carries a LoRA for 'normal'"):
        apply(normal_model, "normal")


def test_a_stock_sampler_runs_a_single_map_on_every_row_and_refuses_several(tiny, normal_model, folders):
    assert row_lora._map_of_row(None, {"normal": None}, 2) == ("normal", "normal")
    save_lora(folders, "depth", peft_unet(tiny, ATTENTION, seed=1)[1])
    both = apply(normal_model, "depth")
    clone = both.clone()
    clone.add_object_patch("model_sampling", single_step.ImageToImage(tiny.model.model.model_config))
    conditioning = [[torch.randn(1, 77, 32), {}]]
    with pytest.raises(ValueError, match="a sampler cannot know which row is which"):
        single_step._raw_outputs(clone, torch.randn(2, 4, 2, 2), conditioning, torch.full((2,), 999.0), None)
    assert hooks_left(tiny.model) == 0


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


@pytest.mark.parametrize("family", ["pixart_folder", "flux_folder"])
def test_transformers_are_refused_by_name(family, request, tiny, folders):
    model = load_pipeline(request.getfixturevalue(family)).model
    save_lora(folders, "normal", peft_unet(tiny, ATTENTION, seed=0)[1])
    with pytest.raises(ValueError, match="Intrinsic LoRA works on Stable Diffusion UNets"):
        apply(model, "normal")
    with pytest.raises(ValueError, match="Intrinsic LoRA works on Stable Diffusion UNets"):
        extract(tiny, model, torch.rand(1, 32, 32, 3))


@pytest.mark.parametrize("family", ["sd21_folder", "sdxl_folder"])
def test_four_maps_on_sd21_and_sdxl_equal_four_merged_passes(family, request, folders):
    native = load_pipeline(request.getfixturevalue(family), dtype=torch.float32, text_dtype=torch.float32)
    other = SimpleNamespace(folder=request.getfixturevalue(family), model=native.model, clip=native.clip, native_vae=native.vae)
    image, model = torch.rand(1, 64, 64, 3), native.model
    for seed, name in enumerate(MAPS):
        save_lora(folders, name, peft_unet(other, "all", seed)[1])
        model = apply(model, name)
    with counted_forwards(native.model) as rows:
        together = extract(other, model, image)[4]["samples"]
    assert rows == [4]
    for row, name in enumerate(MAPS):
        lora = comfy.utils.load_torch_file(str(folders / f"{name}.safetensors"))
        merged, _ = comfy.sd.load_lora_for_models(native.model, None, lora, 1.0, 0.0)
        alone = extract(other, merged, image, merged_map=name)[4]["samples"][0]
        assert (together[row] - alone).abs().max() < 1e-4 * alone.abs().max()
        assert (together[row] - together[row - 1]).abs().max() > 0.1


def test_paths_that_leave_the_folder_are_not_found(tiny, folders):
    save_file({"x": torch.ones(1)}, folders.parent / "secret.safetensors")
    for name in ("../secret", "/etc/passwd", str(folders.parent / "secret")):
        with pytest.raises(FileNotFoundError):
            apply(tiny.model, name)


def test_an_interrupt_stops_within_a_tile_and_leaves_no_hook(tiny, normal_model):
    interrupted = []

    def interrupt(module, args):
        interrupted.append(1)
        if len(interrupted) == 2:
            comfy.model_management.interrupt_current_processing(True)

    handle = tiny.model.model.diffusion_model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            extract(tiny, normal_model, torch.rand(1, 64, 96, 3), tile_size=32, tile_overlap=8)
    finally:
        handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert len(interrupted) == 2 and hooks_left(tiny.model) == 0


def test_a_compiled_model_does_not_lose_its_lora(tiny, four_maps):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, unets = four_maps
    image = torch.rand(1, 32, 32, 3)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    output = extract(tiny, compiled, image)
    for name, unet in unets.items():
        assert error(tiny, output, unet, image, name) < 1e-4


def test_the_adapters_are_in_cores_memory_accounting(tiny, four_maps):
    model, _ = four_maps
    patchers = model.get_nested_additional_models()
    assert len(patchers) == 4
    layers = sum(1 for _ in patchers[0].model.named_deltas())
    assert layers >= 32 and patchers[0].model_size() == sum(parameter.nbytes for parameter in patchers[0].model.parameters())
    extract(tiny, model, torch.rand(1, 32, 32, 3))
    loaded = [entry.model.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert all(patcher.model in loaded for patcher in patchers)


def test_a_changed_file_is_read_again(folders):
    (folders / "normal.safetensors").write_bytes(b"1")
    first = ApplyIntrinsicLoRA.fingerprint_inputs("normal.safetensors", "auto", 1.0)
    (folders / "normal.safetensors").write_bytes(b"12")
    assert ApplyIntrinsicLoRA.fingerprint_inputs("normal.safetensors", "auto", 1.0) != first
    assert ApplyIntrinsicLoRA.fingerprint_inputs("gone.safetensors", "auto", 1.0) == "missing"


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_300_extractions_do_not_grow_memory(tiny, normal_model, monkeypatch):
    # Core collects all garbage at every load while a model of an earlier test is half gone: minutes of it here.
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    image = torch.rand(1, 32, 32, 3)
    for _ in range(30):
        extract(tiny, normal_model, image)
    gc.collect()
    before, modules = resident_bytes(), len(comfy.model_management.current_loaded_models)
    for _ in range(300):
        extract(tiny, normal_model, image)
    gc.collect()
    assert len(comfy.model_management.current_loaded_models) <= modules
    assert resident_bytes() - before < 16 * 2**20


def test_schemas_explain_every_input_and_output():
    for node in (ApplyIntrinsicLoRA, ExtractIntrinsicMaps):
        schema = node.define_schema()
        assert schema.description and all(socket.tooltip for socket in [*schema.inputs, *schema.outputs])
        json.dumps(node.GET_NODE_INFO_V1() if hasattr(node, "GET_NODE_INFO_V1") else {}, default=str)
