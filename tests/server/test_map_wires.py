"""Data wired into a node that wants a picture, in the real front end."""

from intrinsic_lab.tools.front_end import open_workflow

EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}
# Of older front ends, of newer ones.
TOASTS = ".p-toast-detail, li[role=alert] .text-muted-foreground.whitespace-pre-line"
TOLD = f"() => [...document.querySelectorAll('{TOASTS}')].map(toast => toast.textContent)"
WIRE = """([source, name, target, format]) => {
    const made = [source, target].map(type => LiteGraph.createNode(type));
    made.forEach(node => app.graph.add(node));
    if (format) made[1].widgets.find(widget => widget.name === "format").value = format;
    made[0].connect(made[0].outputs.findIndex(output => output.name === name), made[1], 0);
}"""
RIGHT = [
    ("IntrinsicLabPictureToMaps", "depth", "PreviewImage", None),
    ("IntrinsicLabFormatNormals", "normal", "SaveImage", None),
    ("IntrinsicLabRenderScene", "image", "PreviewImage", None),
    ("IntrinsicLabRenderScene", "depth", "SaveImageAdvanced", "exr"),
    ("IntrinsicLabRenderScene", "normal", "IntrinsicLabFormatNormals", None),
]


def test_a_wrong_wire_is_told_with_what_to_do_and_a_right_one_or_an_opened_graph_is_not(page):
    open_workflow(page, EMPTY)
    for wire in RIGHT:
        page.evaluate(WIRE, wire)
    page.evaluate(WIRE, ("IntrinsicLabExtractMaps", "normal", "PreviewImage", None))
    page.wait_for_function(f"() => document.querySelector('{TOASTS}')", timeout=10_000)
    said = page.evaluate(TOLD)
    assert said == [
        "normal of Extract Intrinsic Maps is data, no picture: Preview Image would show it wrongly. Put Format Normals between them."
    ]
    graph = page.evaluate("() => app.graph.serialize()")
    open_workflow(page, graph)
    page.wait_for_timeout(500)
    assert page.evaluate(TOLD) in (said, []), "it tells again of a wire that came with a graph"
