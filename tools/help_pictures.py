"""The pictures of the nodes' help pages, web/docs/pictures/NODE_ID.jpg: real runs of the bundled models and the renderer, in one graph.

python -m intrinsic_lab.tools.help_pictures [NODE_ID ...] [--sheet contact_sheet.jpg]
"""

import argparse
import asyncio
import io
import json
import urllib.request
from pathlib import Path

import aiohttp
from PIL import Image, ImageDraw, ImageFont

from .batch_jobs import write_atomically
from .comfyui_client import Server
from .comfyui_source import ROOT
from .console import exit_code, say
from .demo import started_server
from .help_graph import Graph, strips

FOLDER = ROOT / "web" / "docs" / "pictures"
# Twice the help panel's usual width, for fine screens; dark like the front end, readable on its light one.
WIDTH, GAP, TITLE, GROUND, TEXT = 640, 8, 24, "#16181d", "#c8ccd4"
MOST_IN_A_ROW, LARGEST_HEIGHT, ARROW_WIDTH = 4, 440, 26
# A page's picture loads with it, and all of them come with the pack.
LARGEST_BYTES, QUALITIES = 27_000, (88, 80, 70, 60, 50, 40)


def strip(pictures: list[tuple[str, Image.Image | None]]) -> Image.Image:
    """Pictures in rows of one height, each under its name; None: an arrow between what goes in and what comes out."""
    rows = -(-sum(picture is not None for _, picture in pictures) // MOST_IN_A_ROW)
    length = -(-len(pictures) // rows)
    split = [pictures[first : first + length] for first in range(0, len(pictures), length)]
    height = min(LARGEST_HEIGHT, *(_height(row) for row in split))
    sheet = Image.new("RGB", (WIDTH, (height + TITLE) * rows + GAP), GROUND)
    for number, row in enumerate(split):
        _draw(sheet, row, number * (height + TITLE), height)
    return sheet


def _height(row: list[tuple[str, Image.Image | None]]) -> int:
    """At which the row fills the width."""
    ratios = [picture.width / picture.height for _, picture in row if picture is not None]
    return int((WIDTH - GAP * (len(row) + 1) - (len(row) - len(ratios)) * ARROW_WIDTH) / sum(ratios))


def _draw(sheet: Image.Image, row: list[tuple[str, Image.Image | None]], top: int, height: int) -> None:
    widths = [ARROW_WIDTH if picture is None else round(height * picture.width / picture.height) for _, picture in row]
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    x = (WIDTH - sum(widths) - GAP * (len(widths) - 1)) // 2
    for (name, picture), width in zip(row, widths, strict=True):
        if picture is None:
            middle = top + TITLE + height // 2
            pen.line([(x, middle), (x + width - 7, middle)], TEXT, 2)
            pen.polygon([(x + width - 7, middle - 5), (x + width - 7, middle + 5), (x + width, middle)], TEXT)
        else:
            sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, top + TITLE))
            pen.text((x + width / 2, top + 4), name, TEXT, font, anchor="ma")
        x += width + GAP


def jpeg(picture: Image.Image) -> bytes:
    """As good as fits into LARGEST_BYTES."""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.tell() <= LARGEST_BYTES:
            break
    return file.getvalue()


async def pictures_of(url: str, graph: Graph, links: list[list]) -> list[Image.Image]:
    """Runs the graph once; the first picture of each link, or, without an output's number, what its node shows itself."""
    seen = {json.dumps(link): graph.node("PreviewImage", images=link) if len(link) == 2 else link[0] for link in links}
    async with aiohttp.ClientSession() as session:
        server = Server(session, url)
        outputs = await server.run(graph.prompt, lambda _text: None)
        found = {}
        for link, node in seen.items():
            found[link] = Image.open(io.BytesIO(await server.download(outputs[node]["images"][0])))
    return [found[json.dumps(link)] for link in links]


def contact_sheet(folder: Path, columns: int = 3) -> Image.Image:
    """All pictures of the folder with the names of their nodes."""
    files = sorted(folder.glob("*.jpg"))
    opened = [Image.open(file) for file in files]
    tall = max(picture.height for picture in opened) + 20
    sheet = Image.new("RGB", (columns * WIDTH, -(-len(files) // columns) * tall), "white")
    for number, (file, picture) in enumerate(zip(files, opened, strict=True)):
        place = number % columns * WIDTH, number // columns * tall
        ImageDraw.Draw(sheet).text(place, file.stem, "black", ImageFont.load_default(15))
        sheet.paste(picture, (place[0], place[1] + 20))
    return sheet


def run(wanted: list[str], sheet: Path | None) -> int:
    """Makes the pictures of the wanted nodes (all, if none is named)."""
    with started_server() as server:
        with urllib.request.urlopen(f"{server.url}/object_info", timeout=60) as answer:
            graph = Graph(json.load(answer))
        made = {node: columns for node, columns in strips(graph).items() if not wanted or node in wanted}
        links = [link for columns in made.values() for _, link in columns if isinstance(link, list)]
        graph.keep({link[0] for link in links})
        found = iter(asyncio.run(pictures_of(server.url, graph, links)))
        for node, columns in made.items():
            content = jpeg(strip([(name, next(found) if isinstance(link, list) else link) for name, link in columns]))
            write_atomically(FOLDER / f"{node}.jpg", content)
            say(f"  {node}: {len(content):,} bytes")
    if sheet:
        contact_sheet(FOLDER).save(sheet, quality=80)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", help="ids of nodes (default: all)")
    parser.add_argument("--sheet", type=Path, help="also write all pictures there, in one")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.nodes, chosen.sheet)))
