"""Figures in README and docs, taken from benchmarks/results.

    python -m intrinsic_lab.tools.figures           writes them anew
    python -m intrinsic_lab.tools.figures --check   exits with 1 if one differs from its record

A figure stands between two comments; the first says where it comes from (keys of the record's JSON), and how it is written:

    <!--= scenes_table > maps > normal > bundled adapter > mean_degrees : .1f -->15.6<!--/-->

Of several seeds it is the mean; `std .1f` is their standard deviation. `~.3f` leaves the zero before the point away, `.0%` is a share.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .batch_jobs import write_atomically
from .comfyui_source import ROOT
from .console import WorkbenchError, exit_code, say

RESULTS = ROOT / "benchmarks" / "results"
_FIGURE = re.compile(r"(<!--= (?P<source>.+?) : (?P<how>.+?) -->)(?P<text>.*?)(<!--/-->)")
# Not figures of ours: code, links, pictures, and the names of models, papers and versions.
_LEFT_ALONE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]+>", re.DOTALL)
_DECIMAL = re.compile(r"(?<![\w.])\d*\.\d+\b(?!\.\d)")
_NAMED = re.compile(r"(?:SD|Diffusion|StyleGAN|FLUX|Python|ComfyUI|Qwen|Wan|LTX|torch|bpy|version|to|and|GPL-|[23]) ?$")


def pages() -> list[Path]:
    """README and the pages of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def _record(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise WorkbenchError(f"There is no record {path.name} in benchmarks/results.", "run its benchmark, or name another.")
    return json.loads(path.read_text(encoding="utf-8"))


def figure(source: str, how: str) -> str:
    """What a record says, as it is written. Raises WorkbenchError for a record or key that is not there."""
    name, *keys = source.split(" > ")
    value: Any = _record(name)
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise WorkbenchError(f"{name}.json has no {source!r} (at {key!r}).", "name a key of the record.") from None
    spread = how.startswith("std ")
    numbers = value if isinstance(value, list) else [value]
    number = statistics.stdev(numbers) if spread else statistics.fmean(numbers)
    written = format(number, how.removeprefix("std ").removeprefix("~"))
    return written.replace("0.", ".", 1) if "~" in how and written.startswith(("0.", "-0.")) else written


def renewed(text: str) -> str:
    """A page with its figures as the records have them."""
    return _FIGURE.sub(lambda found: found[1] + figure(found["source"], found["how"]) + found[5], text)


def unmarked(text: str) -> Iterator[str]:
    """Decimal numbers of a page that say no source, with what stands before them."""
    plain = _LEFT_ALONE.sub(" ", _FIGURE.sub(" ", text))
    for found in _DECIMAL.finditer(plain):
        before = plain[max(0, found.start() - 40) : found.start()]
        if not _NAMED.search(before):
            yield f"{before}{found[0]}".strip().replace("\n", " ")


def run(check: bool) -> int:
    """Writes or compares; returns the exit code."""
    differing = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = renewed(text)
        if new != text:
            differing += 1
            say(f"- {page.relative_to(ROOT)}: {'differs from its records' if check else 'written anew'}")
            if not check:
                write_atomically(page, new.encode())
    return int(check and differing > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, tell what differs")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.check)))
