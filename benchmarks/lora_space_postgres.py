"""A million made-up LoRAs in a real PostgreSQL with pgvector: load, build, memory, and how fast and how truly it answers.

    python -m intrinsic_lab.benchmarks.lora_space_postgres [--vectors 1000000] [--queries 200] [--data FOLDER]

Unit vectors of 128 components for each of the two sketches: styles (20 LoRAs each) around random directions, half of the length noise.
The server is pgserver's, on this machine, with a database of its own that goes at the end; in FOLDER it stays, and a second run asks anew
without loading and building. Queries are LoRAs of the shelf with some
noise, through `PostgresStore.nearest`, warm, asking for 26 as Find Similar does. Recall is against comparing every vector.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

from ..methods.lora_space.copies import Source
from ..methods.lora_space.entries import Progress
from ..methods.lora_space.postgres_store import PostgresStore
from ..methods.lora_space.sketch import KINDS, unit
from ..methods.lora_space.space import DIMENSIONS, Pca, Space
from ..training.atomic import write_json
from .measuring import keep_result, markdown_table

COUNT = 26
TARGET_MILLISECONDS = 20


def made_up(count: int, seed: int = 0) -> Space:
    """A shelf: unit rows around the direction of their style."""
    random = numpy.random.default_rng(seed)
    vectors = {}
    for kind in KINDS:
        styles = random.normal(size=(max(1, count // 20), DIMENSIONS)).astype(numpy.float32)
        rows = styles[numpy.arange(count) % len(styles)]
        rows += random.normal(size=rows.shape).astype(numpy.float32)
        vectors[kind] = unit(rows).astype(numpy.float32)
    return Space("sdxl", "all", numpy.arange(count), vectors, {kind: Pca() for kind in KINDS})


def queries(space: Space, count: int, seed: int = 1) -> list[dict[str, numpy.ndarray]]:
    """LoRAs of the shelf, moved by a fifth of their length."""
    random = numpy.random.default_rng(seed)
    rows = random.choice(len(space.ids), count)
    moved = {}
    for kind in KINDS:
        noise = random.normal(size=(count, DIMENSIONS)) * (0.2 / DIMENSIONS**0.5)
        moved[kind] = unit(space.vectors[kind][rows] + noise).astype(numpy.float32)
    return [{kind: moved[kind][number] for kind in KINDS} for number in range(count)]


def resident_megabytes(folder: Path) -> float:
    """Memory of the server's processes, shared pages counted once (proportional set size)."""
    postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True).stdout.split()
    total = 0
    for process in (postmaster, *map(int, children)):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def measure(folder: Path, count: int, asked: int) -> dict[str, float]:
    """All figures, for a server whose data lie in `folder`."""
    import pgserver

    logging.getLogger("pgserver").setLevel(logging.ERROR)
    space = made_up(count)
    server = pgserver.get_server(folder)
    try:
        store = PostgresStore(server.get_uri(), "benchmark", space.family, space.subnetwork, space.pca)
        begun = time.perf_counter()
        marks = {"send": begun, "build": begun}

        def report(progress: Progress) -> None:
            now = time.perf_counter()
            if progress.stage == "send":
                marks["send"] = now
            elif not progress.done:
                marks["build"] = now
            if progress.done % 100_000 == 0:
                print(f"{progress.stage} {progress.done}/{progress.total}, {now - begun:.0f} s", file=sys.stderr, flush=True)

        store.send(Source.of_space(space, lambda ids: dict.fromkeys(ids, "1 1")), report)
        kept = folder / f"intrinsic-lab-{count}.json"
        if not kept.exists():
            write_json(kept, {"load_seconds": marks["send"] - begun, "build_seconds": time.perf_counter() - marks["build"]})
        sizes = "SELECT pg_table_size(%s), pg_indexes_size(%s)"
        table, indexes = store._asked(lambda connection: connection.execute(sizes, [store.table, store.table]).fetchone())
        lookups = queries(space, asked)
        for query in lookups:
            store.nearest(query, COUNT)
        seconds, right = [], 0
        for query in lookups:
            before = time.perf_counter()
            found = store.nearest(query, COUNT)
            seconds.append(time.perf_counter() - before)
            ids = {candidate.id for candidate in found}
            right += sum(int(numpy.argmax(space.vectors[kind] @ query[kind]) in ids) for kind in KINDS)
        recalls = []
        for query in lookups[:50]:
            ids = {candidate.id for candidate in store.nearest(query, COUNT)}
            for kind in KINDS:
                best = numpy.argpartition(-(space.vectors[kind] @ query[kind]), COUNT)[:COUNT]
                recalls.append(len(ids & set(best.tolist())) / COUNT)
        return {
            "vectors": count,
            **json.loads(kept.read_text()),
            "table_megabytes": table / 2**20,
            "index_megabytes": indexes / 2**20,
            "server_megabytes": resident_megabytes(folder),
            "median_milliseconds": 1000 * float(numpy.median(seconds)),
            "p95_milliseconds": 1000 * float(numpy.quantile(seconds, 0.95)),
            "recall_at_26": float(numpy.mean(recalls)),
            "nearest_found": right / (2 * asked),
        }
    finally:
        server.cleanup()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--data", type=Path, help="folder of the server's data, which stays")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.data or Path(folder) / "postgres", options.vectors, options.queries)
    rows = [
        ("load two sketches of each (COPY, table and primary key)", f"{figures['load_seconds']:.0f} s"),
        ("build two HNSW indexes", f"{figures['build_seconds']:.0f} s"),
        ("table on disk", f"{figures['table_megabytes']:.0f} MB"),
        ("indexes on disk", f"{figures['index_megabytes']:.0f} MB"),
        ("memory of the server's processes (without the system's page cache)", f"{figures['server_megabytes']:.0f} MB"),
        ("a question, median", f"{figures['median_milliseconds']:.1f} ms (aim: < {TARGET_MILLISECONDS} ms)"),
        ("a question, 95th percentile", f"{figures['p95_milliseconds']:.1f} ms"),
        ("the very nearest by a sketch is found", f"{100 * figures['nearest_found']:.1f} %"),
        ("of the 26 nearest by a sketch are found", f"{100 * figures['recall_at_26']:.1f} %"),
    ]
    text = f"{figures['vectors']:,} made-up LoRAs, {DIMENSIONS} components for each of two sketches\n\n"
    keep_result("lora_space_postgres", text + markdown_table(("what", "figure"), rows), figures)


if __name__ == "__main__":
    main()
