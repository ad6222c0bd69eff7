"""The pack in ComfyUI's real front end, in a headless browser."""

import json
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from itertools import combinations
from pathlib import Path

import pytest
from intrinsic_lab.tools.example_workflows import example_workflow, example_workflows
from intrinsic_lab.tools.front_end import open_workflow, prompt_of, queue, schema_errors
from intrinsic_lab.tools.saved_graphs import mended, saved_graphs

EXAMPLES = example_workflows()
TEMPLATES = [example for example in EXAMPLES if example.is_template]
BUNDLED = [example for example in EXAMPLES if not example.needs]
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
every_template = pytest.mark.parametrize("example", TEMPLATES, ids=lambda example: example.name)
every_bundled_example = pytest.mark.parametrize("example", BUNDLED, ids=lambda example: example.name)

LAYOUT = """() => {
    const title = LiteGraph.NODE_TITLE_HEIGHT;
    const box = (pos, size, above) => [pos[0], pos[1] - above, pos[0] + size[0], pos[1] + size[1]];
    return [
        Object.fromEntries(app.graph._nodes.map(node => {
            const size = node.flags.collapsed ? [node._collapsed_width || node.size[0], 0] : node.size;
            return [`${node.type} ${node.id}`, box(node.pos, size, title)];
        })),
        Object.fromEntries(app.graph._groups.map(group => [group.title, box(group.pos, group.size, 0)])),
    ];
}"""
# Of the graph, as Nodes 2.0 draw it.
VUE_EXTENT = """() => [...document.querySelectorAll('[data-node-id]')].map(node => {
    const box = node.getBoundingClientRect();
    const { scale, offset } = app.canvas.ds;
    return [box.left, box.top, box.right, box.bottom].map((end, index) => end / scale - offset[index % 2]);
})"""
CORES_LOADERS = ("UNETLoader", "DualCLIPLoader", "VAELoader", "LoadDA3Model", "LoadMoGeModel")
# What a graph may take in a window of 1600 x 900.
ROOM = (1600, 900)
VUE_BOXES = """() => Object.fromEntries([...document.querySelectorAll('[data-node-id]')].map(node => {
    const box = node.getBoundingClientRect();
    return [`${node.dataset.nodeId} ${node.innerText.split("\\n")[0]}`, [box.left, box.top, box.right, box.bottom]];
}))"""
SELECT_NEW = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [0, 0];
    app.graph.add(node);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300, 300];
    app.canvas.selectItems([node]);
}"""


def overlap(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(box: list[float], group: list[float]) -> bool:
    return group[0] <= box[0] and group[1] <= box[1] and box[2] <= group[2] and box[3] <= group[3]


def extent(boxes: Iterable[list[float]]) -> tuple[int, int]:
    """Width and height of what the boxes lie in."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return round(max(rights) - min(lefts)), round(max(bottoms) - min(tops))


def overlapping(boxes: dict[str, list[float]]) -> list[tuple[str, str]]:
    return [(one, other) for one, other in combinations(boxes, 2) if overlap(boxes[one], boxes[other])]


@contextmanager
def nodes_2(page):
    """The front end with Nodes 2.0, which a new ComfyUI has."""
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        yield
    finally:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def still_box(page, selector: str) -> dict[str, float]:
    """Where an element of a node is on the screen, once the node has its size."""
    element, before = page.locator(selector), None
    for _ in range(50):
        box = element.bounding_box()
        if box == before:
            return box
        before = box
        page.wait_for_timeout(200)
    raise AssertionError("the node never stands still")


def vue_boxes(page, count: int) -> dict[str, list[float]]:
    """Where the nodes of Nodes 2.0 are on the screen, once all are there and have their size."""
    # Core's 3D viewer, drawn without a graphics card on a busy machine, keeps the page for most of a minute.
    page.wait_for_function("count => document.querySelectorAll('[data-node-id]').length === count", arg=count, timeout=120_000)
    page.wait_for_timeout(500)
    return page.evaluate(VUE_BOXES)


def core_workflow(**load_image) -> dict:
    """A small graph of core nodes: Load Image -> Preview Image."""
    slot = {"name": "IMAGE", "type": "IMAGE", "links": [1]}
    load = {"id": 1, "type": "LoadImage", "pos": [0, 0], "size": [300, 300], "outputs": [slot], "widgets_values": ["absent.png", "image"]}
    look = {
        "id": 2,
        "type": "PreviewImage",
        "pos": [400, 0],
        "size": [200, 200],
        "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
    }
    return {
        "last_node_id": 2,
        "last_link_id": 1,
        "nodes": [{**load, **load_image}, look],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }


