"""Finding LoRAs over ComfyUI's HTTP and in its real front end, on the bundled style LoRAs."""

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import pytest
from intrinsic_lab.tests.server.test_front_end import nodes_2, still_box
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, prompt_of, queue
from safetensors.torch import load_file, save_file

MAP = example_workflow("3 Find similar LoRAs")
SHELF = ROOT / "assets" / "loras"
# Where a dot is on the map's element, and its LoRA.
DOT = """number => {
    const node = app.graph._nodes.find(node => node.type === "IntrinsicLabLoRAMap");
    const { ds } = app.canvas, own = [1, 200 - node.pos[0], 80 - node.pos[1]];
    const place = () => {
        const view = node.loraMap, box = view.canvas.getBoundingClientRect(), scale = box.width / view.canvas.clientWidth;
        const point = view.map.points[number], [x, y] = view.place(point);
        return { at: { x: x * scale, y: y * scale }, name: point.name, box: [box.x, box.y, box.width, box.height].map(Math.round) };
    };
    // Once it stands still. A front end that has just opened a graph may still put its own view in the place of this one.
    return new Promise(resolve => {
        let before = "";
        const timer = setInterval(() => {
            const stayed = [ds.scale, ...ds.offset].every((value, at) => value === own[at]), now = place();
            if (stayed && JSON.stringify(now) === before) (clearInterval(timer), resolve(now));
            before = stayed ? JSON.stringify(now) : "";
            Object.assign(ds, { scale: own[0], offset: own.slice(1) });
            app.canvas.setDirty(true, true);
        }, 300);
    });
}"""
HEADER = {
    "modelspec.trigger_phrase": "<img src=x onerror='window.hacked = true'>",
    "ss_tag_frequency": json.dumps({"10_x": {"<b>bold</b>": 9, "a picture": 4}}),
    "ss_sd_model_name": "<script>window.hacked = true</script>",
    "ss_steps": "1200",
    "ss_resolution": "(1024, 768)",
    "modelspec.date": "2025-03-01T10:00:00",
}
SHELVED = [f"{name}.safetensors (bundled)" for name in ("ember/ember_0", "ember/ember_1", "lagoon/lagoon_0", "noir/noir_0", "noir/noir_1")]
# As the node sends it, with texts that would be code if they were drawn as such.
SHOWN = {
    "family": "sdxl",
    "points": [
        {"name": name, "x": x, "y": y, "cluster": 0, "family": "sdxl", "variant": variant, "date": date}
        for name, x, y, variant, date in zip(
            SHELVED, (0.1, 0.3, 0.2, 0.9, 0.8), (0.2, 0.3, 0.8, 0.1, 0.6), ("pony", "pony", "pony", "pony", "kontext"),
            ("2024-01-01", "2024-01-01", "2025-02-02", "2026-03-03", "2026-03-03"), strict=True,
        )
    ],
    "clusters": [{"label": "<img src=x onerror='window.hacked = true'>", "size": 5, "x": 0.5, "y": 0.1, "color": "#40c0a0"}],
}  # fmt: skip
VIEW = "app.graph._nodes.find(node => node.type === 'IntrinsicLabLoRAMap').loraMap"
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
    """Three of the bundled LoRAs in models/loras, with what a hostile header says of them."""
    folder = server.base / "models/loras/mine"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in ("ember/ember_0", "ember/ember_1", "lagoon/lagoon_0"):
        names.append(f"mine/{Path(file).name}.safetensors")
        save_file(load_file(SHELF / f"{file}.safetensors"), folder / f"{Path(file).name}.safetensors", HEADER)
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
    # Measured again: in a long run of the browser the front end puts back its own view even after the hover.
    dot = page.evaluate(DOT, 0)
    drawn.click(position=dot["at"])
    page.wait_for_function(f"name => Object.values(({CHOSEN})()).every(chosen => chosen === name)", arg=dot["name"], timeout=10_000)
    assert page.evaluate(CHOSEN) == {"IntrinsicLabLoRAMap": dot["name"], "IntrinsicLabFindSimilarLoRAs": dot["name"]}
    page.mouse.move(5, 5)
    page.wait_for_function(f"() => ({CARD})().style.display === 'none'")
    find = [node for node in prompt_of(page).values() if node["class_type"] == "IntrinsicLabFindSimilarLoRAs"]
    assert find[0]["inputs"]["query"] == dot["name"]


