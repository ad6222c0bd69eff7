"""What the pack adds to ComfyUI's start: the time to load its nodes, in a fresh process, with ComfyUI there already."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from ..tools.comfyui_source import ROOT, find_comfyui
from ..tools.console import format_table

REPEATS = 7
TARGET_MS = 150
SCRIPT = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import nodes, comfy.sd, comfy_api.latest, comfy_execution.graph_utils
start = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(sys.argv[2]))
print("RESULT", loaded, (time.perf_counter() - start) * 1000)
"""


def load_milliseconds() -> float:
    """Loads the pack once as ComfyUI does. Raises RuntimeError if ComfyUI could not load it."""
    command = [sys.executable, "-c", SCRIPT, str(find_comfyui()), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^RESULT True ([\d.]+)$", done.stdout, re.M)
    if not found:
        raise RuntimeError(f"ComfyUI could not load the pack:\n{done.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    """Prints median and best of several fresh processes."""
    load_milliseconds()  # writes the bytecode
    times = [load_milliseconds() for _ in range(REPEATS)]
    row = {
        "loading the pack": f"{REPEATS} fresh processes",
        "median ms": statistics.median(times),
        "best ms": min(times),
        "target ms": TARGET_MS,
    }
    print(format_table([row]))
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(result).write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
