"""The index's SQLite file: schema, versions, connections.

WAL and short transactions: a kill at any moment leaves what was committed, and several processes read and write at once. SQLite's
locks need a local disk: do not put the file on a network share.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

_APPLICATION = 0x494C4F52  # "ILOR"
_BUSY_SECONDS = 120

# One entry per schema version; an older file is brought up by those it lacks. Landed entries never change.
MIGRATIONS = (
    # 1: files, with what their headers say, and their sketches.
    """
    CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        root TEXT NOT NULL,
        name TEXT NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        fingerprint BLOB,
        state TEXT NOT NULL CHECK (state IN ('good', 'bad', 'unreadable')),
        reason TEXT NOT NULL DEFAULT '',
        family TEXT NOT NULL DEFAULT '',
        format TEXT NOT NULL DEFAULT '',
        rank_min INTEGER NOT NULL DEFAULT 0,
        rank_max INTEGER NOT NULL DEFAULT 0,
        dtype TEXT NOT NULL DEFAULT '',
        modules INTEGER NOT NULL DEFAULT 0,
        approximate INTEGER NOT NULL DEFAULT 0,
        tags TEXT NOT NULL DEFAULT '[]',
        sketch_version INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX files_by_family ON files (family, state, sketch_version);
    CREATE TABLE sketches (
        file_id INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
        part TEXT NOT NULL,
        vectors BLOB NOT NULL,
        PRIMARY KEY (file_id, part)
    );
    """,
    # 2: the spaces fitted to a family, and every file's place in them.
    """
    CREATE TABLE spaces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        family TEXT NOT NULL,
        subnetwork TEXT NOT NULL,
        sketch_version INTEGER NOT NULL,
        fitted_on INTEGER NOT NULL,
        dimensions INTEGER NOT NULL,
        pca BLOB NOT NULL,
        UNIQUE (family, subnetwork)
    );
    CREATE TABLE vectors (
        space_id INTEGER NOT NULL REFERENCES spaces (id) ON DELETE CASCADE,
        file_id INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
        vectors BLOB NOT NULL,
        PRIMARY KEY (space_id, file_id)
    );
    CREATE INDEX vectors_by_file ON vectors (file_id);
    """,
    # 3: a name of the index's own, for its copies elsewhere.
    """
    CREATE TABLE identity (name TEXT NOT NULL);
    INSERT INTO identity SELECT lower(hex(randomblob(6)));
    """,
    # 4: what people call the base model within its family.
    """
    ALTER TABLE files ADD COLUMN variant TEXT NOT NULL DEFAULT '';
    """,
    # 5: what ComfyUI's loader does not take of it, and why.
    """
    ALTER TABLE files ADD COLUMN loading TEXT NOT NULL DEFAULT '';
    """,
    # 6: by which version the headers were understood; those of older ones are read anew, without their weights.
    """
    ALTER TABLE files ADD COLUMN facts_version INTEGER NOT NULL DEFAULT 0;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)


def connect(database: Path) -> sqlite3.Connection:
    """Opens the index at `database`, making or migrating it. Raises ValueError for newer indexes and for files that are none."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        _check(connection, database)
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, database)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"{database} cannot be used as an index ({error}): name another file, or delete it and index again.") from None
    except ValueError:
        connection.close()
        raise
    return connection


def connect_reading(database: Path) -> sqlite3.Connection:
    """Opens the index at `database`, which must be there, and never writes. Raises ValueError as `connect` does, and for older indexes."""
    if not database.is_file():
        raise ValueError("there is no index yet: make one first.")
    try:
        connection = sqlite3.connect(_read_only(database), uri=True, timeout=1, isolation_level=None, check_same_thread=False)
        try:
            _check(connection, database)
            if connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
                raise ValueError(f"{database.name} was made by an older version: update the index first.")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise ValueError(f"{database.name} cannot be read now ({error}): try again, or delete it and index again.") from None
    return connection


def _read_only(database: Path) -> str:
    return f"{database.absolute().as_uri()}?mode=ro"


def families_in(database: Path) -> list[str]:
    """Base families of the readable LoRAs in an index, most first; none where it is not there yet, or cannot be read now."""
    if not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(_read_only(database), uri=True, timeout=1)) as connection:
            rows = connection.execute("SELECT family FROM files WHERE state = 'good' GROUP BY family ORDER BY count(*) DESC, family")
            return [family for (family,) in rows]
    except sqlite3.Error:
        return []


def _check(connection: sqlite3.Connection, database: Path) -> None:
    version, application = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != _APPLICATION:
        raise ValueError(f"{database} is a database of another program: name another file for the index.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{database} was made by a newer version (schema {version}, this one knows {SCHEMA_VERSION}): update Intrinsic Lab, "
            "or name another file for the index."
        )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switching a new file to WAL needs it alone, and does not wait for others by itself."""
    started = time.monotonic()
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() - started > _BUSY_SECONDS:
                raise
            time.sleep(0.02)


def _migrate(connection: sqlite3.Connection, database: Path) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    with transaction(connection):
        # Another process may have done it, or be newer, since the first look.
        _check(connection, database)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: all of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: everything read inside is of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def writing(connection: sqlite3.Connection):
    """A write transaction, or the one that is open."""
    return transaction(connection) if not connection.in_transaction else nullcontext()


def rows_of(connection: sqlite3.Connection, query: str, values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
    """Column -> value of each row; all are read at once."""
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor.fetchall())
