"""Exact angles between LoRAs: Frobenius inner products of their changes, in rank space, summed over the modules.

Reads the weights of every file named: 0.2 s for an SDXL LoRA. For re-ranking what the sketches found, not for whole shelves.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy

from ..lora.cache import ReadCache
from ..lora.delta import Delta, inner_product, numbers_of
from ..lora.reading import deltas_of, repeated_modules
from ..lora.weight_file import Reader

# Numbers of the queries that are held at once: 400 MB.
_HELD_NUMBERS = 100 << 20


@dataclass(frozen=True)
class Gram:
    """inner [q, c]: <query, candidate>. query_norms [q], candidate_norms [c]. A candidate that cannot be read is NaN throughout."""

    inner: numpy.ndarray
    query_norms: numpy.ndarray
    candidate_norms: numpy.ndarray

    @property
    def cosines(self) -> numpy.ndarray:
        """[q, c], -1..1; 0 where a norm is 0."""
        norms = self.query_norms[:, None] * self.candidate_norms[None]
        return numpy.where(norms == 0, 0.0, self.inner / numpy.where(norms == 0, 1.0, norms))


def gram(
    queries: Sequence[str | Path],
    candidates: Sequence[str | Path],
    subnetwork: str = "all",
    *,
    workers: int = 2,
    report: Callable[[int, int, str], None] | None = None,
) -> Gram:
    """Inner products of every query with every candidate. Queries are held in memory, the largest in parts; candidates pass by module by
    module.

    A module that only one of two files has counts as 0 in the other. report(done, total, path) may raise to stop.
    Raises BadFile if a query cannot be read.
    """
    cache = ReadCache()
    inner, squares = numpy.zeros((len(queries), len(candidates))), numpy.zeros(len(queries))
    candidate_norms = numpy.full(len(candidates), numpy.nan)
    with ThreadPoolExecutor(workers) as pool:
        for held in _parts(queries, subnetwork, cache):
            squares += [sum(_inner(deltas, deltas) for deltas in query.values()) for query in held]
            try:
                results = pool.map(lambda path: _against(held, path, subnetwork, cache), candidates)  # noqa: B023
                for column, (row, norm) in enumerate(results):
                    inner[:, column] += row
                    candidate_norms[column] = norm
                    if report:
                        report(column + 1, len(candidates), str(candidates[column]))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return Gram(inner, numpy.sqrt(squares), candidate_norms)


Changes = dict[str, list[Delta]]
"""module -> its changes, which add up: a file may have one for a fused projection and one for a part of it."""


def _parts(queries: Sequence[str | Path], subnetwork: str, cache: ReadCache) -> Iterator[list[Changes]]:
    """The queries' changes, as many at a time as memory is taken for; most fit at once. Candidates are read anew against each part."""
    held: list[Changes] = [{} for _ in queries]
    # Changes that add up belong in one part.
    adding: list[Changes] = [{} for _ in queries]
    numbers = 0
    for place, path in enumerate(queries):
        with Reader(path, cache) as reader:
            repeated = repeated_modules(reader.header.layout)
            for delta in deltas_of(reader, subnetwork):
                if numbers > _HELD_NUMBERS:
                    yield held
                    held, numbers = [{} for _ in queries], 0
                part = adding if delta.module in repeated else held
                part[place].setdefault(delta.module, []).append(delta)
                numbers += 0 if part is adding else numbers_of(delta)
    yield [one | other for one, other in zip(held, adding, strict=True)]


def _inner(first: Sequence[Delta], second: Sequence[Delta]) -> float:
    return sum(inner_product(one, other) for one in first for other in second if one.shape == other.shape)


def _against(held: list[Changes], path: str | Path, subnetwork: str, cache: ReadCache) -> tuple[numpy.ndarray, float]:
    row, square = numpy.zeros(len(held)), 0.0
    met: Changes = {}
    try:
        with Reader(path, cache) as reader:
            repeated = repeated_modules(reader.header.layout)
            for delta in deltas_of(reader, subnetwork):
                # With what the module had before: |a + b|^2 = |a|^2 + 2 <a, b> + |b|^2.
                square += inner_product(delta, delta) + 2 * _inner([delta], met.get(delta.module, ()))
                for place, query in enumerate(held):
                    row[place] += _inner([delta], query.get(delta.module, ()))
                if delta.module in repeated:
                    met.setdefault(delta.module, []).append(delta)
                del delta
    # Whatever is odd about one candidate, the others are compared.
    except Exception:
        return numpy.full(len(held), numpy.nan), float("nan")
    return row, square**0.5


def exact_cosines(
    queries: Sequence[str | Path],
    candidates: Sequence[str | Path],
    subnetwork: str = "all",
    report: Callable[[int, int, str], None] | None = None,
) -> numpy.ndarray:
    """Cosines [q, c] of the changes of weights; NaN for a candidate that cannot be read."""
    return gram(queries, candidates, subnetwork, report=report).cosines
