"""How well weights agree with labels: LoRAs asked for their own kind, and clusters against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from .clusters import cluster_vectors
from .index import LoraIndex
from .search import find_similar

CLUSTERINGS = range(5)
HALVES = range(10)
COLUMNS = ("top1", "top1_other_rank", "map", "nmi", "ari")


@dataclass(frozen=True)
class Collection:
    """paths, and of each its style, a number from 0 on, and its rank."""

    paths: list[Path]
    styles: numpy.ndarray
    ranks: numpy.ndarray

    def half(self, seed: int) -> numpy.ndarray:
        """Places of a random half of every style's LoRAs, at least two of each."""
        random, places = numpy.random.default_rng(seed), []
        for style in numpy.unique(self.styles):
            own = numpy.flatnonzero(self.styles == style)
            places.append(random.permutation(own)[: max(2, len(own) // 2)])
        return numpy.sort(numpy.concatenate(places))

    def part(self, places: numpy.ndarray) -> "Collection":
        return Collection([self.paths[place] for place in places], self.styles[places], self.ranks[places])


@dataclass(frozen=True)
class Found:
    """What a method says of n LoRAs: likeness [n, n], larger is nearer, and the unit rows [n, d] that are clustered."""

    likeness: numpy.ndarray
    vectors: numpy.ndarray

    @classmethod
    def by_cosine(cls, vectors: numpy.ndarray) -> "Found":
        return cls(vectors @ vectors.T, vectors)


def retrieval(likeness: numpy.ndarray, collection: Collection) -> dict[str, float]:
    """Each LoRA asks for its style among all others: top-1, top-1 among LoRAs of another rank (NaN where all
    have one rank), and mean average precision.

    likeness: [n, n], larger is nearer.
    """
    styles, ranks = collection.styles, collection.ranks
    hits, across, precisions = [], [], []
    for row, scores in enumerate(likeness):
        others = numpy.flatnonzero(numpy.arange(len(styles)) != row)
        order = others[numpy.argsort(-scores[others], kind="stable")]
        right = styles[order] == styles[row]
        hits.append(right[0])
        precisions.append(average_precision(right))
        elsewhere = right[ranks[order] != ranks[row]]
        across += list(elsewhere[:1])
    return {
        "top1": float(numpy.mean(hits)),
        "top1_other_rank": float(numpy.mean(across)) if across else float("nan"),
        "map": float(numpy.mean(precisions)),
    }


def average_precision(right: numpy.ndarray) -> float:
    """Mean of the precision at every hit of a ranking (bool, best first); 0 without a hit."""
    places = numpy.flatnonzero(right) + 1
    return float(numpy.mean(numpy.arange(1, len(places) + 1) / places)) if len(places) else 0.0


def _contingency(one: Sequence[int], other: Sequence[int]) -> numpy.ndarray:
    first, second = numpy.unique(one, return_inverse=True)[1], numpy.unique(other, return_inverse=True)[1]
    table = numpy.zeros((first.max() + 1, second.max() + 1))
    numpy.add.at(table, (first, second), 1)
    return table


def normalized_mutual_information(one: Sequence[int], other: Sequence[int]) -> float:
    """Mutual information over the arithmetic mean of the entropies (natural logarithm); 1 for equal partitions."""
    joint = _contingency(one, other) / len(one)
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = [-(p * numpy.log(p)).sum() for p in (rows, columns)]
    there = joint > 0
    mutual = (joint[there] * numpy.log(joint[there] / numpy.outer(rows, columns)[there])).sum()
    return float(mutual / numpy.mean(entropies)) if max(entropies) > 0 else 1.0


def adjusted_rand_index(one: Sequence[int], other: Sequence[int]) -> float:
    """Hubert and Arabie 1985: agreeing pairs, corrected for chance; 1 for equal partitions, 0 expected for random ones."""
    table = _contingency(one, other)

    def pairs(counts: numpy.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / (len(one) * (len(one) - 1) / 2)
    return (both - expected) / ((rows + columns) / 2 - expected)


def clustering(vectors: numpy.ndarray, collection: Collection) -> dict[str, float]:
    """Spherical k-means into as many clusters as there are styles; means over seeds."""
    truth = collection.styles
    found = [cluster_vectors(vectors.astype(numpy.float32), int(truth.max()) + 1, seed) for seed in CLUSTERINGS]
    return {
        "nmi": float(numpy.mean([normalized_mutual_information(truth.tolist(), labels.tolist()) for labels in found])),
        "ari": float(numpy.mean([adjusted_rand_index(truth.tolist(), labels.tolist()) for labels in found])),
    }


def unit_centred(vectors: numpy.ndarray) -> numpy.ndarray:
    """Rows minus their mean, length 1: what PCA does to the others' vectors, for features that have few dimensions."""
    centred = vectors - vectors.mean(0)
    return centred / numpy.maximum(numpy.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def scores(found: Found, collection: Collection) -> dict[str, float]:
    """Retrieval and clustering; and as `<column>_spread` the standard deviation over random halves, where a style has four LoRAs."""
    whole = _scores(found, collection)
    if numpy.bincount(collection.styles).max() < 4:
        return whole
    halves = []
    for seed in HALVES:
        places = collection.half(seed)
        halves.append(_scores(Found(found.likeness[numpy.ix_(places, places)], found.vectors[places]), collection.part(places)))
    return whole | {f"{column}_spread": float(numpy.std([half[column] for half in halves], ddof=1)) for column in whole}


def _scores(found: Found, collection: Collection) -> dict[str, float]:
    return retrieval(found.likeness, collection) | clustering(found.vectors, collection)


def ours(collection: Collection, subnetwork: str, index: LoraIndex) -> dict[str, Found]:
    """The index alone, and the shipped pipeline: its best 50 compared exactly, the others behind them in the index's order.

    Raises ValueError for LoRAs that have no weights of the sub-network.
    """
    family = index.entry(collection.paths[0]).family
    space = index.space(family, subnetwork)
    row_of = {index.entry(path).id: row for row, path in enumerate(collection.paths)}
    place_of = {int(number): place for place, number in enumerate(space.ids)}
    if without := [index.entry(path).name for path in collection.paths if index.entry(path).id not in place_of]:
        raise ValueError(f"{len(without)} of the LoRAs have no {subnetwork} weights ({without[0]}): compare all of them.")
    vectors = space.joint[[place_of[number] for number in row_of]]
    likeness = vectors @ vectors.T
    reranked = likeness.copy()
    for row, path in enumerate(collection.paths):
        for match in find_similar(index, [path], k=50, subnetwork=subnetwork, rerank=50):
            # Cosines lie below 1: what was compared exactly stays in front. The index may hold more than the collection.
            if match.entry.id in row_of:
                reranked[row, row_of[match.entry.id]] = 10 + match.score
    # The clusters are the map's: they come from the index, not from the re-ranking.
    return {"ours, index alone": Found(likeness, vectors), "ours, shipped (exact re-rank)": Found(reranked, vectors)}


def as_markdown(rows: dict[str, dict[str, dict[str, float]]], collection: Collection) -> str:
    """One table, a row per method and sub-network."""
    about = f"{len(collection.paths)} LoRAs of {collection.styles.max() + 1} styles, ranks {sorted(set(collection.ranks.tolist()))}."
    lines = [about, "", f"| method | weights | {' | '.join(COLUMNS)} |", f"| --- | --- |{' --- |' * len(COLUMNS)}"]
    for method, parts in rows.items():
        for part, values in parts.items():
            lines.append(f"| {method} | {part} | " + " | ".join(cell(values, column) for column in COLUMNS) + " |")
    return "\n".join(lines)


def cell(values: dict[str, float], column: str) -> str:
    """A score and, where it is known, its spread."""
    spread = values.get(f"{column}_spread")
    return f"{values[column]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
