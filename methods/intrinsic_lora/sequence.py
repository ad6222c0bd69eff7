"""Maps of a sequence of pictures that belong together, such as a video's, without flicker and in bounded memory.

Two things flicker. A relative map (depth) has a scale and a shift of its own in every forward: each frame is brought to those of an
anchor, an earlier frame that was brought to them itself; the anchor moves on when too little of it is left in view. And every forward
decides anew what a surface is: with a `Generator.predict_anchored` each frame also reads the keys of one frame in so many (`anchor`).
No motion is known or estimated. A frame needs nothing of later ones, and nothing of earlier ones but one or two small maps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..maps import map_from_image, map_kind
from .extract import ExtractSettings, Generator, Plan, extract_group

# Frames are compared at this many cells on their longer side: what moves by less than a cell still fits.
COMPARED_CELLS = 64
LINES, ITERATIONS = 100, 10
# Residuals count as agreement up to this share of the anchor's standard deviation.
AGREES_WITHIN = 0.15
# Below these shares of agreeing cells, the anchor moves on; even the frame before shows something else: a cut.
ANCHOR_LEFT, SAME_SCENE = 0.6, 0.3


@dataclass(frozen=True)
class Part:
    """Frames [start, stop) that go through the model together, behind frame `anchor` if that is an earlier one."""

    anchor: int
    start: int
    stop: int


def sequence_parts(frames: int, pictures: int, anchor_every: int | None) -> list[Part]:
    """Cuts a sequence into forwards of at most `pictures` pictures.

    anchor_every: frames from one anchor to the next, 0 for the first frame alone; None where no keys are shared. Raises ValueError where a
    forward has no room for an anchor and a frame.
    """
    if anchor_every is not None and pictures < 2:
        raise ValueError(f"{pictures} picture at once leaves no room for an anchor beside a frame: give at least 2, or anchor weight 0.")
    parts, start = [], 0
    while start < frames:
        if anchor_every is None:
            anchor, stop = start, start + pictures
        else:
            anchor = start // anchor_every * anchor_every if anchor_every else 0
            stop = start + pictures - (anchor < start)
            if anchor_every:
                stop = min(stop, anchor + anchor_every)
        parts.append(Part(anchor, start, min(stop, frames)))
        start = stop
    return parts


def extract_sequence(
    image_bhwc: Tensor,
    map_names: Sequence[str],
    generator: Generator,
    settings: ExtractSettings,
    plan: Plan,
    parts: Sequence[Part],
    align: bool = True,
    on_forward: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    """Each part's maps as it is done: data as in `methods.maps`, bhwc at the picture's exact size.

    plan: of a part. align: relative maps get one scale and shift over the sequence. `on_forward` as in `extract`.
    """
    steadied = {name: Steadied() for name in map_names if align and map_kind(name).relative}
    for part in parts:
        before = image_bhwc[part.anchor : part.anchor + 1] if part.anchor < part.start else image_bhwc[:0]
        group = [map_from_image(frames, 3, "image", grey=True) for frames in (before, image_bhwc[part.start : part.stop]) if len(frames)]
        results, _ = extract_group(group[0] if len(group) == 1 else torch.cat(group), map_names, generator, settings, plan, on_forward)
        maps = {name: values[len(before) :] for name, values in zip(map_names, results, strict=True)}
        for name, steady in steadied.items():
            maps[name] = torch.stack([steady(frame) for frame in maps[name]])
        yield part, maps


class Steadied:
    """Frames of one relative map, one after the other, on the scale and shift of the first; after a cut, of the first after it."""

    def __init__(self) -> None:
        # Small, and on the sequence's scale.
        self.anchor: Tensor | None = None
        self.previous: Tensor | None = None

    def __call__(self, frame_hwc: Tensor) -> Tensor:
        small = _small(frame_hwc)
        scale, shift, reference = 1.0, 0.0, None
        for earlier, least in ((self.anchor, ANCHOR_LEFT), (self.previous, SAME_SCENE)):
            if earlier is not None:
                fit = robust_scale_and_shift(small, earlier)
                if fit.agreeing >= least:
                    scale, shift, reference = fit.scale, fit.shift, earlier
                    break
        self.previous = small * scale + shift
        self.anchor = self.previous if reference is None else reference
        return frame_hwc * scale + shift


@dataclass(frozen=True)
class Fit:
    """`scale * values + shift ~ reference`; agreeing: share of the values for which that holds."""

    scale: float
    shift: float
    agreeing: float


def robust_scale_and_shift(values: Tensor, reference: Tensor) -> Fit:
    """What brings values to a reference of the same shape, although some of what they show has moved or is new.

    Begins at the best of many lines through two places each (least median of residuals), then reweights: places that disagree by more than
    most (Geman and McClure's weights) stop to count. The scale is the ratio of both spreads, not a regression's slope: that is too small
    wherever values are noisy, and a chain of frames would fade. Where that gives no slope of its own (flat values), or one that would turn
    the values over, the scale is 1.
    """
    x, y = values.double().flatten(), reference.double().flatten()
    spread = y.std(correction=0).clamp(min=1e-12)

    def moments(weight: Tensor) -> tuple[Tensor, Tensor]:
        total = weight.sum()
        mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
        along = (weight * (x - mean_x) * (y - mean_y)).sum()
        spread_x, spread_y = ((weight * (of - mean) ** 2).sum() for of, mean in ((x, mean_x), (y, mean_y)))
        scale = torch.where((along > 0) & (spread_x > 1e-8 * total), (spread_y / spread_x.clamp(min=1e-12)).sqrt(), 1.0)
        return scale, mean_y - scale * mean_x

    scale, shift = _best_line(x, y, *moments(torch.ones_like(x)))
    for _ in range(ITERATIONS):
        residual = (scale * x + shift - y).abs()
        # 1.48 times the median is a normal distribution's sigma.
        tolerated = 2 * 1.48 * residual.median() + 1e-3 * spread
        scale, shift = moments(1 / (1 + (residual / tolerated) ** 2) ** 2)
    residual = (scale * x + shift - y).abs()
    return Fit(float(scale), float(shift), float((residual <= AGREES_WITHIN * spread).double().mean()))


def _best_line(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Of a line and of rising ones through two places each, the one that most places are near; the same places in every call."""
    one, other = torch.randint(len(x), (2, LINES), generator=torch.Generator().manual_seed(0)).to(x.device)
    scales = (y[other] - y[one]) / (x[other] - x[one])
    shifts = y[one] - scales * x[one]
    rising = torch.isfinite(scales) & (scales > 0)
    scales, shifts = torch.cat([scale[None], scales[rising]]), torch.cat([shift[None], shifts[rising]])
    best = (scales[:, None] * x + shifts[:, None] - y).abs().median(1).values.argmin()
    return scales[best], shifts[best]


def _small(frame_hwc: Tensor) -> Tensor:
    height, width, _ = frame_hwc.shape
    factor = min(1.0, COMPARED_CELLS / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return F.adaptive_avg_pool2d(rearrange(frame_hwc, "h w c -> c h w"), size)
