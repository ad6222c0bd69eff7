"""Runs every benchmark: its tables go to the terminal, its results to benchmarks/results/NAME.json.

A benchmark is a module with a main part in benchmarks/, or kernels/OPERATION/benchmark.py. One that has numbers to keep
writes them, as JSON, to the path in the environment variable INTRINSIC_LAB_RESULT; of one that does not, its lines are kept.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .batch_jobs import write_atomically
from .comfyui_source import ROOT
from .console import WorkbenchError, exit_code, format_table, say

RESULTS = ROOT / "benchmarks" / "results"


def benchmarks() -> dict[str, str]:
    """Name -> module of every benchmark."""
    files = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "kernels").glob("*/benchmark.py"))]
    runnable = [path for path in files if "__main__" in path.read_text(encoding="utf-8")]
    names = {path: path.parent.name if path.name == "benchmark.py" else path.stem for path in runnable}
    return {names[path]: "intrinsic_lab." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in runnable}


def machine() -> dict:
    """What the numbers were measured on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in about.read_text().splitlines() if line.startswith("model name")]
        if about.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def run_one(name: str, module: str, options: list[str]) -> int:
    """Runs one benchmark, shows its output as it comes and keeps its result; returns its exit code.

    options: handed to the benchmark. What it gives with options is kept beside what it gives without, as NAME_OPTIONS.json.
    """
    start = time.monotonic()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = {**os.environ, "INTRINSIC_LAB_RESULT": str(result), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [sys.executable, "-m", module, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                say(line.rstrip("\n"))
                lines.append(line.rstrip("\n"))
            code = process.wait()
        own = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"lines": lines}
    if code == 0:
        name = "_".join([name, *(re.sub(r"\W+", "", option) for option in options)])
        kept = {"benchmark": name, "machine": machine(), "seconds": round(time.monotonic() - start, 1), "result": own}
        write_atomically(RESULTS / f"{name}.json", (json.dumps(kept, indent=1) + "\n").encode())
    return code


def run(names: list[str], options: list[str]) -> int:
    """Runs the named benchmarks (all, if none is named); 1 if one fails. Raises WorkbenchError for a name that does not exist."""
    known = benchmarks()
    if unknown := [name for name in names if name not in known]:
        raise WorkbenchError(f"There is no benchmark {', '.join(unknown)}.", f"choose among {', '.join(known)}.")
    if options and len(names) != 1:
        raise WorkbenchError(f"{' '.join(options)} is an option of one benchmark.", "name that benchmark before it.")
    rows = []
    for name, module in known.items():
        if names and name not in names:
            continue
        say(f"\n=== {name} ===")
        start = time.monotonic()
        code = run_one(name, module, options)
        rows.append(
            {"benchmark": name, "seconds": round(time.monotonic() - start, 1), "result": "done" if code == 0 else f"FAILED ({code})"}
        )
    say(f"\n{format_table(rows)}\nResults are in {RESULTS.relative_to(ROOT)}/")
    return 1 if any(row["result"] != "done" for row in rows) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of benchmarks (default: all); options after a single name are handed to it")
    chosen, handed_on = parser.parse_known_args()
    raise SystemExit(exit_code(lambda: run(chosen.names, handed_on)))
