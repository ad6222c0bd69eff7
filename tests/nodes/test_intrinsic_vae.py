"""The intrinsic VAE's nodes against diffusers on the same widened weights."""

import json

import folder_paths
import pytest
import torch
from diffusers import AutoencoderKL
from intrinsic_lab.methods.ildm.intrinsic_vae import INTRINSICS, channel_slice, join_intrinsics, widen
from intrinsic_lab.nodes import intrinsic_vae as nodes
from intrinsic_lab.nodes.native import paths
from intrinsic_lab.nodes.native.loading.intrinsic_vae import load_intrinsic_vae


@pytest.fixture
def vaes(sd15_folder, tmp_path, monkeypatch):
    """models/vae with a widened VAE and a plain one; a diffusers model with an intrinsic VAE of its own."""
    for kind in ("vae", "diffusers"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(paths, "BUNDLED_NAMES", {})
    base = AutoencoderKL.from_pretrained(sd15_folder / "vae")
    weights, config = widen(base.state_dict(), dict(base.config))
    torch.manual_seed(0)
    wide = AutoencoderKL.from_config(config).eval()
    wide.load_state_dict({name: weight + 0.02 * torch.randn_like(weight) for name, weight in weights.items()})
    own = tmp_path / "diffusers" / "tiny"
    for folder in (tmp_path / "vae/wide", own / "intrinsic_vae"):
        wide.save_pretrained(folder)
    (own / paths.MODEL_INDEX).write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    base.save_pretrained(tmp_path / "vae/plain")
    return wide


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes(vaes):
    with torch.inference_mode():
        yield


def some_maps(height=32, width=48):
    draw = torch.Generator().manual_seed(1)
    maps = {name: torch.rand(2, height, width, intrinsic.channels, generator=draw) for name, intrinsic in INTRINSICS.items()}
    return maps | {"normal": torch.nn.functional.normalize(maps["normal"] * 2 - 1, dim=-1)}


def test_encoded_and_decoded_intrinsics_equal_diffusers(vaes):
    [loaded] = nodes.LoadIntrinsicVAE.execute("vae/wide").args
    maps = some_maps()
    images = {name: values.expand(-1, -1, -1, 3) for name, values in maps.items()}
    latent = nodes.EncodeIntrinsics.execute(loaded, **images)[0]
    channels = join_intrinsics(maps).movedim(-1, 1)
    with torch.no_grad():
        wanted = vaes.encode(channels).latent_dist.mode()
        assert (latent["samples"] - wanted).abs().max() < 1e-4
        decoded = vaes.decode(wanted).sample.movedim(1, -1)
    output = nodes.DecodeIntrinsics.execute(loaded, {"samples": wanted})
    for name, image in zip(INTRINSICS, output.args, strict=True):
        data = INTRINSICS[name].from_picture((decoded[..., channel_slice(name)] + 1) / 2)
        assert image.shape == (2, 32, 48, 3) and (image - data).abs().max() < (1e-3 if name == "normal" else 1e-4)
    assert min(image.min() for image in output.args[2:]) < 0, "nothing is clamped"
    [preview] = output.ui.as_dict()["images"][:1]
    assert preview["filename"]


def test_maps_that_are_not_there_are_zero_as_in_training(vaes):
    [loaded] = nodes.LoadIntrinsicVAE.execute("tiny").args
    maps = some_maps()
    latent = nodes.EncodeIntrinsics.execute(loaded, normal=maps["normal"])[0]["samples"]
    with torch.no_grad():
        wanted = vaes.encode(join_intrinsics({"normal": maps["normal"]}).movedim(-1, 1)).latent_dist.mode()
    assert (latent - wanted).abs().max() < 1e-4


def test_odd_sizes_are_cropped_and_decoding_in_tiles_keeps_all_channels(vaes):
    [loaded] = nodes.LoadIntrinsicVAE.execute("vae/wide").args
    latent = nodes.EncodeIntrinsics.execute(loaded, line=torch.rand(1, 37, 51, 3))[0]["samples"]
    assert latent.shape == (1, 4, 4, 6)
    whole, tiled = loaded.decode(latent), loaded.decode_tiled(latent, tile_x=64, tile_y=64, overlap=8)
    assert whole.shape == (1, 32, 48, 8) and torch.allclose(tiled, whole, atol=1e-4), "one tile is the whole picture"
    assert loaded.decode_tiled(latent, tile_x=2, tile_y=2, overlap=1).shape == whole.shape


def test_the_node_offers_folders_and_refuses_other_names_and_other_vaes(vaes, tmp_path):
    assert list(nodes.intrinsic_vae_folders()) == ["tiny", "vae/plain", "vae/wide"]
    for name in ("vae/../plain", str(tmp_path), "nothing"):
        with pytest.raises(ValueError, match="no intrinsic VAE"):
            nodes.LoadIntrinsicVAE.execute(name)
    with pytest.raises(ValueError, match="takes 3 channels"):
        load_intrinsic_vae(tmp_path / "vae/plain")
    state = nodes.LoadIntrinsicVAE.fingerprint_inputs("vae/wide")
    (tmp_path / "vae/wide/config.json").touch()
    assert nodes.LoadIntrinsicVAE.fingerprint_inputs("vae/wide") != state


def test_latents_and_maps_that_do_not_fit_are_refused_in_words(vaes):
    [loaded] = nodes.LoadIntrinsicVAE.execute("vae/wide").args
    with pytest.raises(ValueError, match="decodes"):
        nodes.DecodeIntrinsics.execute(loaded, {"samples": torch.zeros(1, 16, 4, 4)})
    with pytest.raises(ValueError, match="at least one"):
        nodes.EncodeIntrinsics.execute(loaded)
    with pytest.raises(ValueError, match="one size"):
        nodes.EncodeIntrinsics.execute(loaded, depth=torch.rand(1, 32, 32, 3), line=torch.rand(1, 32, 40, 3))
