"""How strongly image queries see intrinsic keys, by block and noise level (I-LDM, eq. 2 and 3), and how such schedules compose.

A schedule is a closure `w(block, t)`: the weight, 0..1, of the intrinsic domain's keys for image queries in self-attention `block` at
timestep t, 0 (clean) to 999 (noise). During training w is 1 everywhere.

Blocks have two addresses, because the paper's "block index" can mean either. `index` counts self-attentions in order of execution: 16 in
SD 1.5 and 2.1, 70 in SDXL, 28 in PixArt-alpha. `stage` counts resolution stages in order of execution, those without attention included:
a UNet with n resolutions has stages 0..n-1 going down, n in the middle, n+1..2n going up, so SD 1.5 and 2.1 have 0..8 and SDXL 0..6.
A transformer of one resolution is cut into nine equal parts, so that a stage means a similar depth there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LAST_TIMESTEP = 999
TRANSFORMER_STAGES = 9
# What people and workflows write is bounded before it becomes a list.
LAST_POSITION = 9999
PAPER_STAGES = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Block:
    """Where a self-attention sits in the network; see the module's text."""

    index: int
    stage: int


WeightSchedule = Callable[[Block, float], float]
BlockFilter = Callable[[Block], bool]


def at_blocks(indices: Sequence[int]) -> BlockFilter:
    """Self-attentions by their number, in order of execution."""
    wanted = _positions(indices)
    return lambda block: block.index in wanted


def at_stages(stages: Sequence[int]) -> BlockFilter:
    """Every self-attention of some resolution stages."""
    wanted = _positions(stages)
    return lambda block: block.stage in wanted


def _positions(numbers: Sequence[int]) -> frozenset[int]:
    if any(number < 0 for number in numbers):
        raise ValueError(f"{list(numbers)} holds a negative number: blocks and stages count from 0.")
    return frozenset(numbers)


def drop_schedule(blocks: BlockFilter | None = None, tau: float = 900.0) -> WeightSchedule:
    """1 inside `blocks` from timestep tau down, else 0 (I-LDM, eq. 2). `blocks` defaults to the paper's L = {3..7}, read as stages.

    tau: timestep, 0..999. Raises ValueError for another one.
    """
    _require_timestep("tau", tau)
    inside = at_stages(PAPER_STAGES) if blocks is None else blocks
    return lambda block, t: 1.0 if inside(block) and t <= tau else 0.0


def gaussian_schedule(alpha: float = 1.0, tau: float = 800.0, sigma: float = 100.0) -> WeightSchedule:
    """alpha exp(-(t - tau)^2 / sigma^2) in every block (I-LDM, eq. 3; there is no 2 under the fraction).

    alpha: 0..1; tau: timestep, 0..999; sigma: timesteps. Raises ValueError for impossible values.
    """
    _require_weight("alpha", alpha)
    _require_timestep("tau", tau)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma}: a width in timesteps above 0 is wanted.")
    return lambda block, t: alpha * math.exp(-(((t - tau) / sigma) ** 2))


def constant_schedule(weight: float) -> WeightSchedule:
    """The same weight, 0..1, everywhere: 0 exchanges nothing towards the picture, 1 is how the network was trained."""
    _require_weight("weight", weight)
    return lambda block, t: weight


def table_schedule(points: Sequence[tuple[float, float]]) -> WeightSchedule:
    """A weight over t, linear between the given (timestep, weight) points and constant beyond them, in every block.

    Raises ValueError without points, for a timestep given twice, and for values out of range.
    """
    ordered = sorted((float(t), float(weight)) for t, weight in points)
    if not ordered:
        raise ValueError("the table is empty: give at least one (timestep, weight) point.")
    for t, weight in ordered:
        _require_timestep("a timestep of the table", t)
        _require_weight(f"the weight at timestep {t:g}", weight)
    if twice := [t for (t, _), (after, _) in pairwise(ordered) if t == after]:
        raise ValueError(f"timestep {twice[0]:g} is in the table twice: keep one of its weights.")

    def weight_at(block: Block, t: float) -> float:
        if t <= ordered[0][0]:
            return ordered[0][1]
        for (t_low, low), (t_high, high) in pairwise(ordered):
            if t <= t_high:
                return low + (high - low) * (t - t_low) / (t_high - t_low)
        return ordered[-1][1]

    return weight_at


def restricted(schedule: WeightSchedule, blocks: BlockFilter) -> WeightSchedule:
    """`schedule` inside `blocks`, 0 elsewhere."""
    return lambda block, t: schedule(block, t) if blocks(block) else 0.0


def product(*schedules: WeightSchedule) -> WeightSchedule:
    """The product of all weights; 1 of none."""
    return lambda block, t: math.prod(schedule(block, t) for schedule in schedules)


def maximum(*schedules: WeightSchedule) -> WeightSchedule:
    """The largest of all weights; 0 of none."""
    return lambda block, t: max((schedule(block, t) for schedule in schedules), default=0.0)


def stage_blocks(blocks_per_stage: Sequence[int]) -> tuple[Block, ...]:
    """All self-attentions of a UNet from their number in each stage, in order of execution."""
    stages = [stage for stage, count in enumerate(blocks_per_stage) for _ in range(count)]
    return tuple(Block(index, stage) for index, stage in enumerate(stages))


def transformer_blocks(depth: int) -> tuple[Block, ...]:
    """All self-attentions of a transformer of one resolution."""
    return tuple(Block(index, index * TRANSFORMER_STAGES // depth) for index in range(depth))


def parse_positions(text: str) -> tuple[int, ...]:
    """`3-7, 9` to (3, 4, 5, 6, 7, 9). Raises ValueError, saying what was wanted."""
    positions: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = (side.strip() for side in part.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ValueError(f"{part!r} is not a block or stage: write numbers and ranges from 0 on, such as '3-7, 9'.")
        if max(len(first), len(last)) > 9 or int(last or first) > LAST_POSITION:
            raise ValueError(f"{part[:40]!r} goes beyond {LAST_POSITION}: no network has so many blocks or stages.")
        if dash and int(last) < int(first):
            raise ValueError(f"the range {part!r} runs backwards: write the smaller number first.")
        positions += range(int(first), int(last or first) + 1)
    if not positions:
        raise ValueError("no block or stage is given: write numbers and ranges, such as '3-7, 9'.")
    return tuple(dict.fromkeys(positions))


def parse_table(text: str) -> tuple[tuple[float, float], ...]:
    """`999: 0, 800: 1, 0: 0.2` to points for `table_schedule`. Raises ValueError, saying what was wanted."""
    points = []
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        t, _, weight = part.partition(":")
        try:
            points.append((float(t), float(weight)))
        except ValueError:
            raise ValueError(f"{part!r} is not a point of the table: write 'timestep: weight', such as '999: 0, 800: 1, 0: 0.2'.") from None
    return tuple(points)


def _require_timestep(name: str, t: float) -> None:
    if not 0 <= t <= LAST_TIMESTEP:
        raise ValueError(f"{name} is {t}: a timestep from 0 (clean) to {LAST_TIMESTEP} (noise) is wanted.")


def _require_weight(name: str, weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"{name} is {weight}: a weight from 0 to 1 is wanted.")
