"""Every bundled workflow under the flags that people start ComfyUI with, against the same workflow without them.

    python -m intrinsic_lab.benchmarks.server_flags [NAME ...] [--flags FLAG ...]

For each flag one server runs the example workflows that need only the bundled weights; the pictures that they show or save are compared
with those of a server without flags, by the mean difference in levels of 255. Half precision moves a sampling, so those of FLOAT16 have a
wider bound. Ends with 1 where a workflow fails or a picture is further off than its bound.
"""

import argparse
import asyncio
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

from ..tools.comfyui_client import PictureFailed, Server, ServerLost
from ..tools.comfyui_server import comfyui_server, device_arguments
from ..tools.comfyui_source import find_comfyui
from ..tools.environment import link_pack
from ..tools.example_workflows import ExampleWorkflow, example_workflows
from ..tools.prompt import Prompt, load_prompt
from .measuring import keep_result, markdown_table

FLOAT16 = ("--fp16-intermediates", "--force-fp16")
FLAGS = (*FLOAT16, "--use-split-cross-attention", "--use-quad-cross-attention", "--force-channels-last", "--cache-none")
LARGEST_DIFFERENCE, IN_FLOAT16 = 0.5, 4.0
Pictures = dict[str, np.ndarray]


def largest_difference(flags: Sequence[str]) -> float:
    """The bound for mean differences under these flags, in levels of 255."""
    return IN_FLOAT16 if set(flags) & set(FLOAT16) else LARGEST_DIFFERENCE


async def pictures_of(url: str, prompt: Prompt) -> Pictures:
    """The pictures that a prompt shows or saves, by node, socket and number. Raises PictureFailed where it fails."""
    found: Pictures = {}
    async with aiohttp.ClientSession() as session:
        server = Server(session, url)
        outputs = await server.run(prompt, lambda _text: None)
        for node, values in outputs.items():
            for socket, files in values.items():
                files = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
                for number, file in enumerate(file for file in files if str(file.get("filename", "")).endswith(".png")):
                    with Image.open(io.BytesIO(await server.download(file))) as picture:
                        found[f"{node}/{socket}/{number}"] = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return found


def furthest(found: Pictures, wanted: Pictures) -> float:
    """The largest mean difference of two runs' pictures, in levels; infinite where one that is wanted is missing or of another size.

    A run with nothing cached may show more: what nodes within a node show is not told again.
    """
    if any(name not in found or found[name].shape != picture.shape for name, picture in wanted.items()):
        return float("inf")
    return max((float(np.abs(found[name] - wanted[name]).mean()) for name in wanted), default=0.0)


def run_all(arguments: Sequence[str], examples: Sequence[ExampleWorkflow], progress: Callable[[str], None]) -> dict[str, Pictures | str]:
    """By workflow the pictures under these arguments, or what went wrong."""
    results: dict[str, Pictures | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = link_pack(Path(folder))
        with comfyui_server(Path(sys.executable), find_comfyui(), base, [*device_arguments(), *arguments]) as server:
            for example in examples:
                progress(f"{' '.join(arguments) or 'no flag'}: {example.name}")
                try:
                    results[example.name] = asyncio.run(pictures_of(server.url, load_prompt(example.api_path)))
                except (PictureFailed, ServerLost, aiohttp.ClientError, asyncio.TimeoutError) as error:
                    results[example.name] = f"FAILED: {error or type(error).__name__}"
    return results


def compare(found: Pictures | str, wanted: Pictures | str) -> float | str:
    """A cell: levels, or what went wrong."""
    for result in (found, wanted):
        if isinstance(result, str):
            return result
    return furthest(found, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of workflows (default: all that need nothing more; only then it is kept)")
    parser.add_argument("--flags", nargs="+", default=FLAGS, metavar="FLAG", help="without their two dashes, too")
    chosen = parser.parse_args()
    flags = [f"--{flag.removeprefix('--')}" for flag in chosen.flags]
    examples = [example for example in example_workflows() if not example.needs and (not chosen.names or example.name in chosen.names)]

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    plain = run_all([], examples, say)
    cells = {flag: {name: compare(found, plain[name]) for name, found in run_all([flag], examples, say).items()} for flag in flags}
    rows = [
        [
            example.name,
            *(_shown(cells[flag][example.name]) for flag in flags),
            0 if isinstance(plain[example.name], str) else len(plain[example.name]),
        ]
        for example in examples
    ]
    table = markdown_table(["workflow", *flags, "pictures"], rows)
    if chosen.names or tuple(flags) != FLAGS:
        print(table)
    else:
        keep_result("server_flags", table, {"levels": cells})
    if any(isinstance(cell, str) or cell > largest_difference([flag]) for flag, of_flag in cells.items() for cell in of_flag.values()):
        raise SystemExit(1)


def _shown(cell: float | str) -> str:
    return cell if isinstance(cell, str) else f"{cell:.2f}"


if __name__ == "__main__":
    main()
