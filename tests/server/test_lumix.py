"""Maps sampled together over ComfyUI's HTTP and websocket and in its real front end, on the bundled nano FLUX."""

import io
import json
import struct
import threading
import time

import numpy as np
import pytest
import websocket
from intrinsic_lab.methods.lumix.design import MAP_NAMES
from intrinsic_lab.tools.example_workflows import example_workflows
from intrinsic_lab.tools.front_end import open_workflow, queue
from PIL import Image

EXAMPLES = {example.name: example for example in example_workflows()}
# Core enlarges a preview to 512 pixels.
PREVIEW_SIZE = (512, 102)
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEWS = """async name => {
    const sizes = [];
    app.api.addEventListener("b_preview_with_metadata", async event => {
        const picture = await createImageBitmap(event.detail.blob);
        sizes.push([event.detail.nodeId, picture.width, picture.height]);
    });
    window.previewSizes = sizes;
    await app.extensionManager.setting.set("Comfy.Execution.PreviewMethod", name);
}"""


def preview_sizes(page) -> list:
    """[node, width, height] of every preview since `PREVIEWS`: the page may still unpack the last when a prompt has ended."""
    page.wait_for_function("() => window.previewSizes.length")
    return page.evaluate("() => window.previewSizes")


def graph(example: str = "5 Five maps from text", **changes: dict) -> dict:
    """A nano example with two steps; `changes` replaces inputs by the node's class, less its prefix."""
    prompt = json.loads(json.dumps(EXAMPLES[example].prompt()))
    changes["JointSampler"] = {"steps": 2} | changes.get("JointSampler", {})
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"].removeprefix("IntrinsicLab"), {})
    return prompt


def node_of(prompt: dict, kind: str) -> str:
    [found] = [key for key, node in prompt.items() if node["class_type"] == kind]
    return found


def picture(server, entry: dict, prompt: dict, title: str) -> np.ndarray:
    [node] = [key for key, node in prompt.items() if node["_meta"]["title"] == title]
    [file] = entry["outputs"][node]["images"]
    return np.asarray(Image.open(server.base / "output" / file["subfolder"] / file["filename"])).astype(int)


def preview_pictures(server, client, prompt: dict) -> tuple[list[Image.Image], str]:
    """What a client with previews sees before the last event, and that event."""
    connection = websocket.create_connection(server.url.replace("http", "ws", 1) + "/ws?clientId=looker", timeout=120)
    found = []
    try:
        status, reply = client.post(
            "/prompt", {"prompt": prompt, "client_id": "looker", "extra_data": {"preview_method": "latent2rgb", "client_id": "looker"}}
        )
        assert status == 200, reply
        while True:
            message = connection.recv()
            if isinstance(message, bytes):
                kind, form = struct.unpack(">II", message[:8])
                assert (kind, form) == (1, 1), "a JPEG preview"
                found.append(Image.open(io.BytesIO(message[8:])).convert("RGB"))
            elif (event := json.loads(message))["type"] in ENDINGS and event["data"]["prompt_id"] == reply["prompt_id"]:
                return found, event["type"]
    finally:
        connection.close()


def parts(preview: Image.Image) -> dict[str, np.ndarray]:
    """The maps in a preview, as wide each."""
    pixels = np.asarray(preview).astype(int)
    side = pixels.shape[1] // len(MAP_NAMES)
    return {name: pixels[:, place * side : (place + 1) * side] for place, name in enumerate(MAP_NAMES)}


def test_a_prompt_gives_five_files_with_progress(client, server):
    prompt = graph()
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", events[-1]
    found = [picture(server, entry, prompt, f"Save {name}") for name in ("picture", "albedo", "irradiance", "depth", "normal")]
    assert all(pixels.shape == (128, 128, 3) and pixels.std() > 0 for pixels in found)
    assert all(np.abs(found[0] - other).mean() > 1 for other in found[1:])
    sampler = node_of(prompt, "IntrinsicLabJointSampler")
    done = [event["data"]["value"] for event in events if event["type"] == "progress" and event["data"]["node"] == sampler]
    assert done[-1] == 2


def test_previews_of_all_maps_side_by_side_come_while_it_runs(client, server):
    steps = 6
    previews, ending = preview_pictures(server, client, graph(JointSampler={"steps": steps, "seed": 91}))
    assert ending == "execution_success" and len(previews) == steps
    assert all(preview.size == PREVIEW_SIZE for preview in previews)
    maps = parts(previews[-1])
    assert all(np.abs(maps[name] - maps["color"]).mean() > 1 for name in maps if name != "color")
    assert np.abs(np.asarray(previews[0]).astype(int) - np.asarray(previews[-1])).mean() > 1


