"""Lists of LoRAs that show what fits the model: what the server says, and what the real front end makes of it."""

import shutil
from contextlib import nullcontext
from itertools import count
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import torch
from intrinsic_lab.tests.server.test_front_end import nodes_2
from intrinsic_lab.tests.server.test_map_wires import EMPTY
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.front_end import open_workflow, prompt_of
from safetensors.torch import save_file

NANO, WIDE, FLUX = "nano (bundled)", "fits_wide.safetensors", "fits_flux.safetensors"
OWN = ("normal", "style", "wide", "lumix", "broken")
APPLY, TENSOR, PICTURE = "IntrinsicLabApplyLoRA", "IntrinsicLabApplyTensorLoRA", "IntrinsicLabPictureToMaps"
# Loader -> another pack's or core's node -> Apply Intrinsic LoRA, and Picture to Maps by itself.
BUILD = """chosen => {
    const add = (type, x) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 100];
        app.graph.add(node);
        return node;
    };
    const [load, between, apply] = [add("CheckpointLoaderSimple", 0), add("LoraLoaderModelOnly", 350), add("IntrinsicLabApplyLoRA", 700)];
    load.connect(0, between, 0);
    between.connect(0, apply, 0);
    const picture = add("IntrinsicLabPictureToMaps", 1100);
    const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
    set(load, "ckpt_name", "fits_wide.safetensors");
    set(apply, "lora_name", chosen);
    Object.assign(app.canvas.ds, { scale: 0.7, offset: [150, 100] });
    app.canvas.setDirty(true, true);
    return [apply.id, picture.id];
}"""
VALUES = """([id, name]) => app.graph.getNodeById(id).widgets.find(widget => widget.name === name).options.values"""
SET = """([id, name, value]) => { app.graph.getNodeById(id).widgets.find(widget => widget.name === name).value = value; }"""

# Where the middle of a list is on the screen.
PLACE = """([id, name]) => {
    const node = app.graph.getNodeById(id), box = app.canvas.canvas.getBoundingClientRect();
    const widget = node.widgets.find(widget => widget.name === name);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
    return [box.left + x, box.top + y];
}"""


@pytest.fixture(scope="module")
def shelf(server):
    """models/loras/fits, and a checkpoint and a diffusion model of other widths than the bundled ones. Names as nodes list them."""
    models = server.base / "models"
    folder = models / "loras/fits"
    for place in (folder, models / "checkpoints", models / "diffusion_models"):
        place.mkdir(parents=True, exist_ok=True)
    for name, file in (("normal", "nano_normal"), ("style", "loras/ember/ember_0"), ("lumix", "nano_lumix")):
        shutil.copy(ROOT / f"assets/{file}.safetensors", folder / f"{name}.safetensors")
    save_file({"unet.x.lora_A.weight": torch.ones(2, 2048), "unet.x.lora_B.weight": torch.ones(48, 2)}, folder / "wide.safetensors")
    (folder / "broken.safetensors").write_bytes(b"0123456789abcdef")
    save_file({"model.diffusion_model.y.weight": torch.ones(96, 2048)}, models / "checkpoints" / WIDE)
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(432, 144)}, models / "diffusion_models" / FLUX)
    yield {name: f"fits/{name}.safetensors" for name in OWN}
    shutil.rmtree(folder)
    (models / "checkpoints" / WIDE).unlink()
    (models / "diffusion_models" / FLUX).unlink()


def address(node, loader, model):
    return f"/intrinsic_lab/fitting_loras?{urlencode({'node': node, 'loader': loader, 'model': model})}"


