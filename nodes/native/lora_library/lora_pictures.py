"""LoRAs as a table to look at: a row each, its preview picture, its name, and what is to be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .lora_collection import preview_picture

SIDE, MARGIN, WIDTH = 96, 8, 720
BACKGROUND, BAND, EMPTY, INK, FAINT = "#1e1e22", "#2a2a30", "#3a3a42", "#f0f0f0", "#a8a8b0"


@dataclass(frozen=True)
class Row:
    """One LoRA. path: None for a headline over the rows that follow."""

    path: Path | None
    title: str
    lines: tuple[str, ...] = ()


@lru_cache
def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)


def _fitted(text: str, font, width: int) -> str:
    """The text, its middle left out where it is too long: names tell themselves apart by their ends."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 4 and font.getlength(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def table_picture(rows: Sequence[Row]) -> Tensor:
    """The table as an IMAGE [1, height, WIDTH, 3] in 0..1."""
    heights = [SIDE + 2 * MARGIN if row.path else 40 for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        if row.path is None:
            pen.text((MARGIN, top + 12), _fitted(row.title, _font(18), WIDTH - 2 * MARGIN), font=_font(18), fill=INK)
        else:
            _draw_row(sheet, pen, row, top)
        top += height
    return torch.from_numpy(numpy.asarray(sheet).copy()).float().unsqueeze(0) / 255


def _draw_row(sheet: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    pen.rectangle((MARGIN, top + MARGIN, WIDTH - MARGIN, top + MARGIN + SIDE), fill=BAND)
    if row.path and (picture := preview_picture(row.path, SIDE)):
        sheet.paste(picture, (MARGIN + (SIDE - picture.width) // 2, top + MARGIN + (SIDE - picture.height) // 2))
    else:
        pen.rectangle((MARGIN, top + MARGIN, MARGIN + SIDE, top + MARGIN + SIDE), fill=EMPTY)
        pen.text((MARGIN + SIDE // 2, top + MARGIN + SIDE // 2), "no preview", font=_font(13), fill=FAINT, anchor="mm")
    left, width = SIDE + 3 * MARGIN, WIDTH - SIDE - 5 * MARGIN
    pen.text((left, top + MARGIN + 10), _fitted(row.title, _font(18), width), font=_font(18), fill=INK)
    for number, line in enumerate(row.lines[:2]):
        pen.text((left, top + MARGIN + 40 + 24 * number), _fitted(line, _font(14), width), font=_font(14), fill=FAINT)
