"""The smoke run on the oldest supported ComfyUI: loading, extracting, sampling a picture and its maps, over HTTP, as the newest does it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.tests.nodes.conftest import build_model_folder
from intrinsic_lab.tests.server.test_train import interrupted, lora_file, lora_node, message
from intrinsic_lab.tools.comfyui_server import RunningServer, comfyui_server
from intrinsic_lab.tools.comfyui_source import OLDEST, cached_copy, version_of
from intrinsic_lab.tools.environment import link_pack
from intrinsic_lab.tools.example_workflows import example_workflow
from PIL import Image
from safetensors.torch import load_file, save_file

PROMPT = {
    "1": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "smoke", "weight_dtype": "fp32"}},
    "2": {
        "class_type": "IntrinsicLabApplyLoRA",
        "inputs": {"model": ["1", 0], "lora_name": "smoke.safetensors", "map": "albedo", "strength": 1.0},
    },
    "3": {"class_type": "LoadImage", "inputs": {"image": "smoke.png"}},
    "4": {
        "class_type": "IntrinsicLabExtractMaps",
        "inputs": {
            **{"model": ["2", 0], "clip": ["1", 1], "vae": ["1", 2], "image": ["3", 0], "processing_resolution": 0},
            **{"tile_size": 0, "tile_overlap": 64, "mirrored_average": False, "merged_map": "none"},
        },
    },
    "5": {"class_type": "IntrinsicLabFormatColor", "inputs": {"map": ["4", 2], "encoding": "sRGB", "exposure": 0.0, "clamp": False}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "smoke"}},
}


@pytest.fixture(scope="module")
def oldest_server(tmp_path_factory) -> RunningServer:
    """The pack in the oldest supported ComfyUI, which `make test` provides."""
    comfyui = Path(os.environ.get("OLDEST_COMFYUI_PATH") or cached_copy(OLDEST))
    assert version_of(comfyui) == OLDEST.version, f"{comfyui} is not ComfyUI {OLDEST.version}: `make test` provides it."
    base = link_pack(tmp_path_factory.mktemp("oldest"))
    with comfyui_server(Path(sys.executable), comfyui, base, ["--cpu"]) as running:
        yield running


def place_files(base: Path) -> None:
    """A tiny random model, a random LoRA for it and a picture, in a server's folders; the same in every call."""
    unet = load_file(next((build_model_folder(base / "models/diffusers/smoke", "nano") / "unet").glob("*.safetensors")))
    generator = torch.Generator().manual_seed(0)
    layers = {
        name.removesuffix(".weight"): LoraLayer(
            torch.randn(2, weight.shape[1], generator=generator) / 8, torch.randn(weight.shape[0], 2, generator=generator) / 8, scale=1.0
        )
        for name, weight in sorted(unet.items())
        if name.endswith(("to_q.weight", "to_v.weight"))
    }
    (base / "models/loras").mkdir(exist_ok=True)
    save_file(kohya_state_dict(layers), base / "models/loras/smoke.safetensors")
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(ramp).save(base / "input/smoke.png")


def extract(client, server: RunningServer) -> np.ndarray:
    """The saved albedo of the picture."""
    events, entry = client.run(PROMPT)
    assert events[-1]["type"] == "execution_success", events[-1]
    [file] = entry["outputs"]["6"]["images"]
    return np.asarray(Image.open(server.base / "output" / file["filename"])).astype(int)


def test_the_oldest_comfyui_extracts_the_same_map_as_the_one_under_test(server, client, oldest_server):
    place_files(server.base)
    place_files(oldest_server.base)
    expected = extract(client, server)
    found = extract(type(client)(oldest_server.url), oldest_server)
    assert found.shape == (64, 64, 3) and np.ptp(found) > 10
    assert np.abs(found - expected).max() <= 1


def joint_prompt(name: str) -> dict:
    """A nano example in two steps, with the saver that every ComfyUI has."""
    prompt = example_workflow(name).prompt()
    for node in prompt.values():
        if node["class_type"] == "SaveImageAdvanced":
            node["class_type"] = "SaveImage"
            node["inputs"] = {name: node["inputs"][name] for name in ("images", "filename_prefix")}
        elif node["class_type"] in ("KSampler", "IntrinsicLabJointSampler"):
            node["inputs"]["steps"] = 2
    return prompt


def sample_jointly(client, server: RunningServer, name: str) -> dict[str, np.ndarray]:
    """The saved picture and maps of an example, by their nodes' titles."""
    prompt = joint_prompt(name)
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", events[-1]
    pictures = {}
    for key, node in prompt.items():
        if node["class_type"] == "SaveImage":
            [file] = entry["outputs"][key]["images"]
            path = server.base / "output" / file["subfolder"] / file["filename"]
            pictures[node["_meta"]["title"]] = np.asarray(Image.open(path)).astype(int)
    return pictures


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("4 Picture and maps from text", ("picture", "depth", "normal", "segmentation", "line")),
        ("5 Five maps from text", ("picture", "albedo", "irradiance", "depth", "normal")),
    ],
)
def test_the_oldest_comfyui_samples_the_same_picture_and_maps_as_the_one_under_test(server, client, oldest_server, name, saved):
    expected, found = sample_jointly(client, server, name), sample_jointly(type(client)(oldest_server.url), oldest_server, name)
    assert set(found) == {f"Save {name}" for name in saved}
    for title, picture in found.items():
        assert np.ptp(picture) > 10 and np.abs(picture - expected[title]).max() <= 2, title


def test_the_oldest_comfyui_makes_the_same_maps_of_a_picture_in_one_node(server, client, oldest_server):
    prompt = example_workflow("1 Picture to maps").prompt()

    def previews(host: RunningServer) -> list[np.ndarray]:
        events, entry = type(client)(host.url).run(prompt, seconds=300)
        assert events[-1]["type"] == "execution_success", message(events)
        files = [entry["outputs"][key]["images"][0] for key, node in prompt.items() if node["class_type"] == "PreviewImage"]
        return [np.asarray(Image.open(host.base / "temp" / file["filename"])).astype(int) for file in files]

    for found, expected in zip(previews(oldest_server), previews(server), strict=True):
        # They read a JPEG by different libraries.
        assert np.ptp(found) > 100 and np.abs(found - expected).mean() < 3


def test_the_oldest_comfyui_trains_the_same_lora_through_an_interrupt(server, client, oldest_server):
    oldest, prompt = type(client)(oldest_server.url), {"train": lora_node("smoke", steps=20, scenes=2)}
    events, _ = client.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    interrupted(oldest, prompt, "train", at=3)
    events, _ = oldest.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    expected, found = load_file(lora_file(server, "smoke")), load_file(lora_file(oldest_server, "smoke"))
    assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)


def test_the_oldest_comfyui_knows_every_node_of_the_pack(server, client, oldest_server):
    def ours(url: str) -> set[str]:
        return {name for name in type(client)(url).get("/object_info")[1] if name.startswith("IntrinsicLab")}

    assert ours(oldest_server.url) == ours(server.url) != set()