def test_the_server_says_what_misfits_by_listed_names_alone(client, server, shelf):
    def fitting(node, loader, model):
        status, answer = client.get(address(node, loader, model))
        assert status == 200 and (node != APPLY or answer["maps"][shelf["normal"]] == "normal")
        bundled = "nano/lumix (bundled)" if node == TENSOR else "nano/depth (bundled)"
        return [name for name in OWN if shelf[name] not in answer["misfits"]], bundled not in answer["misfits"]

    client.get("/object_info/LoraLoader")
    assert fitting(APPLY, "IntrinsicLabLoadModel", NANO) == (["normal", "style", "broken"], True)
    assert fitting(PICTURE, PICTURE, NANO) == (["normal", "style", "broken"], True)
    assert fitting(APPLY, "CheckpointLoaderSimple", WIDE) == fitting(PICTURE, PICTURE, WIDE) == (["wide", "broken"], False)
    assert fitting(TENSOR, "UNETLoader", FLUX) == fitting(TENSOR, "IntrinsicLabLoadModel", "nano FLUX (bundled)")
    assert fitting(TENSOR, "UNETLoader", FLUX) == (["lumix", "broken"], True)
    assert fitting(TENSOR, "CheckpointLoaderSimple", WIDE) == (["broken"], False)
    # A file that is replaced is read again.
    kept = (file := server.base / "models/loras" / shelf["style"]).read_bytes()
    shutil.copy(ROOT / "assets/nano_lumix.safetensors", file)
    assert fitting(TENSOR, "UNETLoader", FLUX) == (["style", "lumix", "broken"], True)
    file.write_bytes(kept)
    for node, loader, model, status in (
        (APPLY, "CheckpointLoaderSimple", f"../checkpoints/{WIDE}", 404),
        (APPLY, "IntrinsicLabLoadModel", "/etc", 400),
        (APPLY, "LoadImage", WIDE, 400),
        ("KSampler", "CheckpointLoaderSimple", WIDE, 400),
    ):
        said = client.get(address(node, loader, model))
        assert said[0] == status and said[1]["message"] and str(server.base) not in said[1]["message"]
    with pytest.raises(OSError, match="403"):
        urlopen(Request(server.url + address(APPLY, PICTURE, NANO), headers={"Sec-Fetch-Site": "cross-site"}), timeout=30)


@pytest.mark.parametrize("mode", ["classic", "nodes 2.0"])
def test_lists_follow_the_model_upstream_and_nothing_that_is_chosen_changes(page, shelf, mode):
    def wait_for(node, name, own, more=()):
        """Until the list has these of ours, and these of the pack's own."""
        page.wait_for_function(
            f"([at, own, more]) => {{ const has = ({VALUES})(at); const mine = has.filter(name => name.startsWith('fits/'));"
            " return mine.length === own.length && own.every(name => mine.includes(name)) && more.every(name => has.includes(name)); }",
            arg=[[node, name], [shelf[one] for one in own], list(more)],
            timeout=20_000,
        )

    def change(node, name, value):
        page.evaluate(SET, [node, name, value])
        touch()

    def touch():
        """As a person does; twice at one place would open the search."""
        page.mouse.click(200 + 60 * next(places), 780)

    def opened(node, name):
        """What the list shows to a person who opens it."""
        if mode == "classic":
            page.mouse.click(*page.evaluate(PLACE, [node, name]))
            entries = page.locator(".litemenu-entry")
        else:
            page.locator(f'[data-node-id="{node}"]').get_by_role("combobox").first.click()
            entries = page.get_by_role("option")
        entries.first.wait_for(timeout=10_000)
        texts = [text.strip() for text in entries.all_inner_texts()]
        page.keyboard.press("Escape")
        touch()
        return texts

    places = count()
    with nodes_2(page) if mode == "nodes 2.0" else nullcontext():
        open_workflow(page, EMPTY)
        # The template browser of a fresh ComfyUI.
        page.keyboard.press("Escape")
        page.evaluate("() => app.refreshComboInNodes()")
        apply, picture = page.evaluate(BUILD, shelf["style"])
        touch()
        # What is chosen stays in the list, though it does not fit.
        wait_for(apply, "lora_name", ["wide", "style", "broken"])
        assert "nano/normal (bundled)" not in page.evaluate(VALUES, [apply, "lora_name"])
        wait_for(picture, "normal_lora", ["normal", "style", "broken"], ["bundled", "none"])
        wait_for(picture, "depth_lora", ["style", "broken"], ["bundled", "none"])
        change(picture, "model_name", WIDE)
        wait_for(picture, "depth_lora", ["wide", "broken"], ["bundled", "none"])
        change(picture, "depth_lora", "none")
        shown = opened(apply, "lora_name")
        assert [name for name in shown if name.startswith(("fits/", "nano/"))] == [shelf[one] for one in ("broken", "style", "wide")]
        chosen = prompt_of(page)
        assert chosen[str(apply)]["inputs"]["lora_name"] == shelf["style"]
        # Opened again it is the same; without a model that is known all are offered.
        graph = page.evaluate("() => app.graph.serialize()")
        open_workflow(page, graph)
        wait_for(apply, "lora_name", ["wide", "style", "broken"])
        assert prompt_of(page) == chosen
        page.evaluate("id => app.graph.getNodeById(id).disconnectInput(0)", apply)
        touch()
        wait_for(apply, "lora_name", OWN, ["nano/normal (bundled)"])
        open_workflow(page, EMPTY)
