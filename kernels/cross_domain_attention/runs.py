"""Which rows read which rows of the other domain, as slices, so that the fast paths take views and never gather."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowRun:
    """Rows `rows` read the rows `others` of the other domain, one to one."""

    rows: slice
    others: slice


def _progression(start: int, step: int, count: int) -> slice:
    return slice(start, start + step * (count - 1) + 1, step)


def active_runs(weights: Sequence[float], partner: Sequence[int] | None) -> tuple[RowRun, ...]:
    """The rows of weight > 0 in as few runs as a greedy pass finds; a run is a pair of arithmetic progressions of row indices.

    partner: row of the other domain that each row reads; None means its own index.
    """
    active = [row for row, weight in enumerate(weights) if weight > 0]
    others = active if partner is None else [partner[row] for row in active]
    runs = []
    start = 0
    while start < len(active):
        end = start + 1
        row_step = other_step = 1
        if end < len(active) and others[end] > others[start]:
            row_step, other_step = active[end] - active[start], others[end] - others[start]
            while end < len(active) and (active[end] - active[end - 1], others[end] - others[end - 1]) == (row_step, other_step):
                end += 1
        count = end - start
        runs.append(RowRun(_progression(active[start], row_step, count), _progression(others[start], other_step, count)))
        start = end
    return tuple(runs)
