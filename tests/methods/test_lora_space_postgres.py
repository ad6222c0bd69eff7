"""The vectors of a shelf in a real PostgreSQL with pgvector, which the package pgserver brings and starts."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy
import pytest
from intrinsic_lab.benchmarks.lora_space_scale import fill_index
from intrinsic_lab.methods.lora_space import postgres_store
from intrinsic_lab.methods.lora_space.__main__ import main
from intrinsic_lab.methods.lora_space.copies import Source
from intrinsic_lab.methods.lora_space.index import LoraIndex
from intrinsic_lab.methods.lora_space.postgres_store import LEAST_FOR_HNSW, PostgresStore
from intrinsic_lab.methods.lora_space.search import find_similar
from intrinsic_lab.methods.lora_space.sketch import KINDS
from intrinsic_lab.methods.lora_space.space import DIMENSIONS, Pca, Space
from intrinsic_lab.tests.methods.lora_space_shelf import MODULES, make_lora, save_lora

pgserver = pytest.importorskip("pgserver")
FEW = dict(list(MODULES.items())[:3])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server
    server.cleanup()


@pytest.fixture(scope="module")
def where(server):
    return server.get_uri()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """12 LoRAs of three styles: (folder, database)."""
    folder = tmp_path_factory.mktemp("shelf")
    for number in range(12):
        save_lora(folder / "loras" / f"{number}.safetensors", make_lora(number, number % 3, modules=FEW))
    with LoraIndex(folder / "index.sqlite") as index:
        index.update([folder / "loras"])
    return folder / "loras", folder / "index.sqlite"


def random_space(count: int, dimensions: int = 16, seed: int = 0) -> Space:
    rows = numpy.random.default_rng(seed).normal(size=(2, count, dimensions)).astype(numpy.float32)
    rows /= numpy.linalg.norm(rows, axis=-1, keepdims=True)
    return Space("sdxl", "all", numpy.arange(count), dict(zip(KINDS, rows, strict=True)), {kind: Pca() for kind in KINDS})


def stamped(space: Space, stamp: str = "") -> Source:
    return Source.of_space(space, lambda ids: dict.fromkeys(ids, stamp))


def same(found, wanted):
    """The same LoRAs in the same order, with the same cosines; those that only the mean of the two knows may be absent."""
    by_id = {candidate.id: candidate for candidate in wanted}
    assert [one.id for one in found] == [one.id for one in wanted if one.id in {candidate.id for candidate in found}]
    assert found[0].id == wanted[0].id
    for one in found:
        assert (one.two_sided, one.output) == pytest.approx((by_id[one.id].two_sided, by_id[one.id].output), abs=1e-5)


def test_postgres_answers_as_memory_does_and_so_does_the_command_line(shelf, where, capsys):
    with LoraIndex(shelf[1]) as index:
        store, space = PostgresStore.sync(where, index, "sd1"), index.space("sd1")
        for row in (0, 5, 11):
            query = {kind: space.vectors[kind][row] for kind in KINDS}
            for allowed in (None, space.ids[:7].tolist()):
                same(store.nearest(query, 3, allowed), space.nearest(query, 3, allowed))
        query = [shelf[0] / "1.safetensors"]
        wanted = [match.entry.name for match in find_similar(index, query)]
        assert [match.entry.name for match in find_similar(index, query, store=store)] == wanted
    assert main(["similar", str(shelf[0]), "--database", str(shelf[1]), "--query", "1.safetensors", "--postgres", where]) == 0
    assert [match["name"] for match in json.loads(capsys.readouterr().out)["matches"]] == wanted


def test_the_table_follows_the_index_and_old_fits_go(tmp_path, where):
    folder, sent = tmp_path / "loras", []
    paths = [save_lora(folder / f"{number}.safetensors", make_lora(number, modules=FEW)) for number in range(6)]
    with LoraIndex(tmp_path / "index.sqlite") as index:

        def sync():
            index.update([folder])
            return PostgresStore.sync(where, index, "sd1", report=lambda progress: sent.append(progress.total))

        sync(), sync()
        assert sent == [6]
        paths[0].unlink()
        save_lora(paths[1], make_lora(70, modules=FEW))
        store = sync()
        assert sent == [6, 1] and store.count() == 5
        space = index.space("sd1")
        row = space.ids.tolist().index(index.entry(paths[1]).id)
        best = store.nearest({kind: space.vectors[kind][row] for kind in KINDS}, 1)[0]
        assert best.id == space.ids[row] and best.score == pytest.approx(1, abs=1e-5)
        # Another fit of the same index has a table of its own, and the old one's reader is told.
        other = PostgresStore(where, index.identity, "sd1", "all", random_pca(space))
        other.send(stamped(Space("sd1", "all", space.ids, space.vectors, other.pca)))
        assert other.count() == 5 and other.table != store.table
        with pytest.raises(ValueError, match="sync again"):
            store.count()


def test_what_is_held_while_a_large_shelf_is_sent_is_a_batch_of_it(tmp_path, where, monkeypatch):
    monkeypatch.setattr(postgres_store, "LEAST_FOR_HNSW", 1 << 30)
    monkeypatch.setattr(postgres_store, "_BATCH", 500)
    count, sent = 24_000, []
    fill_index(tmp_path / "index.sqlite", count)

    def sync() -> int:
        """Most bytes that were held."""
        tracemalloc.start()
        PostgresStore.sync(where, index, "sdxl", report=lambda progress: sent.append(progress)).close()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    with LoraIndex(tmp_path / "index.sqlite") as index:
        # All of them are 25 MB; the components with their digest take 10 MB for a moment.
        whole = count * len(KINDS) * DIMENSIONS * 4
        assert sync() < whole / 2 and sent[-1].done == sent[-1].total == count
        sent.clear()
        with index._writing():
            index._connection.execute("UPDATE files SET size = 2 WHERE id IN (7, 11000)")
            index._connection.execute("DELETE FROM files WHERE id IN (1, 24000)")
        assert sync() < whole / 2 and [(one.done, one.total) for one in sent] == [(2, 2)]
        store = PostgresStore.sync(where, index, "sdxl")
        assert store.count() == count - 2
        space = index.space("sdxl")
        query = {kind: space.vectors[kind][9] for kind in KINDS}
        same(store.nearest(query, 5), space.nearest(query, 5))


def random_pca(space: Space) -> dict[str, Pca]:
    size = space.vectors[KINDS[0]].shape[1]
    return {kind: Pca(numpy.zeros(2048, numpy.float32), numpy.zeros((size, 2048), numpy.float32)) for kind in KINDS}


def test_above_its_least_number_an_hnsw_index_is_built_and_asked_and_conditions_stay_exact(where):
    space = random_space(LEAST_FOR_HNSW)
    store = PostgresStore(where, "hnsw", "sdxl", "all", space.pca)
    stages = set()
    store.send(stamped(space), lambda progress: stages.add(progress.stage))
    assert stages == {"send", "build"}
    query = {kind: space.vectors[kind][7] for kind in KINDS}
    plan = store._asked(
        lambda c: c.execute(f"EXPLAIN SELECT id FROM {store.table} ORDER BY output <#> %s LIMIT 5", [query["output"]]).fetchall()
    )
    assert f"{store.table}_output" in str(plan)
    wanted = {candidate.id for candidate in space.nearest(query, 25)}
    found = {candidate.id for candidate in store.nearest(query, 25)}
    assert 7 in found and len(found & wanted) >= 0.8 * len(found) and len(found) >= 45
    allowed = list(range(0, LEAST_FOR_HNSW, LEAST_FOR_HNSW // 40))
    same(store.nearest(query, 20, allowed), space.nearest(query, 20, allowed))
    assert len(store.nearest(query, 20, allowed)) >= 20


WRITER = """
import sys, time
import numpy
from pathlib import Path
from intrinsic_lab.methods.lora_space.postgres_store import PostgresStore
from intrinsic_lab.tests.methods.test_lora_space_postgres import random_space, stamped
where, mine, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
space = random_space(3000)
store = PostgresStore(where, "two", "sdxl", "all", space.pca)
mine.touch()
while not other.exists():
    time.sleep(0.001)
