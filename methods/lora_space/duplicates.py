"""The same LoRA twice: under another name, in another format, dtype or rank, or rescaled. Found by sketches, proven exactly.

What is near and no copy, such as a later step of a training, is `relatives`' business.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy

from ..lora.header import BadFile
from .entries import Entry, Progress, Report
from .gram import gram
from .index import LoraIndex
from .kinship import COPIES, SCALED, Kinship, kinship
from .sketch import KINDS, subnetwork_vectors
from .space import Space

_CHUNK = 1_000
# What both looks at the sketches let pass is compared exactly. Components are centred, which makes small angles larger;
# unit sketches keep small angles in proportion.
_MARGIN_OF_COMPONENTS = 0.03
_FACTOR_OF_SKETCHES = 3.0
_E5M2_ALLOWANCE = 0.003
_DTYPE_BITS = {"F64": 64, "F32": 32, "BF16": 15.5, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 7.5}


@dataclass(frozen=True)
class Copy:
    """A copy of an original. cosine: of the changes of weights, exact. strength: its length over the original's.

    differences: for a person, such as "another dtype: F16 -> BF16"; empty if only the name differs. kind: one of `kinship.COPIES`; text:
    the same for a person, such as "the same change times 1.02".
    """

    entry: Entry
    cosine: float
    strength: float
    differences: tuple[str, ...]
    kind: str = ""
    text: str = ""


@dataclass(frozen=True)
class DuplicateGroup:
    """LoRAs with the same weights. original: the most precise, then of the lowest rank, then the oldest; copies: the others, by name."""

    original: Entry
    copies: tuple[Copy, ...]

    def as_json(self) -> dict[str, Any]:
        copies = [
            one.entry.as_json()
            | {"kind": one.kind, "text": one.text, "cosine": round(one.cosine, 6)}
            | {"strength": round(one.strength, 4), "differences": list(one.differences)}
            for one in self.copies
        ]
        return {"original": self.original.as_json(), "copies": copies}


def find_duplicates(
    index: LoraIndex,
    *,
    family: str | None = None,
    folder: str | None = None,
    threshold: float = 0.998,
    report: Report | None = None,
) -> list[DuplicateGroup]:
    """Groups of LoRAs that make the same change as their original, but for rounding and strength, and agree in what is not read.

    threshold: least cosine of what is looked at; 0.998 lets fp8 copies pass. Only the pairs that the sketches bring near are read.
    """
    groups = []
    for name in [family] if family is not None else index.families():
        space = index.space(name)
        allowed = {entry.id: entry for entry in index.entries(family=name, folder=folder)}
        found: list[DuplicateGroup] = []
        for ids in _near_groups(index, space, set(allowed), threshold, report):
            found += _proven([allowed[number] for number in ids], threshold, report)
        # By name: ids depend on which file was read first.
        groups += sorted(found, key=lambda group: group.original.name)
    return groups


def _near_groups(index: LoraIndex, space: Space, allowed: set[int], threshold: float, report: Report | None) -> list[list[int]]:
    """Connected groups of ids whose vectors, and then sketches, are near; n x chunk at a time."""
    rows = numpy.array([row for row, number in enumerate(space.ids) if int(number) in allowed], dtype=int)
    vectors, ids = space.joint[rows], space.ids[rows]

    @lru_cache(maxsize=4096)
    def sketch_of(row: int) -> numpy.ndarray:
        # Never none: a space holds only LoRAs that have its sub-network.
        return (subnetwork_vectors(index.sketches(ids[row]), space.subnetwork) or {})[KINDS[0]]

    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for start in range(0, len(rows), _CHUNK):
        # Only what comes later: each pair is looked at once.
        cosines = vectors[start : start + _CHUNK] @ vectors[start:].T
        near = numpy.argwhere(numpy.triu(cosines >= threshold - _MARGIN_OF_COMPONENTS, 1)) + start
        for one, other in near.tolist():
            if root(one) != root(other) and float(sketch_of(one) @ sketch_of(other)) >= 1 - _FACTOR_OF_SKETCHES * (1 - threshold):
                parent[root(other)] = root(one)
        if report:
            report(Progress("compare", min(start + _CHUNK, len(rows)), len(rows)))
    groups = defaultdict(list)
    for row in range(len(rows)):
        groups[root(row)].append(int(ids[row]))
    return [group for group in groups.values() if len(group) > 1]


def _proven(entries: list[Entry], threshold: float, report: Report | None) -> list[DuplicateGroup]:
    """Exact groups among entries that may be the same: the first is the original of all that equal it, and so on with the rest."""
    waiting = sorted(
        entries, key=lambda entry: (-_DTYPE_BITS.get(entry.dtype, 0), entry.approximate, entry.rank_max, entry.mtime_ns, entry.name)
    )
    groups = []
    while len(waiting) > 1:
        original, others = waiting[0], waiting[1:]
        found = gram(
            [original.path],
            [entry.path for entry in others],
            report=report and (lambda done, total, path: report(Progress("compare", done, total, path))),
        )
        copies, waiting = [], []
        for entry, cosine in zip(others, found.cosines[0], strict=True):
            if numpy.isnan(cosine):
                continue
            copy = _copy(original, entry) if cosine >= threshold - _allowance(original, entry) else None
            copies += [copy] if copy else []
            waiting += [] if copy else [entry]
        if copies:
            groups.append(DuplicateGroup(original, tuple(sorted(copies, key=lambda copy: copy.entry.name))))
    return groups


def _copy(original: Entry, entry: Entry) -> Copy | None:
    """None where it is another change, or cannot be read any more."""
    try:
        kin = kinship(original.path, entry.path)
    except (BadFile, OSError):
        return None
    if kin is None or kin.kind not in COPIES:
        return None
    return Copy(entry, kin.cosine, kin.times, _differences(original, entry, kin), kin.kind, kin.text)


def _allowance(original: Entry, copy: Entry) -> float:
    """What rounding to e5m2, which keeps two bits of a number, takes from the cosine with more precise weights: .0025 for normal ones."""
    return _E5M2_ALLOWANCE if (original.dtype == "F8_E5M2") != (copy.dtype == "F8_E5M2") else 0.0


def _differences(original: Entry, copy: Entry, kin: Kinship) -> tuple[str, ...]:
    pairs = (
        ("format", original.format, copy.format),
        ("dtype", original.dtype, copy.dtype),
        ("rank", _rank(original), _rank(copy)),
    )
    differences = [f"another {what}: {before} -> {after}" for what, before, after in pairs if before != after]
    if kin.kind == SCALED:
        differences.append(f"rescaled: {kin.times:.3g} times as strong")
    if original.approximate != copy.approximate:
        differences.append("one is approximate, such as a DoRA: parts of it were not compared")
    return tuple(differences)


def _rank(entry: Entry) -> str:
    return str(entry.rank_max) if entry.rank_min == entry.rank_max else f"{entry.rank_min}-{entry.rank_max}"
