"""How a run went: its losses, the time it took, and both as a file and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .atomic import write_atomically, write_text

# So many numbers of a run of any length; the later half of them belongs to consecutive steps.
MOST_LOSSES = 20_000
# Read on the front end's dark nodes and on its light ones: the picture brings its ground.
BACKGROUND, GRID, TEXT, DIM, BRIGHT = "#16181d", "#30343c", "#c8ccd4", "#566a88", "#ffc857"


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


def loss_curve(history: History, width: int = 640, height: int = 320, seconds_left: float | None = None) -> Image.Image:
    """The losses on a logarithmic scale: each step dim, a running mean bright, on dark. seconds_left: of a run that is not over."""
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    values = torch.tensor(history.losses).clamp(min=1e-8).log10()
    low, high = values.min().item(), max(values.max().item(), values.min().item() + 1e-3)
    smooth = max(1, len(values) // 50)
    padded = torch.cat([values[:1].expand(smooth - 1), values])
    mean = padded.unfold(0, smooth, 1).mean(-1)
    left, right, top, bottom = 78, width - 14, 40, height - 34
    x = left + (torch.tensor(history.loss_steps, dtype=torch.float64) - 1) / max(1, history.steps - 1) * (right - left)

    def height_of(value: Tensor) -> Tensor:
        return top + (high - value) / (high - low) * (bottom - top)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        y = height_of(torch.tensor(value)).item()
        pen.line([(left, y), (right, y)], fill=GRID)
        pen.text((left - 8, y), f"{10**value:.3g}", TEXT, font, anchor="rm")
    for curve, color, line_width in ((values, DIM, 1), (mean, BRIGHT, 3)):
        if len(curve) > 1:
            pen.line(list(zip(x.tolist(), height_of(curve).tolist(), strict=True)), color, line_width)
    pen.text((left, bottom + 8), "1", TEXT, font)
    pen.text((right, bottom + 8), f"step {history.steps:,}", TEXT, font, anchor="ra")
    told = f"loss {10 ** mean[-1].item():.3g}" + ("" if seconds_left is None else f"  ·  {spoken_time(seconds_left)} left")
    pen.text((left, 10), told, TEXT, font)
    return picture


def with_sample(curve: Image.Image, sample: Sequence[Mapping[str, Tensor]]) -> Image.Image:
    """The curve with a sample's rows of pictures (`look.Sample`), each under its name, below it in the curve's width."""
    names, first = len(sample[0]), next(iter(sample[0].values()))
    side, line = curve.width // names, 26
    tall = round(side * first.shape[0] / first.shape[1])
    sheet = Image.new("RGB", (curve.width, curve.height + len(sample) * (line + tall)), BACKGROUND)
    sheet.paste(curve)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15 if names < 5 else 12)
    for row, pictures in enumerate(sample):
        top = curve.height + row * (line + tall)
        for number, (name, pixels) in enumerate(pictures.items()):
            shown = Image.fromarray((pixels.float().cpu() * 255).round().byte().numpy())
            sheet.paste(shown.resize((side, tall), Image.Resampling.BILINEAR), (number * side, top + line))
            pen.text((number * side + 6, top + 4), name, TEXT, font)
    return sheet


def spoken_time(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
