"""ComfyUI's real front end in a headless browser: opens workflows, exports them to API form, queues them, takes their results."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin

from PIL import Image, ImageOps
from playwright.sync_api import Page, sync_playwright

from .console import WorkbenchError
from .environment import find_chromium

ARGUMENTS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run"),
    # WebGL without a graphics card.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MISSING_NODES = """workflow => {
    const known = LiteGraph.registered_node_types;
    const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
    const own = new Set((workflow.definitions?.subgraphs ?? []).map(subgraph => subgraph.id));
    return [...new Set(graphs.flatMap(graph => graph.nodes.map(node => node.type)))].filter(type => !known[type] && !own.has(type));
}"""
RED_WIDGETS = """() => {
    const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])];
    const red = [];
    for (const node of graphs.flatMap(graph => graph.nodes ?? graph._nodes)) {
        if (node.has_errors) red.push(`${node.type}: has errors`);
        for (const widget of node.widgets ?? []) {
            if (widget.type !== "combo") continue;
            let values = widget.options?.values ?? [];
            if (typeof values === "function") values = values(widget, node);
            if (!Array.isArray(values)) values = Object.keys(values);
            if (!values.includes(widget.value)) red.push(`${node.type}.${widget.name}: ${widget.value}`);
        }
    }
    return red;
}"""
SCHEMA_ERRORS = """async graphs => {
    const chunks = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => /assets\\/.*\\.js$/.test(name));
    let validate;
    // The build names its chunks and exports anew every time, the function keeps its name.
    for (const chunk of chunks.filter(name => /\\/api-/.test(name))) {
        validate ??= Object.values(await import(chunk)).find(value => value?.name === "validateComfyWorkflow");
    }
    const found = {};
    for (const [name, graph] of Object.entries(graphs)) await validate(graph, error => { found[name] = error; });
    return found;
}"""
RESULTS = """() => {
    const beside = ["LoadImage", "IntrinsicLabExtractMaps", "IntrinsicLabPictureToMaps"];
    const pictures = node => {
        const { images = [], a_images = [], b_images = [] } = app.nodeOutputs[node.id] ?? {};
        // A saved video is no picture; of a slider both sides are shown.
        return node.type === "SaveVideo" ? [] : [...images.slice(0, 1), ...a_images.slice(0, 1), ...b_images.slice(0, 1)];
    };
    const shown = app.graph._nodes.filter(node => !beside.includes(node.type) && pictures(node).length);
    const saved = shown.filter(node => node.type.startsWith("Save"));
    return (saved.length ? saved : shown).flatMap(pictures).map(picture => {
        return app.api.apiURL(`/view?${new URLSearchParams({ ...picture, preview: "jpeg;95" })}`);
    });
}"""


@contextmanager
def headless() -> Iterator[Page]:
    """An empty page of a headless browser. Raises WorkbenchError if there is none."""
    chromium = find_chromium()
    if chromium is None:
        raise WorkbenchError("There is no Chromium for the front end.", "install chromium (apt-get install chromium) or set CHROMIUM_PATH.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            yield browser.new_page(viewport={"width": 1600, "height": 900})
        finally:
            browser.close()


@contextmanager
def front_end(url: str) -> Iterator[Page]:
    """The front end of a running ComfyUI, ready for graphs. Raises WorkbenchError if there is no browser."""
    with headless() as page:
        page.goto(url)
        page.wait_for_function("() => !!window.app?.graph && !!window.LiteGraph?.registered_node_types?.['LoadImage']", timeout=120_000)
        # Graphs opened before the extensions are set up lose their widgets' values.
        page.wait_for_function("() => !!window.app.extensionManager && !!app.canvas", timeout=60_000)
        # The front end opens a graph of its own when it starts, which would take the place of one that is opened before.
        page.wait_for_function("() => !!app.extensionManager.workflow?.activeWorkflow && !app.configuringGraph", timeout=60_000)
        # A fresh ComfyUI greets with its template browser, which lies above the graph.
        # The name that a tab shows under the pointer is a dialog to newer ones, too; it goes with the pointer.
        page.add_locator_handler(page.locator("[role=dialog]:not([id^=reka-popover])"), lambda: page.keyboard.press("Escape"))
        yield page


def open_workflow(page: Page, workflow: dict) -> list[str]:
    """Opens a graph and returns what is wrong with it: node types that are missing, widgets whose value is not offered."""
    missing = [f"missing node {name}" for name in page.evaluate(MISSING_NODES, workflow)]
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    return missing + [f"red widget {name}" for name in page.evaluate(RED_WIDGETS)]


def schema_errors(page: Page, graphs: dict[str, dict]) -> dict[str, str]:
    """What the front end's own schema says against graphs, by their names; nothing of those that are right."""
    return page.evaluate(SCHEMA_ERRORS, graphs)


def prompt_of(page: Page) -> dict:
    """The open graph in API form, whatever front end: newer ones add more about a node than its title."""
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return {key: {**node, "_meta": {"title": node["_meta"]["title"]}} for key, node in prompt.items()}


def queue(page: Page, seconds: float = 300) -> str:
    """Queues the open graph as its button does and waits; returns the ending: execution_success, _error or _interrupted.

    Returns "refused" if ComfyUI does not accept the prompt.
    """
    return page.evaluate(
        """async milliseconds => {
            const endings = ["execution_success", "execution_error", "execution_interrupted"];
            const ended = new Promise(resolve => {
                for (const ending of endings) app.api.addEventListener(ending, () => resolve(ending), { once: true });
                setTimeout(() => resolve("too slow"), milliseconds);
            });
            const accepted = await app.queuePrompt(0, 1);
            if (accepted === false || Object.keys(app.lastNodeErrors ?? {}).length) return "refused";
            return await ended;
        }""",
        seconds * 1000,
    )


def results_of(page: Page) -> bytes:
    """What the open graph saved when it was last queued (else what it shows), as a template's card."""
    pictures = []
    for path in page.evaluate(RESULTS):
        answer = page.request.get(urljoin(page.url, path))
        pictures.append(Image.open(io.BytesIO(answer.body())).convert("RGB"))
    if not pictures:
        raise WorkbenchError("The open graph has made no pictures.", "queue it first.")
    return card(pictures)


def card(pictures: list[Image.Image]) -> bytes:
    """The pictures on one square JPEG of 512 pixels a side, in rows that they fill."""
    side, gap, across = 512, 4, math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    sheet = Image.new("RGB", (side, side))
    height = side // len(rows)
    for number, row in enumerate(rows):
        width = side // len(row)
        for column, picture in enumerate(row):
            # Tables and curves begin at the left; what they lose at the right is missed least.
            cell = ImageOps.fit(picture, (width - gap, height - gap), centering=(0, 0))
            sheet.paste(cell, (column * width + gap // 2, number * height + gap // 2))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=90)
    return file.getvalue()