def test_a_missing_node_and_a_red_widget_are_noticed(page):
    assert "red widget LoadImage.image: absent.png" in open_workflow(page, core_workflow())
    assert "missing node NobodyHasThis" in open_workflow(page, core_workflow(type="NobodyHasThis"))


def test_a_graph_that_comfyui_refuses_is_noticed(page):
    open_workflow(page, core_workflow())
    assert queue(page, seconds=60) == "refused"


def test_the_front_end_knows_every_node_of_the_pack(page, client):
    ours = sorted(name for name in client.get("/object_info")[1] if name.startswith("IntrinsicLab"))
    assert ours and page.evaluate("names => names.filter(name => !LiteGraph.registered_node_types[name])", ours) == []


def test_saved_graphs_pass_the_front_ends_schema_and_say_where_their_nodes_come_from(page):
    graphs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in saved_graphs()}
    right = graphs["1 Picture to maps"]
    wrong = {"no UUID": {**right, "id": "1 Picture to maps"}, "null": {**right, "floatingLinks": None}}
    assert schema_errors(page, graphs | wrong).keys() == wrong.keys()
    for name, graph in graphs.items():
        assert mended(graph, name) == graph, "python -m intrinsic_lab.tools.saved_graphs mends it"
    ours = [node for graph in graphs.values() for node in graph["nodes"] if node["type"].startswith("IntrinsicLab")]
    assert len({graph["id"] for graph in graphs.values()}) == len(graphs) and len(ours) > 100
    assert {node["properties"]["cnr_id"] for node in ours} == {"intrinsic-lab"}


@every_example
def test_it_opens_whole_with_its_nodes_apart_and_is_the_graph_of_its_api_form(page, example):
    problems = open_workflow(page, example.graph())
    # What a person must bring is red until it is there.
    assert [problem for problem in problems if not (example.needs and problem.startswith("red widget"))] == []
    made = json.loads(json.dumps(prompt_of(page)))
    assert made == example.prompt(), f"make export-workflows ARGS='\"{example.name}\"' writes the API form again"
    assert all(node["_meta"]["title"] for node in made.values())
    nodes, groups = page.evaluate(LAYOUT)
    assert overlapping(nodes) == [] and overlapping(groups) == []
    outside = [name for name, box in nodes.items() if not any(inside(box, group) for group in groups.values())]
    assert all(name.startswith("MarkdownNote") for name in outside) and outside
    assert all(groups)
    if example.is_template:
        wide, high = extent([*nodes.values(), *groups.values()])
        assert wide <= ROOM[0] and high <= ROOM[1], (wide, high)


@every_template
def test_a_template_opens_readable_and_apart_in_nodes_2_too(page, example):
    """In a window of 1600 x 900; below a zoom of 0.6 the front end leaves out the texts."""
    graph = example.graph()
    with nodes_2(page):
        open_workflow(page, graph)
        boxes = vue_boxes(page, len(graph["nodes"]))
        assert overlapping(boxes) == []
        nodes, groups = page.evaluate(LAYOUT)
        wide, high = extent([*nodes.values(), *groups.values(), *page.evaluate(VUE_EXTENT)])
        assert wide <= ROOM[0] and high <= ROOM[1], (wide, high)
        assert all(left >= 55 and top >= 85 and right <= 1602 and bottom <= 902 for left, top, right, bottom in boxes.values()), boxes
        assert page.evaluate("() => app.canvas.ds.scale") >= 0.79
    assert example.thumbnail_path.read_bytes()[:3] == b"\xff\xd8\xff"
    pictures = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "LoadImage"]
    assert all(name.startswith("intrinsic_lab_") for name in pictures), "a template brings its own picture"
    loaders = [node for node in graph["nodes"] if node["type"] in CORES_LOADERS]
    for node in loaders:
        named = [value for value in node["widgets_values"] if value.endswith(".safetensors")]
        models = node["properties"]["models"]
        assert [model["name"] for model in models] == named, "core's Missing Models panel names it"
        assert all(model["url"].startswith("https://") and model["directory"] for model in models)