@pytest.mark.parametrize("mode", ["classic", "nodes 2.0"])
def test_the_map_is_zoomed_panned_searched_and_a_lasso_lists_loras(page, mode):
    with nodes_2(page) if mode == "nodes 2.0" else nullcontext():
        open_workflow(page, MAP.graph())
        page.evaluate("map => app.graph._nodes.find(node => node.type === 'IntrinsicLabLoRAMap').loraMap.setMap(map)", SHOWN)
        page.evaluate(DOT, 4)
        drawn = page.locator(".intrinsic-lab-lora-map")
        # Closes the dialogs with which a fresh ComfyUI greets, and gives the map the wheel.
        drawn.hover()
        box = still_box(page, ".intrinsic-lab-lora-map")
        dot = page.evaluate(DOT, 4)
        graph = page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
        at = box["x"] + dot["at"]["x"], box["y"] + dot["at"]["y"]
        page.mouse.move(*at)
        page.mouse.wheel(0, -700)
        page.wait_for_function(f"() => {VIEW}.zoom > 4 && {VIEW}.canvas.dataset.pictures > 0", timeout=20_000)
        # What was pointed at stays under the pointer, and a drag takes it along.
        for step in (0, 40):
            page.mouse.down()
            page.mouse.move(at[0] + step, at[1] + step, steps=4)
            page.mouse.up()
            page.mouse.move(at[0] + step + 1, at[1] + step)
            page.wait_for_function(f"name => {VIEW}.points.all[{VIEW}.hovered]?.name === name", arg=dot["name"], timeout=10_000)
        assert page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == graph
        page.locator(".intrinsic-lab-all").click()
        page.locator(".intrinsic-lab-search").fill("noir kontext")
        assert page.locator(".intrinsic-lab-count").inner_text() == "1"
        assert page.evaluate(f"() => [...{VIEW}.bright]") == [0, 0, 0, 0, 1]
        page.locator(".intrinsic-lab-search").fill("")
        for kind, legend in (("folder", "● ember  2\n● noir  2\n● lagoon  1"), ("date", "● 2024-01-01\n● 2025-02-02\n● 2026-03-03")):
            page.locator(".intrinsic-lab-colors").select_option(kind)
            assert page.locator(".intrinsic-lab-legend").inner_text().split() == legend.split()
        page.locator(".intrinsic-lab-colors").select_option("groups")
        page.locator(".intrinsic-lab-lasso").click()
        box = drawn.bounding_box()
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        page.mouse.down()
        for x, y in ((0.45, 0.01), (0.45, 0.98), (0.01, 0.98)):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        page.mouse.up()
        page.locator(".intrinsic-lab-listed").nth(2).wait_for()
        assert sorted(page.locator(".intrinsic-lab-listed").all_inner_texts()) == SHELVED[:3]
        inputs = next(node["inputs"] for node in prompt_of(page).values() if node["class_type"] == "IntrinsicLabLoRAMap")
        assert sorted(inputs["listed"].split(" | ")) == SHELVED[:3]
        assert page.evaluate("() => window.hacked") is None


