"""The files a model folder is made of, what is said when they are wrong, and the loader node."""

import json
import shutil
from pathlib import Path

import comfy.sd
import pytest
import torch
from intrinsic_lab.nodes.load import LoadIntrinsicModel
from intrinsic_lab.nodes.native import paths
from intrinsic_lab.nodes.native.loading.diffusers_folder import detect_family, load_pipeline
from intrinsic_lab.nodes.native.loading.folder_files import ModelFolderError
from intrinsic_lab.tests.nodes.conftest import FAMILIES, copy_of, edit_json, largest_difference
from safetensors.torch import load_file, save_file

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
