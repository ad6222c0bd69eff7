"""The vectors of one base family: principal components of unit sketches, compared by their cosine.

Unit sketches, so that a LoRA's strength does not count. PCA by the covariance [SKETCH_SIZE, SKETCH_SIZE]: linear in the number of
LoRAs. A LoRA that the PCA was not fitted on projects closer to the origin than those it was (the paper's drift); its
direction stays, so the cosine needs no further calibration.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy
import torch

from .sketch import KINDS, SKETCH_SIZE, unit

# Two sketches of 100,000 LoRAs are 100 MB then, which one core reads in less than 10 ms.
DIMENSIONS = 128
# Fewer LoRAs have no covariance worth the name: their unit sketches are compared as they are.
LEAST_FOR_PCA = 64


@dataclass(frozen=True)
class Pca:
    """mean [D] and components [d, D] (rows of length 1), or neither: then projecting only makes vectors unit."""

    mean: numpy.ndarray | None = None
    components: numpy.ndarray | None = None

    @property
    def dimensions(self) -> int:
        """Length of what `project` gives."""
        return SKETCH_SIZE if self.components is None else len(self.components)

    def project(self, vectors: numpy.ndarray) -> numpy.ndarray:
        """[n, D] -> unit rows [n, d], float32."""
        if self.components is None:
            return unit(vectors).astype(numpy.float32)
        return unit((vectors - self.mean) @ self.components.T).astype(numpy.float32)


def fit_pca(chunks: Iterable[numpy.ndarray], dimensions: int) -> Pca:
    """PCA of rows that come in chunks [m, D]; at most `dimensions` components, and fewer than there are rows."""
    rows = numpy.concatenate(list(chunks)).astype(numpy.float32)
    mean = rows.mean(0, dtype=numpy.float64).astype(numpy.float32)
    rows -= mean
    few = len(rows) < rows.shape[1]
    # The smaller of the two matrices that have the rows' variances as their eigenvalues.
    values, vectors = numpy.linalg.eigh((rows @ rows.T if few else rows.T @ rows).astype(numpy.float64))
    kept = vectors[:, ::-1][:, : max(1, min(dimensions, len(rows) - 1))].T
    if few:
        # Copies add rows but no directions: what is left for them is rounding, whose direction means nothing.
        there = values[::-1][: len(kept)] > 1e-6 * values[-1]
        kept = unit(kept @ rows) * there[:, None]
    # The sign of a component is free; fixed, so that maps do not flip.
    kept = kept * numpy.sign(kept[numpy.arange(len(kept)), numpy.abs(kept).argmax(1)])[:, None]
    return Pca(mean, numpy.ascontiguousarray(kept, dtype=numpy.float32))


@dataclass(frozen=True)
class Candidate:
    """A LoRA (id in the index) and its cosines with the query."""

    id: int
    two_sided: float
    output: float

    @property
    def score(self) -> float:
        """What ranks candidates before they are compared exactly."""
        return (self.two_sided + self.output) / 2


class Store(Protocol):
    """Where the nearest vectors are looked up: a `Space` in memory, a `QdrantStore` or a `PostgresStore`."""

    @property
    def family(self) -> str: ...

    @property
    def subnetwork(self) -> str: ...

    def project(self, sketches: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        """kind -> unit vector [d] in this space, of a LoRA's sub-network sketches (kind -> [SKETCH_SIZE])."""
        ...

    def nearest(self, query: Mapping[str, numpy.ndarray], count: int, allowed: Sequence[int] | None = None) -> list[Candidate]:
        """The best `count` by each sketch and by their mean, joined, best mean first.

        query: kind -> unit vector [d]. allowed: ids to choose among; None for all.
        """
        ...


@dataclass(frozen=True)
class Space:
    """All LoRAs of a family and sub-network. ids [n] (of the index); vectors: kind -> unit rows [n, d], float32."""

    family: str
    subnetwork: str
    ids: numpy.ndarray
    vectors: dict[str, numpy.ndarray]
    pca: dict[str, Pca] = field(default_factory=dict)

    def project(self, sketches: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        """See `Store`."""
        return project(self.pca, sketches)

    @property
    def joint(self) -> numpy.ndarray:
        """Unit rows [n, 2 d]: both sketches side by side; cosines are the mean of theirs."""
        return numpy.concatenate([self.vectors[kind] for kind in KINDS], axis=1) * numpy.float32(0.5**0.5)

    def nearest(self, query: Mapping[str, numpy.ndarray], count: int, allowed: Sequence[int] | None = None) -> list[Candidate]:
        """See `Store`. Exact: every vector is compared."""
        rows = None if allowed is None else numpy.flatnonzero(numpy.isin(self.ids, numpy.asarray(allowed, dtype=numpy.int64)))
        ids = self.ids if rows is None else self.ids[rows]
        vectors = self.vectors if rows is None else {kind: self.vectors[kind][rows] for kind in KINDS}
        cosines = [vectors[kind] @ query[kind] for kind in KINDS]
        mean = (cosines[0] + cosines[1]) / 2
        chosen = {int(row) for values in (*cosines, mean) for row in top(values, count)}
        found = [Candidate(int(ids[row]), float(cosines[0][row]), float(cosines[1][row])) for row in chosen]
        return sorted(found, key=lambda candidate: (-candidate.score, candidate.id))


def project(pca: Mapping[str, Pca], sketches: Mapping[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """`Store.project` by these PCAs."""
    return {kind: pca[kind].project(sketches[kind][None])[0] for kind in KINDS}


def top(values: numpy.ndarray, count: int) -> numpy.ndarray:
    """Places of the `count` largest values."""
    # A sixth of the time of numpy.argpartition.
    return torch.from_numpy(values).topk(min(count, len(values))).indices.numpy()


def pack(pca: Mapping[str, Pca]) -> tuple[int, bytes]:
    """(dimensions, bytes) of both PCAs; 0 where there is none."""
    fitted = [(found.mean, found.components) for found in (pca[kind] for kind in KINDS)]
    rows = [numpy.concatenate([mean[None], components]) for mean, components in fitted if mean is not None and components is not None]
    if not rows:
        return 0, b""
    return len(rows[0]) - 1, numpy.concatenate(rows).astype("<f4").tobytes()


def unpack(dimensions: int, data: bytes) -> dict[str, Pca]:
    """Undoes `pack`."""
    if not dimensions:
        return {kind: Pca() for kind in KINDS}
    rows = numpy.frombuffer(data, "<f4").reshape(len(KINDS), dimensions + 1, SKETCH_SIZE)
    return {kind: Pca(part[0], part[1:]) for kind, part in zip(KINDS, rows, strict=True)}
