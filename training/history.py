"""How a run went: its losses, the time it took, and both as a file and a picture."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .atomic import write_atomically, write_text

# So many numbers of a run of any length; the later half of them belongs to consecutive steps.
MOST_LOSSES = 20_000


@dataclass
class History:
    """Losses of the optimiser steps, and the seconds spent, over all resumed parts of a run.

    loss_steps: the step of each loss, from 1. Of more than MOST_LOSSES every second one of the older half is dropped.
    """

    losses: list[float] = field(default_factory=list)
    loss_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.loss_steps[-1] if self.loss_steps else 0

    def final_loss(self, steps: int = 100) -> float:
        """Mean of the last losses; of all if there are fewer."""
        last = self.losses[-steps:]
        return sum(last) / len(last)

    def add(self, loss: float, seconds: float) -> None:
        """Count one more step."""
        self.loss_steps.append(self.steps + 1)
        self.losses.append(loss)
        self.seconds += seconds
        if len(self.losses) > MOST_LOSSES:
            older = slice(1, MOST_LOSSES // 2, 2)
            del self.losses[older], self.loss_steps[older]


def save_history(history: History, folder: Path) -> None:
    """Write loss.json and loss.png."""
    write_text(folder / "loss.json", json.dumps(asdict(history)))
    write_atomically(folder / "loss.png", lambda path: loss_curve(history).save(path, format="PNG"))


def loss_curve(history: History, width: int = 640, height: int = 320):
    """The losses on a logarithmic scale as a PIL image: each step in grey, a running mean in black."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    values = torch.tensor(history.losses).clamp(min=1e-8).log10()
    low, high = values.min().item(), max(values.max().item(), values.min().item() + 1e-3)
    smooth = max(1, len(values) // 50)
    padded = torch.cat([values[:1].expand(smooth - 1), values])
    mean = padded.unfold(0, smooth, 1).mean(-1)
    x = 40 + (torch.tensor(history.loss_steps, dtype=torch.float64) - 1) / max(1, history.steps - 1) * (width - 50)

    def points(curve: Tensor) -> list[tuple[float, float]]:
        y = 20 + (high - curve) / (high - low) * (height - 50)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    for curve, color in ((values, "#c8c8c8"), (mean, "black")):
        if len(curve) > 1:
            pen.line(points(curve), fill=color)
    pen.text((4, 12), f"{10**high:.3g}", fill="black")
    pen.text((4, height - 38), f"{10**low:.3g}", fill="black")
    pen.text((width // 2 - 60, height - 16), f"loss over {history.steps} steps", fill="black")
    return picture
