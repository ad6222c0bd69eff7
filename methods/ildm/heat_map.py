"""A weight schedule as a picture: blocks from top to bottom, sampling from left (t = 999) to right (t = 0)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .schedules import LAST_TIMESTEP, Block, WeightSchedule

COLUMNS = 250
PICTURE_ROWS = 160
# Colours of weights 0, 1/4 ... 1, as sRGB bytes; the front end's web/weight_schedule.js draws with the same ones.
RAMP = ((13, 17, 35), (45, 52, 120), (32, 128, 141), (94, 201, 97), (253, 231, 36))
STAGE_GAP = (96, 96, 96)


def weight_table(schedule: WeightSchedule, blocks: Sequence[Block], columns: int = COLUMNS) -> Tensor:
    """Weights [block, column]; column c stands for timestep 999 (1 - c / (columns - 1)). Raises ValueError for a weight outside 0..1."""
    timesteps = [LAST_TIMESTEP * (1 - column / (columns - 1)) for column in range(columns)]
    weights = torch.tensor([[schedule(block, t) for t in timesteps] for block in blocks], dtype=torch.float64)
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"the schedule gives weights from {weights.min():g} to {weights.max():g}: they must lie in 0..1.")
    return weights


def heat_map(schedule: WeightSchedule, blocks: Sequence[Block]) -> Tensor:
    """The schedule as an sRGB picture [1, height, COLUMNS, 3] in 0..1; a grey line separates resolution stages."""
    weights = weight_table(schedule, blocks)
    ramp = torch.tensor(RAMP, dtype=torch.float64)
    position = weights * (len(RAMP) - 1)
    low = position.floor().clamp(max=len(RAMP) - 2).long()
    colors = torch.lerp(ramp[low], ramp[low + 1], (position - low).unsqueeze(-1))
    cell = max(1, PICTURE_ROWS // len(blocks))
    rows: list[Tensor] = []
    for block, color in zip(blocks, colors, strict=True):
        if block.index and blocks[block.index - 1].stage != block.stage:
            rows.append(torch.tensor(STAGE_GAP, dtype=torch.float64).expand(COLUMNS, 3))
        rows += [color] * cell
    # Whole bytes, so that this picture and the front end's are the same.
    return (torch.stack(rows).round() / 255).float().unsqueeze(0)
