"""Frames a second of the live relighting in the browser (`web/relight_gl.js`), at 1024 x 1024, and what it was drawn by.

    python -m intrinsic_lab.benchmarks.relight_live [--seconds 3] [--side 1024]

The shader draws a rendered scene under 1, 2 and 4 lamps with shadows and highlights, lamps moving; every frame is waited for. Without a
graphics card the browser draws on the CPU, which the table names.
"""

import argparse
import base64
import io
import json
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..methods.lamps import relative_depth
from ..methods.maps import srgb_from_linear
from ..scenes import render_scenes
from ..tools.console import format_table
from ..tools.front_end import headless

SHADER = Path(__file__).resolve().parents[1] / "web" / "relight_gl.js"
# Lamps, and how many pixels of a row are drawn as one: what a slow machine does while a lamp is dragged.
CASES = ((1, 1), (2, 1), (4, 1), (1, 4), (1, 8))
MEASURE = """async ({ source, maps, lamps, seconds, coarse }) => {
    const { Relit } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const images = {};
    for (const [name, data] of Object.entries(maps)) {
        images[name] = new Image();
        images[name].src = `data:image/png;base64,${data}`;
        await images[name].decode();
    }
    const relit = new Relit(document.createElement("canvas"));
    relit.setMaps(images, { shading_top: 1, shines: true });
    const { gl } = relit;
    const about = gl.getExtension("WEBGL_debug_renderer_info");
    const light = { color: [1, 1, 1], ambient: 0.1, original: 0.2, relief: 0.6, shadows: 0.8, hardness: 0.4 };
    const frame = number => {
        const around = index => (number / 40 + index / lamps) * 2 * Math.PI;
        const placed = [...Array(lamps).keys()].map(index => ({
            x: 0.5 + 0.4 * Math.cos(around(index)), y: 0.5 + 0.4 * Math.sin(around(index)),
            height: 0.5, color: "#ffe0c0", intensity: 0.8, reach: 1,
        }));
        relit.draw({ ...light, lamps: placed }, false, coarse);
    };
    frame(0);
    let frames = 0;
    const start = performance.now();
    while (performance.now() - start < 1000 * seconds) frame(++frames);
    return { fps: (1000 * frames) / (performance.now() - start), by: gl.getParameter(about ? about.UNMASKED_RENDERER_WEBGL : gl.RENDERER) };
}"""


def scene_files(side: int) -> dict[str, str]:
    """Maps of a scene as PNG in base64, as the node sends them."""
    maps = render_scenes([5], side, side, kind="closeup")
    steps = (relative_depth(maps.depth_bhw1) * 65535).round()
    coarse = (steps / 256).floor()
    files = {
        "albedo": srgb_from_linear(maps.albedo_bhwc),
        "normal": (maps.normal_bhwc + 1) / 2,
        "depth": torch.cat([coarse, steps - 256 * coarse, 0 * steps], -1) / 255,
        "surface": torch.cat([maps.roughness_bhw1, maps.metallic_bhw1, 0 * steps], -1),
        "shading": srgb_from_linear(maps.shading_bhwc),
    }
    return {name: _png(values[0]) for name, values in files.items()}


def _png(values_hw3: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray((values_hw3.clamp(0, 1) * 255).round().byte().numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--side", type=int, default=1024)
    chosen = parser.parse_args()
    given = {"source": SHADER.read_text(encoding="utf-8"), "maps": scene_files(chosen.side), "seconds": chosen.seconds}
    rows, load = [], os.getloadavg()[0]
    with headless() as page:
        for lamps, coarse in CASES:
            measured = page.evaluate(MEASURE, given | {"lamps": lamps, "coarse": coarse})
            shown = {"lamps": lamps, "side": chosen.side, "pixels as one": coarse, "frames a second": round(measured["fps"], 1)}
            rows.append(shown | {"drawn by": measured["by"]})
    print(f"{format_table(rows)}\n{load:.1f} processes wanted the {os.cpu_count()} cores before it began")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps({"load_before": round(load, 1), "rows": rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
