"""Relight from Maps in the real front end: lamps are dragged over the picture, which is the one that Python makes."""

import base64
import io
import json
from urllib.parse import urljoin

import numpy
from intrinsic_lab.tests.server.test_front_end import still_box
from intrinsic_lab.tools.front_end import queue
from PIL import Image

BUILD = """() => {
    app.graph.clear();
    const add = (type, x, widgets = {}) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 60];
        app.graph.add(node);
        for (const [name, value] of Object.entries(widgets)) node.widgets.find(widget => widget.name === name).value = value;
        return node;
    };
    const settings = { seed: 5, width: 192, height: 128, kind: "closeup", control_after_generate: "fixed" };
    const scene = add("IntrinsicLabRenderScene", 20, settings);
    const relight = add("IntrinsicLabRelight", 340);
    const look = add("PreviewImage", 800);
    for (const name of ["albedo", "shading", "normal", "depth", "roughness", "metallic"]) {
        scene.connect(scene.findOutputSlot(name), relight, relight.findInputSlot(name));
    }
    relight.size = [420, 700];
    relight.connect(0, look, 0);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 40];
}"""
LIVE = """() => {
    const view = app.graph._nodes.find(node => node.type === "IntrinsicLabRelight").relightView;
    view.draw();
    return view.canvas.toDataURL("image/png").split(",")[1];
}"""
WIDGETS = """values => {
    const node = app.graph._nodes.find(node => node.type === "IntrinsicLabRelight");
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find(widget => [name, `light.${name}`].includes(widget.name));
        widget.value = value;
        widget.callback?.(value);
    }
}"""
LAMPS = [{"x": 0.2, "y": 0.3, "height": 0.3, "color": "#ffd0a0"}, {"x": 0.9, "y": 0.1, "height": 1.0, "color": "#80a0ff", "intensity": 0.7}]


def live_picture(page) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(page.evaluate(LIVE)))).convert("RGB")).astype(float)


def queued_picture(page) -> numpy.ndarray:
    """What Python made, at the middle of the byte that core's preview cut it down to."""
    said = queue(page)
    assert said == "execution_success", page.evaluate("() => JSON.stringify(app.lastNodeErrors)")
    page.wait_for_function("() => app.graph._nodes.find(node => node.type === 'IntrinsicLabRelight').relightView.relit?.maps")
    page.wait_for_timeout(300)
    file = page.evaluate(
        "() => app.nodeOutputs[app.graph._nodes.find(node => node.type === 'PreviewImage').id].images[0]",
    )
    answer = page.request.get(urljoin(page.url, "/view"), params=file)
    return numpy.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")) + 0.5


def test_the_live_picture_is_the_one_that_queueing_makes_and_a_drag_moves_a_lamp(page):
    page.evaluate(BUILD)
    seen = []
    for settings in (
        {"lamps": json.dumps(LAMPS), "ambient": 0.1, "original_light": 0.3, "shadows": 0.9},
        {"lamps": json.dumps(LAMPS[:1]), "ambient": 0.0, "original_light": 0.0, "hardness": 1.0, "intensity": 1.5, "color": "#fff0c0"},
    ):
        page.evaluate(WIDGETS, settings)
        python = queued_picture(page)
        live = live_picture(page)
        assert live.shape == python.shape and live.std() > 20
        assert numpy.abs(live - python).mean() < 1, settings
        seen.append(live)
    assert numpy.abs(seen[0] - seen[1]).mean() > 5

    # By hand: from the lamp's place to the right, nothing is queued, the picture follows.
    # Where the properties panel is open, the front end brings the view to the panel's width once the node is pointed at.
    page.locator("canvas.intrinsic-lab-relight").hover()
    box = still_box(page, "canvas.intrinsic-lab-relight")
    scale = min(box["width"] / 192, box["height"] / 128)
    left, top = box["x"] + (box["width"] - 192 * scale) / 2, box["y"] + (box["height"] - 128 * scale) / 2
    page.mouse.move(left + 0.2 * 192 * scale, top + 0.3 * 128 * scale)
    page.mouse.down()
    page.mouse.move(left + 0.8 * 192 * scale, top + 0.5 * 128 * scale, steps=5)
    page.mouse.up()
    page.mouse.wheel(0, -250)
    page.wait_for_timeout(200)
    text = page.evaluate("() => app.graph._nodes.find(node => node.type === 'IntrinsicLabRelight').relightView.value('lamps')")
    [lamp] = json.loads(text)
    assert abs(lamp["x"] - 0.8) < 0.02 and abs(lamp["y"] - 0.5) < 0.03 and abs(lamp["height"] - 0.8) < 0.01, text
    moved = live_picture(page)
    assert numpy.abs(moved - seen[1]).mean() > 3
    assert numpy.abs(queued_picture(page) - moved).mean() < 1
    page.keyboard.down("b")
    page.wait_for_timeout(100)
    before = page.evaluate("() => app.graph._nodes.find(node => node.type === 'IntrinsicLabRelight').relightView.before")
    page.keyboard.up("b")
    assert before is True
