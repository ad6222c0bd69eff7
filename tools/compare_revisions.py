"""Is this checkout slower than an earlier revision? Benchmarks of both in turns, and the ratios of what they measured.

    python -m intrinsic_lab.tools.compare_revisions REVISION [--rounds 3] [--only NAME ...]

Each round runs every benchmark on the earlier revision and then on this checkout, in this environment, one after the other, so that the
machine's moods fall on both. A figure's ratio is that of the medians over the rounds; above 1 this checkout is slower. Figures are kept in
benchmarks/results/compare_revisions.json, those of other runs against the same revision too, and printed as a table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .batch_jobs import write_atomically
from .bench import machine
from .comfyui_source import ROOT
from .console import WorkbenchError, exit_code, say

RESULTS = ROOT / "benchmarks" / "results" / "compare_revisions.json"


@dataclass(frozen=True)
class Measured:
    """A benchmark's module, its options, and the figures to take from its result, by the name they are shown under."""

    module: str
    options: tuple[str, ...]
    figures: dict[str, Callable[[dict], float]]


MEASURED = {
    "import": Measured("import_time", (), {"loading the pack, best of 7, ms": lambda result: result["rows"][0]["best ms"]}),
    "extraction": Measured(
        "extraction_cost",
        (),
        {
            "extraction, one map, CPU s": lambda result: result["rows"][0]["one map s"],
            "extraction, four maps, CPU s": lambda result: result["rows"][0]["four maps, one forward s"],
        },
    ),
    "ildm": Measured(
        "ildm_cost", ("--side", "32", "--rounds", "2"), {"I-LDM, joint step of SD 2.1, CPU s": lambda result: result["rows"][0]["joint s"]}
    ),
    "lumix": Measured(
        "lumix_cost",
        ("--pixels", "256", "--clock", "cpu", "--threads", "1", "--rounds", "2"),
        {"LumiX, a pair of FLUX-wide blocks, CPU ms": lambda result: result["milliseconds"]["ours"]},
    ),
    "index": Measured(
        "lora_space_scale",
        ("--files", "2000", "--vectors", "10000", "--embed", "30"),
        {
            "LoRA index, header of a shared layout, CPU ms": lambda result: result["scan"][0]["CPU ms a file"],
            "LoRA index, header of its own layout, CPU ms": lambda result: result["scan"][1]["CPU ms a file"],
            "LoRA index, embedding, shared layout, CPU s": lambda result: result["embedding"][0]["CPU s a file"],
            "LoRA index, embedding, a layout each, CPU s": lambda result: result["embedding"][2]["CPU s a file"],
        },
    ),
}


@contextmanager
def packages(revision: str) -> Iterator[dict[str, Path]]:
    """Folders for PYTHONPATH in which the earlier revision and this checkout are the package `intrinsic_lab`."""
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "checkout"
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", earlier, revision], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise WorkbenchError(f"There is no revision {revision}: {made.stderr.strip()}", "name a commit of this repository.")
        try:
            found = {}
            for name, checkout in (("earlier", earlier), ("now", ROOT)):
                found[name] = Path(folder) / name
                found[name].mkdir()
                (found[name] / "intrinsic_lab").symlink_to(checkout, target_is_directory=True)
            yield found
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=ROOT, capture_output=True, check=False)


def measure(measured: Measured, package: Path) -> dict[str, float]:
    """The figures of one run. Raises WorkbenchError if the benchmark fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = os.environ | {"PYTHONPATH": str(package), "INTRINSIC_LAB_RESULT": str(result)}
        command = [sys.executable, "-m", f"intrinsic_lab.benchmarks.{measured.module}", *measured.options]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not result.is_file():
            raise WorkbenchError(f"{measured.module} failed:\n{done.stderr[-2000:]}", "run it by itself.")
        kept = json.loads(result.read_text(encoding="utf-8"))
        return {name: figure(kept) for name, figure in measured.figures.items()}


def run(revision: str, rounds: int, only: list[str]) -> int:
    """Measures, prints and keeps the table."""
    values: dict[str, dict[str, list[float]]] = {}
    with packages(revision) as found:
        for number in range(rounds):
            for name in only or MEASURED:
                for which, package in found.items():
                    for figure, value in measure(MEASURED[name], package).items():
                        values.setdefault(figure, {}).setdefault(which, []).append(value)
                say(f"- round {number + 1} of {rounds}: {name}")
    named = subprocess.run(["git", "rev-parse", "--short", revision], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows = kept.get("figures", {}) if kept.get("revision") == named else {}
    measured_on = {**machine(), "load": round(os.getloadavg()[0], 1)}
    for figure, both in values.items():
        rows[figure] = {which: statistics.median(of) for which, of in both.items()}
        rows[figure] |= {"ratio": rows[figure]["now"] / rows[figure]["earlier"], "machine": measured_on}
        rows[figure]["ratios of the rounds"] = [later / first for first, later in zip(both["earlier"], both["now"], strict=True)]
    write_atomically(RESULTS, (json.dumps({"revision": named, "figures": rows}, indent=1) + "\n").encode())
    say(as_markdown(named, rows))
    return 0


def as_markdown(revision: str, rows: dict[str, dict]) -> str:
    """The table of what was measured against a revision."""
    lines = [f"| figure, medians | {revision} | now | ratio | ratios of the rounds |", "| --- | --- | --- | --- | --- |"]
    for figure, row in rows.items():
        each = ", ".join(f"{ratio:.3f}" for ratio in row["ratios of the rounds"])
        lines.append(f"| {figure} | {row['earlier']:.4g} | {row['now']:.4g} | {row['ratio']:.3f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the earlier commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(MEASURED), default=[], help="some of the benchmarks")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.revision, chosen.rounds, chosen.only)))
