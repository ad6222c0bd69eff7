"""Whether ComfyUI's memory grows with every run: resident memory of a real server over many prompts, each with another picture.

    python -m intrinsic_lab.benchmarks.soak [--runs 1000] [--only NAME ...]

core: KSampler and VAE Decode with the bundled model. The others are example graphs with rendered pictures of 128 x 128: the workflow
`extract_maps`, and the templates 1 (Picture to Maps), 4 (I-LDM) and 5 (LumiX). Samplers do two steps, every run has other seeds. Resident
memory is read after every run; the slope is that of a straight line through the second half, as the first half fills caches. Aim: less
than 0.01 MB a run.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import aiohttp
import numpy
import psutil

from ..tools.comfyui_client import Server
from ..tools.comfyui_server import comfyui_server, device_arguments
from ..tools.comfyui_source import find_comfyui
from ..tools.environment import link_pack
from ..tools.prompt import Prompt
from .measuring import ROOT, keep_result, markdown_table

AIM = 0.01
EXAMPLES = {
    "extract": ROOT / "docs" / "workflows" / "api" / "extract_maps.json",
    "picture": ROOT / "example_workflows" / "api" / "1 Picture to maps.json",
    "ildm": ROOT / "example_workflows" / "api" / "4 Picture and maps from text.json",
    "lumix": ROOT / "example_workflows" / "api" / "5 Five maps from text.json",
}


def core() -> Prompt:
    """Two steps of KSampler with the bundled model, of core's nodes alone but for the loader."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a red ball in a room"}}
    numbers = {"seed": 0, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0]}
    return {
        "model": {"class_type": "IntrinsicLabLoadModel", "inputs": {"model": "nano (bundled)"}},
        "text": text,
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 4}},
        "sample": {"class_type": "KSampler", "inputs": numbers | links},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }


def graph_of(name: str) -> Prompt:
    """An example's graph, its picture a rendered scene and its sampling two steps."""
    if name == "core":
        return core()
    graph: Prompt = json.loads(EXAMPLES[name].read_text(encoding="utf-8"))
    for number, node in graph.items():
        if node["class_type"] == "LoadImage":
            scene = {"seed": 0, "width": 128, "height": 128, "count": 1, "kind": "room"}
            graph[number] = {"class_type": "IntrinsicLabRenderScene", "inputs": scene}
        if node["class_type"] == "IntrinsicLabRenderScene":
            node["inputs"] |= {"width": 128, "height": 128}
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    return graph


def another(graph: Prompt, number: int) -> Prompt:
    """The graph with other seeds, so that nothing comes from the cache but the models."""
    seeds = ("seed", "noise_seed")
    return {
        name: {**node, "inputs": {key: number if key in seeds else value for key, value in node["inputs"].items()}}
        for name, node in graph.items()
    }


def slope(megabytes: list[float]) -> float:
    """MB a run, of a straight line through the second half."""
    half = megabytes[len(megabytes) // 2 :]
    return float(numpy.polyfit(numpy.arange(len(half)), half, 1)[0])


async def run(url: str, process: psutil.Process, graph: Prompt, runs: int) -> list[float]:
    """Resident megabytes after each run."""
    found = []
    async with aiohttp.ClientSession() as session:
        server = Server(session, url)
        for number in range(1, runs + 1):
            await server.run(another(graph, number), lambda _text: None)
            # ComfyUI keeps every graph and what it answered, up to 10,000: that is no leak.
            async with session.post(f"{url}/history", json={"clear": True}) as answer:
                answer.raise_for_status()
            found.append(process.memory_info().rss / 2**20)
            if number % 50 == 0:
                print(f"  {number} runs: {found[-1]:.1f} MB", file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    names = ["core", *EXAMPLES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    comfyui, rows, record = find_comfyui(), [], {}
    if comfyui is None:
        raise SystemExit("there is no ComfyUI here: run `make setup`.")
    for name in options.only:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            base = link_pack(Path(folder))
            with comfyui_server(Path(sys.executable), comfyui, base, device_arguments()) as server:
                megabytes = asyncio.run(run(server.url, psutil.Process(server.process.pid), graph_of(name), options.runs))
        record[name] = {"slope": slope(megabytes), "megabytes": [round(value, 2) for value in megabytes[:: max(1, options.runs // 50)]]}
        rows.append((name, options.runs, f"{megabytes[0]:.0f}", f"{megabytes[-1]:.0f}", f"{record[name]['slope']:+.4f}"))
    header = ("graph", "runs", "MB after the first", "MB after the last", f"MB a run, second half (aim < {AIM})")
    keep_result("soak", markdown_table(header, rows), {"runs": options.runs, "graphs": record})


if __name__ == "__main__":
    main()
