"""What large shelves cost: scanning, embedding, searching, memory, and how each grows.

    python -m intrinsic_lab.benchmarks.lora_space_scale [--files 10000] [--vectors 10000 30000 100000] [--embed 36]

- scan: LoRA files with whole headers and no data on disk (sparse), headers read, then a rescan of the unchanged shelf;
- embedding: SDXL-shaped fp16 LoRAs of rank 16, against reading the same files and doing nothing with them;
  both for shelves whose files share their layouts (names, shapes, places), as files of one trainer do, and for a layout each;
- memory: what a process takes at most to index, and to compare exactly, files with the largest layers there are, as LoKr, LoHa (a few
  megabytes each) and full differences;
- duplicates: copies and relatives of a shelf of small LoRAs, every hundredth of which is a copy in another dtype, and another a merge;
- search: shelves of random vectors in a real index, loaded and asked; extrapolated to a million LoRAs.
"""

import argparse
import json
import os
import platform
import resource
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from math import prod
from pathlib import Path
from statistics import median

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..methods.lora_space.__main__ import own_process
from ..methods.lora_space.duplicates import find_duplicates
from ..methods.lora_space.index import LoraIndex
from ..methods.lora_space.kinship import MERGED
from ..methods.lora_space.relatives import find_relatives
from ..methods.lora_space.search import find_similar
from ..methods.lora_space.sketch import KINDS, SKETCH_SIZE, SKETCH_VERSION, packed
from ..methods.lora_space.space import DIMENSIONS, Pca, pack
from ..tools.console import format_table
from ..training.atomic import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
TARGETS = {
    "rescan of 10,000": "< 1 s",
    "embedding rate": ">= 80 % of reading",
    "query of 100,000": "< 10 ms",
    "memory of an index": "<= 1500 MB",
}
PARTS = ("search", "memory", "embedding", "scan", "duplicates")
# Blocks of an SDXL UNet that kohya trains: (name, transformer depth, channels).
SDXL_BLOCKS = (
    [(f"input_blocks_{block}_1", 2, 640) for block in (4, 5)]
    + [(f"input_blocks_{block}_1", 10, 1280) for block in (7, 8)]
    + [("middle_block_1", 10, 1280)]
    + [(f"output_blocks_{block}_1", 10, 1280) for block in (0, 1, 2)]
    + [(f"output_blocks_{block}_1", 2, 640) for block in (3, 4, 5)]
)


def sdxl_modules() -> dict[str, tuple[int, int]]:
    """kohya name -> (out, in) of the 722 modules of SDXL's UNet that a kohya LoRA has."""
    modules = {}
    for name, depth, width in SDXL_BLOCKS:
        modules |= {f"lora_unet_{name}_proj_in": (width, width), f"lora_unet_{name}_proj_out": (width, width)}
        for layer in range(depth):
            block = f"lora_unet_{name}_transformer_blocks_{layer}"
            for attention, source in (("attn1", width), ("attn2", 2048)):
                modules |= {
                    f"{block}_{attention}_to_{side}": (width, source if side in "kv" else width) for side in ("q", "k", "v", "out_0")
                }
            modules |= {f"{block}_ff_net_0_proj": (8 * width, width), f"{block}_ff_net_2": (width, 4 * width)}
    return modules


ATTENTION = {name: shape for name, shape in sdxl_modules().items() if "attn" in name}


@cache
def header_of(rank: int) -> tuple[bytes, int]:
    """(header, length of the data) of an fp16 LoRA of SDXL's attention, 560 modules."""
    entries, place = {}, 0
    for name, (out, width) in ATTENTION.items():
        for end, shape in (("lora_down.weight", [rank, width]), ("lora_up.weight", [out, rank]), ("alpha", [])):
            size = 2 * prod(shape)
            entries[f"{name}.{end}"] = {"dtype": "F16", "shape": shape, "data_offsets": [place, place + size]}
            place += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text, place


