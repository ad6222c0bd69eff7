"""The vectors of one space in PostgreSQL with pgvector: for collections that several machines ask, or that outgrow one's memory.

SQLite stays the truth; a table is a copy that `sync` brings up to date. Several indexes, and several processes of one, may share a
database. Needs psycopg and pgvector's own package: `pip install intrinsic-lab[postgres]`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy

from ..extras import extra
from .copies import PAGE, Source, Vectors
from .entries import Progress, Report
from .index import LoraIndex
from .sketch import KINDS, SKETCH_VERSION
from .space import Candidate, Pca, pack, project

# Below this a look at every vector takes less than 20 ms, and finds exactly.
LEAST_FOR_HNSW = 10_000
# What pgvector accepts: candidates that a search keeps in sight. More than its default of 40 finds more, in milliseconds.
_LEAST_SIGHT, _MOST_SIGHT = 100, 1000
# Vectors of 128 numbers: some 2 MB here, and as much on the server.
_BATCH = 2_000
# Of the server's memory, for building an index: what does not fit is built many times slower.
_MOST_BUILDING_MEMORY = 2 << 30

Result = TypeVar("Result")


class PostgresStore:
    """A `Store` whose vectors are in the table of one fitted space; make it with `sync`.

    where: an address as libpq takes it ("postgresql://user@host/database", "service=shelf"); passwords belong into ~/.pgpass or PGPASSWORD.
    A connection that the server has ended is made anew once for each question.
    """

    def __init__(self, where: str, identity: str, family: str, subnetwork: str, pca: Mapping[str, Pca]) -> None:
        self.family, self.subnetwork, self.pca = family, subnetwork, dict(pca)
        self._where, self._identity = where, identity
        # A family may be any text; a table's name may not. Vectors of one fit compare with no other's.
        self._prefix = f"lora_space_{_digest(identity, family, subnetwork)}_"
        self.table = self._prefix + hashlib.blake2b(b"%d " % SKETCH_VERSION + pack(self.pca)[1], digest_size=6).hexdigest()
        self._connection: Any = None

    @classmethod
    def sync(cls, where: str, index: LoraIndex, family: str, subnetwork: str = "all", report: Report | None = None) -> "PostgresStore":
        """Brings the table in step with the index: new and changed LoRAs are sent, missing ones deleted, older fits dropped.

        Raises ValueError if psycopg, the server or pgvector is missing, with what to do.
        """
        source = Source.of_index(index, family, subnetwork)
        store = cls(where, index.identity, family, subnetwork, source.pca)
        try:
            store.send(source, report)
        except BaseException:
            store.close()
            raise
        return store

    def send(self, source: Source, report: Report | None = None) -> None:
        """Makes the table hold just these vectors.

        One process at a time; another waits for it. What differs is sent, and kept, 2,000 vectors at a time; no more are in memory.
        """
        # A connection of its own: the server unlocks when it ends, however it ends.
        with self._errors_in_words(), self._connect() as connection, connection.cursor() as cursor:
            _wait_for_lock(cursor, self._prefix, report)
            self._make(cursor, source.dimensions)
            total = sum(len(send) for send, _ in source.unsent(self._there(cursor), _BATCH))
            done, changed = 0, False
            for send, gone in source.unsent(self._there(cursor), _BATCH):
                with connection.transaction():
                    cursor.execute(f"DELETE FROM {self.table} WHERE id = ANY(%s)", [gone])
                    if send:
                        self._copy(cursor, *source.vectors(list(send)), send)
                done, changed = done + len(send), True
                if report and send:
                    report(Progress("send", done, max(done, total)))
            if len(source.ids) >= LEAST_FOR_HNSW:
                self._build(cursor, source, report)
            if changed:
                cursor.execute(f"ANALYZE {self.table}")

    def project(self, sketches: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        """See `Store`."""
        return project(self.pca, sketches)

    def nearest(self, query: Mapping[str, numpy.ndarray], count: int, allowed: Sequence[int] | None = None) -> list[Candidate]:
        """See `Store`. The best by each sketch, with their means: approximate (HNSW) from 10,000 LoRAs on, exact with `allowed`."""
        chosen = "" if allowed is None else "WHERE id = ANY(%(allowed)s)"
        best = " UNION ".join(f"(SELECT id FROM {self.table} {chosen} ORDER BY {kind} <#> %({kind})s LIMIT %(count)s)" for kind in KINDS)
        cosines = ", ".join(f"-({kind} <#> %({kind})s)" for kind in KINDS)
        values = {kind: query[kind].astype(numpy.float32) for kind in KINDS} | {"count": count, "allowed": list(allowed or ())}
        exact = allowed is not None or count > _MOST_SIGHT

        def ask(connection) -> list[tuple]:
            with connection.transaction():
                # An index of vectors knows no other conditions and would return too few.
                connection.execute("SELECT set_config('enable_indexscan', %s, true)", ["off" if exact else "on"])
                sight = str(max(_LEAST_SIGHT, min(_MOST_SIGHT, 2 * count)))
                connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", [sight])
                return connection.execute(f"SELECT id, {cosines} FROM {self.table} WHERE id IN ({best})", values).fetchall()

        found = [Candidate(int(number), float(two_sided), float(output)) for number, two_sided, output in self._asked(ask)]
        return sorted(found, key=lambda candidate: (-candidate.score, candidate.id))

    def count(self) -> int:
        """How many LoRAs the table holds."""
        return self._asked(lambda connection: connection.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0])

    def close(self) -> None:
        """Ends the connection; the next question makes another."""
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> Any:
        psycopg = extra("psycopg", "Searching in PostgreSQL")
        register = extra("pgvector.psycopg", "Searching in PostgreSQL").register_vector
        connection = psycopg.connect(self._where, autocommit=True, connect_timeout=10, application_name="intrinsic-lab")
        try:
            if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                with connection.cursor() as cursor:
                    # Two at once would both make it, and one would fail.
                    _wait_for_lock(cursor, "extension", None)
                    cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
                    cursor.execute("SELECT pg_advisory_unlock_all()")
            register(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _asked(self, ask: Callable[[Any], Result]) -> Result:
        """The answer over the kept connection; over a new one if the server has ended it."""
        psycopg = extra("psycopg", "Searching in PostgreSQL")
        with self._errors_in_words():
            if self._connection is not None and not self._connection.closed:
                try:
                    return ask(self._connection)
                except psycopg.OperationalError:
                    if not self._connection.closed:
                        raise
            self._connection = self._connect()
            return ask(self._connection)

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        psycopg = extra("psycopg", "Searching in PostgreSQL")
        try:
            yield
        except psycopg.errors.UndefinedTable:
            raise ValueError(f"the vectors of {self.family} are no longer in the database, or were fitted anew: sync again.") from None
        except psycopg.Error as error:
            # What the server says may hold its address, which is no client's business.
            logging.warning("PostgreSQL: %s", error)
            raise ValueError(f"PostgreSQL {_trouble(error)} The log says more.") from None

    def _there(self, cursor) -> Iterator[tuple[int, str]]:
        """(id, stamp) of what the table holds, by rising id; what is written meanwhile at ids that were given already does not matter."""
        last = -1
        while page := cursor.execute(f"SELECT id, stamp FROM {self.table} WHERE id > %s ORDER BY id LIMIT %s", [last, PAGE]).fetchall():
            yield from page
            last = page[-1][0]

    def _make(self, cursor, dimensions: int) -> None:
        """The table, and none of older fits."""
        like = self._prefix.replace("_", r"\_") + "%"
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE %s", [like])
        for (name,) in cursor.fetchall():
            if name != self.table:
                cursor.execute(f"DROP TABLE IF EXISTS {name}")
        columns = ", ".join(f"{kind} vector({dimensions}) NOT NULL" for kind in KINDS)
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {self.table} (id bigint PRIMARY KEY, stamp text NOT NULL, {columns})")
        # What the name's digest stands for, for whoever looks at the database.
        said = f"LoRA space of index {self._identity}: {self.family}, {self.subnetwork}".replace("'", "''").replace("\0", "")
        cursor.execute(f"COMMENT ON TABLE {self.table} IS '{said}'")

    def _copy(self, cursor, ids: Sequence[int], vectors: Vectors, stamps: Mapping[int, str]) -> None:
        columns = ("id", "stamp", *KINDS)
        cursor.execute(f"CREATE TEMP TABLE sent (LIKE {self.table}) ON COMMIT DROP")
        with cursor.copy(f"COPY sent ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", *("vector" for _ in KINDS)])
            for row, number in enumerate(ids):
                copy.write_row([number, stamps[number], *(vectors[kind][row] for kind in KINDS)])
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns[1:])
        cursor.execute(f"INSERT INTO {self.table} SELECT * FROM sent ON CONFLICT (id) DO UPDATE SET {changed}")

    def _build(self, cursor, source: Source, report: Report | None) -> None:
        """The HNSW indexes, where there are none: many times faster after the vectors than before them."""
        for done, kind in enumerate(KINDS):
            if report:
                report(Progress("build", done, len(KINDS)))
            # A node of the graph: its vector and some 64 neighbours of 6 bytes, with what the build itself keeps of them.
            memory = min(_MOST_BUILDING_MEMORY, len(source.ids) * (4 * source.dimensions + 1000) + (64 << 20))
            cursor.execute(f"SET maintenance_work_mem = '{memory >> 10}kB'")
            cursor.execute(f"CREATE INDEX IF NOT EXISTS {self.table}_{kind} ON {self.table} USING hnsw ({kind} vector_ip_ops)")


def _wait_for_lock(cursor, name: str, report: Report | None) -> None:
    """Takes the server's lock of this name for the session; `report` may end the waiting."""
    number = int.from_bytes(bytes.fromhex(_digest(name))[:7], "big")
    while not cursor.execute("SELECT pg_try_advisory_lock(%s)", [number]).fetchone()[0]:
        if report:
            report(Progress("wait", 0, 1))
        time.sleep(0.1)


def _digest(*names: str) -> str:
    return hashlib.blake2b("\0".join(names).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _trouble(error: Exception) -> str:
    psycopg = extra("psycopg", "Searching in PostgreSQL")
    refusals = psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile
    if isinstance(error, refusals):
        return "refuses: its database needs pgvector (`CREATE EXTENSION vector`, by its owner) and you the right to make tables in it."
    if isinstance(error, psycopg.OperationalError):
        return "does not answer: see that it runs and that its address is right."
    return "cannot do this."
