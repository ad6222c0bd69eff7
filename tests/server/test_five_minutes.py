"""What a new user does first: a photo onto template 1, its maps, a lamp dragged over it, all saved as one EXR file.

The screenshots are in the test's folder.
"""

import base64
import json
from urllib.parse import urljoin

import pytest
from intrinsic_lab.tests.server.test_front_end import nodes_2
from intrinsic_lab.tools.comfyui_source import ROOT
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.front_end import open_workflow, queue

PHOTO = ROOT / "assets" / "demo_photograph.jpg"
# As the front end hands on a file that is dropped onto a node.
DROP = """async text => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], "photograph.jpg", { type: "image/jpeg" }));
    const node = app.graph._nodes.find(node => node.type === "LoadImage");
    await node.onDragDrop({ dataTransfer: files });
}"""
LOADED = """() => app.graph._nodes.find(node => node.type === "LoadImage").widgets.find(widget => widget.name === "image").value"""
LAMPS = """() => app.graph._nodes.find(node => node.type === "IntrinsicLabRelight").relightView.value("lamps")"""
LIVE = """() => {
    const view = app.graph._nodes.find(node => node.type === "IntrinsicLabRelight").relightView;
    view.draw();
    return view.relit?.maps ? view.canvas.toDataURL() : "";
}"""
SHOWN = """() => app.graph._nodes.filter(node => ["PreviewImage", "ImageCompare"].includes(node.type))
    .map(node => { const { images, a_images } = app.nodeOutputs[node.id] ?? {}; return (images ?? a_images ?? []).length; })"""

ADD_EXPORT = """() => {
    const node = LiteGraph.createNode("IntrinsicLabExportMaps");
    const maps = app.graph._nodes.find(node => node.type === "IntrinsicLabPictureToMaps");
    node.pos = [maps.pos[0], maps.pos[1] + maps.size[1] + 80];
    app.graph.add(node);
    maps.connect(maps.findOutputSlot("maps"), node, node.findInputSlot("maps"));
    return String(node.id);
}"""
OPENEXR = b"\x76\x2f\x31\x01"


@pytest.mark.parametrize("mode", ["classic", "nodes 2"])
def test_a_photo_becomes_maps_and_is_lit_by_dragging_a_lamp(page, tmp_path, mode):
    if mode == "classic":
        first_five_minutes(page, tmp_path)
    else:
        with nodes_2(page):
            first_five_minutes(page, tmp_path)


def first_five_minutes(page, folder) -> None:
    def drop_the_photo(name: str) -> None:
        # A fresh ComfyUI greets with its template browser.
        page.keyboard.press("Escape")
        assert open_workflow(page, example_workflow(name).graph()) == []
        page.evaluate(DROP, base64.b64encode(PHOTO.read_bytes()).decode())
        page.wait_for_function(f"() => ({LOADED})().startsWith('photograph')", timeout=20_000)

    drop_the_photo("1 Picture to maps")
    assert queue(page) == "execution_success"
    page.wait_for_timeout(500)
    assert page.evaluate(SHOWN) == [1, 1, 1, 1]
    page.screenshot(path=folder / "1 maps.png")

    drop_the_photo("2 Relight a photo by hand")
    assert queue(page) == "execution_success"
    page.wait_for_function(f"() => ({LIVE})().length > 1000", timeout=20_000)
    assert page.evaluate(SHOWN) == [1, 1]
    before = page.evaluate(LIVE)
    # The canvas is as wide as the node; the picture in it is square.
    box = page.locator("canvas.intrinsic-lab-relight").bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    [lamp] = json.loads(page.evaluate(LAMPS))
    page.mouse.move(left + lamp["x"] * side, top + lamp["y"] * side)
    page.mouse.down()
    page.mouse.move(left + 0.8 * side, top + 0.4 * side, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    [lamp] = json.loads(page.evaluate(LAMPS))
    assert abs(lamp["x"] - 0.8) < 0.03 and abs(lamp["y"] - 0.4) < 0.03
    assert page.evaluate(LIVE) != before
    page.screenshot(path=folder / "2 lamp dragged.png")
    assert queue(page) == "execution_success"
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "3 lit again.png")

    export = page.evaluate(ADD_EXPORT)
    assert queue(page) == "execution_success"
    page.wait_for_function("id => app.nodeOutputs[id]?.files?.length", arg=export, timeout=20_000)
    [file] = page.evaluate("id => app.nodeOutputs[id].files", export)
    assert page.request.get(urljoin(page.url, "/view"), params=file).body()[:4] == OPENEXR
    page.screenshot(path=folder / "4 exported.png")
