"""The LoRA map under one's hands, and the routes behind "Find similar" while a shelf is indexed: in a real ComfyUI and its front end.

    python -m intrinsic_lab.benchmarks.lora_walk [--points 20000] [--files 5000] [--seconds 5] [--parts frames routes]

- frames: the map view (`web/lora_map_view.js`) with made-up points, panned at several zooms; what drawing a frame takes in the page's
  script, and frames a second on an empty page. The headless browser draws on the CPU, so this is the slow case.
- routes: copies of the bundled style LoRAs with noise of their own, indexed in the background, and what answers take meanwhile; the
  longest of each is said too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from statistics import median, quantiles

import torch
from safetensors.torch import load_file, save_file

from ..tools.comfyui_server import comfyui_server
from ..tools.comfyui_source import ROOT, find_comfyui
from ..tools.console import format_table
from ..tools.environment import link_pack
from ..tools.front_end import headless
from .measuring import keep_result

PARTS = ("frames", "routes")
# Zoom, whether a search dims most of the dots.
CASES = ((1, False), (4, False), (1, True))
SIDES = (760, 560)
MEASURE = """async ({ count, seconds, cases, sides }) => {
    const { MapView } = await import("/extensions/intrinsic-lab/lora_map_view.js");
    let state = 1;
    const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
    const clusters = [...Array(40)].map((_, number) => ({
        label: `group ${number}`, x: random(), y: random(), color: `#${(0x404040 + number * 0x030509).toString(16)}`,
    }));
    const points = [...Array(count)].map((_, number) => {
        const cluster = number % clusters.length;
        const near = axis => Math.min(1, Math.max(0, clusters[cluster][axis] + (random() + random() - 1) / 5));
        const name = `${cluster}/${number}.safetensors`;
        return { name, x: near("x"), y: near("y"), cluster, family: "sdxl", variant: "", date: "2026-01-01" };
    });
    const view = new MapView({ choose() {}, list() {}, selected: () => points[0].name });
    // Previews are another matter, and these LoRAs have none.
    view.pictures.draw = () => 0;
    const [width, height] = sides.map(side => `${side}px`);
    Object.assign(view.element.style, { position: "fixed", left: 0, top: 0, width, height, zIndex: 9999 });
    document.body.append(view.element);
    view.setMap({ points, clusters });
    const rows = [];
    for (const [zoom, searched] of cases) {
        view.search.value = searched ? "group 7" : "";
        view.look();
        view.fit();
        view.zoom = zoom;
        const draw = () => {
            const now = performance.now();
            view.x = view.y = (1 - 1 / zoom) * (0.5 + 0.5 * Math.sin(now / 700));
            view.draw();
            return performance.now() - now;
        };
        // What comes first is compiled first.
        for (let turn = 0; turn < 30; turn++) draw();
        const costs = [...Array(200)].map(draw).sort((one, other) => one - other);
        const rate = async work => {
            let frames = 0;
            const start = performance.now();
            for (; performance.now() - start < 1000 * seconds; frames++) {
                await new Promise(requestAnimationFrame);
                work();
            }
            return (1000 * frames) / (performance.now() - start);
        };
        // What the browser makes of as many pixels that hold one colour: the most it can do here.
        const bare = await rate(() => {
            view.context.fillStyle = `rgb(${performance.now() & 255}, 0, 0)`;
            view.context.fillRect(0, 0, view.canvas.width, view.canvas.height);
        });
        const fps = await rate(draw);
        const hovers = performance.now();
        for (let turn = 0; turn < 1000; turn++) view.points.nearest(random(), random(), 0.02 / zoom, 0.02 / zoom);
        rows.push({
            zoom, searched, "frames a second": fps, "one colour alone": bare,
            "ms a frame (median)": costs[costs.length >> 1], "ms a frame (best)": costs[0],
            "ms a frame (95 %)": costs[Math.floor(costs.length * 0.95)],
            "ms to find the dot pointed at": (performance.now() - hovers) / 1000,
        });
    }
    view.close();
    view.element.remove();
    return rows;
}"""


def measure_frames(url: str, points: int, seconds: float) -> list[dict]:
    with headless() as page:
        # A page of the server's with nothing on it: the front end's own drawing is another matter.
        page.add_init_script("window.comfyAPI = { app: { app: { api: { apiURL: path => path } } } }")
        page.goto(f"{url}/extensions/intrinsic-lab/lora_space.css")
        rows = page.evaluate(MEASURE, {"count": points, "seconds": seconds, "cases": CASES, "sides": SIDES})
    about = {"points": points, "pixels": f"{SIDES[0]} x {SIDES[1]}"}
    return [about | {key: value if isinstance(value, bool) else round(value, 3) for key, value in row.items()} for row in rows]


def fill_shelf(folder: Path, files: int) -> list[str]:
    """Names of so many LoRAs of their own."""
    sources = [load_file(path) for path in sorted((ROOT / "assets" / "loras").rglob("*.safetensors"))]
    draw = torch.Generator().manual_seed(0)
    names = []
    for number in range(files):
        state = {
            key: value + 0.2 * value.float().std(correction=0) * torch.randn(value.shape, generator=draw).to(value.dtype)
            for key, value in sources[number % len(sources)].items()
        }
        names.append(f"{number % 100:02}/{number}.safetensors")
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / names[-1], {"ss_steps": "1000", "ss_tag_frequency": json.dumps({"a": {"tag": number + 1}})})
    return names


def measure_routes(url: str, names: list[str]) -> list[dict]:
    def asked(path: str, **query: object) -> dict:
        with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=120) as answer:
            return json.loads(answer.read())

    def state() -> dict:
        return asked("/intrinsic_lab/lora_index", collection="models/loras")

    ways = {
        "similar LoRAs": lambda name: asked("/intrinsic_lab/similar_loras", name=name, k=24),
        "facts of a header": lambda name: asked("/intrinsic_lab/lora_facts", name=name),
        "ComfyUI's own /queue": lambda name: asked("/queue"),
    }

    def round_of(name: str, times: dict[str, list[float]]) -> None:
        for way, ask in ways.items():
            start = time.perf_counter()
            ask(name)
            times[way].append(1000 * (time.perf_counter() - start))

    asked("/object_info/LoraLoader")
    during: dict[str, list[float]] = {way: [] for way in ways}
    after: dict[str, list[float]] = {way: [] for way in ways}
    body = json.dumps({"collection": "models/loras"}).encode()
    begun = time.perf_counter()
    urllib.request.urlopen(f"{url}/intrinsic_lab/lora_index", body, timeout=60).close()
    while state()["running"]:
        round_of(names[0], during)
    seconds = time.perf_counter() - begun
    if (ending := state()["ending"]).startswith("It ended"):
        raise RuntimeError(ending)
    for number in range(50):
        round_of(names[number % len(names)], after)
    rows = []
    for when, times in (("while indexing", during), ("afterwards", after)):
        for way, took in times.items():
            row = {"when": when, "asked": way, "answers": len(took), "ms (median)": round(median(took), 1)}
            row |= {"ms (95 %)": round(quantiles(took, n=20)[-1], 1), "ms (longest)": round(max(took), 1)}
            rows.append(row | {"files": len(names), "s to index": round(seconds, 1)})
    return rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; a record is kept of a whole run")
    options = parser.parse_args()
    loads, parts = [round(os.getloadavg()[0], 1)], {}
    with tempfile.TemporaryDirectory() as folder:
        base = link_pack(Path(folder))
        names = fill_shelf(base / "models" / "loras", options.files) if "routes" in options.parts else []
        with comfyui_server(Path(sys.executable), find_comfyui(), base, ["--cpu"]) as server:
            if "frames" in options.parts:
                parts["frames"] = measure_frames(server.url, options.points, options.seconds)
            if "routes" in options.parts:
                parts["routes"] = measure_routes(server.url, names)
    loads.append(round(os.getloadavg()[0], 1))
    text = "\n\n".join(f"{name}\n{format_table(rows)}" for name, rows in parts.items())
    text = f"```\n{text}\n\nload average {loads[0]} before, {loads[1]} after, on {os.cpu_count()} cores; the browser draws on the CPU\n```"
    if set(parts) == set(PARTS):
        keep_result("lora_walk", text, {"load": loads, **parts})
    else:
        print(text)


if __name__ == "__main__":
    main()
