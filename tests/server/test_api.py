"""The pack over ComfyUI's own HTTP and websocket: what a client is told, what runs again, what a wrong request does."""

import json
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.tests.nodes.conftest import build_model_folder
from intrinsic_lab.tools.example_workflows import example_workflows
from PIL import Image
from safetensors.torch import load_file, save_file

EXTRACT = {
    "processing_resolution": 0,
    "tile_size": 0,
    "tile_overlap": 16,
    "mirrored_average": False,
    "merged_map": "none",
}

NORMALS = {
    "convention": "OpenGL (Y up)",
    "flip_x": False,
    "flip_y": False,
    "flip_z": False,
    "renormalize": True,
    "output": "colors, 0 to 1",
}


def graph(**changes: dict) -> dict:
    """Picture -> normal and albedo -> files. `changes` replaces inputs: load={"model": ...}, by node."""
    nodes = {
        "load": ("IntrinsicLabLoadModel", {"model": "tiny", "weight_dtype": "fp32"}),
        "normal": ("IntrinsicLabApplyLoRA", {"model": ["load", 0], "lora_name": "tiny_normal.safetensors", "map": "auto", "strength": 1.0}),
        "albedo": (
            "IntrinsicLabApplyLoRA",
            {"model": ["normal", 0], "lora_name": "tiny_albedo.safetensors", "map": "auto", "strength": 1.0},
        ),
        "picture": ("LoadImage", {"image": "small.png"}),
        "extract": (
            "IntrinsicLabExtractMaps",
            {"model": ["albedo", 0], "clip": ["load", 1], "vae": ["load", 2], "image": ["picture", 0], **EXTRACT},
        ),
        "look": ("IntrinsicLabFormatColor", {"map": ["extract", 2], "encoding": "sRGB", "exposure": 0.0, "clamp": True}),
        "save": ("SaveImage", {"images": ["look", 0], "filename_prefix": "api/albedo"}),
    }
    assert set(changes) <= set(nodes), changes
    return {name: {"class_type": kind, "inputs": {**inputs, **changes.get(name, {})}} for name, (kind, inputs) in nodes.items()}


def ramp(width: int, height: int, channels: int) -> Image.Image:
    pixels = np.linspace(0, 255, width * height * channels).reshape(height, width, channels).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


