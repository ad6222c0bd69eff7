"""The index of a collection of LoRAs: what is where, what it is for, and its sketches. SQLite is the truth; files are only read."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

from ..lora.cache import ReadCache
from ..lora.modules import FACTS_VERSION, Facts
from .database import connect, connect_reading, rows_of, writing
from .entries import Entry, Problem, Progress, Report, Summary
from .scan import Found, Inspection, inspect, list_files
from .sketch import KINDS, SKETCH_VERSION, Sketches, packed, unpacked
from .space import Space
from .spaces import Spaces

_COLUMNS = (
    "id, path, root, name, size, mtime_ns, family, format, rank_min, rank_max, dtype, modules, approximate, tags, variant, loading, "
    "sketch_version"
)
# Files read at once: one waits for the disk while the others work; more would only wait for each other in Python.
WORKERS = min(4, 1 + (os.cpu_count() or 1))


class LoraIndex:
    """An open index; close it, or use it in a `with`. Several processes may work on one database; give each thread its own object."""

    def __init__(self, database: str | Path, *, read_only: bool = False) -> None:
        """Opens the index, making it if it is not there. Raises ValueError if a newer version made it, or it is no index.

        read_only: nothing is written, and `update` fails; raises ValueError too where there is no index, or an older one. Its spaces may be
        up to `stale_seconds` old (0): for questions while others write.
        """
        self.database = Path(database)
        self._read_only = read_only
        self.stale_seconds = 0.0
        self._connection = (connect_reading if read_only else connect)(self.database)
        self.spaces = Spaces(self._connection, read_only)
        self._kept: dict[tuple[str, str], tuple[tuple[int, int], float, Space]] = {}

    def __enter__(self) -> "LoraIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def identity(self) -> str:
        """Tells this index's copies elsewhere from those of others: 12 letters, drawn when it was made."""
        return next(iter(self._rows("SELECT name FROM identity")))["name"]

    def update(self, roots: Sequence[str | Path], *, embed: bool = True, workers: int = WORKERS, report: Report | None = None) -> Summary:
        """Brings the index in step with the folders: new and changed files are read, moved ones recognised, missing ones dropped.

        A file whose size and time are unchanged costs one stat. Files outside `roots` stay as they are, and so does what lay below
        a folder that cannot be listed (an unplugged disk is no deletion). embed=False reads headers only; the sketches follow
        with the next full update. Work is committed a few files at a time.
        """
        started = time.monotonic()
        folders = [os.path.abspath(root) for root in roots]
        # Before the listing: what another process adds from a later one is then new to us, not missing.
        columns = "id, path, size, mtime_ns, state, sketch_version, facts_version, fingerprint"
        known = {row["path"]: row for row in self._rows(f"SELECT {columns} FROM files")}
        listing = list_files(folders)
        work = [found for found in listing.files if _needs_reading(found, known.get(found.path), embed)]
        present = {found.path for found in listing.files}
        gone = {
            path: row for path, row in known.items() if path not in present and _below(path, folders) and not _below(path, listing.closed)
        }
        vanished = _vanished(gone.values(), embed)

        counts = dict.fromkeys(("added", "changed", "moved", "embedded", "refreshed"), 0)
        batch: list[tuple[Found, Inspection]] = []
        flushed = time.monotonic()

        cache = ReadCache()

        def job(found: Found) -> tuple[Found, Inspection]:
            twins = () if found.path in known else vanished.get((found.size, found.mtime_ns), ())
            return found, inspect(found.path, embed and not _embedded(found, known.get(found.path)), twins, cache)

        try:
            for done, result in enumerate(_in_parallel(job, work, workers), 1):
                batch.append(result)
                if len(batch) >= 64 or time.monotonic() - flushed > 1:
                    self._write(batch, known, vanished, embed, counts)
                    batch, flushed = [], time.monotonic()
                if report:
                    report(Progress("read" if embed else "scan", done, len(work), result[0].path))
        finally:
            self._write(batch, known, vanished, embed, counts)
        with self._writing():
            # A moved file's row has its new path by now.
            self._connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
        still_bad = [Problem(row["path"], row["reason"]) for row in self._rows("SELECT path, reason FROM files WHERE state != 'good'")]
        problems = [Problem(path, reason) for path, reason in listing.problems]
        problems += [problem for problem in still_bad if problem.path in present]
        removed, unchanged = len(gone) - counts["moved"], len(listing.files) - len(work) + counts["refreshed"]
        return Summary(
            files=len(listing.files), removed=removed, unchanged=unchanged, problems=tuple(problems),
            seconds=time.monotonic() - started, **counts,
        )  # fmt: skip

    def entries(self, *, family: str | None = None, folder: str | None = None) -> list[Entry]:
        """Readable LoRAs, by name; of a family, and of a folder below its root (all below it included), where these are given."""
        where, values = _good(family, folder)
        return [_entry(row) for row in self._rows(f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY name", values)]

    def ids(self, *, family: str | None = None, folder: str | None = None) -> list[int]:
        """Ids of the same LoRAs, without their entries."""
        where, values = _good(family, folder)
        return [row["id"] for row in self._rows(f"SELECT id FROM files WHERE {where}", values)]

    def entry(self, path: str | Path) -> Entry:
        """The LoRA at `path`. Raises ValueError if it is not in the index, with the reason where there is one."""
        rows = list(self._rows(f"SELECT {_COLUMNS}, state, reason FROM files WHERE path = ?", [os.path.abspath(path)]))
        if not rows:
            raise ValueError(f"{path} is not in the index: update the index first.")
        if rows[0]["state"] != "good":
            raise ValueError(f"{path}: {rows[0]['reason']}")
        return _entry(rows[0])

    def entries_of(self, ids: Iterable[int]) -> dict[int, Entry]:
        """id -> entry, of those that are there."""
        found = {}
        for number in ids:
            found.update({row["id"]: _entry(row) for row in self._rows(f"SELECT {_COLUMNS} FROM files WHERE id = ?", [int(number)])})
        return found

    def stamps(self, ids: Sequence[int]) -> dict[int, str]:
        """id -> what a LoRA's file is: another one where its sketches may be others."""
        rows = self._rows("SELECT id, size, mtime_ns FROM files WHERE id IN (SELECT value FROM json_each(?))", [json.dumps(list(ids))])
        return {row["id"]: f"{row['size']} {row['mtime_ns']}" for row in rows}

    def families(self) -> dict[str, int]:
        """Family -> number of readable LoRAs, most first."""
        rows = self._rows("SELECT family, count(*) AS many FROM files WHERE state = 'good' GROUP BY family ORDER BY many DESC, family")
        return {row["family"]: row["many"] for row in rows}

    def problems(self) -> list[Problem]:
        """Files that could not be used when they were last read."""
        return [
            Problem(row["path"], row["reason"]) for row in self._rows("SELECT path, reason FROM files WHERE state != 'good' ORDER BY path")
        ]

    def not_loading(self, *, family: str | None = None, folder: str | None = None) -> list[Entry]:
        """Those of `entries` of which ComfyUI's loader leaves out something."""
        return [entry for entry in self.entries(family=family, folder=folder) if entry.loading]

    def statistics(self) -> dict[str, Any]:
        """Counts for a person: files, embedded, bytes, problems, families, formats, ranks."""
        one = "SELECT count(*) AS files, coalesce(sum(size), 0) AS bytes, coalesce(sum(sketch_version = ?), 0) AS embedded FROM files"
        total = next(iter(self._rows(f"{one} WHERE state = 'good'", [SKETCH_VERSION])))
        group = "SELECT {0} AS value, count(*) AS many FROM files WHERE state = 'good' GROUP BY {0} ORDER BY many DESC"
        counts = {
            name: {str(row["value"]): row["many"] for row in self._rows(group.format(name))} for name in ("format", "rank_max", "dtype")
        }
        about = {"files": total["files"], "embedded": total["embedded"], "bytes": total["bytes"], "problems": len(self.problems())}
        return about | {"families": self.families(), "formats": counts["format"], "ranks": counts["rank_max"], "dtypes": counts["dtype"]}

    def sketches(self, file_id: int) -> Sketches:
        """The stored sketches of a file, part -> kind -> vector; empty if there are none of this version."""
        query = "SELECT part, vectors FROM sketches JOIN files ON files.id = file_id WHERE file_id = ? AND sketch_version = ?"
        found = self._rows(query, [int(file_id), SKETCH_VERSION])
        return {row["part"]: dict(zip(KINDS, unpacked(row["vectors"])[0], strict=True)) for row in found}

    def space(self, family: str, subnetwork: str = "all") -> Space:
        """All embedded LoRAs of a family as vectors; fitted when there is none, or the collection has grown by a quarter or halved since.

        Kept in memory until the index changes. LoRAs without the sub-network are left out; without any, the space is empty.
        An index that is only read keeps nothing: it takes the components there are, else quickly fitted ones.
        """
        state = self._state()
        if kept := self._kept.get((family, subnetwork)):
            kept_state, read_at, space = kept
            if kept_state == state or (self._read_only and time.monotonic() - read_at < self.stale_seconds):
                return space
        space = self.spaces.space(family, subnetwork)
        self._kept[family, subnetwork] = (self._state(), time.monotonic(), space)
        return space

    def _write(self, batch: list[tuple[Found, Inspection]], known: dict, vanished: "_Vanished", embed: bool, counts: dict) -> None:
        if not batch:
            return
        with self._writing():
            for found, seen in batch:
                if seen.facts is None and not seen.reason:
                    origin = vanished[found.size, found.mtime_ns].pop(seen.fingerprint, None)
                    if origin is not None and self._move(found, origin):
                        counts["moved"] += 1
                        continue
                    # A second copy of a file that has moved already, or another process was faster.
                    seen = inspect(found.path, embed)
                if seen.facts and _embedded(found, known.get(found.path)):
                    counts["refreshed"] += 1
                    self._store_facts(found, seen.facts)
                    continue
                counts["changed" if found.path in known else "added"] += 1
                counts["embedded"] += seen.sketches is not None
                self._store(found, seen)

    def _move(self, found: Found, origin: dict) -> int:
        self._connection.execute("DELETE FROM files WHERE path = ?", [found.path])
        return self._connection.execute(
            "UPDATE files SET path = ?, root = ?, name = ? WHERE id = ?", [found.path, found.root, found.name, origin["id"]]
        ).rowcount

    def _store(self, found: Found, seen: Inspection) -> None:
        state = "good" if seen.facts else "unreadable" if seen.unreadable else "bad"
        values: dict[str, Any] = {
            "path": found.path, "root": found.root, "name": found.name, "size": found.size, "mtime_ns": found.mtime_ns,
            "fingerprint": seen.fingerprint, "state": state, "reason": seen.reason,
            # What was refused may be read by a later version.
            "sketch_version": SKETCH_VERSION if seen.sketches is not None or state == "bad" else 0, "facts_version": FACTS_VERSION,
        }  # fmt: skip
        if seen.facts:
            values |= _columns_of(seen.facts)
        names = list(values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in names)
        row = self._connection.execute(
            f"INSERT INTO files ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
            f"ON CONFLICT (path) DO UPDATE SET {changes} RETURNING id",
            list(values.values()),
        ).fetchone()
        for table in ("sketches", "vectors"):
            self._connection.execute(f"DELETE FROM {table} WHERE file_id = ?", row)
        for part, kinds in (seen.sketches or {}).items():
            self._connection.execute("INSERT INTO sketches VALUES (?, ?, ?)", [row[0], part, packed(kinds)])

    def _store_facts(self, found: Found, facts: Facts) -> None:
        """Of a file whose sketches stay; its place in the spaces of another family goes."""
        values = _columns_of(facts) | {"facts_version": FACTS_VERSION}
        changes = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(f"UPDATE files SET {changes} WHERE path = ?", [*values.values(), found.path])
        others = "space_id NOT IN (SELECT id FROM spaces WHERE family = ?)"
        self._connection.execute(
            f"DELETE FROM vectors WHERE file_id = (SELECT id FROM files WHERE path = ?) AND {others}", [found.path, facts.family]
        )

    def _rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        return rows_of(self._connection, query, values)

    def _writing(self):
        return writing(self._connection)

    def _state(self) -> tuple[int, int]:
        """Differs whenever the database has: by another connection's hand, or by this one's."""
        return self._connection.execute("PRAGMA data_version").fetchone()[0], self._connection.total_changes


def _good(family: str | None, folder: str | None) -> tuple[str, list[Any]]:
    """(condition, its values) of readable LoRAs."""
    conditions = ["state = 'good'"]
    values: list[Any] = []
    if family is not None:
        conditions, values = [*conditions, "family = ?"], [*values, family]
    if folder:
        prefix = folder.replace("/", os.sep).rstrip(os.sep) + os.sep
        conditions, values = [*conditions, "substr(name, 1, ?) = ?"], [*values, len(prefix), prefix]
    return " AND ".join(conditions), values


def _entry(row: dict[str, Any]) -> Entry:
    values = {name: row[name] for name in Entry.__dataclass_fields__ if name in row}
    own = {"tags": tuple(json.loads(row["tags"])), "approximate": bool(row["approximate"])}
    return Entry(**values | own, embedded=row["sketch_version"] == SKETCH_VERSION)


def _columns_of(facts: Facts) -> dict[str, Any]:
    return vars(facts) | {"tags": json.dumps(facts.tags)}


def _needs_reading(found: Found, row: dict[str, Any] | None, embed: bool) -> bool:
    if row is None or (row["size"], row["mtime_ns"]) != (found.size, found.mtime_ns) or row["state"] == "unreadable":
        return True
    return row["facts_version"] != FACTS_VERSION or (embed and row["sketch_version"] != SKETCH_VERSION)


def _embedded(found: Found, row: dict[str, Any] | None) -> bool:
    """Whether the index holds the sketches of just this file."""
    if row is None or (row["size"], row["mtime_ns"]) != (found.size, found.mtime_ns):
        return False
    return row["state"] == "good" and row["sketch_version"] == SKETCH_VERSION


_Vanished = dict[tuple[int, int], dict[bytes | None, dict[str, Any]]]
"""(size, mtime_ns) -> fingerprint -> row of a file that is no longer where it was, and may have moved."""


def _vanished(gone: Iterable[dict[str, Any]], embed: bool) -> _Vanished:
    rows: _Vanished = {}
    for row in gone:
        if row["state"] == "good" and (row["sketch_version"] == SKETCH_VERSION or not embed):
            rows.setdefault((row["size"], row["mtime_ns"]), {})[row["fingerprint"]] = row
    return rows


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _in_parallel(job: Callable[[Found], Any], work: Sequence[Found], workers: int) -> Iterator[Any]:
    """Results as they come, a few files ahead of the caller; leaving early stops what has not begun."""
    remaining = iter(work)
    with ThreadPoolExecutor(workers) as pool:
        running: set[Future] = set()
        try:
            while True:
                running |= {pool.submit(job, found) for found in islice(remaining, 4 * workers - len(running))}
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
