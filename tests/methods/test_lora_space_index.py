"""The index follows the folders: what changed is read, what moved is known, nothing is lost by a kill or a second process."""

import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.methods.lora.reading import read_deltas
from intrinsic_lab.methods.lora_space.__main__ import main
from intrinsic_lab.methods.lora_space.database import _APPLICATION, MIGRATIONS, SCHEMA_VERSION
from intrinsic_lab.methods.lora_space.index import LoraIndex, _in_parallel
from intrinsic_lab.methods.lora_space.scan import list_files
from intrinsic_lab.methods.lora_space.search import find_similar
from intrinsic_lab.methods.lora_space.sketch import KINDS, sketch, subnetwork_vectors
from intrinsic_lab.methods.lora_space.space import LEAST_FOR_PCA
from intrinsic_lab.tests.methods.lora_space_shelf import MODULES, make_lora, save_lora
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
FEW = dict(list(MODULES.items())[:3])


def fill(folder, count, start=0):
    """`count` small LoRAs of two styles, in two folders below `folder`."""
    return [
        save_lora(folder / ("ink", "oil")[number % 2] / f"{number}.safetensors", make_lora(number, number % 2, modules=FEW))
        for number in range(start, start + count)
    ]


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "loras"
    paths = fill(folder, 6)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        assert index.update([folder]).added == 6
        yield folder, paths, index


def names(index):
    return [entry.name for entry in index.entries()]


def test_only_what_is_new_or_changed_is_read(shelf):
    folder, paths, index = shelf
    read = []
    again = index.update([folder], report=lambda progress: read.append(progress.path))
    assert (again.unchanged, again.embedded, read) == (6, 0, [])
    save_lora(paths[2], make_lora(100, modules=FEW))
    new = fill(folder, 1, start=6)
    before = index.sketches(index.entry(paths[2]).id)
    summary = index.update([folder], report=lambda progress: read.append(progress.path))
    assert (summary.added, summary.changed, summary.unchanged, summary.embedded) == (1, 1, 5, 2)
    assert sorted(read) == sorted(map(str, [paths[2], *new]))
    after = index.sketches(index.entry(paths[2]).id)
    assert not numpy.allclose(before["attention"]["output"], after["attention"]["output"])


def test_unchanged_files_are_not_even_opened(shelf):
    folder, paths, index = shelf
    state = paths[0].stat()
    paths[0].write_bytes(bytes(state.st_size))
    os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert index.update([folder]).unchanged == 6
    assert len(index.entries()) == 6


def test_moved_and_renamed_files_keep_their_sketches(shelf):
    folder, paths, index = shelf
    ids = {entry.path: entry.id for entry in index.entries()}
    (folder / "new").mkdir()
    moved = {paths[0]: folder / "new" / "a.safetensors", paths[1]: folder / "oil" / "b.safetensors"}
    for old, new in moved.items():
        old.rename(new)
    paths[3].unlink()
    summary = index.update([folder])
    assert (summary.moved, summary.removed, summary.added, summary.embedded, summary.unchanged) == (2, 1, 0, 0, 3)
    for old, new in moved.items():
        assert index.entry(new).id == ids[str(old)] and index.entry(new).embedded
        with pytest.raises(ValueError, match="not in the index"):
            index.entry(old)
    assert os.path.join("new", "a.safetensors") in names(index)


