"""Values over the places of an axis, drawn with Pillow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, hypot, log10
from statistics import fmean, stdev

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#1f5fa8", "#c2571a", "#2c8a4b", "#8a3fa0")
WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 58, 56
# A place on the axis and a value to a point of the picture.
At = Callable[[float, float], tuple[float, float]]
# Drawn larger and made small, which smooths the lines.
_TIMES = 3


@dataclass(frozen=True)
class Curve:
    """points: the values of all runs, by the place on the axis, from 0. dashed: somebody else's."""

    title: str
    points: Mapping[int, Sequence[float]]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One diagram. places: the axis' marks, from left to right."""

    title: str
    axis: str
    places: tuple[str, ...]
    curves: tuple[Curve, ...]


def draw(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side: every run as a dot, their mean as a line, one standard deviation as a bar."""
    page = Image.new("RGB", (WIDTH * len(panels) * _TIMES, HEIGHT * _TIMES), "white")
    for number, panel in enumerate(panels):
        page.paste(_panel(panel), (number * WIDTH * _TIMES, 0))
    return page.resize((page.width // _TIMES, page.height // _TIMES), Image.Resampling.LANCZOS)


def _panel(panel: Panel) -> Image.Image:
    picture = Image.new("RGB", (WIDTH * _TIMES, HEIGHT * _TIMES), "white")
    pen = ImageDraw.Draw(picture)
    small, large = (ImageFont.load_default(size * _TIMES) for size in (11, 13))
    every = [value for curve in panel.curves for values in curve.points.values() for value in values] or [0.0, 1.0]
    low, high = min(every), max(every)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def at(place: float, value: float) -> tuple[float, float]:
        x = LEFT + (place + 0.5) / len(panel.places) * (WIDTH - LEFT - RIGHT)
        return x * _TIMES, (TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)) * _TIMES

    pen.text((LEFT * _TIMES, 8 * _TIMES), panel.title, font=large, fill="black")
    step = _round_step((high - low) / 5)
    for line in range(ceil(low / step), floor(high / step) + 1):
        value = line * step
        y = at(0, value)[1]
        pen.line([(LEFT * _TIMES, y), ((WIDTH - RIGHT) * _TIMES, y)], fill="#e4e4e4", width=_TIMES)
        pen.text(((LEFT - 6) * _TIMES, y), f"{value:.6g}", font=small, fill="#555555", anchor="rm")
    for place, mark in enumerate(panel.places):
        # Neighbours with long names stand on two lines.
        y = HEIGHT - BOTTOM + 8 + (place % 2) * 14 * (sum(map(len, panel.places)) > 60)
        pen.text((at(place, low)[0], y * _TIMES), mark, font=small, fill="black", anchor="ma")
    pen.text(((LEFT + WIDTH - RIGHT) / 2 * _TIMES, (HEIGHT - 20) * _TIMES), panel.axis, font=small, fill="#555555", anchor="ma")
    # Ours on the first line of the legend, somebody else's on the second.
    ends = {False: LEFT, True: LEFT}
    for curve, color in zip(panel.curves, _colors(panel.curves), strict=True):
        _curve(pen, [(at, place, values) for place, values in sorted(curve.points.items())], color, curve.dashed)
        x, y = ends[curve.dashed], 46 if curve.dashed else 32
        _line(pen, (x * _TIMES, y * _TIMES), ((x + 18) * _TIMES, y * _TIMES), color, curve.dashed)
        pen.text(((x + 24) * _TIMES, y * _TIMES), curve.title, font=small, fill=color, anchor="lm")
        ends[curve.dashed] = x + 38 + round(pen.textlength(curve.title, font=small) / _TIMES)
    return picture


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... and their tenths."""
    power = 10 ** floor(log10(least))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9))


def _colors(curves: Sequence[Curve]) -> list[str]:
    """The colours of our curves; somebody else's have that of the curve they belong to, lighter, or grey where there is one only."""
    own = sum(not curve.dashed for curve in curves)
    dashed = 0
    colors = []
    for number, curve in enumerate(curves):
        if curve.dashed:
            colors.append(COLORS[dashed % len(COLORS)] if own > 1 else "#888888")
            dashed += 1
        else:
            colors.append(COLORS[number % len(COLORS)])
    return colors


def _curve(pen: ImageDraw.ImageDraw, points: Sequence[tuple[At, int, Sequence[float]]], color: str, dashed: bool) -> None:
    means = [at(place, fmean(values)) for at, place, values in points]
    for start, end in pairwise(means):
        _line(pen, start, end, color, dashed)
    for (at, place, values), (x, y) in zip(points, means, strict=True):
        if len(values) > 1:
            bar = stdev(values)
            pen.line([at(place, fmean(values) - bar), at(place, fmean(values) + bar)], fill=color, width=_TIMES)
        for value in values:
            _dot(pen, *at(place, value), 1.8 * _TIMES, color)
        if dashed:
            _dot(pen, x, y, 2.5 * _TIMES, color)


def _line(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], color: str, dashed: bool) -> None:
    (x0, y0), (x1, y1) = start, end
    # Dashes of about five pixels.
    pieces = max(1, round(hypot(x1 - x0, y1 - y0) / (5 * _TIMES))) if dashed else 1
    for piece in range(0, pieces, 2):
        ends = [(x0 + (x1 - x0) * share / pieces, y0 + (y1 - y0) * share / pieces) for share in (piece, piece + 1)]
        pen.line(ends, fill=color, width=(1 if dashed else 2) * _TIMES)


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: str) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
