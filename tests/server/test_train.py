"""Training from the graph over ComfyUI's HTTP, on the bundled nano models."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from intrinsic_lab.tests.server.test_front_end import nodes_2
from intrinsic_lab.tests.server.test_lumix import PREVIEWS, preview_pictures, preview_sizes
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, queue
from PIL import Image
from safetensors.torch import load_file

# Alike in all four nodes: small enough for a second of training.
SHARED = {"data": "rendered scenes", "steps": 2, "learning_rate": 0.01, "batch": 1, "size": 64, "training_seed": 3, "scenes": 4}
NANO, FLUX = {"base": "nano (bundled)", **SHARED}, {"base": "nano FLUX (bundled)", **SHARED}


def lora_node(name: str, **inputs) -> dict:
    return {"class_type": "IntrinsicLabTrainLoRA", "inputs": {**NANO, "map": "normal", "rank": 2, "name": name, **inputs}}


def shown(source: list, node: str = "PreviewAny") -> dict:
    return {"class_type": node, "inputs": {"source": source}}


def run_folder(server, name: str) -> Path:
    return server.base / "output/intrinsic_lab/training" / name


def lora_file(server, name: str) -> Path:
    return server.base / f"models/loras/intrinsic_lab/{name}.safetensors"


def message(events: list[dict]) -> str:
    return events[-1]["data"].get("exception_message", events[-1]["type"])


def picture(server, entry: dict, node: str) -> np.ndarray:
    [file] = entry["outputs"][node]["images"]
    folder = server.base / ("temp" if file["type"] == "temp" else "output")
    return np.asarray(Image.open(folder / file["subfolder"] / file["filename"])).astype(int)


def interrupted(client, prompt: dict, node: str, at: int) -> list[dict]:
    """Runs a prompt and cancels it once that node's progress is at a value; the events."""
    asked = []

    def interrupt(event: dict) -> None:
        if event["type"] == "progress" and event["data"]["node"] == node and event["data"]["value"] >= at and not asked:
            asked.append(True)
            threading.Thread(target=client.post, args=("/interrupt", {})).start()

    events, _ = client.run(prompt, seen=interrupt)
    assert asked and events[-1]["type"] == "execution_interrupted" and events[-1]["data"]["node_id"] == node, events[-1]
    return events


@pytest.fixture(scope="module")
def applied(client, server) -> tuple[list[dict], dict]:
    """Train -> Apply (strength 1 and 0) and core's LoraLoader -> Extract -> Format -> Save."""
    prompt = {
        "train": lora_node("applied", steps=6, batch=2, learning_rate=0.03),
        "report": shown(["train", 2]),
        "name": shown(["train", 0]),
        "load": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "nano (bundled)", "weight_dtype": "fp32"}},
        "scene": {"class_type": "IntrinsicLabRenderScene", "inputs": {"seed": 3, "width": 64, "height": 64, "batch_size": 1}},
        "core": {
            "class_type": "LoraLoader",
            "inputs": {"model": ["load", 0], "clip": ["load", 1], "lora_name": ["train", 0], "strength_model": 1.0, "strength_clip": 0.0},
        },
    }
    for way, strength in (("on", 1.0), ("off", 0.0), ("core", None)):
        if strength is not None:
            prompt[way] = {
                "class_type": "IntrinsicLabApplyLoRA",
                "inputs": {"model": ["load", 0], "lora_name": ["train", 0], "map": "auto", "strength": strength},
            }
        prompt[f"extract {way}"] = {
            "class_type": "IntrinsicLabExtractMaps",
            "inputs": {
                **{"model": [way, 0], "clip": ["load", 1], "vae": ["load", 2], "image": ["scene", 0], "processing_resolution": 0},
                **{"tile_size": 0, "tile_overlap": 16, "mirrored_average": False, "merged_map": "normal" if way == "core" else "none"},
            },
        }
        normals = {"convention": "OpenGL (Y up)", "flip_x": False, "flip_y": False, "flip_z": False}
        prompt[f"look {way}"] = {
            "class_type": "IntrinsicLabFormatNormals",
            "inputs": {"normal": [f"extract {way}", 0], **normals, "renormalize": True, "output": "colors, 0 to 1"},
        }
        prompt[f"save {way}"] = {"class_type": "SaveImage", "inputs": {"images": [f"look {way}", 0], "filename_prefix": f"train/{way}"}}
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    again, _ = client.run(prompt)
    assert not [event for event in again if event["type"] == "executing" and event["data"]["node"]], "the graph is cached"
    return events, entry


