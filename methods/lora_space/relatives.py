"""LoRAs that were made from others and are no copies: later steps, lower ranks, parts, merges. Found by sketches, proven exactly.

Two-sided sketches are linear: that of a merge is the sum of its sources' in the same shares. So sources are picked one by one, each the
nearest to what the others leave (matching pursuit), without reading a file; only what is left with little is then fitted exactly.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from ..lora.header import BadFile
from .comparison import Products, compare, compare_within
from .entries import Entry, Progress, Report
from .index import LoraIndex
from .kinship import LATER, MERGED, MERGED_REDUCED, PART, REDUCED, RELATED, allowed, fit_shares, kinship, nonnegative_fit
from .sketch import KINDS, SKETCH_SIZE, subnetwork_vectors
from .space import Space

# Of sketches: a relative's cosine, and what the components, which are centred, may show of it.
_LEAST_COSINE, _LEAST_OF_COMPONENTS = 0.5, 0.3
# Of a merge with a source of it: seven in equal shares have .38.
_LEAST_OF_MERGES = 0.35
_NEAREST, _CHUNK, _MOST_IN_FULL = 5, 1_000, 20_000
# A merge of merges is told by their sources, so deep.
_MOST_SOURCES, _PASSES = 6, 4
# Of a sketch's length: what fp8 leaves of a merge, and what is no direction of a source any more.
_MOST_LEFT, _NOTHING_LEFT, _LEAST_MATCH = 0.12, 1e-3, 0.1
# What of the nearest may be sources of a merge that lost ranks afterwards, and is read.
_MOST_CANDIDATES = 12


@dataclass(frozen=True)
class Relative:
    """A LoRA that was made from others. kind: of `kinship`. sources: with their shares, 1 but for merges. cosine: with the first source."""

    entry: Entry
    kind: str
    text: str
    sources: tuple[tuple[Entry, float], ...]
    cosine: float

    def as_json(self) -> dict[str, Any]:
        sources = [{"name": source.name, "path": source.path, "share": round(share, 4)} for source, share in self.sources]
        return self.entry.as_json() | {"kind": self.kind, "text": self.text, "cosine": round(self.cosine, 6), "sources": sources}


def find_relatives(
    index: LoraIndex,
    *,
    family: str | None = None,
    folder: str | None = None,
    copies: Collection[int] = (),
    report: Report | None = None,
) -> list[Relative]:
    """What was made from what, by name. copies: ids that are left out, because their originals stand for them."""
    found = []
    for name in [family] if family is not None else index.families():
        entries = {entry.id: entry for entry in index.entries(family=name, folder=folder) if entry.id not in copies}
        found += _of_family(index, index.space(name), entries, report)
    return sorted(found, key=lambda relative: relative.entry.name)


def _of_family(index: LoraIndex, space: Space, entries: dict[int, Entry], report: Report | None) -> list[Relative]:
    rows = [row for row, number in enumerate(space.ids) if int(number) in entries]
    ids = [int(space.ids[row]) for row in rows]
    near: dict[int, list[int]] = {}
    for one, other in _near_pairs(space.vectors[KINDS[0]][rows]):
        near.setdefault(one, []).append(other)
        near.setdefault(other, []).append(one)
    if not near:
        return []
    # Of very many at half the memory: 400 MB for 100,000.
    sketches = numpy.zeros((len(ids), SKETCH_SIZE), numpy.float32 if len(ids) <= _MOST_IN_FULL else numpy.float16)
    for row, number in enumerate(ids):
        if vectors := subnetwork_vectors(index.sketches(number), space.subnetwork):
            sketches[row] = vectors[KINDS[0]]
    pairs: list[Relative] = []
    asked: set[frozenset[int]] = set()
    related: list[int] = []
    for done, (row, others) in enumerate(sorted(near.items()), 1):
        cosines = sketches[others].astype(numpy.float32, copy=False) @ sketches[row].astype(numpy.float32, copy=False)
        nearest = [others[place] for place in numpy.argsort(-cosines)[:_NEAREST] if cosines[place] >= _LEAST_COSINE]
        related += [row] if cosines.max() >= _LEAST_OF_MERGES else []
        for other in nearest:
            if (pair := frozenset((row, other))) not in asked:
                asked.add(pair)
                pairs += _asked(*(entries[ids[one]] for one in sorted(pair)))
        if report:
            report(Progress("compare", done, len(near), entries[ids[row]].path))
    lesser = {relative.entry.id for relative in pairs if relative.kind in (REDUCED, PART)}
    later = {relative.entry.id for relative in pairs if relative.kind == LATER}
    merges = _merges(sketches, related, [entries[number] for number in ids], lesser, later, report)
    return [*merges, *_told(pairs, merges)]


def _told(pairs: list[Relative], merges: list[Relative]) -> Iterator[Relative]:
    """Of each LoRA the fullest that it is a part of, the nearest step that it is later than, and what has no other explanation."""
    chosen: dict[tuple[int, str], Relative] = {}
    explained = {relative.entry.id for relative in (*pairs, *merges) if relative.kind != RELATED}
    merged = {relative.entry.id for relative in merges}
    for relative in sorted(pairs, key=lambda one: one.cosine, reverse=True):
        both = {relative.entry.id, relative.sources[0][0].id}
        # A merge is like its sources, and like other merges of them.
        if (relative.kind == RELATED and both & explained) or (relative.kind in (RELATED, LATER) and both & merged):
            continue
        place = (relative.entry.id, relative.kind)
        if place not in chosen or relative.kind in (REDUCED, PART):
            chosen[place] = relative
    yield from chosen.values()


def _merges(
    sketches: numpy.ndarray,
    rows: Sequence[int],
    entries: Sequence[Entry],
    lesser: set[int],
    later: set[int],
    report: Report | None,
) -> list[Relative]:
    """The merges among some rows, in terms of LoRAs that are none, where they can be.

    lesser: ids of what stands for a fuller one. later: of later steps, which are not asked whether they lost ranks.
    """
    found: dict[int, Relative] = {}
    asked: set[tuple[int, ...]] = set()
    for _ in range(_PASSES):
        pool = numpy.array([row not in found and entry.id not in lesser for row, entry in enumerate(entries)])
        before = dict(found)
        for done, row in enumerate(rows, 1):
            settled = row in found and not {source.id for source, _ in found[row].sources} & {entries[one].id for one in found}
            if settled or entries[row].id in lesser:
                continue
            merge = _merge(sketches, row, entries, pool)
            if merge is None and entries[row].id not in later:
                merge = _reduced_merge(sketches, row, entries, pool, asked)
            if merge:
                found[row] = merge
            if report:
                report(Progress("compare", done, len(rows), entries[row].path))
        if found == before:
            break
    return list(found.values())


def _near_pairs(vectors: numpy.ndarray) -> Iterator[tuple[int, int]]:
    for start in range(0, len(vectors), _CHUNK):
        cosines = vectors[start : start + _CHUNK] @ vectors[start:].T
        yield from ((start + one, start + other) for one, other in numpy.argwhere(numpy.triu(cosines >= _LEAST_OF_COMPONENTS, 1)).tolist())


def _asked(first: Entry, second: Entry) -> list[Relative]:
    # A file that has changed or gone since it was indexed is nobody's relative.
    try:
        kin = kinship(first.path, second.path)
    except (BadFile, OSError):
        return []
    made, source = (first, second) if kin and kin.turned else (second, first)
    return [Relative(made, kin.kind, kin.text, ((source, 1.0),), kin.cosine)] if kin else []


def _merge(sketches: numpy.ndarray, row: int, entries: Sequence[Entry], pool: numpy.ndarray) -> Relative | None:
    """The LoRA of a row as a sum of others of the pool with positive shares; None if it is none."""
    rows = _pursued(sketches, row, pool)
    if len(rows) < 2:
        return None
    others = [entries[one] for one in rows]
    try:
        found = compare([entries[row].path, *(other.path for other in others)])
    except (BadFile, OSError):
        return None
    shares = _explaining(found)
    return _said(MERGED, f"{entries[row].name} is merged from", entries[row], others, shares, found) if len(shares) > 1 else None


def _reduced_merge(
    sketches: numpy.ndarray, row: int, entries: Sequence[Entry], pool: numpy.ndarray, asked: set[tuple[int, ...]]
) -> Relative | None:
    """The same of what a lower rank leaves of such a sum, or of one LoRA times a share. Its sources are among the nearest of its sketch.

    asked: rows with their candidates, each of which is compared but once.
    """
    cosines = numpy.where(pool, _scores(sketches, sketches[row].astype(numpy.float32, copy=False)), -1)
    cosines[row] = -1
    candidates = [int(one) for one in numpy.argsort(-cosines)[:_MOST_CANDIDATES] if cosines[one] > 0]
    if (row, *candidates) in asked:
        return None
    asked.add((row, *candidates))
    others = [entries[one] for one in candidates]
    try:
        found = compare_within([entries[row].path, *(other.path for other in others)]) if others else None
    except (BadFile, OSError):
        return None
    shares = _explaining(found[0]) if found else {}
    if not found or not shares:
        return None
    inner = found[1].inner
    whole = sum(share * other * inner[one, two] for one, share in shares.items() for two, other in shares.items())
    if whole - inner[0, 0] <= allowed(found[1], 0, shares) ** 2:
        # Nothing is lost: a merge among whose nearest there are others too like it to be pursued.
        made = f"{entries[row].name} is merged from"
        return _said(MERGED, made, entries[row], others, shares, found[1]) if len(shares) > 1 else None
    kept = f", then reduced to a lower rank ({inner[0, 0] / whole:.1%} of its energy)"
    kind, made = (MERGED_REDUCED, "merged from") if len(shares) > 1 else (REDUCED, "made from")
    return _said(kind, f"{entries[row].name} is {made}", entries[row], others, shares, found[1], kept)


def _explaining(found: Products) -> dict[int, float]:
    """Place -> share of the fewest others whose positive sum is the first but for rounding; none if there are no such."""

    def fitted(places: Sequence[int]) -> dict[int, float] | None:
        shares = {place: share for place, share in fit_shares(found, 0, places).items() if share > 0}
        weights, used = numpy.array([-1.0, *shares.values()]), [0, *shares]
        left = max(float(weights @ found.inner[numpy.ix_(used, used)] @ weights), 0.0) ** 0.5
        return shares if shares and left <= allowed(found, 0, shares) else None

    shares = fitted(range(1, len(found.inner))) or {}
    for place in sorted(shares, key=shares.__getitem__):
        shares = fitted([one for one in shares if one != place]) or shares
    return shares


def _said(
    kind: str, begun: str, own: Entry, others: Sequence[Entry], shares: dict[int, float], found: Products, ended: str = ""
) -> Relative:
    ordered = sorted(((others[place - 1], share) for place, share in shares.items()), key=lambda one: -one[1])
    text = f"{begun} {' + '.join(f'{share:.3g} x {source.name}' for source, share in ordered)}{ended}"
    first = max(shares, key=lambda one: shares[one])
    cosine = found.inner[0, first] / (found.inner[0, 0] * found.inner[first, first]) ** 0.5
    return Relative(own, kind, text, tuple(ordered), float(cosine))


def _pursued(sketches: numpy.ndarray, row: int, pool: numpy.ndarray) -> list[int]:
    """Rows of the pool whose positive combination leaves little of this one; none if there are no such."""
    own = sketches[row].astype(numpy.float32, copy=False)
    rows: list[int] = []
    left = own
    while len(rows) < _MOST_SOURCES and (length := float(numpy.linalg.norm(left))) > _NOTHING_LEFT:
        scores = _scores(sketches, left)
        scores[~pool] = scores[[row, *rows]] = -numpy.inf
        if scores.max() < _LEAST_MATCH * length:
            break
        rows.append(int(scores.argmax()))
        chosen = sketches[rows].astype(numpy.float32, copy=False)
        left = own - numpy.array(nonnegative_fit(chosen @ chosen.T, chosen @ own), numpy.float32) @ chosen
    return rows if numpy.linalg.norm(left) <= _MOST_LEFT else []


def _scores(sketches: numpy.ndarray, vector: numpy.ndarray) -> numpy.ndarray:
    chunks = (sketches[start : start + _CHUNK].astype(numpy.float32, copy=False) for start in range(0, len(sketches), _CHUNK))
    return numpy.concatenate([chunk @ vector for chunk in chunks])