def test_files_that_trade_names_or_only_look_moved_are_read(shelf):
    folder, paths, index = shelf
    temporary = paths[0].with_suffix(".tmp")
    paths[0].rename(temporary), paths[2].rename(paths[0]), temporary.rename(paths[2])
    for path, other in ((paths[0], 1), (paths[2], 2)):
        os.utime(path, ns=(other, other))
    # Another LoRA of the same size and time, where one is missing.
    state = paths[4].stat()
    impostor = save_lora(folder / "impostor.safetensors", make_lora(50, modules=FEW))
    paths[4].unlink()
    os.utime(impostor, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert impostor.stat().st_size == state.st_size
    summary = index.update([folder])
    assert (summary.changed, summary.moved, summary.added, summary.removed) == (2, 0, 1, 1)
    for path in (paths[0], paths[2], impostor):
        assert_indexed_as_it_is(index, path)


def assert_indexed_as_it_is(index, path):
    kept, fresh = index.sketches(index.entry(path).id), sketch(read_deltas(path))
    assert kept.keys() == fresh.keys()
    for part in fresh:
        for kind in KINDS:
            # What is kept has 16 bits a number.
            numpy.testing.assert_allclose(kept[part][kind], fresh[part][kind], rtol=0, atol=numpy.abs(fresh[part][kind]).max() / 32767)


def test_two_copies_of_a_missing_file_are_both_indexed(shelf):
    folder, paths, index = shelf
    for name in ("copy 1.safetensors", "copy 2.safetensors"):
        shutil.copy2(paths[0], folder / name)
    paths[0].unlink()
    summary = index.update([folder])
    assert (summary.moved, summary.added, summary.removed) == (1, 1, 0)
    assert {"copy 1.safetensors", "copy 2.safetensors"} <= set(names(index))


def test_headers_alone_first_then_the_weights(tmp_path):
    fill(tmp_path / "loras", 4)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        assert index.update([tmp_path / "loras"], embed=False).embedded == 0
        assert [entry.embedded for entry in index.entries(family="sd1")] == [False] * 4
        assert len(index.space("sd1").ids) == 0
        assert index.update([tmp_path / "loras"], embed=False).unchanged == 4
        assert index.update([tmp_path / "loras"]).embedded == 4
        assert len(index.space("sd1").ids) == 4


def test_a_missing_root_or_another_root_deletes_nothing(shelf, tmp_path):
    folder, _, index = shelf
    folder.rename(tmp_path / "unplugged")
    summary = index.update([folder])
    assert (summary.removed, len(index.entries())) == (0, 6)
    assert [problem.path for problem in summary.problems] == [str(folder)]
    (tmp_path / "other").mkdir()
    index.update([tmp_path / "other"])
    assert len(index.entries()) == 6


def test_bad_files_are_reported_one_by_one_and_the_rest_is_indexed(tmp_path):
    folder = tmp_path / "loras"
    good = [
        save_lora(folder / name, make_lora(1, modules=FEW))
        for name in ('it\'s "quoted"; DROP TABLE files.safetensors', "日本 é 🎨.safetensors")
    ]
    data = good[0].read_bytes()
    (folder / "truncated.safetensors").write_bytes(data[:-100])
    (folder / "empty.safetensors").touch()
    (folder / "huge.safetensors").write_bytes((2 << 30).to_bytes(8, "little") + data[8:])
    layers = make_lora(2, modules=FEW)
    next(iter(layers.values())).up[0, 0] = torch.nan
    save_lora(folder / "nan.safetensors", layers)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{key}.lora_down.weight": torch.zeros(0, 8), f"{key}.lora_up.weight": torch.zeros(8, 0)}, folder / "rank 0.safetensors")
    save_file({"model.to_q.weight": torch.ones(8, 8)}, folder / "checkpoint.safetensors")
    (folder / "old.ckpt").write_bytes(b"\x80\x02.")
    (folder / "dangling.safetensors").symlink_to(folder / "nowhere")
    (folder / "circle.safetensors").symlink_to(folder / "circle.safetensors")
    (folder / "loop").symlink_to(folder)
    with open(os.fsencode(folder) + b"/\xff\xfe.safetensors", "wb") as file:
        file.write(data)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        summary = index.update([folder])
        assert sorted(names(index)) == sorted(path.name for path in good)
        reasons = {Path(problem.path).name: problem.reason for problem in summary.problems}
        wanted = {
            "truncated.safetensors": "truncated", "empty.safetensors": "empty", "huge.safetensors": "claims", "nan.safetensors": "NaN",
            "old.ckpt": "pickle", "dangling.safetensors": "leads nowhere", "circle.safetensors": "leads nowhere",
            "\\xff\\xfe.safetensors": "Unicode", "rank 0.safetensors": "rank 0", "checkpoint.safetensors": "no LoRA weights",
        }  # fmt: skip
        assert reasons.keys() == wanted.keys()
        assert all(word in reasons[name] for name, word in wanted.items())
        assert all(name in summary.text() for name in wanted)
        # They are not read again, and reported again.
        again = index.update([folder], report=lambda progress: pytest.fail(progress.path))
        assert {Path(problem.path).name for problem in again.problems} == wanted.keys()
        (folder / "truncated.safetensors").write_bytes(data)
        index.update([folder])
        assert "truncated.safetensors" in names(index)


SECLUDED = """
import os, sys
from pathlib import Path
from intrinsic_lab.methods.lora_space.index import LoraIndex
if os.geteuid() == 0:
    os.setuid(65534)
folder = Path(sys.argv[1])
with LoraIndex(folder / "index" / "i.sqlite") as index:
    one = index.update([folder / "loras"], embed=False)
    two = index.update([folder / "loras"], embed=False)
    print(one.added, sorted((Path(p.path).name, p.reason[:30]) for p in one.problems), two.removed, len(two.problems))
"""


def test_folders_and_files_without_permission_are_reported(tmp_path):
    folder = tmp_path / "loras"
    fill(folder, 4)
    (tmp_path / "index").mkdir()
    for path in (tmp_path, *tmp_path.parents[:2], *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | 0o777 if path.is_relative_to(tmp_path) else path.stat().st_mode | 0o055)
    (folder / "ink").chmod(0)
    (folder / "oil" / "1.safetensors").chmod(0)
    try:
        done = subprocess.run([sys.executable, "-c", SECLUDED, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        (folder / "ink").chmod(0o755)
    assert done.stdout.startswith("2 "), done.stdout + done.stderr
    assert "('1.safetensors', 'it cannot be opened (Permissio" in done.stdout
    assert "('ink', 'the folder cannot be listed (P" in done.stdout
    assert done.stdout.strip().endswith("0 2")


class Stopped(Exception):
    pass


def test_stopping_keeps_what_is_finished(tmp_path):
    fill(tmp_path / "loras", 20)

    def stop(progress):
        if progress.done == 7:
            raise Stopped

    with LoraIndex(tmp_path / "index.sqlite") as index:
        with pytest.raises(Stopped):
            index.update([tmp_path / "loras"], report=stop)
        assert len(index.entries()) == 7
        summary = index.update([tmp_path / "loras"])
        assert (summary.added, summary.unchanged) == (13, 7)


@pytest.fixture(scope="module")
def processes():
    """Processes that start quickly: forked from one that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["intrinsic_lab.methods.lora_space.__main__"])
    return context


def indexing(processes, folder, database):
    process = processes.Process(target=main, args=(["index", str(folder), "--database", str(database)],))
    process.start()
    return process


def contents(index):
    """name -> its sketches, of everything in the index."""
    return {entry.name: index.sketches(entry.id) for entry in index.entries()}


def assert_complete(database, folder, reference):
    """The index is sound, and after an update holds exactly what a fresh one does."""
    with LoraIndex(database) as index:
        check = sqlite3.connect(database)
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert check.execute("PRAGMA foreign_key_check").fetchall() == []
        check.close()
        before = contents(index)
        assert all(found.keys() == reference[name].keys() for name, found in before.items())
        index.update([folder])
        after = contents(index)
        assert after.keys() == reference.keys()
        for name, parts in reference.items():
            for part in parts:
                for kind in KINDS:
                    numpy.testing.assert_array_equal(after[name][part][kind], parts[part][kind])
    return len(before)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder of 300 LoRAs, what a fresh index of it holds)."""
    folder = tmp_path_factory.mktemp("large")
    fill(folder / "loras", 300)
    with LoraIndex(folder / "reference.sqlite") as index:
        index.update([folder / "loras"])
        return folder / "loras", contents(index)


def test_a_kill_at_any_moment_loses_nothing_that_was_committed(tmp_path, large, processes):
    folder, reference = large
    found = []
    for attempt in range(6):
        database = tmp_path / f"{attempt}.sqlite"
        process = indexing(processes, folder, database)
        wanted = random.Random(attempt).randrange(1, 200)
        while process.is_alive() and rows(database) < wanted:
            time.sleep(0.002)
        # A little later each time: in the middle of a file, of a transaction, or between two.
        time.sleep(0.005 * attempt)
        process.kill()
        process.join()
        found.append(assert_complete(database, folder, reference))
    assert any(0 < count < 300 for count in found), found


def rows(database):
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM files").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_two_processes_may_index_the_same_folder_at_once(tmp_path, large, processes):
    folder, reference = large
    database = tmp_path / "shared.sqlite"
    for process in [indexing(processes, folder, database) for _ in range(2)]:
        process.join()
        assert process.exitcode == 0
    assert assert_complete(database, folder, reference) == 300


def test_what_another_process_adds_meanwhile_is_not_taken_for_missing(shelf, tmp_path, monkeypatch):
    folder, _, index = shelf

    def list_too_early(roots):
        listing = list_files(roots)
        fill(folder, 1, start=6)
        with LoraIndex(tmp_path / "index.sqlite") as other:
            added.append(other.update([folder]).added)
        return listing

    added = []
    with monkeypatch.context() as patch:
        calls = iter((list_too_early, list_files))
        patch.setattr("intrinsic_lab.methods.lora_space.index.list_files", lambda roots: next(calls)(roots))
        assert index.update([folder]).removed == 0
    assert added == [1] and len(index.entries()) == 7


def test_files_are_read_side_by_side():
    # Passes only where two are in the job at once; a job alone would wait in vain.
    together = threading.Barrier(2)
    assert sorted(_in_parallel(lambda number: (together.wait(timeout=20), number)[1], range(6), workers=2)) == list(range(6))


def test_another_connection_s_changes_are_seen(shelf, tmp_path):
    folder, _, index = shelf
    assert len(index.space("sd1").ids) == 6
    assert index.space("sd1") is index.space("sd1")
    fill(folder, 2, start=6)
    with LoraIndex(tmp_path / "index.sqlite") as other:
        other.update([folder])
    assert len(index.space("sd1").ids) == 8


def test_an_index_of_the_first_schema_is_migrated_with_what_it_holds(shelf, tmp_path):
    folder, _, index = shelf
    old = tmp_path / "old.sqlite"
    with sqlite3.connect(old) as connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("ATTACH ? AS new", [str(index.database)])
        for table in ("files", "sketches"):
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")
    connection.close()
    with LoraIndex(old) as migrated, LoraIndex(old) as again:
        assert len(migrated.identity) == 12 and again.identity == migrated.identity != index.identity
        assert contents(migrated).keys() == contents(index).keys()
        # What older versions did not say of the headers is read anew; the sketches, made useless here, are not.
        migrated._connection.execute("UPDATE sketches SET vectors = zeroblob(8200)")
        migrated._connection.execute("UPDATE files SET family = 'flux1', loading = 'ComfyUI cannot load it'")
        summary = migrated.update([folder])
        assert (summary.unchanged, summary.refreshed, summary.embedded) == (6, 6, 0) and "6 headers read anew" in summary.text()
        assert migrated.entries() == [replace(entry, id=mine.id) for entry, mine in zip(index.entries(), migrated.entries(), strict=True)]
        assert not any(migrated.sketches(migrated.entries()[0].id)["attention"]["two_sided"])
        assert (again.update([folder]).refreshed, len(migrated.space("sd1").ids)) == (0, 6)
        assert migrated._connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_newer_and_foreign_databases_are_refused_untouched(tmp_path):
    newer, foreign, text = (tmp_path / name for name in ("newer.sqlite", "foreign.sqlite", "text.sqlite"))
    LoraIndex(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE users (name)")
    connection.close()
    text.write_text("This is a letter, not a database. " * 100)
    for path, reason in ((newer, "newer version"), (foreign, "another program"), (text, "cannot be used as an index")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=reason):
            LoraIndex(path)
        assert path.read_bytes() == before


def test_sketches_of_an_earlier_version_are_left_out_and_made_anew(shelf):
    folder, paths, index = shelf
    count = len(index.space("sd1").ids)
    with index._writing():
        # As the first version kept them: two float32 vectors of 1,024.
        (old,) = index._connection.execute("SELECT id FROM files WHERE path = ?", [str(paths[0])]).fetchone()
        index._connection.execute("UPDATE files SET sketch_version = 1 WHERE id = ?", [old])
        index._connection.execute("UPDATE sketches SET vectors = ? WHERE file_id = ?", [bytes(8192), old])
    assert index.sketches(old) == {} and not index.entry(paths[0]).embedded
    assert len(index.space("sd1").ids) == count - 1
    summary = index.update([folder])
    assert (summary.changed, summary.embedded, summary.unchanged) == (1, 1, len(paths) - 1)
    assert_indexed_as_it_is(index, paths[0])
    assert len(index.space("sd1").ids) == count
    # What an earlier version refused is read as well.
    with index._writing():
        index._connection.execute("UPDATE files SET sketch_version = 0, state = 'bad', reason = 'GLoRA' WHERE id = ?", [old])
    assert (index.update([folder]).embedded, index.problems()) == (1, [])
    assert index.update([folder]).embedded == 0


def test_a_space_is_fitted_grows_and_follows_the_files(tmp_path):
    folder = tmp_path / "loras"
    paths = fill(folder, LEAST_FOR_PCA)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        space = index.space("sd1")
        assert space.vectors["output"].shape == (LEAST_FOR_PCA, LEAST_FOR_PCA - 1)
        # One more is placed, without fitting anew, where projecting it says; a file that is gone leaves.
        new = fill(folder, 1, start=LEAST_FOR_PCA)[0]
        paths[0].unlink()
        index.update([folder])
        grown = index.space("sd1")
        numpy.testing.assert_array_equal(grown.pca["output"].components, space.pca["output"].components)
        assert len(grown.ids) == LEAST_FOR_PCA
        row = list(grown.ids).index(index.entry(new).id)
        placed = grown.project(subnetwork_vectors(sketch(read_deltas(new)), "all"))
        for kind in KINDS:
            numpy.testing.assert_allclose(grown.vectors[kind][row], placed[kind], atol=2e-5)
        # A quarter more fits anew.
        fill(folder, LEAST_FOR_PCA // 2, start=LEAST_FOR_PCA + 1)
        index.update([folder])
        assert index.space("sd1").vectors["output"].shape[1] > LEAST_FOR_PCA
        assert len(index.space("sd1", "attention").ids) == LEAST_FOR_PCA * 3 // 2
        assert len(index.space("sd1", "text_encoder").ids) == 0
        with pytest.raises(ValueError, match="choose one of"):
            index.space("sd1", "everything")


def test_reading_leaves_torch_as_many_threads_as_it_had(tmp_path):
    save_lora(tmp_path / "a.safetensors", make_lora(1, modules=FEW))
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with LoraIndex(tmp_path / "index.sqlite") as index:
            assert index.update([tmp_path]).embedded == 1
        newcomer = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        newcomer.start()
        newcomer.join()
        assert (torch.get_num_threads(), seen) == (3, [3])
    finally:
        torch.set_num_threads(before)


def test_a_read_only_index_answers_like_the_other_and_writes_nothing(tmp_path):
    database, folder = tmp_path / "index.sqlite", tmp_path / "loras"
    with pytest.raises(ValueError, match="make one first"):
        LoraIndex(database, read_only=True)
    assert not database.exists()
    paths = fill(folder, LEAST_FOR_PCA + 6)
    with LoraIndex(database) as writer, LoraIndex(database, read_only=True) as reader:
        writer.update([folder])
        # Nothing is fitted yet: the styles are told apart all the same.
        before = dump(database)
        assert {match.entry.folder for match in find_similar(reader, paths[:1], k=5, rerank=0)} == {"ink"}
        assert dump(database) == before
        find_similar(writer, paths[:1], k=5, rerank=0)
    with LoraIndex(database) as writer, LoraIndex(database, read_only=True) as reader:
        fill(folder, 2, start=200)
        writer.update([folder])
        # Fitted, and two that have no place yet.
        before = dump(database)
        read = find_similar(reader, paths[:1], k=40, rerank=0)
        assert dump(database) == before and any(match.entry.path.endswith("200.safetensors") for match in read)
        written = find_similar(writer, paths[:1], k=40, rerank=0)
        assert [match.entry for match in read] == [match.entry for match in written]
        numpy.testing.assert_allclose([match.score for match in read], [match.score for match in written], atol=1e-6)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.update([fill(folder, 1, start=300)[0].parent])
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    with pytest.raises(ValueError, match="older version"):
        LoraIndex(database, read_only=True)


def dump(database):
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())
