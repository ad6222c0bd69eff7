"""Picture to Maps over HTTP: what it makes, what is loaded again, what it tells."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from intrinsic_lab.nodes.picture import BUNDLED_MODEL, SHOWN, WARNING
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.scenes.pictures import save_picture
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, queue

SETTINGS = {"processing_resolution": 128, "tile_size": 0, "tile_overlap": 64, "mirrored_average": False}
BUNDLED_LORAS = {f"{name}_lora": "bundled" for name in SHOWN}
NODE = {"image": ["picture", 0], "model_name": BUNDLED_MODEL, **BUNDLED_LORAS, **SETTINGS}
FORMATS = {
    "normal": ("IntrinsicLabFormatNormals", {"convention": "OpenGL (Y up)", "renormalize": True, "output": "colors, 0 to 1"}),
    "depth": (
        "IntrinsicLabFormatDepth",
        {
            "range": "per picture",
            "range.low_percentile": 0.0,
            "range.high_percentile": 100.0,
            "look": "near bright, far dark",
            "clamp": True,
        },
    ),
    "albedo": ("IntrinsicLabFormatColor", {"encoding": "sRGB", "exposure": 0.0, "clamp": True}),
    "shading": ("IntrinsicLabFormatColor", {"encoding": "sRGB", "exposure": 0.0, "clamp": True}),
}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def one_node(**changes) -> dict:
    """Picture -> Picture to Maps, whose maps nobody takes."""
    return {"picture": node("LoadImage", image="room.png"), "maps": node("IntrinsicLabPictureToMaps", **NODE | changes)}


def saved(prefix: str, source: list) -> dict:
    exr = {"format": "exr", "format.bit_depth": "32-bit float", "format.input_color_space": "linear"}
    return node("SaveImageAdvanced", images=source, filename_prefix=prefix, **exr)


def chain(loader: dict) -> dict:
    """What the node stands for: Load -> Apply -> Extract -> Format."""
    nodes, model = {"load": loader}, "load"
    for name in SHOWN:
        applied = {"model": [model, 0], "lora_name": f"nano/{name} (bundled)", "map": name, "strength": 1.0}
        nodes[model := f"apply {name}"] = node("IntrinsicLabApplyLoRA", **applied)
    parts = {"model": [model, 0], "clip": ["load", 1], "vae": ["load", 2], "image": ["picture", 0], "merged_map": "none"}
    nodes["extract"] = node("IntrinsicLabExtractMaps", **parts, **SETTINGS)
    for number, (name, (kind, settings)) in enumerate(FORMATS.items()):
        socket = {"normal": "normal", "depth": "depth"}.get(name, "map")
        flips = {f"flip_{axis}": False for axis in "xyz"} if name == "normal" else {}
        nodes[f"look {name}"] = node(kind, **{socket: ["extract", number]}, **settings, **flips)
    return nodes


@pytest.fixture(scope="module")
def picture(server):
    save_picture(render_scenes([5], 64, 96).image_bhwc[0], server.base / "input" / "room.png")


def ran(events: list[dict]) -> list[str]:
    """The nodes that were executed, those inside another by the whole of their numbers."""
    return [event["data"]["node"] for event in events if event["type"] == "executing" and event["data"]["node"]]


def test_its_pictures_are_those_of_the_chain_bit_for_bit_and_its_maps_the_data(server, client, picture):
    prompt = one_node() | chain(node("IntrinsicLabLoadModel", model=BUNDLED_MODEL, weight_dtype="default"))
    prompt["open"] = node("IntrinsicLabOpenMaps", maps=["maps", 4])
    for number, name in enumerate(SHOWN):
        prompt[f"one {name}"] = saved(f"one/{name}", ["maps", number])
        prompt[f"many {name}"] = saved(f"many/{name}", [f"look {name}", 0])
        prompt[f"data one {name}"] = saved(f"one/data_{name}", ["open", 1 + number])
        prompt[f"data many {name}"] = saved(f"many/data_{name}", ["extract", number])
    events, entry = client.run(prompt, seconds=300)
    assert events[-1]["type"] == "execution_success", events[-1]
    one, many = ({path.name: path.read_bytes() for path in (server.base / "output" / folder).iterdir()} for folder in ("one", "many"))
    assert one == many and len(one) == 2 * len(SHOWN) and len(set(one.values())) == len(one)
    # What it says, and the picture with its maps, are shown in the node itself.
    assert entry["outputs"]["maps"]["text"] == [WARNING]
    [sheet] = [key for key, meta in entry["meta"].items() if meta["display_node"] == "maps" and "images" in entry["outputs"][key]]
    assert sheet.startswith("maps.")


def test_it_runs_alone_and_loads_again_only_what_changed(server, client, picture):
    first, _ = client.run(one_node(processing_resolution=64))
    assert any(name.startswith("maps.") for name in ran(first))
    other, _ = client.run(one_node(processing_resolution=72))
    # The node, the extraction and what is made of it; neither the model nor a LoRA.
    assert len(ran(other)) == 4, ran(other)
    again, _ = client.run(one_node(processing_resolution=72))
    assert ran(again) == []


def test_a_checkpoint_takes_its_own_loras_and_a_file_that_changed_is_read_again(server, client, picture):
    """No checkpoint is small enough to try: a file that ComfyUI does not know stands for one, and what core says of it reaches the node."""
    checkpoint, lora = server.base / "models/checkpoints/some.safetensors", server.base / "models/loras/some_normal.safetensors"
    for file in (checkpoint, lora):
        file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[2] / "assets/nano_normal.safetensors", lora)
    shutil.copy(lora, checkpoint)
    try:
        given = one_node(model_name=checkpoint.name)
        events, _ = client.run(given)
        assert "normal_lora, depth_lora, albedo_lora, shading_lora came as 'bundled'" in events[-1]["data"]["exception_message"]
        chosen = BUNDLED_LORAS | {f"{name}_lora": "none" for name in SHOWN} | {"normal_lora": lora.name}
        events, _ = client.run(one_node(model_name=checkpoint.name, **chosen))
        assert events[-1]["data"]["node_id"] == "maps" and "Could not detect model type" in events[-1]["data"]["exception_message"]
        events, _ = client.run(one_node(**chosen), seconds=120)
        assert events[-1]["type"] == "execution_success", events[-1]
        os.utime(lora, (time.time() + 9, time.time() + 9))
        events, _ = client.run(one_node(**chosen))
        assert "maps" in ran(events)
        options = client.get("/object_info/IntrinsicLabPictureToMaps")[1]["IntrinsicLabPictureToMaps"]["input"]["required"]
        assert lora.name in str(options["normal_lora"]) and lora.name not in str(options["depth_lora"])
    finally:
        checkpoint.unlink()
        lora.unlink()


def test_a_linked_model_takes_the_place_of_the_bundled_one(server, client, picture):
    prompt = one_node() | {"load": node("IntrinsicLabLoadModel", model=BUNDLED_MODEL, weight_dtype="default")}
    prompt["apply"] = node("IntrinsicLabApplyLoRA", model=["load", 0], lora_name="nano/depth (bundled)", map="auto", strength=1.0)
    prompt["maps"]["inputs"] |= {"model": ["apply", 0], "clip": ["load", 1], "vae": ["load", 2]}
    prompt["look"] = node("PreviewImage", images=["maps", 1])
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", events[-1]
    assert "text" not in entry["outputs"]["maps"], "nothing to warn of"
    prompt["look"]["inputs"]["images"] = ["maps", 0]
    events, _ = client.run(prompt)
    assert "These maps have no 'normal' (they have: image, depth)" in events[-1]["data"]["exception_message"]
    del prompt["maps"]["inputs"]["vae"]
    events, _ = client.run(prompt)
    assert "connect all three" in events[-1]["data"]["exception_message"]


def test_a_rendered_scene_is_no_reason_to_warn(client):
    prompt = one_node()
    prompt["picture"] = node("IntrinsicLabRenderScene", seed=3, width=64, height=64, batch_size=1)
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success" and "text" not in entry["outputs"]["maps"]


BLUEPRINT = Path(__file__).parents[2] / "subgraphs" / "Picture to Maps, step by step.json"
AROUND = """name => {
    const [blueprint] = app.graph._nodes;
    const image = LiteGraph.createNode("LoadImage");
    app.graph.add(image);
    image.widgets.find(widget => widget.name === "image").value = name;
    image.connect(0, blueprint, 0);
    for (const output of ["normal", "depth", "albedo", "shading"]) {
        const look = LiteGraph.createNode("PreviewImage");
        app.graph.add(look);
        blueprint.connect(blueprint.outputs.findIndex(one => one.name === output), look, 0);
    }
    return blueprint.widgets.map(widget => widget.name);
}"""


def test_the_blueprint_is_offered_and_runs_in_a_graph(client, page):
    offered = {entry["name"]: entry["info"]["node_pack"] for entry in client.get("/global_subgraphs")[1].values()}
    assert offered[BLUEPRINT.stem] == "custom_nodes.intrinsic-lab"
    assert open_workflow(page, json.loads(BLUEPRINT.read_text(encoding="utf-8"))) == []
    widgets = page.evaluate(AROUND, "intrinsic_lab_room.jpg")
    assert widgets[:2] == ["model", "lora_name"] and widgets[-1] == "processing_resolution" and len(widgets) == 6
    assert queue(page) == "execution_success"
    assert len(page.evaluate("() => Object.values(app.nodeOutputs).filter(output => output?.images?.length)")) >= len(SHOWN)


ENTRY = example_workflow("1 Picture to maps")
SHOWN_IN_NODE = """() => {
    const node = app.graph._nodes.find(node => node.type === "IntrinsicLabPictureToMaps");
    const told = node.widgets.find(widget => widget.name === "$$node-text-preview");
    return [String(told?.value ?? ""), (app.nodeOutputs[node.id]?.images ?? []).map(image => image.filename)];
}"""


def test_what_it_showed_comes_back_when_the_graph_is_opened_anew_and_nothing_runs(page):
    shown = []
    for _ in range(2):
        assert open_workflow(page, ENTRY.graph()) == []
        assert page.evaluate(SHOWN_IN_NODE) == ["", []]
        assert queue(page) == "execution_success"
        page.wait_for_timeout(500)
        shown.append(page.evaluate(SHOWN_IN_NODE))
    assert shown[0] == shown[1] and shown[0][0] == WARNING and len(shown[0][1]) == 1


def test_a_template_brings_its_picture_to_a_comfyui_that_lacks_it(server, page):
    there = server.base / "input" / "intrinsic_lab_room.jpg"
    kept = there.read_bytes()
    there.unlink()
    page.evaluate("() => app.refreshComboInNodes()")
    assert open_workflow(page, ENTRY.graph()) == []
    assert there.read_bytes() == kept == (BLUEPRINT.parents[1] / "web" / "pictures" / "room.jpg").read_bytes()


def test_the_entry_template_is_an_app_too(page):
    graph = ENTRY.graph()
    graph["extra"]["linearMode"] = True
    try:
        open_workflow(page, graph)
        page.get_by_text("shading_lora").first.wait_for(timeout=10_000)
        assert queue(page) == "execution_success"
    finally:
        open_workflow(page, ENTRY.graph())
