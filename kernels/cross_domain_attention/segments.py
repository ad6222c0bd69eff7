"""Which rows read which rows of the other domain, as slices, so that the fast paths take views and never gather."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Rows `rows` also read the rows `others` of the other domain, one to one; `weight` in [0, 1] is the weight of those keys."""

    rows: slice
    others: slice
    weight: float


def active_segments(segments: Sequence[Segment], rows: int) -> tuple[Segment, ...]:
    """The segments of weight > 0 that hold a row; ValueError unless each fits `rows` rows and no row is in two."""
    taken: set[int] = set()
    active = []
    for segment in segments:
        here, there = range(rows)[segment.rows], range(rows)[segment.others]
        if not 0.0 <= segment.weight <= 1.0:
            raise ValueError(f"weight is {segment.weight}: the weight of the other domain must be in [0, 1].")
        if here.step < 0 or there.step < 0 or len(here) != len(there) or not taken.isdisjoint(here):
            raise ValueError(
                f"{segment} does not fit {rows} rows: give every row at most once, counting upwards, and as many others as rows."
            )
        taken.update(here)
        if segment.weight > 0 and len(here):
            active.append(segment)
    return tuple(active)


def per_row(segments: Sequence[Segment], rows: int) -> tuple[list[float], list[int]]:
    """(weight, row of the other domain) of each row; rows in no segment have weight 0 and their own index."""
    weights, others = [0.0] * rows, list(range(rows))
    for segment in segments:
        here = range(rows)[segment.rows]
        weights[segment.rows] = [float(segment.weight)] * len(here)
        others[segment.rows] = range(rows)[segment.others]
    return weights, others
