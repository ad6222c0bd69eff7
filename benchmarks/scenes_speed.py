"""How many scenes a second the renderer draws, with all maps: `python -m intrinsic_lab.benchmarks.scenes_speed`."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from ..scenes import KINDS, WORLD, render, sample_scenes
from ..scenes.pictures import write_file
from ..scenes.sampling import ROOM
from ..tools.console import format_table

RESULT = Path(__file__).resolve().parent / "results" / "scenes_speed.json"
TARGETS = {ROOM: 150, WORLD: 60}  # scenes a second of 128 x 128 on two cores
FIRST_SEED = 5000


def best_seconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least (wall, processor) seconds of `rounds` runs: what else the machine does only ever adds."""
    wall, processor = [], []
    for _ in range(rounds):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return min(wall), min(processor)


def measure(kind: str, size: int, threads: int, scenes: int, rounds: int) -> dict[str, str | float | int]:
    """One row of the table."""
    torch.set_num_threads(threads)
    seeds = range(FIRST_SEED, FIRST_SEED + scenes)
    drawn = sample_scenes(seeds, kind=kind)
    render(drawn[:4], size, size)
    sampling, _ = best_seconds(lambda: sample_scenes(seeds, kind=kind), rounds)
    wall, processor = best_seconds(lambda: render(sample_scenes(seeds, kind=kind), size, size), rounds)
    return {
        "kind": kind,
        "size": size,
        "threads": threads,
        "scenes per second": round(scenes / wall, 1),
        "scenes per CPU second": round(scenes / processor, 1),
        "sampling share": round(sampling / wall, 4),
    }


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.benchmarks.scenes_speed", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, WORLD), default=(ROOM, WORLD))
    parser.add_argument("--sizes", type=int, nargs="+", default=(96, 128, 256))
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--scenes", type=int, default=32, help="drawn together (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="the best is reported (%(default)s)")
    options = parser.parse_args(arguments)

    load = os.getloadavg()[0]
    settings = product(options.kinds, options.threads, options.sizes)
    rows = [measure(kind, size, threads, options.scenes, options.rounds) for kind, threads, size in settings]
    print(format_table(rows))
    print(f"wanted of 128 x 128 on 2 cores, scenes/s: {TARGETS}; load before: {load:.1f}")
    machine = {"processor": processor_name(), "cores": os.cpu_count(), "load_before": round(load, 2), "torch": torch.__version__}
    # `make bench` says where it wants the result.
    result = Path(os.environ.get("INTRINSIC_LAB_RESULT") or RESULT)
    write_file(result, (json.dumps({"machine": machine, "targets": TARGETS, "rows": rows}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
