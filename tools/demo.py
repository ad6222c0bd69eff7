"""The pack's main job: maps of a picture, or of a rendered scene and a photograph, out of a real ComfyUI graph, run over the API."""

import argparse
import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

import aiohttp
from PIL import Image, ImageDraw, ImageOps

from .batch_jobs import Job, run_job
from .comfyui_client import PictureFailed, Server, ServerLost
from .comfyui_server import RunningServer, comfyui_server, device_arguments
from .comfyui_source import ROOT, find_comfyui
from .console import WorkbenchError, exit_code, say, step
from .environment import WORKSPACE, link_pack
from .example_workflows import example_workflow
from .prompt import Prompt, load_prompt, picture_input

GRAPH = example_workflow("extract_maps").api_path
SCENE = ROOT / "assets" / "demo_scene.png"
# CC0, by Lav Varshney: "camera" of scikit-image.
PHOTOGRAPH = ROOT / "assets" / "demo_photograph.jpg"
EXTRACT = "IntrinsicLabExtractMaps"
SHEET_HEIGHT = 384
ABOUT_PHOTOS = (
    "The bundled model is tiny and has only seen rendered scenes: maps of photos are coarse. For photos: `make serve`, Picture to Maps "
    "with an SD 1.5 checkpoint and the published LoRAs (web/docs/IntrinsicLabPictureToMaps.md)."
)


def extracted_maps(prompt: Prompt, output_names: list[str]) -> dict[str, list]:
    """The maps that the graph does something with, by name: each a link, [node, number of the output]. output_names: of EXTRACT."""
    links = (value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list))
    of_maps = [link for link in links if prompt[link[0]]["class_type"] == EXTRACT]
    return {output_names[number]: [source, number] for source, number in sorted(of_maps, key=itemgetter(1))}


def with_float_files(prompt: Prompt, maps: dict[str, list]) -> Prompt:
    """The graph that also saves the maps' own values, as 32-bit EXR, by core's SaveImageAdvanced."""
    exact = json.loads(json.dumps(prompt))
    for name, link in maps.items():
        exact[f"{name}-exr"] = {
            "class_type": "SaveImageAdvanced",
            "inputs": {
                "images": link,
                "filename_prefix": f"demo/{name}",
                "format": "exr",
                "format.bit_depth": "32-bit float",
                "format.input_color_space": "linear",
            },
            "_meta": {"title": f"Save {name} as EXR"},
        }
    return exact


def with_plain_files(prompt: Prompt) -> Prompt:
    """The graph for a ComfyUI that has no SaveImageAdvanced yet: 8-bit PNG."""
    plain = json.loads(json.dumps(prompt))
    for node in plain.values():
        if node["class_type"] == "SaveImageAdvanced":
            node["class_type"] = "SaveImage"
            node["inputs"] = {name: node["inputs"][name] for name in ("images", "filename_prefix")}
    return plain


def contact_sheet(extracted: Mapping[Path, Path], maps: Iterable[str], path: Path) -> Path:
    """A row for each picture, beside it the maps in its folder, each with its name; written to `path`."""
    names, rows = list(maps), []
    for picture, folder in extracted.items():
        shown = {"picture": picture, **{name: folder / f"{name}.png" for name in names}}
        rows.append([_tile(name, file) for name, file in shown.items() if file.is_file()])
    sheet = Image.new("RGB", (max(sum(tile.width for tile in row) for row in rows), SHEET_HEIGHT * len(rows)))
    for number, row in enumerate(rows):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, number * SHEET_HEIGHT))
            left += tile.width
    sheet.save(path, quality=88)
    return path


def _tile(name: str, path: Path) -> Image.Image:
    tile = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    tile = tile.resize((max(1, round(tile.width * SHEET_HEIGHT / tile.height)), SHEET_HEIGHT), Image.Resampling.LANCZOS)
    ImageDraw.Draw(tile).text((8, 6), name, fill="white", stroke_width=2, stroke_fill="black", font_size=20)
    return tile


async def extract(url: str, prompt: Prompt, picture: Path, out: Path) -> list[Path]:
    """Runs the graph on one picture; what it saves comes to `out`. Raises PictureFailed with ComfyUI's reason."""
    told = ""

    def progress(text: str) -> None:
        nonlocal told
        if text != told:
            say(f"    {text}")
            told = text

    async with aiohttp.ClientSession() as session:
        return await run_job(Server(session, url), prompt, picture_input(prompt, None), Job(picture, out), progress)


def extract_as_step(server: RunningServer, prompt: Prompt, picture: Path, out: Path) -> list[Path]:
    """The same, announced; what goes wrong is a WorkbenchError."""
    with step(f"Extracting the maps of {picture.name}") as notes:
        try:
            files = asyncio.run(extract(server.url, prompt, picture, out))
        except (PictureFailed, ServerLost, aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise WorkbenchError(f"ComfyUI could not run {GRAPH.name}: {error}", f"read {server.log}.") from error
        except OSError as error:
            raise WorkbenchError(f"The maps cannot be written: {error}", "free some disk space, or name another folder: OUT=...") from error
        notes.append(f"{len(files)} files")
    return files


def run(image: Path | None, out: Path, sheet: Path | None = None) -> int:
    """Writes a picture's maps and a contact sheet to `out`; without a picture, a rendered scene's, and a photograph's into a folder there.

    Raises WorkbenchError.
    """
    start = time.monotonic()
    pictures = {image: out} if image else {SCENE: out, PHOTOGRAPH: out / "photograph"}
    for picture in pictures:
        try:
            with Image.open(picture) as opened:
                opened.verify()
        except (OSError, SyntaxError) as error:
            raise WorkbenchError(
                f"{picture} is no picture that can be read: {error}", "give a PNG or JPEG file: make demo IMAGE=photo.jpg"
            ) from error
    prompt = load_prompt(GRAPH)
    with started_server() as server:
        maps = extracted_maps(prompt, (node_info(server.url, EXTRACT) or {})["output_name"])
        prompt = with_float_files(prompt, maps) if node_info(server.url, "SaveImageAdvanced") else with_plain_files(prompt)
        files = [file for picture, folder in pictures.items() for file in extract_as_step(server, prompt, picture, folder)]
    sheet = contact_sheet(pictures, maps, sheet or out / "contact_sheet.png")
    say(f"- Done in {time.monotonic() - start:.1f} s")
    for path in [*sorted(files), sheet]:
        say(f"    {path}  ({path.stat().st_size / 1024:.0f} KiB)")
    say(f"- {ABOUT_PHOTOS}")
    return 0


@contextmanager
def started_server() -> Iterator[RunningServer]:
    """A ComfyUI in the workbench's own base directory, announced as a step."""
    say("- Starting ComfyUI")
    start = time.monotonic()
    comfyui = find_comfyui()
    if comfyui is None:
        raise WorkbenchError("There is no ComfyUI on this machine.", "run `make setup` first.")
    with comfyui_server(Path(sys.executable), comfyui, link_pack(WORKSPACE), device_arguments()) as server:
        say(f"    {server.url} ({time.monotonic() - start:.1f} s)")
        yield server


def node_info(url: str, node: str) -> dict | None:
    """What the server says about a node; None if it has no such node."""
    try:
        with urllib.request.urlopen(f"{url}/object_info/{node}", timeout=30) as answer:
            return json.load(answer).get(node)
    except urllib.error.HTTPError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument(
        "--sheet", type=Path, help="where the contact sheet goes instead of OUT/contact_sheet.png: docs/demo.jpg is made so"
    )
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.image, chosen.out, chosen.sheet)))