def test_a_trained_lora_plugs_into_the_loaders_and_changes_the_maps(server, applied):
    _, entry = applied
    on, off, core = (picture(server, entry, f"save {way}") for way in ("on", "off", "core"))
    assert np.abs(on - off).mean() > 1 and np.abs(on - core).max() <= 2
    assert entry["outputs"]["name"]["text"][0] == "intrinsic_lab/applied.safetensors"


def test_the_node_shows_progress_the_curve_and_a_report(server, applied):
    events, entry = applied
    progress = [event["data"] for event in events if event["type"] == "progress" and event["data"]["node"] == "train"]
    assert progress[-1]["value"] == progress[-1]["max"] == 6
    height, width, _ = picture(server, entry, "train").shape
    # The curve, and below it a scene, its map so far and the true one.
    assert width == 640 and height > 320
    assert "intrinsic_lab/applied.safetensors is ready: 6 steps" in entry["outputs"]["report"]["text"][0]
    assert {"config.json", "loss.json", "loss.png", "checkpoint.pt"} <= {path.name for path in run_folder(server, "applied").iterdir()}


def test_the_file_is_what_the_trainer_itself_makes(server, applied, tmp_path):
    from intrinsic_lab.training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora
    from intrinsic_lab.training.loop import LoopConfig
    from intrinsic_lab.training.pairs import SceneData

    loop = LoopConfig(tmp_path, 6, learning_rate=0.03, seed=3)
    config = IntrinsicLoraConfig(ROOT / "assets/nano", "normal", loop, SceneData(count=4, size=64), rank=2, batch=2)
    with torch.random.fork_rng(devices=[]):
        expected = load_file(train_intrinsic_lora(config).weights)
    found = load_file(lora_file(server, "applied"))
    assert found.keys() == expected.keys()
    assert max((found[key] - expected[key]).abs().max().item() for key in found) < 1e-5
    assert max(expected[key].abs().max().item() for key in found if "lora_up" in key) > 0.01