def similar(server, name: str, **headers: str) -> tuple[int, dict]:
    query = urllib.parse.urlencode({"name": name, "k": 5})
    request = urllib.request.Request(f"{server.url}/intrinsic_lab/similar_loras?{query}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        # ComfyUI's own refusal of another origin says nothing.
        return error.code, json.loads(error.read() or b"{}")


def begin_indexing(server, **headers: str) -> int:
    body = json.dumps({"collection": "models/loras"}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/intrinsic_lab/lora_index", body, headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_routes_write_nothing_answer_only_their_own_site_and_while_they_index(server, client, own_loras):
    index = server.base / "user/__intrinsic_lab/loras.sqlite"
    for file in index.parent.glob("loras.sqlite*"):
        file.unlink()
    client.get("/object_info/LoraLoader")
    status, answer = similar(server, own_loras[0])
    assert (status, answer["indexed"], answer["loras"]) == (200, 0, []) and "no index" in answer["message"]
    assert similar(server, "/etc/passwd")[0] == 404 and similar(server, "../../../x.safetensors")[0] == 404
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:1"}):
        assert similar(server, own_loras[0], **headers)[0] == 403 and begin_indexing(server, **headers) == 403
    assert not index.exists()

    for number in range(150):
        shutil.copy(server.base / "models/loras" / own_loras[number % 3], server.base / f"models/loras/mine/{number}.safetensors")
    assert begin_indexing(server, Origin=server.url) == 200
    seen = []
    while (state := client.get("/intrinsic_lab/lora_index?collection=models/loras")[1])["running"]:
        seen.append((state["done"], similar(server, own_loras[0])[0]))
    assert any(0 < done < 153 and status == 200 for done, status in seen), "answers came only after the work, or before it"
    # Other tests leave LoRAs of theirs in the shared server's folder, some of them broken.
    assert state["total"] >= 153 and int(re.search(r"(\d+) read", state["ending"])[1]) >= 153, state
    status, answer = similar(server, own_loras[0])
    assert len(answer["loras"]) == 5 and answer["loras"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert str(server.base) not in json.dumps(answer)


SIMILAR = """name => {
    app.graph.clear();
    const node = LiteGraph.createNode("LoraLoaderModelOnly");
    node.pos = [300, 200];
    app.graph.add(node);
    node.widgets.find(widget => widget.name === "lora_name").value = name;
    Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
    app.canvas.setDirty(true, true);
    app.canvas.getNodeMenuOptions(node).find(option => option?.content === "Find similar LoRAs").callback();
}"""
LOADERS = """() => app.graph._nodes.map(node => [node.type, node.widgets.find(widget => widget.name === "lora_name").value])"""


@pytest.mark.parametrize("mode", ["classic", "nodes 2.0"])
def test_find_similar_opens_a_panel_that_queues_nothing(page, client, own_loras, mode):
    before = client.get("/history")[1].keys()
    with nodes_2(page) if mode == "nodes 2.0" else nullcontext():
        page.evaluate("() => app.refreshComboInNodes()")
        page.evaluate(SIMILAR, own_loras[0])
        page.locator(".intrinsic-lab-index").click()
        rows = page.locator(".intrinsic-lab-row")
        page.locator(".intrinsic-lab-status", has_text="LoRA files in").wait_for(timeout=60_000)
        assert own_loras[0] in rows.nth(0).inner_text()
        # The header's texts are texts, whatever they look like.
        rows.nth(0).locator(".intrinsic-lab-trigger").wait_for()
        assert rows.nth(0).locator("button").all_inner_texts() == [HEADER["modelspec.trigger_phrase"], "<b>bold</b>", "a picture"]
        said = rows.nth(0).locator(".intrinsic-lab-about").inner_text()
        assert said.endswith(f"{HEADER['ss_sd_model_name']} · 1,200 steps · 1024x768 · 2025-03-01")
        assert page.evaluate("() => window.hacked") is None and rows.nth(0).locator("b, script, .intrinsic-lab-words img").count() == 0
        # A click puts a LoRA into the loader, a drag makes another loader.
        found = page.evaluate("() => [...document.querySelectorAll('.intrinsic-lab-row')].map(row => row.lora.name)")
        rows.nth(1).click()
        assert page.evaluate(LOADERS) == [["LoraLoaderModelOnly", found[1]]]
        rows.nth(2).drag_to(page.locator("#graph-canvas"), target_position={"x": 350, "y": 600})
        assert page.evaluate(LOADERS) == [["LoraLoaderModelOnly", found[1]], ["LoraLoaderModelOnly", found[2]]]
        assert page.evaluate("() => [...app.graph._nodes[1].pos].map(Math.round)") == [350, 600]
        page.get_by_role("button", name="As nodes").click()
        page.locator(".intrinsic-lab-panel").press("Escape")
        assert page.locator(".intrinsic-lab-panel").count() == 0
        prompt = {node["class_type"]: node["inputs"] for node in prompt_of(page).values()}
        assert prompt["IntrinsicLabFindSimilarLoRAs"]["query"] == own_loras[0]
        assert prompt["IntrinsicLabFindSimilarLoRAs"]["lora_index"][1] == 0 and "IntrinsicLabIndexLoRAs" in prompt
        page.evaluate("() => app.graph.clear()")
    assert client.get("/history")[1].keys() == before and not any(client.get("/queue")[1].values())


def test_the_panel_speaks_the_front_end_s_language(page, own_loras):
    language = "language => app.extensionManager.setting.set('Comfy.Locale', language)"
    page.evaluate(language, "zh")
    try:
        page.evaluate("() => app.refreshComboInNodes()")
        page.evaluate(SIMILAR.replace("Find similar LoRAs", "查找相似的 LoRA"), own_loras[0])
        panel = page.locator(".intrinsic-lab-panel")
        panel.get_by_role("button", name="变成节点").wait_for()
        assert panel.locator(".intrinsic-lab-title").inner_text() == f"与 {own_loras[0]} 相似"
        panel.locator(".intrinsic-lab-index", has_text="索引").wait_for()
        panel.press("Escape")
    finally:
        page.evaluate(language, "en")
        page.evaluate("() => app.graph.clear()")


def test_lora_inputs_of_other_packs_are_known_by_their_list_or_name(page, own_loras):
    found = page.evaluate(
        """async names => {
            await app.refreshComboInNodes();
            const { loraIn, loraInputs, setLora } = await import("/extensions/intrinsic-lab/loras.js");
            const listed = LiteGraph.createNode("LoraLoader").widgets[0].options.values;
            const node = new LiteGraph.LGraphNode("of another pack");
            const add = (name, value, values = ["None", value]) => node.addWidget("combo", name, value, null, { values });
            for (const name of ["lora_name", "lora_1_name", "lora_01", "lora1", "lora_name_2"]) add(name, "gone.safetensors");
            add("high_noise", names[0], ["None", ...listed]);
            // Neither a list of LoRAs, nor a name; a LoRA input that holds none.
            add("ckpt_name", names[0], [names[0], "base.safetensors"]);
            add("lora_type", "flux", ["flux", "sdxl"]);
            add("lora_2_name", "None");
            // A row that a pack draws itself.
            node.widgets.push({ name: "row", type: "custom", value: { on: true, lora: names[0], strength: 1 } });
            const inputs = loraInputs(node);
            setLora(node, inputs.at(-1), names[1]);
            return [inputs.map(widget => widget.name), inputs.at(-1).value, inputs.map(loraIn).at(-1)];
        }""",
        own_loras,
    )
    names = ["lora_name", "lora_1_name", "lora_01", "lora1", "lora_name_2", "high_noise", "row"]
    assert found == [names, {"on": True, "lora": own_loras[1], "strength": 1}, own_loras[1]]
    entries = page.evaluate("() => app.canvas.getNodeMenuOptions(LiteGraph.createNode('KSampler')).map(option => option?.content)")
    assert not any(str(entry).startswith("Find similar") for entry in entries)


def test_points_are_found_as_by_looking_at_each(page):
    """Nearest and lasso over the grid against all of them, and a dot's colour at its place."""
    wrong = page.evaluate(
        """async () => {
            const { Points } = await import("/extensions/intrinsic-lab/lora_points.js");
            const { Dots } = await import("/extensions/intrinsic-lab/lora_dots.js");
            let state = 1;
            const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
            const all = [...Array(3000)].map((_, number) => ({ name: `${number}`, x: random() ** 2, y: random(), cluster: 0 }));
            const points = new Points(all, [{ label: "a", color: "#10c080" }]);
            const wrong = [];
            for (let turn = 0; turn < 200; turn++) {
                const [x, y, wide, high] = [random() * 1.2 - 0.1, random(), 0.002 + random() / 10, 0.002 + random() / 30];
                const distances = [...points.x].map((px, number) => Math.hypot((px - x) / wide, (points.y[number] - y) / high));
                const nearest = distances.indexOf(Math.min(...distances));
                if (points.nearest(x, y, wide, high) !== (distances[nearest] < 1 ? nearest : -1)) wrong.push(["nearest", x, y]);
                // A diamond.
                const inside = points.inside([[x - wide, y], [x, y - high], [x + wide, y], [x, y + high]]).sort((a, b) => a - b);
                const expected = [...points.x.keys()].filter(n => Math.abs(points.x[n] - x) / wide + Math.abs(points.y[n] - y) / high < 1);
                if (String(inside) !== String(expected)) wrong.push(["lasso", x, y, inside.length, expected.length]);
            }
            const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
            const context = canvas.getContext("2d");
            const colors = [[16, 192, 128], [255, 0, 40]];
            const frame = { left: 4, top: 4, wide: 40, high: 20 };
            new Dots(context).draw({ x: [0.5, 1], y: [0.5, 1] }, frame, 2.8, colors, [1, 0], [200, 100, 50]);
            const at = (x, y) => String([...context.getImageData(x, y, 1, 1).data]);
            const half = [...context.getImageData(24 + 3, 14, 1, 1).data];
            if (at(24, 14) !== "16,192,128,255") wrong.push(["dot", at(24, 14)]);
            if (at(44, 24) !== "211,80,48,255") wrong.push(["dimmed", at(44, 24)]);
            if (at(60, 40) !== "200,100,50,255") wrong.push(["ground", at(60, 40)]);
            if (!(half[0] > 16 && half[0] < 200 && half[1] > 100 && half[1] < 192)) wrong.push(["edge", half]);
            return wrong;
        }"""
    )
    assert wrong == []
