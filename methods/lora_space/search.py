"""Which LoRAs are like this one: the nearest by both sketches, the best of them compared exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from ..lora.header import BadFile
from ..lora.modules import describe
from ..lora.weight_file import read_header
from .entries import Entry, Progress, Report
from .gram import gram
from .index import LoraIndex
from .scan import inspect
from .sketch import KINDS, Sketches, subnetwork_vectors, unit
from .space import Candidate, Store

RERANK = 50


@dataclass(frozen=True)
class Match:
    """A LoRA found, with its cosines to the query, -1..1.

    two_sided, output: by the sketches. exact: of the changes of weights themselves; None if they were not read. score: what matches
    are ordered by, `exact` where it is known, else the mean of the sketches' cosines.
    """

    entry: Entry
    two_sided: float
    output: float
    exact: float | None = None

    @property
    def score(self) -> float:
        return (self.two_sided + self.output) / 2 if self.exact is None else self.exact

    def as_json(self) -> dict[str, Any]:
        cosines = {"score": self.score, "exact": self.exact, "two_sided": self.two_sided, "output": self.output}
        return self.entry.as_json() | {name: None if value is None else round(value, 6) for name, value in cosines.items()}


def find_similar(
    index: LoraIndex,
    like: Sequence[str | Path],
    unlike: Sequence[str | Path] = (),
    *,
    k: int = 5,
    subnetwork: str = "all",
    family: str | None = None,
    folder: str | None = None,
    rerank: int = RERANK,
    store: Store | None = None,
    report: Report | None = None,
) -> list[Match]:
    """The k LoRAs nearest to the centroid of `like` minus that of `unlike`, best first; fewer if there are fewer.

    The query's files need not be in the index, and are never among the matches. family: must be the query's, where it is given.
    rerank: how many candidates are read and scored exactly (0: none; the answer then takes milliseconds). store: where the nearest
    vectors are looked up; None: in memory. report may raise to stop.
    Raises ValueError (BadFile for an unreadable file) if the query has no files, files of several families, or not the sub-network.
    """
    if not like or k < 1:
        raise ValueError("no LoRA was given to search with, or none was asked for: name at least one, and k of at least 1.")
    query_paths = [str(path) for path in (*like, *unlike)]
    weights = numpy.array([1 / len(like)] * len(like) + [-1 / max(len(unlike), 1)] * len(unlike))
    found_family = family_of(index, query_paths)
    if family is not None and family != found_family:
        raise ValueError(f"the query is for {found_family} and {family} LoRAs were asked for: only LoRAs of one base model compare.")
    if store is None:
        store = index.space(found_family, subnetwork)
    elif (store.family, store.subnetwork) != (found_family, subnetwork):
        raise ValueError(f"the store holds {store.family} ({store.subnetwork}), wanted: {found_family} ({subnetwork}): sync another.")
    query = _query(index, query_paths, weights, subnetwork, store)
    excluded = {entry.id for entry in (_known(index, path) for path in query_paths) if entry}
    allowed = None if not folder else index.ids(family=found_family, folder=folder)
    wanted = max(k, (rerank + 1) // 2) + len(excluded)
    candidates = [candidate for candidate in store.nearest(query, wanted, allowed) if candidate.id not in excluded]
    if not rerank:
        candidates = candidates[:k]
    entries = index.entries_of(candidate.id for candidate in candidates)
    matches = [Match(entries[one.id], one.two_sided, one.output) for one in candidates if one.id in entries]
    if rerank:
        matches = _rerank(matches, candidates, query_paths, weights, subnetwork, max(k, rerank), report)
    return sorted(matches, key=lambda match: -match.score)[:k]


def _known(index: LoraIndex, path: str | Path) -> Entry | None:
    try:
        return index.entry(path)
    except ValueError:
        return None


def family_of(index: LoraIndex, paths: Sequence[str | Path]) -> str:
    """The base family of a query's files. Raises ValueError if they have several, BadFile for an unreadable one."""
    families = {}
    for path in paths:
        entry = _known(index, path)
        families[path] = entry.family if entry else describe(_named(read_header, path)).family
    if len(set(families.values())) > 1:
        listed = ", ".join(f"{Path(path).name} ({family})" for path, family in families.items())
        raise ValueError(f"the LoRAs of a query must be for one base model: {listed}.")
    return next(iter(families.values()))


def _named(read, path: str | Path):
    try:
        return read(path)
    except BadFile as error:
        raise BadFile(f"{Path(path).name}: {error}") from None


def _query(index: LoraIndex, paths: Sequence[str], weights: numpy.ndarray, subnetwork: str, store: Store) -> dict[str, numpy.ndarray]:
    """kind -> unit vector of the weighted sum of the files' unit vectors."""
    total = {kind: numpy.zeros(()) for kind in KINDS}
    for path, weight in zip(paths, weights, strict=True):
        vectors = subnetwork_vectors(_sketches(index, path), subnetwork)
        if vectors is None:
            raise ValueError(f"{Path(path).name} has no {subnetwork} weights: choose another sub-network, or all.")
        projected = store.project(vectors)
        total = {kind: total[kind] + weight * projected[kind] for kind in KINDS}
    return {kind: unit(vector).astype(numpy.float32) for kind, vector in total.items()}


def _sketches(index: LoraIndex, path: str) -> Sketches:
    entry = _known(index, path)
    if entry and entry.embedded:
        return index.sketches(entry.id)
    seen = inspect(path, embed=True)
    if seen.sketches is None:
        raise BadFile(f"{Path(path).name}: {seen.reason}")
    return seen.sketches


def _rerank(
    matches: list[Match],
    candidates: Sequence[Candidate],
    query_paths: Sequence[str],
    weights: numpy.ndarray,
    subnetwork: str,
    count: int,
    report: Report | None,
) -> list[Match]:
    """Exact cosines with `sum_i weight_i D_i / |D_i|` for the first `count`, taken from both sketches in turn."""
    chosen = _best_of_both(matches, count)
    found = gram(
        query_paths,
        [*query_paths, *(match.entry.path for match in chosen)],
        subnetwork,
        report=report and (lambda done, total, path: report(Progress("compare", done, total, path))),
    )
    cosines = found.cosines
    among, others = cosines[:, : len(query_paths)], cosines[:, len(query_paths) :]
    length = float(weights @ among @ weights) ** 0.5
    exact = weights @ others / length if length > 0 else weights @ others
    # A candidate that has changed or gone since it was indexed is no answer.
    return [
        Match(match.entry, match.two_sided, match.output, float(value))
        for match, value in zip(chosen, exact, strict=True)
        if not numpy.isnan(value)
    ]


def _best_of_both(matches: Sequence[Match], count: int) -> list[Match]:
    """The first `count` of: the best by one sketch, by the other, by their mean, the second best by one..."""
    orders = [sorted(matches, key=key) for key in (lambda m: -m.two_sided, lambda m: -m.output, lambda m: -(m.two_sided + m.output))]
    ordered = dict.fromkeys(match.entry.id for trio in zip(*orders, strict=True) for match in trio)
    by_id = {match.entry.id: match for match in matches}
    return [by_id[number] for number in list(ordered)[:count]]