def test_an_interrupt_keeps_a_checkpoint_and_the_same_graph_goes_on_to_the_same_weights(client, server):
    assert client.run({"train": lora_node("whole", steps=20)})[0][-1]["type"] == "execution_success"
    prompt = {"train": lora_node("parts", steps=20), "report": shown(["train", 2])}
    # Encoded before: only steps are left to be cancelled.
    for file in run_folder(server, "whole").glob("latents-*"):
        run_folder(server, "parts").mkdir(parents=True, exist_ok=True)
        (run_folder(server, "parts") / file.name).write_bytes(file.read_bytes())
    interrupted(client, prompt, "train", at=2)
    kept = torch.load(run_folder(server, "parts") / "checkpoint.pt", weights_only=True)["step"]
    assert 2 <= kept < 20 and not lora_file(server, "parts").exists()
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    assert f"{kept} of the steps were done before" in entry["outputs"]["report"]["text"][0]
    whole, parts = load_file(lora_file(server, "whole")), load_file(lora_file(server, "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_an_interrupt_while_pictures_are_encoded_is_obeyed_too(client, server):
    events = interrupted(client, {"train": lora_node("encoding", scenes=5000)}, "train", at=17)
    progress = [event["data"] for event in events if event["type"] == "progress"]
    assert progress[-1]["max"] == 5000 and progress[-1]["value"] < 5000
    assert not (run_folder(server, "encoding") / "checkpoint.pt").exists()


def test_the_loss_curve_is_seen_while_it_trains(client, server):
    previews, ending = preview_pictures(server, client, {"train": {**lora_node("seen"), "_meta": {"title": "train"}}})
    assert ending == "execution_success" and previews[0].size == (640, 320)


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", "a\\b", ".hidden", "ends.", "con", "what?", "x" * 101])
def test_a_bad_name_is_refused_at_its_node_before_anything_runs(client, name):
    status, reply = client.post("/prompt", {"prompt": {"train": lora_node(name)}})
    assert status == 400 and "name" in json.dumps(reply["node_errors"]["train"]["errors"])


@pytest.mark.parametrize(
    ("change", "value"), [("data", "../output"), ("data", "/etc"), ("base", "../loras"), ("steps", 0), ("map", "heat")]
)
def test_what_is_not_offered_is_refused(client, change, value):
    status, _ = client.post("/prompt", {"prompt": {"train": lora_node("refused", **{change: value})}})
    assert status == 400


def test_a_linked_name_and_a_linked_folder_are_checked_when_they_are_known(client, server):
    far = {"class_type": "PrimitiveString", "inputs": {"value": "../../far"}}
    events, _ = client.run({"far": far, "train": lora_node(["far", 0])})
    assert "plain file name" in message(events)
    # A node that passes anything on.
    switch = {"class_type": "ComfySwitchNode", "inputs": {"switch": True, "on_false": ["far", 0], "on_true": ["far", 0]}}
    events, _ = client.run({"far": far, "any": switch, "train": lora_node("linked", data=["any", 0])})
    assert "There is no data folder" in message(events)


def test_a_file_that_this_run_did_not_make_is_never_overwritten(client, server):
    lora_file(server, "taken").parent.mkdir(parents=True, exist_ok=True)
    lora_file(server, "taken").write_bytes(b"precious")
    events, _ = client.run({"train": lora_node("taken")})
    assert "choose another name" in message(events)
    assert lora_file(server, "taken").read_bytes() == b"precious" and not run_folder(server, "taken").exists()


def test_a_run_goes_on_to_more_steps_but_not_with_other_settings(client, server):
    assert client.run({"train": lora_node("longer")})[0][-1]["type"] == "execution_success"
    first = lora_file(server, "longer").read_bytes()
    assert client.run({"train": lora_node("longer", steps=3)})[0][-1]["type"] == "execution_success"
    assert lora_file(server, "longer").read_bytes() != first
    for change, told in (({"steps": 2}, "steps was 3, now 2"), ({"steps": 3, "scenes": 5}, "scenes was 4, now 5")):
        events, _ = client.run({"train": lora_node("longer", **change)})
        assert told in message(events) and "choose another name" in message(events) and str(server.base) not in message(events)


def test_a_deleted_result_is_made_again(client, server):
    prompt = {"train": lora_node("deleted")}
    client.run(prompt)
    first = load_file(lora_file(server, "deleted"))
    lora_file(server, "deleted").unlink()
    client.run(prompt)
    again = load_file(lora_file(server, "deleted"))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_folder_of_pictures_in_the_input_directory_trains_too(client, server):
    for kind in ("image", "depth"):
        folder = server.base / "input/my pairs" / kind
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (80, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    client.get("/object_info/IntrinsicLabTrainLoRA")
    events, _ = client.run({"train": lora_node("folder", map="depth", data="my pairs", depth="near_bright")})
    assert events[-1]["type"] == "execution_success", message(events)
    task = json.loads((run_folder(server, "folder") / "config.json").read_text())["task"]
    assert task["data"]["depth"] == "near_bright" and task["data"]["folder"] == str(server.base / "input/my pairs")
    events, _ = client.run({"train": lora_node("folder2", data="my pairs")})
    assert "no pair" in message(events)


def test_an_intrinsic_vae_and_a_joint_lora_are_trained_and_used_in_one_graph(client, server):
    prompt = {
        "vae": {"class_type": "IntrinsicLabTrainIntrinsicVAE", "inputs": {**NANO, "name": "my vae"}},
        "lora": {
            "class_type": "IntrinsicLabTrainJointLoRA",
            "inputs": {**NANO, "intrinsic_vae": ["vae", 0], "rank": 2, "name": "my joint"},
        },
        "load vae": {"class_type": "IntrinsicLabLoadIntrinsicVAE", "inputs": {"intrinsic_vae": ["vae", 0]}},
        "scene": {"class_type": "IntrinsicLabRenderScene", "inputs": {"seed": 3, "width": 64, "height": 64, "batch_size": 1}},
        "encode": {"class_type": "IntrinsicLabEncodeIntrinsics", "inputs": {"intrinsic_vae": ["load vae", 0], "depth": ["scene", 4]}},
        "decode": {
            "class_type": "IntrinsicLabDecodeIntrinsics",
            "inputs": {"intrinsic_vae": ["load vae", 0], "intrinsic_latent": ["encode", 0]},
        },
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
        "load": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "nano (bundled)"}},
        "schedule": {
            "class_type": "IntrinsicLabGaussianSchedule",
            "inputs": {"alpha": 1.0, "tau": 800.0, "sigma": 100.0, "preview_model": "SD 2.1"},
        },
        "join": {
            "class_type": "IntrinsicLabCrossDomainAttention",
            "inputs": {"model": ["load", 0], "schedule": ["schedule", 0], "lora_name": ["lora", 0], "strength": 1.0},
        },
        "names": shown(["vae", 0]),
        "done": shown(["join", 0]),
    }
    info = client.get("/object_info/IntrinsicLabGaussianSchedule")[1]["IntrinsicLabGaussianSchedule"]["input"]["required"]
    prompt["schedule"]["inputs"]["preview_model"] = (info["preview_model"][1].get("options") or info["preview_model"][0])[0]
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    assert entry["outputs"]["names"]["text"][0] == "vae/my vae" and entry["outputs"]["look"]["images"]
    assert {path.name for path in (server.base / "models/vae/my vae").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert lora_file(server, "my joint").is_file()
    # A later run finds the folder among those offered.
    again = {"load vae": {"class_type": "IntrinsicLabLoadIntrinsicVAE", "inputs": {"intrinsic_vae": "vae/my vae"}}}
    assert client.run({**again, "done": shown(["load vae", 0])})[0][-1]["type"] == "execution_success"


def test_a_tensor_lora_is_trained_and_applied(client, server):
    prompt = {
        "train": {"class_type": "IntrinsicLabTrainTensorLoRA", "inputs": {**FLUX, "rank": 2, "name": "my lumix"}},
        "load": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "nano FLUX (bundled)"}},
        "apply": {
            "class_type": "IntrinsicLabApplyTensorLoRA",
            "inputs": {"model": ["load", 0], "lora_name": ["train", 0], "strength": 1.0},
        },
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a ball"}},
        "sample": {
            "class_type": "IntrinsicLabJointSampler",
            "inputs": {
                **{"model": ["apply", 0], "positive": ["text", 0], "negative": ["text", 0], "width": 64, "height": 64, "steps": 1},
                **{"guidance": 3.5, "cfg": 1.0, "sampler_name": "euler", "seed": 1},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", message(events)
    assert entry["outputs"]["look"]["images"] and lora_file(server, "my lumix").is_file()


def test_the_front_end_shows_the_loss_curve_in_the_node_and_keeps_the_seed(page):
    open_workflow(page, example_workflow("8 Train a LoRA of your own").graph())
    page.evaluate(PREVIEWS, "default")
    changes = {"name": "in the browser", "steps": 3, "scenes": 2, "size": 64}
    set_widgets = """changes => {
        const node = app.graph._nodes.find(node => node.type === "IntrinsicLabTrainLoRA");
        for (const widget of node.widgets) if (widget.name in changes) widget.value = changes[widget.name];
        return String(node.id);
    }"""
    node = page.evaluate(set_widgets, changes)
    assert queue(page) == "execution_success"
    assert preview_sizes(page)[0] == [node, 640, 320]
    widgets = (
        "() => app.graph._nodes.find(node => node.type === 'IntrinsicLabTrainLoRA').widgets.map(widget => [widget.name, widget.value])"
    )
    values = dict(page.evaluate(widgets))
    with nodes_2(page):
        open_workflow(page, example_workflow("8 Train a LoRA of your own").graph())
        node = page.evaluate(set_widgets, changes | {"name": "in the other browser"})
        assert queue(page) == "execution_success"
        page.wait_for_timeout(1000)
        assert page.locator(f'[data-node-id="{node}"] img').count() == 1, "the curve is seen once"
    assert values["training_seed"] == 0 and not [name for name in values if name.startswith("control")]
