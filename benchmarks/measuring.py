"""How benchmarks measure ways to do the same thing (in turns, in processor seconds, by the memory each call takes), and what they keep."""

import ctypes
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..kernels.machine import machine_and_card
from ..training.atomic import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEAK_RESET = Path("/proc/self/clear_refs")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as Markdown; cells are written as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def keep_result(name: str, text: str, record: dict[str, Any]) -> None:
    """Print what a benchmark found, and keep it as results/NAME.md and NAME.json with the machine's name.

    Under `make bench` the record goes where that asks for it.
    """
    print(text)
    write_text(RESULTS / f"{name}.md", text + "\n")
    record = {**record, "machine": machine_and_card()}
    if asked := os.environ.get("INTRINSIC_LAB_RESULT"):
        Path(asked).write_text(json.dumps(record), encoding="utf-8")
    else:
        write_json(RESULTS / f"{name}.json", record)


@dataclass(frozen=True)
class Cost:
    """Of one way: median processor seconds of all threads, and what the last call returned.

    peak_megabytes: the largest peak of resident memory during a call, above what was there before it; NaN where only Linux could tell.
    """

    seconds: float
    peak_megabytes: float
    result: object


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Cost]:
    """Runs every way once a round, so that the machine's moods fall on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(rounds):
        for name, way in ways.items():
            # What an earlier call returned is not part of what the next one takes.
            results.pop(name, None)
            before = _lowest_memory()
            start = time.process_time()
            results[name] = way()
            seconds[name].append(time.process_time() - start)
            peaks[name].append((_status("VmHWM") - before) / 1024)
    return {name: Cost(statistics.median(seconds[name]), max(peaks[name]), results[name]) for name in ways}


def _lowest_memory() -> float:
    """Resident kilobytes once what can be given back is given back; the peak starts from here again."""
    gc.collect()
    if not PEAK_RESET.exists():
        return math.nan
    # Freed memory that the allocator keeps would hide what the next call takes; only glibc has this.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    # 5 sets the peak back to the present value (proc(5)).
    PEAK_RESET.write_text("5")
    return _status("VmRSS")


def _status(entry: str) -> float:
    """An entry of this process's state in kilobytes, NaN where there is none."""
    if not PEAK_RESET.exists():
        return math.nan
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(entry + ":"))
