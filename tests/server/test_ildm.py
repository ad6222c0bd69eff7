"""Joint generation over ComfyUI's HTTP and in its real front end, on the bundled nano model."""

import json

import numpy as np
import pytest
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, queue
from PIL import Image

EXAMPLE = example_workflow("4 Picture and maps from text")
DRAWN = """title => {
    const node = app.graph._nodes.find(node => node.type === title);
    const canvas = node.schedulePreview;
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.dataset.drawn, canvas.width, canvas.height, [...data]];
}"""
CAPTION = """title => app.graph._nodes.find(node => node.type === title).schedulePreview.nextSibling.textContent"""
# Drop -> Combine -> Preview as Text, which makes ComfyUI run them; a number node waits beside.
CHAIN = """() => {
    app.graph.clear();
    const make = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const [drop, combine, show] = ["IntrinsicLabDropSchedule", "IntrinsicLabCombineSchedules", "PreviewAny"].map(make);
    drop.connect(0, combine, "first");
    combine.connect(0, show, 0);
    make("PrimitiveFloat");
}"""
WIRE_TAU = """() => {
    const find = type => app.graph._nodes.find(node => node.type === type);
    const number = find("PrimitiveFloat");
    number.widgets[0].value = 500;
    number.connect(0, find("IntrinsicLabDropSchedule"), "tau");
}"""
INTO_SUBGRAPH = """() => {
    const schedules = app.graph._nodes.filter(node => node.type.endsWith("Schedule") || node.type.endsWith("Schedules"));
    const { subgraph } = app.graph.convertToSubgraph(new Set(schedules));
    app.canvas.setGraph(subgraph);
}"""
SET_WIDGET = """([type, name, value]) => {
    const widget = app.graph._nodes.find(node => node.type === type).widgets.find(widget => widget.name === name);
    widget.value = value;
    widget.callback(value);
}"""


def graph(**changes: dict) -> dict:
    """The nano example with two steps; `changes` replaces inputs by the node's class, less its prefix."""
    prompt = json.loads(json.dumps(EXAMPLE.prompt()))
    changes["KSampler"] = {"steps": 2} | changes.get("KSampler", {})
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"].removeprefix("IntrinsicLab"), {})
    return prompt


def node_of(prompt: dict, kind: str, title: str | None = None) -> str:
    found = [key for key, node in prompt.items() if node["class_type"] == kind and title in (None, node["_meta"]["title"])]
    assert len(found) == 1, found
    return found[0]


def picture(server, entry: dict, node: str) -> np.ndarray:
    [file] = entry["outputs"][node]["images"]
    return np.asarray(Image.open(server.base / "output" / file["subfolder"] / file["filename"]))


def test_a_prompt_gives_a_picture_its_four_maps_and_the_previews(client, server):
    prompt = graph()
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", events[-1]
    for name in ("picture", "depth", "normal", "segmentation", "line"):
        pixels = picture(server, entry, node_of(prompt, "SaveImage", f"Save {name}"))
        assert pixels.shape[:2] == (128, 128) and pixels.std() > 0
    for kind in ("IntrinsicLabCrossDomainAttention", "IntrinsicLabDecodeIntrinsics"):
        assert entry["outputs"][node_of(prompt, kind)]["images"]
    # Not "images", which the front end would show beside the heat map that it draws itself.
    schedule = entry["outputs"][node_of(prompt, "IntrinsicLabGaussianSchedule")]
    assert schedule["heat_map"][0]["filename"] and "images" not in schedule
    assert any(event["type"] == "progress" for event in events)


def test_previews_come_back_of_nodes_that_another_graph_has_run_before(client):
    """In another graph their ids are others, and nothing but what is new runs."""
    client.run(graph(KSampler={"seed": 77}))
    again = graph(KSampler={"seed": 77}, SaveImage={"filename_prefix": "again"})
    renamed = {key: f"other {key}" for key in again}
    for node in again.values():
        links = {name: [renamed[value[0]], value[1]] for name, value in node["inputs"].items() if isinstance(value, list)}
        node["inputs"] |= links
    again = {renamed[key]: node for key, node in again.items()}
    events, entry = client.run(again)
    ran = {event["data"]["node"] for event in events if event["type"] == "executing"}
    for kind in ("IntrinsicLabGaussianSchedule", "IntrinsicLabCrossDomainAttention", "IntrinsicLabDecodeIntrinsics"):
        node = node_of(again, kind)
        assert node not in ran and entry["outputs"][node], kind


