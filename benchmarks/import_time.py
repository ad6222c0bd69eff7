"""What the pack adds to ComfyUI's start: the time to load its nodes, in a fresh process, with ComfyUI there already.

ComfyUI itself imports what reads a pack's pyproject.toml when it loads the first pack: an empty pack shows how long that alone takes.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
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


def load_milliseconds(pack: Path) -> float:
    """Loads a pack once as ComfyUI does. Raises RuntimeError if ComfyUI could not load it."""
    command = [sys.executable, "-c", SCRIPT, str(find_comfyui()), str(pack)]
    # Python compiles each source once and keeps the result, unless this variable forbids it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^RESULT True ([\d.]+)$", done.stdout, re.M)
    if not found:
        raise RuntimeError(f"ComfyUI could not load the pack:\n{done.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    """Prints median and best of several fresh processes, the two packs in turns."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
        packs = {"this pack": ROOT, "of it ComfyUI's own: an empty pack": Path(folder)}
        times: dict[str, list[float]] = {name: [] for name in packs}
        for pack in packs.values():
            load_milliseconds(pack)  # compiles what was not compiled yet
        for _ in range(REPEATS):
            for name, pack in packs.items():
                times[name].append(load_milliseconds(pack))
    rows = [{"loading": name, "median ms": statistics.median(of), "best ms": min(of)} for name, of in times.items()]
    print(format_table(rows))
    print(f"{REPEATS} fresh processes each; wanted for this pack: less than {TARGET_MS} ms")
    if result := os.environ.get("INTRINSIC_LAB_RESULT"):
        kept = {"rows": rows, "fresh processes": REPEATS, "target ms": TARGET_MS}
        Path(result).write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
