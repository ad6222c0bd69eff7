"""Side-by-side timing: candidates take turns within one run, so that what disturbs the machine disturbs all of them alike.

A table is printed only after its check has passed: the numbers of a wrong result are worth nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .dispatch import MeasuredChoice
from .machine import machine

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class Measurement:
    """milliseconds: median over the rounds; ratio: median over the rounds of this candidate's time over the baseline's in that round."""

    name: str
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Settings:
    """What a run was asked for. note: what else the machine was doing, in the operator's words."""

    device: str
    threads: int
    rounds: int
    clock: str
    note: str


class CheckFailed(RuntimeError):
    """A candidate's result is wrong; its time is not reported."""


def arguments(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: processor time of this process, for a machine that is busy with something else; use it with --threads 1",
    )
    parser.add_argument("--note", default="", help="what else the machine was doing, kept with the table")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/")
    parser.add_argument("--write-table", action="store_true", help="CUDA: keep the faster of our paths in kernels/dispatch_table.json")
    return parser


def settings_from(options: argparse.Namespace) -> Settings:
    """Applies the flags; exits with code 0 and a "not measured" line where the device is not there."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device here")
        sys.exit(0)
    torch.set_num_threads(options.threads)
    return Settings(options.device, options.threads, options.rounds, options.clock, options.note)


def check(name: str, found: Tensor, expected: Tensor, tolerance: float) -> float:
    """Relative L2 error of `found`, or CheckFailed when above `tolerance`, not finite or of another shape."""
    if found.shape != expected.shape:
        raise CheckFailed(f"{name}: the shape is {tuple(found.shape)} and not {tuple(expected.shape)}: no time is reported.")
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    if not error <= tolerance:
        raise CheckFailed(f"{name}: relative error {error:.2e} is above {tolerance:.1e}: no time is reported.")
    return error


def side_by_side(candidates: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, Measurement]:
    """Times all candidates in turn, round after round, in a rotating order; the first one is the baseline of the ratios."""
    names = list(candidates)
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(settings.rounds):
        turn = round_index % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_time_once(candidates[name], settings))
    baseline = times[names[0]]
    return {
        name: Measurement(
            name,
            1e3 * statistics.median(times[name]),
            statistics.median(mine / base for mine, base in zip(times[name], baseline, strict=True)),
        )
        for name in names
    }


def _time_once(run: Callable[[], object], settings: Settings) -> float:
    if settings.device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    began = clock()
    run()
    return clock() - began


def faster_path(operation: str, dtype: str, head_dim: int, tokens: int, torch_ms: float, triton_ms: float) -> MeasuredChoice:
    """The dispatcher's row for token counts around the measured one: the faster of our two paths on the present CUDA device."""
    fast, slow = sorted((torch_ms, triton_ms))
    backend = "triton" if triton_ms == fast else "torch"
    around = (tokens // 2 + 1, tokens * 2)
    return MeasuredChoice(operation, torch.cuda.get_device_capability(), dtype, head_dim, around, backend, slow / fast)


def peak_extra_bytes(run: Callable[[], object]) -> int:
    """Most bytes that torch held on the CPU at once during `run`, above what it held before, from the profiler's allocation record."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    allocations = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def report(title: str, columns: tuple[str, ...], rows: list[tuple], settings: Settings) -> str:
    """A Markdown table under its title and the conditions it was measured under."""
    where = torch.cuda.get_device_name() if settings.device == "cuda" else f"CPU, {settings.threads} thread(s)"
    clock = "processor time" if settings.clock == "cpu" else "wall time"
    note = f"; {settings.note}" if settings.note else ""
    lines = [
        f"### {title}",
        f"{where}; {machine()}; median {clock} of {settings.rounds} interleaved rounds{note}.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def keep(operation: str, sections: list[str], measurements: list[dict], settings: Settings) -> None:
    """Puts an operation's tables into benchmarks/results/kernels_<device>.json and rewrites the .md beside it from all operations."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"kernels_{settings.device}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[operation] = {"machine": machine(), "settings": asdict(settings), "measurements": measurements, "tables": sections}
    _write(path, json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    text = "\n\n".join(["# Kernels, measured", *(section for entry in dict(sorted(kept.items())).values() for section in entry["tables"])])
    _write(path.with_suffix(".md"), text + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