def test_weight_zero_gives_the_file_that_the_base_model_gives(client, server):
    # Ancestral noise for one row of two is not bit for bit that of a row alone.
    settings = {"seed": 5, "sampler_name": "euler"}
    joint = graph(GaussianSchedule={"alpha": 0.0}, KSampler=settings)
    save = node_of(joint, "SaveImage", "Save picture")
    wanted = picture(server, client.run(joint)[1], save)
    exchanged = graph(KSampler=settings)
    assert not np.array_equal(picture(server, client.run(exchanged)[1], save), wanted)
    plain = graph(KSampler={**settings, "model": [node_of(joint, "IntrinsicLabLoadModel"), 0]})
    assert np.array_equal(picture(server, client.run(plain)[1], save), wanted)


def without_a_joint_latent(prompt: dict) -> str:
    sampler = node_of(prompt, "KSampler")
    prompt[sampler]["inputs"]["latent_image"] = [node_of(prompt, "EmptyLatentImage"), 0]
    return sampler


def split_without_pairs(prompt: dict) -> str:
    split = node_of(prompt, "IntrinsicLabSplitDomains")
    prompt[split]["inputs"]["joint_latent"] = [node_of(prompt, "EmptyLatentImage"), 0]
    return split


def exchanged_twice(prompt: dict) -> str:
    first = node_of(prompt, "IntrinsicLabCrossDomainAttention")
    prompt["again"] = {**prompt[first], "inputs": {**prompt[first]["inputs"], "model": [first, 0]}}
    prompt[node_of(prompt, "KSampler")]["inputs"]["model"] = ["again", 0]
    return "again"


@pytest.mark.parametrize(
    ("rewire", "said"),
    [
        (without_a_joint_latent, "put Joint Latent between"),
        (split_without_pairs, "1 rows that are not pictures"),
        (exchanged_twice, "already has cross-domain attention"),
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
        ({"CrossDomainAttention": {"lora_name": "../nano_ildm.safetensors"}}, "Value not in list"),
        ({"LoadIntrinsicVAE": {"intrinsic_vae": "/etc"}}, "Value not in list"),
        ({"GaussianSchedule": {"sigma": 0.0}}, "smaller than min"),
    ],
)
def test_wrong_values_are_refused_at_their_node_before_it_runs(client, changes, said):
    _, reply = client.post("/prompt", {"prompt": graph(**changes)})
    # ComfyUI still runs what does not need the node.
    assert said in str(reply["node_errors"])


def test_the_heat_map_in_the_node_follows_its_widgets_before_anything_runs(page):
    open_workflow(page, EXAMPLE.graph())
    page.wait_for_function(
        "() => app.graph._nodes.find(node => node.type === 'IntrinsicLabGaussianSchedule').schedulePreview?.dataset.drawn"
    )
    drawn, width, height, before = page.evaluate(DRAWN, "IntrinsicLabGaussianSchedule")
    assert drawn == "yes"
    brightest = np.asarray(before).reshape(height, width, 4)[..., 0].sum(0).argmax()
    assert abs(brightest / (width - 1) - (1 - 800 / 999)) < 0.01, "time runs from 999 at the left to 0 at the right"
    page.evaluate(SET_WIDGET, ["IntrinsicLabGaussianSchedule", "tau", 300])
    _, _, _, after = page.evaluate(DRAWN, "IntrinsicLabGaussianSchedule")
    brightest = np.asarray(after).reshape(height, width, 4)[..., 0].sum(0).argmax()
    assert abs(brightest / (width - 1) - (1 - 300 / 999)) < 0.01


