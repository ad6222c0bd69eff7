"""The I-LDM trainers from the command line on whole diffusers folders of SD 2.1, SDXL and PixArt-alpha, and a folder of pictures."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from intrinsic_lab.methods.ildm.intrinsic_vae import TOTAL_CHANNELS
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.tests.nodes.conftest import build_model_folder, edit_json, write_own_tokenizer
from intrinsic_lab.training.ildm import JointSceneData, encode_captions, load_diffusion_base, run
from intrinsic_lab.training.ildm.__main__ import main
from intrinsic_lab.training.intrinsic_lora.adapter import lora_layers
from intrinsic_lab.training.intrinsic_lora.latents import encode_model_latents
from intrinsic_lab.training.pairs import SceneData
from transformers import T5Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from test_ildm import write_folder

SCENES = JointSceneData(SceneData(count=2, size=32))
CAPTIONS = ["a red ball", "two blue boxes", ""]
PARTS = {
    "sd21": {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer", "unet": "UNet2DConditionModel"},
    "sdxl": {
        **{"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer", "unet": "UNet2DConditionModel"},
        **{"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"},
    },
    "pixart": {"text_encoder": "T5EncoderModel", "tokenizer": "T5Tokenizer", "transformer": "PixArtTransformer2DModel"},
}
OPTIONAL = {"sd21": {"safety_checker": None, "feature_extractor": None, "image_encoder": None}, "sdxl": {"feature_extractor": None}}


def whole_folder(folder, family):
    """A tiny random model of a family, with tokenizers and the index by which diffusers loads it."""
    build_model_folder(folder, family)
    edit_json(folder / "scheduler/scheduler_config.json", steps_offset=1, clip_sample=False)
    index = {"scheduler": ["diffusers", json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"]]}
    index["vae"] = ["diffusers", "AutoencoderKL"]
    for name, kind in PARTS[family].items():
        index[name] = ["transformers" if name.startswith("t") and name != "transformer" else "diffusers", kind]
        if kind == "CLIPTokenizer":
            write_own_tokenizer(folder / name)
        elif kind == "T5Tokenizer":
            pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
            T5Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0).save_pretrained(folder / name)
    index |= {name: [None, None] for name in OPTIONAL.get(family, {})}
    edit_json(folder / "model_index.json", **index, **({"requires_safety_checker": False} if family == "sd21" else {}))
    return folder


@pytest.fixture(scope="module", params=PARTS)
def base(request, tmp_path_factory):
    return request.param, whole_folder(tmp_path_factory.mktemp("bases") / request.param, request.param)


def test_text_encoders_of_every_family_tell_captions_apart(base):
    family, folder = base
    loaded = load_diffusion_base(folder)
    assert not any(part.requires_grad for part in loaded.network.parameters()) and isinstance(loaded.scheduler, DDPMScheduler)
    text = encode_captions(loaded, CAPTIONS)
    assert text.context.shape == (3, {"pixart": 120}.get(family, 77), {"sdxl": 96}.get(family, 32))
    assert (text.mask is None) == (family != "pixart") and (text.pooled is None) == (family != "sdxl")
    assert not torch.equal(text.context[0], text.context[1]) and not torch.equal(text.context[0], text.context[2])
    alone = encode_captions(loaded, CAPTIONS[1:2])
    torch.testing.assert_close(alone.context, text.context[1:2], atol=1e-5, rtol=1e-4)


def test_both_commands_run_on_every_family_from_a_folder_of_pictures_maps_and_captions(base, tmp_path, monkeypatch):
    _, folder = base
    write_folder(tmp_path / "data")
    for name, caption in zip("ab", CAPTIONS, strict=False):
        (tmp_path / "data/image" / f"{name}.txt").write_text(caption)
    shared = ["--base", str(folder), "--data", str(tmp_path / "data"), "--size", "32", "--batch", "2", "--steps", "2", "--threads", "1"]
    assert main(["vae", *shared, "--output", str(tmp_path / "vae")]) == 0
    vae, own = AutoencoderKL.from_pretrained(tmp_path / "vae/intrinsic_vae"), AutoencoderKL.from_pretrained(folder / "vae")
    wide, pictures = torch.zeros(1, TOTAL_CHANNELS, 32, 32), torch.zeros(1, 3, 32, 32)
    assert vae.encode(wide).latent_dist.mean.shape == own.encode(pictures).latent_dist.mean.shape
    assert vae.config.scaling_factor == own.config.scaling_factor

    written = []
    save = run.save_joint_lora
    monkeypatch.setattr(run, "save_joint_lora", lambda network, config: (written.append(lora_layers(network)), save(network, config)))
    options = ["--output", str(tmp_path / "lora"), "--intrinsic-vae", str(tmp_path / "vae/intrinsic_vae"), "--rank", "3"]
    assert main(["lora", *shared, *options, "--learning-rate", "0.01"]) == 0
    lora = read_lora(tmp_path / "lora/ildm.safetensors")
    assert set(lora.layers) == set(written[-1]) and all(".attn1.to_" in name for name in lora.layers)
    for name, layer in written[-1].items():
        assert layer.up.any(), "it learnt something"
        read = lora.layers[name]
        torch.testing.assert_close(read.scale * read.up @ read.down, layer.scale * layer.up @ layer.down)


def test_latents_are_trained_on_in_the_scale_that_samplers_use(tmp_path):
    folder = whole_folder(tmp_path / "sd21", "sd21")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    source = SCENES.source()
    plain, deviation = encode_model_latents(vae, source, ["image"], tmp_path)["image"]
    vae.register_to_config(shift_factor=0.5)
    shifted, same = encode_model_latents(vae, source, ["image"], tmp_path)["image"]
    torch.testing.assert_close(shifted, plain - 0.5 * vae.config.scaling_factor)
    assert torch.equal(same, deviation)


def test_bases_and_vaes_that_do_not_fit_are_refused_in_words(tmp_path):
    folder = whole_folder(tmp_path / "sd21", "sd21")
    shared = ["--base", str(folder), "--size", "32", "--scenes", "2", "--batch", "1", "--steps", "1", "--threads", "1"]
    assert main(["vae", *shared, "--output", str(tmp_path / "vae")]) == 0
    edit_json(tmp_path / "vae/intrinsic_vae/config.json", scaling_factor=0.5)
    lora = run.JointConfig(folder, tmp_path / "vae/intrinsic_vae", run.LoopConfig(tmp_path / "lora", 1), SCENES)
    with pytest.raises(ValueError, match=r"\(4, 0\.5, 0\.0\), the base's \(4, 0\.18215, 0\.0\)"):
        run.train_joint_lora(lora)
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match="predicts 'sample'"):
        load_diffusion_base(folder)
