"""Groups of LoRAs that lie together, and what to call them."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy

from .entries import Entry
from .sketch import unit

# What needs a matrix of all pairs is done on this many, at most; the rest follow their nearest.
LANDMARKS = 2_000
_RESTARTS, _ROUNDS = 5, 30


def landmarks(count: int, most: int, seed: int) -> numpy.ndarray:
    """Places of at most `most` out of `count`, in order."""
    if count <= most:
        return numpy.arange(count)
    return numpy.sort(numpy.random.default_rng(seed).choice(count, most, replace=False))


def cluster_vectors(vectors: numpy.ndarray, count: int | None = None, seed: int = 0) -> numpy.ndarray:
    """Spherical k-means: a label per unit row of `vectors` [n, d]; label 0 is the largest cluster.

    count: how many clusters; None: as many as give the best mean silhouette (cosine), one where no division is better than none.
    """
    chosen = landmarks(len(vectors), LANDMARKS, seed)
    sample = vectors[chosen]
    if count is None:
        count = _best_count(sample, seed)
    centers = _k_means(sample, min(count, len(sample)), seed)
    labels = (vectors @ centers.T).argmax(1)
    order = [label for label, _ in Counter(labels.tolist()).most_common()]
    return numpy.array([order.index(label) for label in labels.tolist()], dtype=numpy.int64)


def _best_count(sample: numpy.ndarray, seed: int) -> int:
    """The number of clusters of the best silhouette: looked for in steps of a fifth, then one by one around the best."""
    most = min(40, len(sample) // 3)
    distances = 1 - sample @ sample.T
    scores: dict[int, float] = {1: 0.0}

    def best_of(counts: Iterable[int]) -> int:
        for count in counts:
            if 2 <= count <= most and count not in scores:
                scores[count] = _silhouette(distances, (sample @ _k_means(sample, count, seed).T).argmax(1))
        return max(scores, key=lambda count: scores[count])

    coarse = best_of(round(2 * 1.2**step) for step in range(18))
    return best_of(range(round(coarse / 1.2) + 1, round(coarse * 1.2)))


def _silhouette(distances: numpy.ndarray, labels: numpy.ndarray) -> float:
    """Mean silhouette (Rousseeuw 1987); rows alone in their cluster count 0."""
    members = (labels[:, None] == numpy.unique(labels)[None]).astype(distances.dtype)
    sizes, rows = members.sum(0), numpy.arange(len(labels))
    if len(sizes) < 2:
        return 0.0
    own = members.argmax(1)
    sums = distances @ members
    inside = sums[rows, own] / numpy.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[rows, own] = numpy.inf
    outside = means.min(1)
    values = numpy.where(sizes[own] > 1, (outside - inside) / numpy.maximum(numpy.maximum(inside, outside), 1e-12), 0)
    return float(values.mean())


def _k_means(sample: numpy.ndarray, count: int, seed: int) -> numpy.ndarray:
    """Unit centres [count, d] of the best of several starts (k-means++)."""
    random = numpy.random.default_rng(seed)
    best, best_score = sample[:count], -math.inf
    for _ in range(_RESTARTS if count > 1 else 1):
        centers = _spread(sample, count, random)
        for _ in range(_ROUNDS):
            labels = (sample @ centers.T).argmax(1)
            sums = numpy.zeros_like(centers)
            numpy.add.at(sums, labels, sample)
            empty = ~sums.any(1)
            # A cluster that lost all its members starts again at the row that fits its own worst.
            sums[empty] = sample[numpy.argsort((sample * centers[labels]).sum(1))[: empty.sum()]]
            moved, centers = centers, unit(sums)
            if numpy.allclose(moved, centers, atol=1e-6):
                break
        score = float((sample @ centers.T).max(1).sum())
        if score > best_score:
            best, best_score = centers, score
    return best


def _spread(sample: numpy.ndarray, count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """First centres by greedy k-means++: of several draws, weighted by distance, the one that brings all rows nearest."""
    tries = 2 + int(math.log(count))
    chosen = [int(random.integers(len(sample)))]
    nearest = 1 - sample @ sample[chosen[0]]
    while len(chosen) < count:
        weight = numpy.maximum(nearest, 0).astype(numpy.float64)
        weight = weight / weight.sum() if weight.sum() > 0 else numpy.full(len(sample), 1 / len(sample))
        drawn = random.choice(len(sample), tries, p=weight)
        distances = numpy.minimum(nearest, 1 - sample[drawn] @ sample.T)
        best = int(distances.sum(1).argmin())
        chosen.append(int(drawn[best]))
        nearest = distances[best]
    return sample[chosen].copy()


def name_clusters(entries: Sequence[Entry], labels: Sequence[int]) -> list[str]:
    """A name per cluster: the folder that holds most of it, else the tag that sets it apart, else one of its LoRAs."""
    names: list[str] = []
    of_all = {"folder": Counter(entry.folder for entry in entries), "tag": Counter(tag for entry in entries for tag in entry.tags)}
    for label in range(max(labels, default=-1) + 1):
        members = [entry for entry, own in zip(entries, labels, strict=True) if own == label]
        folder = _telling(Counter(entry.folder for entry in members if entry.folder), of_all["folder"], len(members), len(entries), 0.5)
        tag = _telling(Counter(tag for entry in members for tag in entry.tags), of_all["tag"], len(members), len(entries), 0.3)
        name = os.path.basename(folder) if folder else tag or f"like {os.path.splitext(os.path.basename(members[0].name))[0]}"
        names.append(name if name not in names else f"{name} ({names.count(name) + sum(n.startswith(f'{name} (') for n in names) + 1})")
    return names


def _telling(inside: Counter, everywhere: Counter, size: int, total: int, least: float) -> str | None:
    """What most of the cluster has and few others do; None if less than `least` of the cluster has it, or all of the collection."""
    scores = {
        value: (many / size) * math.log(total / everywhere[value])
        for value, many in inside.items()
        if many >= least * size and everywhere[value] < total
    }
    return max(scores, key=lambda value: (scores[value], value), default=None)
