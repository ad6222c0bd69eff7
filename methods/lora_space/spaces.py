"""The spaces of an index: components fitted to a family and sub-network, and every LoRA's place among them, kept in its database."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

from ..lora.names import SUBNETWORKS
from .database import rows_of, snapshot, writing
from .sketch import KINDS, SKETCH_SIZE, SKETCH_VERSION, unit, unpacked
from .space import DIMENSIONS, LEAST_FOR_PCA, Pca, Space, fit_pca, pack, unpack

# Rows that the PCA is fitted on, at most; drawn evenly from the collection.
_FIT_ROWS = 20_000
# Of an index that is only read and has none: components for this once, in a moment.
_QUICK_FIT_ROWS = 500
_CHUNK = 2_000


@dataclass(frozen=True)
class Fit:
    """Components in the database. fitted_on: how many LoRAs there were then."""

    id: int
    fitted_on: int
    dimensions: int
    pca: dict[str, Pca]


class Spaces:
    """Over an open connection. read_only: nothing is written; components are those there are, else quickly fitted ones."""

    def __init__(self, connection: sqlite3.Connection, read_only: bool) -> None:
        self._connection, self._read_only = connection, read_only

    def space(self, family: str, subnetwork: str) -> Space:
        """All embedded LoRAs of a family as vectors, in memory. Raises ValueError for a sub-network that there is not."""
        ids = self.members(family, subnetwork)
        if len(ids) < LEAST_FOR_PCA:
            return self._in_memory(family, subnetwork, ids, {kind: Pca() for kind in KINDS})
        if self._read_only:
            return self._as_it_is(family, subnetwork, ids, self._fit_of(family, subnetwork))
        return self._placed(family, subnetwork, self.fit(family, subnetwork, ids))

    def members(self, family: str, subnetwork: str) -> numpy.ndarray:
        """Rising ids of the LoRAs that a space holds."""
        if subnetwork not in SUBNETWORKS:
            raise ValueError(f"there is no sub-network {subnetwork!r}: choose one of {', '.join(SUBNETWORKS)}.")
        parts = SUBNETWORKS[subnetwork]
        query = (
            "SELECT DISTINCT files.id FROM files JOIN sketches ON sketches.file_id = files.id WHERE family = ? AND state = 'good' "
            f"AND sketch_version = ? AND part IN ({','.join('?' * len(parts))}) ORDER BY files.id"
        )
        return self._numbers(query, [family, SKETCH_VERSION, *parts])

    def fit(self, family: str, subnetwork: str, ids: numpy.ndarray) -> Fit:
        """The components of these members, in which all have a place; fitted anew when they have grown by a quarter or halved since."""
        fit = self._fit_of(family, subnetwork)
        if fit is None or not 0.5 <= len(ids) / fit.fitted_on <= 1.25:
            fit = self._new_fit(family, subnetwork, ids)
        self._place(fit, subnetwork, ids)
        return fit

    def vectors(self, fit: Fit, ids: Sequence[int]) -> tuple[list[int], dict[str, numpy.ndarray]]:
        """(ids, kind -> unit rows) of those that have a place in a fit."""
        query = "SELECT file_id, vectors FROM vectors WHERE space_id = ? AND file_id IN (SELECT value FROM json_each(?)) ORDER BY file_id"
        return _unpacked(self._connection.execute(query, [fit.id, json.dumps([int(number) for number in ids])]).fetchall(), fit)

    def _numbers(self, query: str, values: Sequence) -> numpy.ndarray:
        # Not as a list of tuples, which takes twenty times the memory.
        return numpy.fromiter((number for (number,) in self._connection.execute(query, values)), numpy.int64)

    def _fit_of(self, family: str, subnetwork: str) -> Fit | None:
        query = "SELECT * FROM spaces WHERE family = ? AND subnetwork = ? AND sketch_version = ?"
        row = next(rows_of(self._connection, query, [family, subnetwork, SKETCH_VERSION]), None)
        return Fit(row["id"], row["fitted_on"], row["dimensions"], unpack(row["dimensions"], row["pca"])) if row else None

    def _in_memory(self, family: str, subnetwork: str, ids: numpy.ndarray, pca: dict[str, Pca]) -> Space:
        """The sketches of these, projected; nothing is kept in the database."""
        parts = [numpy.empty((0, len(KINDS), pca[KINDS[0]].dimensions), numpy.float32)]
        for rows in self._unit_sketches(ids, subnetwork):
            parts.append(numpy.stack([pca[kind].project(rows[:, place]) for place, kind in enumerate(KINDS)], axis=1))
        vectors = numpy.concatenate(parts)
        return Space(family, subnetwork, ids, {kind: numpy.ascontiguousarray(vectors[:, place]) for place, kind in enumerate(KINDS)}, pca)

    def _as_it_is(self, family: str, subnetwork: str, ids: numpy.ndarray, fit: Fit | None) -> Space:
        if fit is None:
            return self._in_memory(family, subnetwork, ids, self._pca(subnetwork, ids, _QUICK_FIT_ROWS))
        placed = self._placed(family, subnetwork, fit)
        beside = self._in_memory(family, subnetwork, numpy.setdiff1d(ids, placed.ids), placed.pca)
        vectors = {kind: numpy.concatenate([placed.vectors[kind], beside.vectors[kind]]) for kind in KINDS}
        return Space(family, subnetwork, numpy.concatenate([placed.ids, beside.ids]), vectors, placed.pca)

    def _unit_sketches(self, ids: Sequence[int] | numpy.ndarray, subnetwork: str) -> Iterator[numpy.ndarray]:
        """[m, 2, SKETCH_SIZE] unit sketches, a chunk of ids at a time."""
        query = (
            "SELECT file_id, vectors FROM sketches JOIN files ON files.id = file_id "
            "WHERE part = ? AND sketch_version = ? AND file_id IN (SELECT value FROM json_each(?))"
        )
        for start in range(0, len(ids), _CHUNK):
            chosen = [int(number) for number in ids[start : start + _CHUNK]]
            place = {number: row for row, number in enumerate(chosen)}
            # What another process removed since it was listed stays zero, which is near nothing.
            sums = numpy.zeros((len(chosen), len(KINDS), SKETCH_SIZE), numpy.float32)
            for part in SUBNETWORKS[subnetwork]:
                found = self._connection.execute(query, [part, SKETCH_VERSION, json.dumps(chosen)]).fetchall()
                if found:
                    sums[[place[number] for number, _ in found]] += unpacked(b"".join(data for _, data in found))
            yield unit(sums)

    def _pca(self, subnetwork: str, ids: numpy.ndarray, most: int) -> dict[str, Pca]:
        """Of at most so many of these LoRAs, drawn evenly."""
        chosen = ids[numpy.linspace(0, len(ids) - 1, min(len(ids), most)).astype(int)]
        return {
            kind: fit_pca((rows[:, place] for rows in self._unit_sketches(chosen, subnetwork)), DIMENSIONS)
            for place, kind in enumerate(KINDS)
        }

    def _new_fit(self, family: str, subnetwork: str, ids: numpy.ndarray) -> Fit:
        pca = self._pca(subnetwork, ids, _FIT_ROWS)
        dimensions, data = pack(pca)
        with writing(self._connection):
            self._connection.execute("DELETE FROM spaces WHERE family = ? AND subnetwork = ?", [family, subnetwork])
            number = self._connection.execute(
                "INSERT INTO spaces (family, subnetwork, sketch_version, fitted_on, dimensions, pca) VALUES (?, ?, ?, ?, ?, ?)",
                [family, subnetwork, SKETCH_VERSION, len(ids), dimensions, data],
            ).lastrowid
        return Fit(int(number or 0), len(ids), dimensions, unpack(dimensions, data))

    def _place(self, fit: Fit, subnetwork: str, ids: numpy.ndarray) -> None:
        """Gives those of these members a place that have none yet."""
        missing = numpy.setdiff1d(ids, self._numbers("SELECT file_id FROM vectors WHERE space_id = ?", [fit.id]))
        for start in range(0, len(missing), _CHUNK):
            some = missing[start : start + _CHUNK]
            rows = next(self._unit_sketches(some, subnetwork))
            vectors = numpy.stack([fit.pca[kind].project(rows[:, place]) for place, kind in enumerate(KINDS)], axis=1).astype("<f4")
            with writing(self._connection):
                # Only while both are still there: another process may have fitted anew, or dropped the file.
                self._connection.executemany(
                    "INSERT OR REPLACE INTO vectors SELECT spaces.id, files.id, ? FROM spaces, files WHERE spaces.id = ? AND files.id = ?",
                    [(row.tobytes(), fit.id, int(number)) for row, number in zip(vectors, some, strict=True)],
                )

    def _placed(self, family: str, subnetwork: str, fit: Fit) -> Space:
        """Those that have a place in a fit."""
        with snapshot(self._connection):
            found = self._connection.execute(
                "SELECT file_id, vectors FROM vectors WHERE space_id = ? ORDER BY file_id", [fit.id]
            ).fetchall()
        ids, vectors = _unpacked(found, fit)
        return Space(family, subnetwork, numpy.array(ids, dtype=numpy.int64), vectors, fit.pca)


def _unpacked(found: Sequence[tuple[int, bytes]], fit: Fit) -> tuple[list[int], dict[str, numpy.ndarray]]:
    rows = numpy.frombuffer(b"".join(data for _, data in found), "<f4").reshape(len(found), len(KINDS), fit.dimensions)
    return [number for number, _ in found], {kind: numpy.ascontiguousarray(rows[:, place]) for place, kind in enumerate(KINDS)}
