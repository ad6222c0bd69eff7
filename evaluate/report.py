"""What an evaluation leaves: a table with bootstrap intervals, and a sheet of pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import MapData
from ..methods.formats import color_map
from ..methods.maps import map_kind
from ..methods.metrics import LABELS
from ..training.atomic import write_atomically, write_text
from .measures import error_picture, predicted_part, resized

PICTURES, TABLE, SHEET = "pictures.csv", "table.md", "sheet.jpg"
RESAMPLES, CONFIDENCE = 2000, 95
HEIGHT, MARGIN, LINE = 192, 6, 18


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The interval in which the mean lies with 95 % confidence: percentiles of the means of pictures drawn again (Efron 1979)."""
    draw, array = numpy.random.default_rng(seed), numpy.asarray(values, dtype=numpy.float64)
    means = [array[draw.integers(0, len(array), len(array))].mean() for _ in range(resamples)]
    low, high = numpy.percentile(means, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return float(low), float(high)


def table(title: str, how: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: every metric's mean over the pictures, its interval, and the median."""
    lines = [f"# {title}", "", how, "", f"| metric | mean | {CONFIDENCE} % interval of the mean | median |", "|---|---|---|---|"]
    for name in next(iter(scores.values())):
        values = [score[name] for score in scores.values()]
        low, high = bootstrap(values)
        lines.append(f"| {LABELS[name]} | {numpy.mean(values):.4f} | {low:.4f} to {high:.4f} | {numpy.median(values):.4f} |")
    return "\n".join(lines) + "\n"


def best_median_worst(scores: Mapping[str, Mapping[str, float]], metric: str) -> list[str]:
    """The names of three pictures, fewer where there are fewer; less is better."""
    ranked = sorted(scores, key=lambda name: scores[name][metric])
    return list(dict.fromkeys((ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1])))


@dataclass(frozen=True)
class Shown:
    """A row of the sheet. prediction_hwc: map data of the picture's size; reference: None where there are only judgements."""

    name: str
    map_name: str
    picture_hw3: Tensor
    prediction_hwc: Tensor
    reference: MapData | None
    alignment: str


def sheet(rows: Sequence[Shown]) -> Image.Image:
    """A row a picture: the picture, the prediction, the reference, the error (grey: does not count)."""
    strips = [_strip(row) for row in rows]
    page = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    for number, strip in enumerate(strips):
        page.paste(strip, (0, sum(before.height for before in strips[:number])))
    return page


def write_sheet(path: Path, page: Image.Image) -> None:
    """A JPEG, whole or not."""
    write_atomically(path, lambda partial: page.save(partial, "JPEG", quality=92))


def write(folder: Path, table: str, scores: Mapping[str, Mapping[str, float]], page: Image.Image) -> None:
    """Table, list and sheet, in place of earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PICTURES, pictures_csv(scores))
    write_text(folder / TABLE, table)
    write_sheet(folder / SHEET, page)


def pictures_csv(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Every picture's metrics, a line each below a header."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["picture", *next(iter(scores.values()))])
    lines.writerows([name, *score.values()] for name, score in scores.items())
    return text.getvalue()


def _strip(row: Shown) -> Image.Image:
    part = None if row.reference is None else predicted_part(row.prediction_hwc, row.reference)[0]
    pictures = [row.picture_hw3, _look(row.map_name, row.prediction_hwc, part)]
    if row.reference is not None and part is not None:
        error, counted = error_picture(row.map_name, row.prediction_hwc, part, row.alignment)
        shown = color_map(error[None, ..., None], "magma")[0]
        pictures += [_look(row.map_name, row.reference.values_hwc, row.reference), torch.where(counted[..., None], shown, 0.35)]
    height, width = row.picture_hw3.shape[:2]
    width = max(1, round(width * HEIGHT / height))
    strip = Image.new("RGB", (MARGIN + len(pictures) * (width + MARGIN), HEIGHT + LINE + MARGIN), "white")
    ImageDraw.Draw(strip).text((MARGIN, 2), row.name, font=ImageFont.load_default(12), fill="black")
    for column, picture in enumerate(pictures):
        pixels = (resized(picture.float(), HEIGHT, width).clamp(0, 1) * 255).round().byte().numpy()
        strip.paste(Image.fromarray(pixels), (MARGIN + column * (width + MARGIN), LINE))
    return strip


def _look(map_name: str, data_hwc: Tensor, reference: MapData | None) -> Tensor:
    """A map's picture; black where nothing is known."""
    if reference is None:
        return map_kind(map_name).to_picture(data_hwc[None])[0]
    known = reference.mask_hw[..., None]
    filled = torch.where(known, data_hwc, data_hwc[reference.mask_hw].amin())
    return map_kind(map_name).to_picture(filled[None])[0] * known
