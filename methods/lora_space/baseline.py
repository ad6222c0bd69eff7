"""What ours is compared with: the paper's own form, and singular values only. For evaluations and to choose instead of ours.

The paper concatenates all A and B of a LoRA and takes principal components over a collection. The files of a collection must have
the same modules and ranks for that; lower ranks are filled up with zeros, modules that are missing are zeros. Its calibration against
projection drift is not public; ours scales every projected vector to length 1, which is all a cosine needs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from ..lora.delta import LowRank
from ..lora.reading import read_deltas
from .entries import Entry
from .index import LoraIndex
from .search import family_of
from .sketch import unit


@dataclass(frozen=True)
class RawMatch:
    """A LoRA found by the paper's form. score: cosine of the projected vectors, -1..1."""

    entry: Entry
    score: float

    def as_json(self) -> dict[str, Any]:
        """What the command line shows of it."""
        return self.entry.as_json() | {"score": round(self.score, 6)}


def _factors(path: str | Path, subnetwork: str) -> dict[str, LowRank]:
    return {delta.module: delta.factors() for delta in read_deltas(path, subnetwork)}


@dataclass(frozen=True)
class RawSpace:
    """Principal components of raw A and B. vectors [n, d]: unit rows (`calibrated`) or plain projections.

    layout: module -> (rank, out, in) of the flattened vector. mean [D], components [d, D].
    """

    vectors: numpy.ndarray
    mean: numpy.ndarray
    components: numpy.ndarray
    layout: dict[str, tuple[int, int, int]]
    subnetwork: str
    calibrated: bool

    @classmethod
    def fit(cls, paths: Sequence[str | Path], subnetwork: str = "all", dimensions: int = 256, calibrated: bool = True) -> "RawSpace":
        """PCA of the files; through their Gram matrix [n, n], so for at most 2,000 files. Raises ValueError for more."""
        if len(paths) > 2000:
            raise ValueError(f"{len(paths)} files came, the paper's form is fitted on at most 2000: take a part of them.")
        layout: dict[str, tuple[int, int, int]] = {}
        for path in paths:
            for name, delta in _factors(path, subnetwork).items():
                known = layout.get(name, (0, *delta.shape))
                if known[1:] != delta.shape:
                    raise ValueError(f"{Path(path).name} has shape {delta.shape} for {name}, others {known[1:]}: one base model at a time.")
                layout[name] = (max(known[0], len(delta.down)), *delta.shape)
        rows = numpy.stack([_flatten(path, subnetwork, layout) for path in paths])
        mean = rows.mean(0)
        rows -= mean
        values, vectors = numpy.linalg.eigh(rows @ rows.T)
        kept = numpy.flatnonzero(values > values[-1] * 1e-7)[::-1][:dimensions]
        components = (vectors[:, kept].T @ rows) / numpy.sqrt(values[kept])[:, None]
        projected = rows @ components.T
        return cls(unit(projected) if calibrated else projected, mean, components, layout, subnetwork, calibrated)

    def embed(self, path: str | Path) -> numpy.ndarray:
        """[d] of any file of the same base model; what the layout has no place for is left out."""
        projected = (_flatten(path, self.subnetwork, self.layout) - self.mean) @ self.components.T
        return unit(projected) if self.calibrated else projected


def nearest_raw(index: LoraIndex, query: str | Path, *, k: int = 5, subnetwork: str = "all", folder: str | None = None) -> list[RawMatch]:
    """The k LoRAs nearest to a query by the paper's form, best first; fitted anew on every LoRA of the query's family (and folder).

    Reads all of them, which takes a collection's time and memory: at most 2,000. Raises ValueError for more, or a query that is unreadable.
    """
    entries = [entry for entry in index.entries(family=family_of(index, [query]), folder=folder) if entry.path != os.path.abspath(query)]
    if len(entries) < 2:
        raise ValueError("the paper's form is fitted on a collection: index at least two other LoRAs of the query's base model.")
    space = RawSpace.fit([entry.path for entry in entries], subnetwork)
    cosines = space.vectors @ space.embed(query)
    return [RawMatch(entries[place], float(cosines[place])) for place in numpy.argsort(-cosines)[:k]]


def _flatten(path: str | Path, subnetwork: str, layout: dict[str, tuple[int, int, int]]) -> numpy.ndarray:
    found = _factors(path, subnetwork)
    pieces = []
    for name, (rank, out, width) in layout.items():
        down, up = torch.zeros(rank, width), torch.zeros(out, rank)
        if name in found and found[name].shape == (out, width):
            own = min(rank, len(found[name].down))
            down[:own] = found[name].down[:own]
            # The scale belongs to the change; it is put where training puts its learning: into B.
            up[:, :own] = found[name].up[:, :own] * found[name].scale
        pieces += [down.numpy().ravel(), up.numpy().ravel()]
    return numpy.concatenate(pieces)


def singular_values(path: str | Path, subnetwork: str = "all", count: int = 8) -> dict[str, numpy.ndarray]:
    """module -> its `count` largest singular values, zeros after its rank: what a LoRA does, without where. From rank space."""
    result = {}
    for name, delta in _factors(path, subnetwork).items():
        _, left = torch.linalg.qr(delta.up * delta.scale)
        _, right = torch.linalg.qr(delta.down.T)
        values = torch.linalg.svdvals(left @ right.T)[:count].numpy()
        result[name] = numpy.pad(values, (0, count - len(values)))
    return result