def chain(page) -> None:
    """Opens CHAIN with the values that a new node has: the front end may remember those of an earlier graph's node."""
    page.evaluate(CHAIN)
    page.evaluate(SET_WIDGET, ["IntrinsicLabDropSchedule", "tau", 900])
    page.evaluate(SET_WIDGET, ["IntrinsicLabCombineSchedules", "over_time", ""])


def bright_columns(page, kind: str) -> np.ndarray:
    """Which columns of a node's heat map hold the weight 1 somewhere."""
    _, width, height, data = page.evaluate(DRAWN, kind)
    return (np.asarray(data).reshape(height, width, 4)[..., 0] > 250).any(0)


def test_a_combined_heat_map_follows_the_schedules_that_are_connected_to_it(page):
    chain(page)
    page.wait_for_function(
        "() => app.graph._nodes.find(node => node.type === 'IntrinsicLabCombineSchedules').schedulePreview?.dataset.drawn === 'yes'"
    )
    page.wait_for_timeout(200)
    share = [bright_columns(page, "IntrinsicLabCombineSchedules").mean()]
    page.evaluate(SET_WIDGET, ["IntrinsicLabDropSchedule", "tau", 300])
    share.append(bright_columns(page, "IntrinsicLabCombineSchedules").mean())
    assert np.allclose(share, [0.9, 0.3], atol=0.01)
    page.evaluate(SET_WIDGET, ["IntrinsicLabCombineSchedules", "over_time", "9: one"])
    assert page.evaluate(DRAWN, "IntrinsicLabCombineSchedules")[0] == "no"
    assert "999: 0, 0: 1" in page.evaluate(CAPTION, "IntrinsicLabCombineSchedules")


def test_a_combined_heat_map_follows_a_source_that_is_bypassed_and_both_move_into_a_subgraph(page):
    drawn = "as => app.canvas.graph.nodes.find(node => node.type === 'IntrinsicLabCombineSchedules')?.schedulePreview?.dataset.drawn === as"
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    chain(page)
    page.wait_for_function(drawn, arg="yes")
    page.evaluate("() => app.canvas.selectItems([app.graph._nodes.find(node => node.type === 'IntrinsicLabDropSchedule')])")
    for told in ("no", "yes"):
        page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.ToggleSelectedNodes.Bypass')")
        page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
        page.wait_for_function(drawn, arg=told)
    page.evaluate(INTO_SUBGRAPH)
    page.wait_for_function(drawn, arg="yes")
    page.evaluate("() => app.canvas.setGraph(app.graph)")
    assert errors == []


def test_a_heat_map_that_only_running_tells_is_the_one_that_python_made(page):
    chain(page)
    page.evaluate(WIRE_TAU)
    page.wait_for_function(
        "() => app.graph._nodes.find(node => node.type === 'IntrinsicLabCombineSchedules').schedulePreview?.dataset.drawn === 'no'"
    )
    assert "when the graph runs" in page.evaluate(CAPTION, "IntrinsicLabCombineSchedules")
    assert queue(page, seconds=60) == "execution_success"
    for kind in ("IntrinsicLabDropSchedule", "IntrinsicLabCombineSchedules"):
        page.wait_for_function(
            "kind => app.graph._nodes.find(node => node.type === kind).schedulePreview.dataset.drawn === 'as it ran'", arg=kind
        )
        assert abs(bright_columns(page, kind).mean() - 0.5) < 0.01
        assert "As it last ran" in page.evaluate(CAPTION, kind)


def test_after_a_run_a_schedule_shows_one_heat_map(page):
    open_workflow(page, EXAMPLE.graph())
    assert queue(page) == "execution_success"
    page.wait_for_timeout(500)
    shown = page.evaluate(
        "kind => { const node = app.graph._nodes.find(node => node.type === kind);"
        " return [node.schedulePreview.dataset.drawn, node.imgs?.length ?? 0]; }",
        "IntrinsicLabGaussianSchedule",
    )
    assert shown == ["yes", 0]