def header_only(path: Path, rank: int) -> None:
    """A LoRA file that is all header: its data is a hole, of which a scan reads samples."""
    header, length = header_of(rank)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + length)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_scan(files: int) -> list[dict]:
    """First scan and rescans of header-only files with the attention of SDXL (560 modules, 1,680 tensors)."""
    return [_measure_scan(count, layouts) for count, layouts in ((files, 29), (files // 10, files // 10))]


def _measure_scan(files: int, layouts: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        shelf = Path(folder) / "loras"
        for number in range(files):
            place = shelf / f"{number % 100:02}"
            place.mkdir(parents=True, exist_ok=True)
            header_only(place / f"{number}.safetensors", 4 + number % layouts)
        with LoraIndex(Path(folder) / "index.sqlite") as index:
            used = time.process_time()
            first = seconds(lambda: index.update([shelf], embed=False))
            used = time.process_time() - used
            again = min(seconds(lambda: index.update([shelf], embed=False)) for _ in range(3))
            found = len(index.entries(family="sdxl"))
    if found != files:
        raise RuntimeError(f"{found} of {files} files were indexed as sdxl.")
    return {
        "files": files,
        "layouts": layouts,
        "tensors each": 3 * len(ATTENTION),
        "first scan s": round(first, 1),
        "ms a file": round(1000 * first / files, 2),
        "CPU ms a file": round(1000 * used / files, 2),
        "rescan s": round(again, 3),
    }


def measure_embedding(files: int) -> list[dict]:
    """Rate of reading alone and of embedding, with the files in the page cache and out of it.

    A disk's speed may change by the minute: every embedding follows a reading of its own, and the medians of both and of their ratios
    are what is said.
    """
    rows = []
    for layouts in (1, files):
        with tempfile.TemporaryDirectory() as folder:
            shelf = Path(folder) / "loras"
            shelf.mkdir()
            for number in range(files):
                _write_lora(shelf / f"{number}.safetensors", number, left_out=number % layouts)
            os.sync()
            for place, prepare in {"in the page cache": _warm, "not in the page cache": _drop}.items():
                rows.append({"files": files, "layouts": layouts, "on disk": place} | _measure_embedding(shelf, prepare))
    return rows


def _write_lora(path: Path, seed: int, left_out: int) -> None:
    """An SDXL-shaped LoRA of rank 16 without the module of that number: files that lack different ones have different layouts."""
    torch.manual_seed(seed)
    state = {}
    for number, (name, (out, width)) in enumerate(sdxl_modules().items()):
        if number != left_out:
            state |= {f"{name}.lora_down.weight": torch.randn(16, width).half(), f"{name}.lora_up.weight": torch.randn(out, 16).half()}
            state[f"{name}.alpha"] = torch.tensor(8.0)
    save_file(state, path)


def _measure_embedding(shelf: Path, prepare: Callable[[Path], None]) -> dict:
    files = list(shelf.iterdir())
    size = sum(path.stat().st_size for path in files)
    times: dict[str, list[float]] = {"read": [], "embed": []}
    disk: dict[str, list[int]] = {"read": [], "embed": []}
    used = []
    for _ in range(11):
        for what in times:
            prepare(shelf)
            before = time.process_time(), _from_disk()
            if what == "read":
                times[what].append(seconds(lambda: _warm(shelf)))
            else:
                with tempfile.TemporaryDirectory() as folder, LoraIndex(Path(folder) / "index.sqlite") as index:
                    times[what].append(seconds(lambda: index.update([shelf])))
                used.append(time.process_time() - before[0])
            disk[what].append(_from_disk() - before[1])
    read, embed = (median(times[what]) for what in ("read", "embed"))
    ratios = sorted(one / other for one, other in zip(*times.values(), strict=True))
    shares = {what: median(disk[what]) / size for what in disk}
    if abs(shares["read"] - shares["embed"]) > 0.05:
        raise RuntimeError(f"not the same work: {shares['read']:.0%} read from the disk, then {shares['embed']:.0%}.")
    return {
        "MB each": round(size / 1e6 / len(files)),
        "from disk": round(shares["embed"], 2),
        "read MB/s": round(size / 1e6 / read),
        "embed MB/s": round(size / 1e6 / embed),
        "ratio": round(median(ratios), 2),
        "ratios": " ".join(f"{ratio:.2f}" for ratio in ratios),
        "s a file": round(embed / len(files), 3),
        "CPU s a file": round(median(used) / len(files), 3),
    }


def _from_disk() -> int:
    """Bytes that this process had read from a disk."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes: ")[2].split()[0])


def _warm(shelf: Path) -> None:
    buffer = bytearray(1 << 22)
    for path in shelf.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _drop(shelf: Path) -> None:
    for path in shelf.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_large_layers(folder: Path, factors: bool = True) -> None:
    """LoRAs whose changes are large and whose files are not: FLUX.1's linear1 by LoKr cut within its blocks and by LoHa of high rank.

    Without `factors`: as full differences, which are large themselves.
    """
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).half()

    names = [f"lora_unet_single_blocks_{block}_linear1" for block in range(2)]
    for number, left in enumerate((16, 16, 16, 32) if factors else ()):
        ends = {"w1": (left, 16), "w2_a": (21504 // left, 4), "w2_b": (4, 192)}
        state = {f"{name}.lokr_{end}": drawn(*shape) for name in names for end, shape in ends.items()}
        save_file(state, folder / f"lokr{number}.safetensors")
    for number in range(2):
        ends = {"w1_a": (21504, 24), "w1_b": (24, 3072), "w2_a": (21504, 24), "w2_b": (24, 3072)}
        if factors:
            save_file({f"{names[0]}.hada_{end}": drawn(*shape) for end, shape in ends.items()}, folder / f"loha{number}.safetensors")
        else:
            save_file({f"{name}.diff": drawn(21504, 3072) for name in names}, folder / f"diff{number}.safetensors")


# A process of its own, because what a process took at most is known for its whole life alone.
_PEAK = """
import json, sys, time
from pathlib import Path
from intrinsic_lab.methods.lora_space.gram import exact_cosines
from intrinsic_lab.methods.lora_space.index import LoraIndex
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
folder = Path(sys.argv[1])
paths = sorted(folder.glob("*.safetensors"))
found = {"MB before": peak()}
with LoraIndex(folder / "index.sqlite") as index:
    summary = index.update([folder])
    assert summary.embedded == len(paths), summary.text()
found["MB to index"] = peak()
start = time.perf_counter()
assert exact_cosines(paths[:1], paths)[0].max() > 0.999
print(json.dumps(found | {"MB to compare": peak(), "s to compare": time.perf_counter() - start}))
"""


def peak_memory(folder: Path) -> dict[str, float]:
    """Of a process that indexes a folder and compares its first file with all: MB at most, MB before it began, seconds."""
    run = subprocess.run([sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads(run.stdout)


def measure_memory() -> list[dict]:
    rows = []
    for name, factors in (("LoKr, LoHa", True), ("full differences", False)):
        with tempfile.TemporaryDirectory() as folder:
            write_large_layers(Path(folder), factors)
            sizes = [path.stat().st_size for path in Path(folder).iterdir()]
            found = peak_memory(Path(folder))
        rows.append(
            {"shelf": name, "files": len(sizes), "MB": round(sum(sizes) / 1e6)} | {key: round(value, 1) for key, value in found.items()}
        )
    return rows


def measure_duplicates(count: int) -> list[dict]:
    """Small LoRAs of SDXL's widths, 30 kB each; found must be what was made."""
    modules = dict(list(ATTENTION.items())[:3])
    draw = torch.Generator().manual_seed(0)
    names = ["lora_up.weight", "lora_down.weight"]

    def lora(rank: int = 4) -> dict[str, Tensor]:
        sides = (
            (name, end, shape)
            for name, (out, width) in modules.items()
            for end, shape in zip(names, ((out, rank), (rank, width)), strict=True)
        )
        return {f"{name}.{end}": torch.randn(shape, generator=draw) for name, end, shape in sides}

    def merge(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.cat([one[key], 0.5 * other[key] if "up" in key else other[key]], int("up" in key)) for key in one}

    with tempfile.TemporaryDirectory() as folder:
        shelf = Path(folder) / "loras"
        shelf.mkdir()
        states: list[dict[str, Tensor]] = []
        for number in range(count):
            state = lora()
            if number % 100 == 50:
                state = {key: tensor.bfloat16() for key, tensor in states[-1].items()}
            elif number % 100 == 99:
                state = merge(*states[-2:])
            save_file(state, shelf / f"{number}.safetensors")
            states = [*states[-1:], state]
        with LoraIndex(Path(folder) / "index.sqlite") as index:
            indexing = seconds(lambda: index.update([shelf]))
            groups: list = []
            relatives: list = []
            fitting = seconds(lambda: index.space(next(iter(index.families()))))
            used = time.process_time()
            copies = seconds(lambda: groups.extend(find_duplicates(index)))
            skipped = {copy.entry.id for group in groups for copy in group.copies}
            kin = seconds(lambda: relatives.extend(find_relatives(index, copies=skipped)))
            used = time.process_time() - used
    found = {"copies found": len(skipped), "merges found": sum(one.kind == MERGED for one in relatives)}
    times = {"index s": indexing, "components s": fitting, "copies s": copies, "relatives s": kin, "both, processor s": used}
    return [{"LoRAs": count} | {name: round(value, 1) for name, value in times.items()} | found]


def fill_index(database: Path, count: int, seed: int = 0) -> Path:
    """An index of `count` LoRAs that are not there: random unit vectors, 100 folders. Returns the path of the first."""
    LoraIndex(database).close()
    draw = numpy.random.default_rng(seed)
    components = numpy.linalg.qr(draw.normal(size=(SKETCH_SIZE, DIMENSIONS)))[0].T.astype(numpy.float32)
    pca = {kind: Pca(numpy.zeros(SKETCH_SIZE, numpy.float32), components) for kind in KINDS}
    dimensions, data = pack(pca)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO spaces VALUES (1, 'sdxl', 'all', ?, ?, ?, ?)", [SKETCH_VERSION, count, dimensions, data])
        for start in range(0, count, 10_000):
            numbers = range(start + 1, min(start + 10_000, count) + 1)
            vectors = draw.normal(size=(len(numbers), 2, DIMENSIONS)).astype("<f4")
            vectors /= numpy.linalg.norm(vectors, axis=-1, keepdims=True)
            connection.executemany(
                "INSERT INTO files (id, path, root, name, size, mtime_ns, state, family, format, sketch_version) "
                "VALUES (?, ?, '/shelf', ?, 1, 1, 'good', 'sdxl', 'lora', ?)",
                [(n, f"/shelf/{n % 100}/{n}.safetensors", f"{n % 100}/{n}.safetensors", SKETCH_VERSION) for n in numbers],
            )
            # Full-size sketches only for the query: a space that is fitted never reads the others.
            first = packed(dict(zip(KINDS, vectors[0] @ components, strict=True))) if start == 0 else b""
            connection.executemany("INSERT INTO sketches VALUES (?, ?, ?)", [(n, "attention", first if n == 1 else b"") for n in numbers])
            rows = [(n, row.tobytes()) for n, row in zip(numbers, vectors, strict=True)]
            connection.executemany("INSERT INTO vectors VALUES (1, ?, ?)", rows)
    return Path("/shelf/1/1.safetensors")


def measure_search(counts: list[int]) -> list[dict]:
    """Loading and asking; memory is what the process gained."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            database = Path(folder) / "index.sqlite"
            query = fill_index(database, count)
            before = _resident()
            with LoraIndex(database) as index:
                load = seconds(lambda: index.space("sdxl"))
                space = index.space("sdxl")
                memory = _resident() - before
                vectors = {kind: space.vectors[kind][0] for kind in KINDS}
                times = [seconds(lambda: space.nearest(vectors, 25)) for _ in range(30)]  # noqa: B023
                whole = [seconds(lambda: find_similar(index, [query], k=5, rerank=0)) for _ in range(15)]  # noqa: B023
            rows.append(
                {
                    "LoRAs": count,
                    "load s": round(load, 2),
                    "nearest ms (best)": round(1000 * min(times), 2),
                    "nearest ms (median)": round(1000 * median(times), 2),
                    "find_similar ms (best)": round(1000 * min(whole), 2),
                    "memory MB": round(memory),
                    "vectors MB": round(count * len(KINDS) * DIMENSIONS * 4 / 1e6),
                    "index MB": round(database.stat().st_size / 1e6),
                }
            )
    return [*rows, extrapolate(rows, 1_000_000)]


def extrapolate(rows: list[dict], count: int) -> dict:
    """A straight line through the first and the last row (through the origin, if there is but one)."""
    first, last = ({"LoRAs": 0} if len(rows) == 1 else rows[0]), rows[-1]
    step = (count - last["LoRAs"]) / (last["LoRAs"] - first["LoRAs"])
    values = {key: round(value + (value - first.get(key, 0)) * step, 1) for key, value in last.items() if key != "LoRAs"}
    return {"LoRAs": f"{count} (extrapolated)"} | values


def _resident() -> float:
    """Megabytes that the process holds."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--embed", type=int, default=36, help="SDXL-shaped files on a shelf, 85 MB each (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the record keeps the others as they are")
    options = parser.parse_args()
    own_process()
    measures = {
        "search": lambda: measure_search(options.vectors),
        "memory": measure_memory,
        "embedding": lambda: measure_embedding(options.embed),
        "scan": lambda: measure_scan(options.files),
        "duplicates": lambda: measure_duplicates(options.files // 2),
    }
    result = Path(os.environ.get("INTRINSIC_LAB_RESULT") or RESULTS / "lora_space_scale.json")
    record = json.loads(result.read_text()) if result.exists() else {}
    runs = {name: record.get("runs", {}).get(name) or {key: record[key] for key in ("machine", "load")} for name in PARTS if name in record}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    for name in options.parts:
        before = os.getloadavg()[0]
        record[name] = measures[name]()
        runs[name] = {"machine": machine, "load": [round(before, 1), round(os.getloadavg()[0], 1)]}
        print(f"{said(name, record[name], runs[name])}\n", flush=True)
    record |= {"machine": machine, "load": runs[options.parts[-1]]["load"], "targets": TARGETS, "runs": runs}
    text = "\n\n".join([*(said(name, record[name], runs[name]) for name in PARTS if name in record), f"wanted: {TARGETS}"])
    write_atomically(result, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    write_atomically(RESULTS / "lora_space_scale.md", lambda path: path.write_text(f"```\n{text}\n```\n"))


def said(name: str, rows: list[dict], run: dict) -> str:
    before, after = run["load"]
    return f"{name} (load average {before} before, {after} after, on {run['machine']['cores']} cores)\n{format_table(rows)}"


if __name__ == "__main__":
    main()