@pytest.fixture(scope="module")
def folders(server) -> Path:
    """The shared server's base directory, with a tiny random model, LoRAs for two maps, broken ones, and pictures."""
    models, pictures = server.base / "models", server.base / "input"
    folder = build_model_folder(models / "diffusers/tiny", "nano")
    unet = load_file(next((folder / "unet").glob("*.safetensors")))
    generator = torch.Generator().manual_seed(0)
    layers = {
        name.removesuffix(".weight"): LoraLayer(
            torch.randn(2, weight.shape[1], generator=generator) / 8, torch.randn(weight.shape[0], 2, generator=generator) / 8, scale=1.0
        )
        for name, weight in sorted(unet.items())
        if name.endswith("to_q.weight")
    }
    loras = models / "loras"
    loras.mkdir(exist_ok=True)
    state = kohya_state_dict(layers)
    for name in ("normal", "albedo"):
        save_file(state, loras / f"tiny_{name}.safetensors", metadata={"intrinsic_lab.map": name})
    whole = (loras / "tiny_normal.safetensors").read_bytes()
    (loras / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (loras / "text.safetensors").write_text("no weights at all")
    wrong_width = {name: tensor[:, :-1].contiguous() if name.endswith("lora_down.weight") else tensor for name, tensor in state.items()}
    save_file(wrong_width, loras / "wrong_width.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in state.items()}, loras / "nan.safetensors")
    torch.save({"code": Opener(str(server.base / "opened"))}, loras / "code.bin")

    outside = server.base / "outside.safetensors"
    outside.write_bytes(whole)
    (models / "diffusers/hollow").mkdir()
    (models / "diffusers/hollow/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))

    ramp(64, 48, 3).save(pictures / "small.png")
    ramp(1, 1, 3).save(pictures / "one.png")
    ramp(40, 24, 4).save(pictures / "rgba.png")
    ramp(40, 24, 1).save(pictures / "grey.png")
    ramp(8193, 16, 3).save(pictures / "wide.png")
    ramp(1024, 1024, 3).save(pictures / "large.png")
    return server.base


class Opener:
    """Unpickling it would leave a file: a stand-in for any code in a pickle."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def ran(events: list[dict]) -> set[str]:
    """The nodes that were executed."""
    return {event["data"]["node"] for event in events if event["type"] == "executing" and event["data"]["node"]}


def last(events: list[dict]) -> dict:
    return {"type": events[-1]["type"], **{key: events[-1]["data"].get(key) for key in ("node_id", "exception_message")}}


def saved(base: Path, entry: dict, node: str = "save") -> Image.Image:
    [file] = entry["outputs"][node]["images"]
    return Image.open(base / "output" / file["subfolder"] / file["filename"])


def test_a_picture_goes_in_and_a_map_of_its_size_comes_out_with_progress_and_a_preview(client, folders):
    events, entry = client.run(graph(extract={"tile_size": 32}))
    assert last(events)["type"] == "execution_success"
    assert saved(folders, entry).size == (64, 48)
    steps = [event["data"] for event in events if event["type"] == "progress" and event["data"]["node"] == "extract"]
    values = [step["value"] for step in steps]
    # ComfyUI leaves out some of the steps that follow each other quickly.
    assert len(values) > 1 and values == sorted(set(values)) and values[-1] == steps[-1]["max"] == 6
    [preview] = entry["outputs"]["extract"]["images"]
    assert preview["type"] == "temp" and (folders / "temp" / preview["subfolder"] / preview["filename"]).stat().st_size > 0


def test_a_prompt_without_titles_is_accepted(client, folders):
    events, _ = client.run(graph(extract={"tile_overlap": 24}), titled=False)
    assert last(events)["type"] == "execution_success"


def test_a_second_run_executes_nothing_and_a_new_look_only_its_format_node(client, folders):
    client.run(graph(extract={"tile_overlap": 8}))
    again, _ = client.run(graph(extract={"tile_overlap": 8}))
    assert ran(again) == set()
    look, _ = client.run(graph(extract={"tile_overlap": 8}, look={"exposure": 1.0}))
    assert ran(look) == {"look", "save"}


def test_a_replaced_lora_file_is_noticed(client, folders):
    client.run(graph())
    path = folders / "models/loras/tiny_albedo.safetensors"
    save_file(load_file(path), path, metadata={"intrinsic_lab.map": "albedo", "intrinsic_lab.note": "written again"})
    events, _ = client.run(graph())
    assert {"albedo", "extract"} <= ran(events) and "load" not in ran(events)


@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        ("normal", {"lora_name": "../../outside.safetensors"}, "Value not in list"),
        ("normal", {"lora_name": "..\\..\\outside.safetensors"}, "Value not in list"),
        ("normal", {"lora_name": "nano/../tiny_normal.safetensors"}, "Value not in list"),
        ("normal", {"lora_name": "absent.safetensors"}, "Value not in list"),
        ("normal", {"map": "curvature"}, "Value not in list"),
        ("normal", {"strength": 99.0}, "bigger than max"),
        ("load", {"model": "../loras"}, "Value not in list"),
        ("load", {"model": "/etc"}, "Value not in list"),
        ("load", {"model": "absent"}, "Value not in list"),
        ("extract", {"processing_resolution": -2}, "smaller than min"),
        ("extract", {"processing_resolution": "high"}, "Failed to convert"),
        ("extract", {"vae": ["load", 1]}, "Return type mismatch"),
        ("look", {"encoding": "gamma 2.2"}, "Value not in list"),
    ],
)
def test_a_wrong_input_is_refused_with_its_node_and_a_reason_before_anything_runs(client, folders, node, inputs, said):
    status, reply = client.post("/prompt", {"prompt": graph(**{node: inputs})})
    assert status == 400
    assert list(reply["node_errors"]) == [node]
    assert said in json.dumps(reply["node_errors"][node]["errors"])


def test_a_missing_input_is_refused_with_its_node(client, folders):
    prompt = graph()
    del prompt["extract"]["inputs"]["image"]
    status, reply = client.post("/prompt", {"prompt": prompt})
    assert status == 400
    assert "image" in json.dumps(reply["node_errors"]["extract"]["errors"])


@pytest.mark.parametrize(("node", "name"), [("normal", "lora_name"), ("load", "model")])
def test_a_file_name_cannot_be_linked_past_its_list(client, folders, node, name):
    text = {"class_type": "PrimitiveString", "inputs": {"value": "../../outside.safetensors"}}
    status, reply = client.post("/prompt", {"prompt": {**graph(**{node: {name: ["text", 0]}}), "text": text}})
    assert status == 400 and list(reply["node_errors"]) == [node]


def test_a_map_without_its_lora_is_told_at_the_node_that_wants_it_and_the_other_maps_come(client, folders):
    normal = {"class_type": "IntrinsicLabFormatNormals", "inputs": {"normal": ["extract", 0], **NORMALS}}
    both = {"class_type": "SaveImage", "inputs": {"images": ["normals", 0], "filename_prefix": "api/normal"}}
    events, entry = client.run({**graph(extract={"model": ["normal", 0]}), "normals": normal, "save_normal": both})
    [error] = [event["data"] for event in events if event["type"] == "execution_error"]
    assert error["node_id"] == "look"
    assert "no LoRA for 'albedo' (it has: normal): add Apply Intrinsic LoRA" in error["exception_message"]
    assert "save" not in ran(events)
    assert saved(folders, entry, "save_normal").size == (64, 48)


@pytest.mark.parametrize(
    ("changes", "node", "said"),
    [
        ({"extract": {"model": ["load", 0]}}, "extract", "carries no intrinsic LoRA: put Apply Intrinsic LoRA before"),
        ({"extract": {"merged_map": "depth"}}, "extract", "set merged_map to 'none'"),
        ({"load": {"model": "hollow"}}, "load", "hollow"),
        ({"normal": {"lora_name": "truncated.safetensors"}}, "normal", "truncated.safetensors"),
        ({"normal": {"lora_name": "text.safetensors"}}, "normal", "text.safetensors"),
        ({"normal": {"lora_name": "wrong_width.safetensors", "map": "normal"}}, "normal", "wrong_width.safetensors"),
        ({"normal": {"lora_name": "nan.safetensors", "map": "normal"}}, "normal", "nan.safetensors"),
        ({"normal": {"lora_name": "code.bin", "map": "normal"}}, "normal", "code.bin"),
        ({"normal": {"lora_name": "wrong_width.safetensors"}}, "normal", "does not say which map"),
    ],
)
def test_what_goes_wrong_while_running_is_told_with_its_node_and_what_to_do(client, folders, changes, node, said):
    events, entry = client.run(graph(**changes))
    assert last(events)["type"] == "execution_error"
    assert events[-1]["data"]["node_id"] == node
    assert said in events[-1]["data"]["exception_message"]
    assert entry["status"]["status_str"] == "error"
    assert not (folders / "opened").exists()


def test_the_server_goes_on_after_errors(client, folders):
    client.run(graph(normal={"lora_name": "nan.safetensors", "map": "normal"}))
    events, _ = client.run(graph(look={"exposure": 0.5}))
    assert last(events)["type"] == "execution_success"


@pytest.mark.parametrize(
    ("name", "size", "extract"),
    [
        ("one.png", (1, 1), {}),
        ("rgba.png", (40, 24), {}),
        ("grey.png", (40, 24), {}),
        ("wide.png", (8193, 16), {"tile_size": 1024, "processing_resolution": 8}),
    ],
)
def test_pictures_of_any_shape_give_maps_of_exactly_that_shape(client, folders, name, size, extract):
    events, entry = client.run(graph(picture={"image": name}, extract=extract))
    assert last(events)["type"] == "execution_success", last(events)
    assert saved(folders, entry).size == size


def test_an_image_with_alpha_is_read_without_it(client, folders):
    alpha = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["picture", 0], "alpha": ["picture", 1]}}
    prompt = {**graph(picture={"image": "rgba.png"}, extract={"image": ["alpha", 0]}), "alpha": alpha}
    plain = saved(folders, client.run(graph(picture={"image": "rgba.png"}))[1])
    events, entry = client.run(prompt)
    assert last(events)["type"] == "execution_success", last(events)
    np.testing.assert_array_equal(np.asarray(saved(folders, entry)), np.asarray(plain))


def test_an_interrupt_stops_a_long_tiled_extraction_and_the_next_prompt_runs(client, folders):
    tiles = {"picture": {"image": "large.png"}, "extract": {"tile_size": 64, "mirrored_average": True}}
    asked: list[float] = []

    def interrupt_once_tiles_are_done(event: dict) -> None:
        if event["type"] == "progress" and event["data"]["node"] == "extract" and event["data"]["value"] >= 2 and not asked:
            asked.append(time.monotonic())
            threading.Thread(target=client.post, args=("/interrupt", {})).start()

    events, entry = client.run(graph(**tiles), seen=interrupt_once_tiles_are_done)
    waited = time.monotonic() - asked[0]
    assert events[-1]["type"] == "execution_interrupted" and events[-1]["data"]["node_id"] == "extract"
    done = [event["data"] for event in events if event["type"] == "progress" and event["data"]["node"] == "extract"][-1]
    assert done["value"] < done["max"] / 4 and waited < 20
    assert entry["status"]["status_str"] == "error"
    after, _ = client.run(graph(look={"exposure": 0.25}))
    assert last(after)["type"] == "execution_success"


def test_every_node_has_a_help_page_that_the_server_gives_out(client):
    nodes = sorted(name for name in client.get("/object_info")[1] if name.startswith("IntrinsicLab"))
    assert nodes
    for name in nodes:
        status, text = client.get_text(f"/extensions/intrinsic-lab/docs/{name}.md")
        assert status == 200 and len(text) > 200, name


def test_the_examples_are_offered_as_templates(client):
    status, templates = client.get("/workflow_templates")
    assert status == 200
    assert sorted(templates["intrinsic-lab"]) == [example.name for example in example_workflows() if example.is_template]
    for name in templates["intrinsic-lab"]:
        assert client.get(f"/api/workflow_templates/intrinsic-lab/{quote(name)}.json")[0] == 200
