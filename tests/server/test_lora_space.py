"""Finding LoRAs over ComfyUI's HTTP and in its real front end, on the bundled style LoRAs."""

import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, prompt_of, queue

MAP = example_workflow("3 Find similar LoRAs")
SHELF = ROOT / "assets" / "loras"
# Where a dot is on the map's element, and its LoRA.
DOT = """number => {
    const node = app.graph._nodes.find(node => node.type === "IntrinsicLabLoRAMap");
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [200 - node.pos[0], 80 - node.pos[1]];
    app.canvas.setDirty(true, true);
    return new Promise(resolve => setTimeout(() => {
        const view = node.loraMap, box = view.canvas.getBoundingClientRect(), scale = box.width / view.canvas.clientWidth;
        const point = view.map.points[number], [x, y] = view.place(point);
        resolve({ at: { x: x * scale, y: y * scale }, name: point.name });
    }, 500));
}"""
CARD = "() => document.querySelector('.intrinsic-lab-lora-card')"
CHOSEN = """() => Object.fromEntries(app.graph._nodes.flatMap(node => (node.widgets ?? [])
    .filter(widget => ["selected", "query"].includes(widget.name)).map(widget => [node.type, widget.value])))"""


def preview(server, name: str) -> tuple[int, bytes]:
    address = f"{server.url}/intrinsic_lab/lora_preview?{urllib.parse.urlencode({'name': name})}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


@pytest.fixture
def own_loras(server, client):
    """Three of the bundled LoRAs in models/loras."""
    folder = server.base / "models/loras/mine"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in ("ember/ember_0", "ember/ember_1", "lagoon/lagoon_0"):
        names.append(f"mine/{Path(file).name}.safetensors")
        shutil.copy(SHELF / f"{file}.safetensors", folder / f"{Path(file).name}.safetensors")
    yield names
    shutil.rmtree(folder)


def test_previews_are_served_for_listed_loras_only(server):
    status, picture = preview(server, "ember/ember_0.safetensors (bundled)")
    assert status == 200 and picture[:2] == b"\xff\xd8"
    for name in ("ember/ember_0.jpg", "../nano_normal.safetensors (bundled)", "../../demo_scene.png", "/etc/passwd", ""):
        assert preview(server, name) == (404, b"")


def test_the_names_found_run_loraloader_once_each(client, own_loras):
    prompt = {
        "index": {"class_type": "IntrinsicLabIndexLoRAs", "inputs": {"collection": "models/loras", "family": "any", "folder": "mine"}},
        "find": {
            "class_type": "IntrinsicLabFindSimilarLoRAs",
            "inputs": {"lora_index": ["index", 0], "query": own_loras[0], "k": 2, "subnetwork": "all"},
        },
        "load": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "nano (bundled)"}},
        "lora": {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["load", 0],
                "clip": ["load", 1],
                "lora_name": ["find", 1],
                "strength_model": 1.0,
                "strength_clip": 0.0,
            },
        },
        "scene": {"class_type": "IntrinsicLabRenderScene", "inputs": {"seed": 3, "width": 128, "height": 128, "batch_size": 1}},
        "latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["scene", 0], "vae": ["load", 2]}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a ball and a box"}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["lora", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 0.7,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
        "names": {"class_type": "PreviewAny", "inputs": {"source": ["find", 1]}},
    }
    # The list of files is as old as the last look at /object_info.
    client.get("/object_info/LoraLoader")
    events, entry = client.run(prompt)
    assert events[-1]["type"] == "execution_success", events[-1]
    assert len(entry["outputs"]["look"]["images"]) == 2
    assert entry["outputs"]["names"]["text"] == [own_loras[1], own_loras[2]]
    assert entry["outputs"]["find"]["images"] and "3 LoRAs are in this index" in entry["outputs"]["index"]["text"][0]


def test_pointing_at_the_map_shows_a_preview_and_a_click_sets_the_query(page):
    open_workflow(page, MAP.graph())
    assert queue(page) == "execution_success"
    page.wait_for_function("() => app.graph._nodes.some(node => node.loraMap?.map)")
    dot = page.evaluate(DOT, 0)
    # Hovering by element first closes the dialogs with which a fresh ComfyUI greets.
    drawn = page.locator(".intrinsic-lab-lora-map")
    drawn.hover(position=dot["at"])
    page.wait_for_function(f"() => ({CARD})().style.display === 'block' && ({CARD})().querySelector('img').naturalWidth > 0")
    assert dot["name"] in page.evaluate(f"() => ({CARD})().textContent")
    drawn.click(position=dot["at"])
    assert page.evaluate(CHOSEN) == {"IntrinsicLabLoRAMap": dot["name"], "IntrinsicLabFindSimilarLoRAs": dot["name"]}
    page.mouse.move(5, 5)
    page.wait_for_function(f"() => ({CARD})().style.display === 'none'")
    find = [node for node in prompt_of(page).values() if node["class_type"] == "IntrinsicLabFindSimilarLoRAs"]
    assert find[0]["inputs"]["query"] == dot["name"]


def test_a_right_click_on_a_lora_loader_finds_similar_ones(page, own_loras):
    page.evaluate("() => app.refreshComboInNodes()")
    page.evaluate(
        """name => {
            app.graph.clear();
            const node = LiteGraph.createNode("LoraLoader");
            app.graph.add(node);
            node.widgets.find(widget => widget.name === "lora_name").value = name;
            const entry = app.canvas.getNodeMenuOptions(node).find(option => option?.content === "Find similar LoRAs");
            entry.callback();
        }""",
        own_loras[0],
    )
    prompt = {node["class_type"]: node["inputs"] for node in prompt_of(page).values()}
    assert prompt["IntrinsicLabFindSimilarLoRAs"]["query"] == own_loras[0]
    assert prompt["IntrinsicLabFindSimilarLoRAs"]["lora_index"][1] == 0 and "IntrinsicLabIndexLoRAs" in prompt
    entries = page.evaluate("() => app.canvas.getNodeMenuOptions(LiteGraph.createNode('KSampler')).map(option => option?.content)")
    assert "Find similar LoRAs" not in entries