def test_a_given_picture_is_in_every_preview_from_the_first_step_on(client, server):
    previews, _ = preview_pictures(server, client, graph("image_to_maps_nano", JointSampler={"steps": 3, "seed": 91}))
    seen = [parts(preview) for preview in previews]
    # Inside: JPEG and enlarging smear the neighbours into the border.
    change = {name: np.abs(seen[0][name] - seen[-1][name])[:, 20:-20].mean() for name in MAP_NAMES}
    assert change["color"] < 2 < min(change[name] for name in MAP_NAMES if name != "color")


def test_an_interrupt_stops_the_sampling_and_the_next_prompt_runs(client):
    prompt = graph(JointSampler={"steps": 1000, "seed": 92})
    sampler = node_of(prompt, "IntrinsicLabJointSampler")
    asked: list[float] = []

    def interrupt(event: dict) -> None:
        if event["type"] == "progress" and event["data"]["node"] == sampler and event["data"]["value"] >= 2 and not asked:
            asked.append(time.monotonic())
            threading.Thread(target=client.post, args=("/interrupt", {})).start()

    events, _ = client.run(prompt, seen=interrupt)
    assert events[-1]["type"] == "execution_interrupted" and events[-1]["data"]["node_id"] == sampler
    assert time.monotonic() - asked[0] < 20
    done = [event["data"]["value"] for event in events if event["type"] == "progress" and event["data"]["node"] == sampler]
    assert done[-1] < 500
    assert client.run(graph(JointSampler={"seed": 93}))[0][-1]["type"] == "execution_success"


def without_an_adapter(prompt: dict) -> str:
    sampler = node_of(prompt, "IntrinsicLabJointSampler")
    prompt[sampler]["inputs"]["model"] = [node_of(prompt, "IntrinsicLabLoadModel"), 0]
    return sampler


def with_a_latent_of_one_row(prompt: dict) -> str:
    sampler = node_of(prompt, "IntrinsicLabJointSampler")
    prompt["empty"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}}
    prompt[sampler]["inputs"]["latent"] = ["empty", 0]
    return sampler


def adapted_twice(prompt: dict) -> str:
    first = node_of(prompt, "IntrinsicLabApplyTensorLoRA")
    prompt["again"] = {**prompt[first], "inputs": {**prompt[first]["inputs"], "model": [first, 0]}}
    prompt[node_of(prompt, "IntrinsicLabJointSampler")]["inputs"]["model"] = ["again", 0]
    return "again"


def on_another_base(prompt: dict) -> str:
    prompt[node_of(prompt, "IntrinsicLabLoadModel")]["inputs"]["model"] = "nano (bundled)"
    return node_of(prompt, "IntrinsicLabApplyTensorLoRA")


def decoding_one_map(prompt: dict) -> str:
    decode = node_of(prompt, "IntrinsicLabDecodeMaps")
    prompt[decode]["inputs"]["maps"] = [node_of(prompt, "IntrinsicLabJointSampler"), 2]
    return decode


@pytest.mark.parametrize(
    ("rewire", "said"),
    [
        (without_an_adapter, "put Apply Tensor LoRA"),
        (with_a_latent_of_one_row, "use Make Map Latents"),
        (adapted_twice, "samples maps together already"),
        (on_another_base, "LumiX adapters belong to FLUX.1, FLUX.2"),
        (decoding_one_map, "a multiple of 5"),
    ],
)
def test_wrong_wiring_is_told_at_its_node_with_what_to_do(client, rewire, said):
    prompt = graph()
    node = rewire(prompt)
    events, _ = client.run(prompt)
    assert events[-1]["type"] == "execution_error"
    assert events[-1]["data"]["node_id"] == node and said in events[-1]["data"]["exception_message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ApplyTensorLoRA": {"lora_name": "../nano_lumix.safetensors"}}, "Value not in list"),
        ({"ApplyTensorLoRA": {"attention": "global"}}, "Value not in list"),
        ({"JointSampler": {"steps": 0}}, "smaller than min"),
        ({"JointSampler": {"sampler_name": "none"}}, "Value not in list"),
    ],
)
def test_wrong_values_are_refused_at_their_node_before_it_runs(client, changes, said):
    _, reply = client.post("/prompt", {"prompt": graph(**changes)})
    assert said in str(reply["node_errors"])


def test_the_front_end_shows_the_previews_in_the_samplers_node(page):
    open_workflow(page, EXAMPLES["5 Five maps from text"].graph())
    page.evaluate(PREVIEWS, "latent2rgb")
    try:
        [sampler] = page.evaluate("() => app.graph._nodes.filter(n => n.type === 'IntrinsicLabJointSampler').map(n => String(n.id))")
        page.evaluate(
            """() => app.graph._nodes.find(node => node.type === 'IntrinsicLabJointSampler').widgets
                .forEach(widget => { if (widget.name === 'seed') widget.value = 94; })"""
        )
        assert queue(page) == "execution_success"
        sizes = preview_sizes(page)
        assert all(size == [sampler, *PREVIEW_SIZE] for size in sizes)
    finally:
        page.evaluate(PREVIEWS, "default")