store.send(stamped(space, mine.name))
"""


def test_two_processes_write_the_same_table_at_once(where, tmp_path):
    marks = [tmp_path / "first", tmp_path / "second"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, where, *map(str, order)], stderr=subprocess.PIPE) for order in (marks, marks[::-1])
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    store, space = PostgresStore(where, "two", "sdxl", "all", random_space(3000).pca), random_space(3000)
    assert store.count() == 3000
    stamps = store._asked(lambda connection: connection.execute(f"SELECT DISTINCT stamp FROM {store.table}").fetchall())
    assert len(stamps) == 1, "one writer after the other, not row by row"
    query = {kind: space.vectors[kind][0] for kind in KINDS}
    same(store.nearest(query, 10), space.nearest(query, 10))


def test_a_server_that_was_killed_is_told_of_and_asked_again_when_it_is_back(tmp_path):
    folder = tmp_path / "data"
    server = pgserver.get_server(folder)
    space = random_space(500)
    store = PostgresStore(server.get_uri(), "killed", "sdxl", "all", space.pca)
    store.send(stamped(space))
    query = {kind: space.vectors[kind][3] for kind in KINDS}
    before = store.nearest(query, 5)
    # An administrator ends the connection: nobody notices.
    [(process,)] = store._asked(lambda connection: connection.execute("SELECT pg_backend_pid()").fetchall())
    server.psql(f"SELECT pg_terminate_backend({process})")
    assert store.nearest(query, 5) == before
    postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while subprocess.run(["ps", "-p", str(postmaster)], capture_output=True).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(ValueError, match="does not answer"):
        store.nearest(query, 5)
    pgserver.PostgresServer._instances.pop(folder, None)
    server = pgserver.get_server(folder)
    try:
        assert store.nearest(query, 5) == before and store.count() == 500
    finally:
        server.cleanup()


def test_what_cannot_be_is_said_in_words(server, where, tmp_path):
    with pytest.raises(ValueError, match="does not answer"):
        PostgresStore("postgresql:///x?host=/nowhere", "i", "sdxl", "all", random_space(1).pca).count()
    server.psql("CREATE ROLE reader LOGIN")
    server.psql("CREATE DATABASE bare")
    bare = where.replace("postgres:@/postgres", "reader:@/bare")
    assert bare != where
    with pytest.raises(ValueError, match="needs pgvector"):
        PostgresStore(bare, "i", "sdxl", "all", random_space(1).pca).count()
    with pytest.raises(ValueError, match="sync again"):
        PostgresStore(where, "nobody", "sdxl' --", "all", random_space(1).pca).count()
    # Anybody's text is a family's name.
    odd = PostgresStore(where, "i", 'it\'s; DROP TABLE "x" -- \U0001f600 %s', "all", random_space(1).pca)
    odd.send(stamped(random_space(3)))
    assert odd.count() == 3