def test_a_graph_saved_before_there_were_conventions_asks_for_auto(page):
    example = example_workflow("extract_maps")
    graph = example.graph()
    for node in graph["nodes"]:
        if node["type"] == "IntrinsicLabApplyLoRA":
            assert node["inputs"].pop()["name"] == "convention" and node["widgets_values"].pop() == "auto"
    assert open_workflow(page, graph) == []
    assert json.loads(json.dumps(prompt_of(page))) == example.prompt()


@every_bundled_example
def test_queueing_it_as_a_person_does_finishes_and_shows_pictures_in_nodes_that_stay_apart(page, example):
    with nodes_2(page) if example.is_template else nullcontext():
        open_workflow(page, example.graph())
        assert queue(page) == "execution_success"
        showing = {"IntrinsicLabExtractMaps", "IntrinsicLabCompareMaps", "SaveImageAdvanced", "SaveImage", "PreviewImage"}
        expected = sorted(node_id for node_id, node in example.prompt().items() if node["class_type"] in showing)
        page.wait_for_function(
            "ids => ids.every(id => Object.entries(app.nodeOutputs).some(([key, output]) => key === id && output?.images?.length))",
            arg=expected,
            timeout=20_000,
        )
        if example.is_template:
            # Pictures make nodes grow.
            page.wait_for_timeout(1000)
            assert overlapping(vue_boxes(page, len(example.graph()["nodes"]))) == []


def test_a_map_is_left_out_by_bypassing_its_nodes_as_the_note_says(page):
    example = example_workflow("extract_maps")
    open_workflow(page, example.graph())
    titles = ["Apply Intrinsic LoRA: depth", "Format Depth", "Save depth"]
    page.evaluate("titles => app.graph._nodes.filter(node => titles.includes(node.title)).forEach(node => { node.mode = 4 })", titles)
    left = [node["_meta"]["title"] for node in prompt_of(page).values()]
    assert len(left) == len(example.prompt()) - 3 and not set(titles) & set(left)
    assert queue(page) == "execution_success"


def needed_files(models: Path, prompt: dict) -> list[Path]:
    """The files that take away a graph's red: of a folder, the one that makes it known; inner folders come first."""
    folders = {
        **{"ckpt_name": "checkpoints", "control_net_name": "controlnet", "lora_name": "loras", "unet_name": "diffusion_models"},
        **{"model_name": "geometry_estimation", "clip_name1": "text_encoders", "clip_name2": "text_encoders", "vae_name": "vae"},
    }
    files = []
    for node in prompt.values():
        # Picture to Maps names a checkpoint and a LoRA for each map.
        own = {"model_name": "checkpoints"} | {name: "loras" for name in node["inputs"] if name.endswith("_lora")}
        place = folders | own if node["class_type"] == "IntrinsicLabPictureToMaps" else folders
        for name, value in node["inputs"].items():
            if str(value).endswith(("(bundled)", "bundled")):
                continue
            if name in place:
                files.append(models / place[name] / value)
            elif name == "intrinsic_vae" and isinstance(value, str):
                folder = models / value if value.startswith("vae/") else models / "diffusers" / value / "intrinsic_vae"
                files.append(folder / "config.json")
            elif name == "model" and isinstance(value, str):
                files.append(models / "diffusers" / value / "model_index.json")
    return sorted(files, key=lambda file: -len(file.parts))


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.needs], ids=lambda example: example.name)
def test_what_it_needs_takes_away_the_red_once_it_is_there(page, server, example):
    files = needed_files(server.base / "models", example.prompt())
    assert any("red widget" in problem for problem in open_workflow(page, example.graph()))
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        page.evaluate("() => app.refreshComboInNodes()")
        assert open_workflow(page, example.graph()) == []
    finally:
        for file in files:
            file.unlink(missing_ok=True)
            if file.suffix == ".json":
                file.parent.rmdir()
        page.evaluate("() => app.refreshComboInNodes()")


def test_the_info_panel_shows_every_nodes_own_help_page(page, client):
    names = {name: info["display_name"] for name, info in client.get("/object_info")[1].items() if name.startswith("IntrinsicLab")}
    open_workflow(page, {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4})
    for name, title in names.items():
        page.evaluate(SELECT_NEW, name)
        if not page.get_by_test_id("panel-tab-info").is_visible():
            page.get_by_test_id("info-button").click()
        page.get_by_test_id("panel-tab-info").click()
        panel = page.get_by_test_id("properties-panel")
        panel.get_by_role("heading", name="Inputs").first.wait_for(timeout=20_000)
        panel.get_by_role("heading", name=title, exact=True).first.wait_for(timeout=20_000)
