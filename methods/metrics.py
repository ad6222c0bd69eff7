"""How maps are measured, as the field defines it. Which map is measured how: `maps.table`.

NORMAL angle between prediction and reference: mean, median, share of pixels within 11.25, 22.5 and 30 degrees
       (Fouhey et al. 2013, Eigen and Fergus 2015)
DEPTH  AbsRel, RMSE and delta1 after a least-squares scale and shift per picture (Ranftl et al. 2020)
COLOR  RMSE, SSIM (Wang et al. 2004), scale-invariant LMSE (Grosse et al. 2009), on linear data
VALUE  RMSE and mean absolute error of values that have a scale of their own

Everything is computed per picture in float64 on the CPU, over the pixels of a mask. A metric of a batch is the mean of
its pictures' metrics, so that pictures count alike whatever their masks leave of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from einops import rearrange, reduce
from torch import Tensor

LMSE_WINDOW, LMSE_STEP = 20, 10
SSIM_SIGMA, SSIM_WINDOW = 1.5, 11


def _prepared(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Checked float64 copies on the CPU and a boolean mask, all of one batch size."""
    if prediction_bhwc.shape != reference_bhwc.shape or reference_bhwc.ndim != 4:
        came = f"{list(prediction_bhwc.shape)} and {list(reference_bhwc.shape)}"
        raise ValueError(f"prediction and reference came as {came}: both must be [batch, height, width, channels] of one size.")
    if not reference_bhwc.numel() or reference_bhwc.shape[-1] != channels:
        raise ValueError(f"the maps came as {list(reference_bhwc.shape)}: at least one picture with {channels} channel(s) is wanted.")
    prediction, reference = prediction_bhwc.detach().double().cpu(), reference_bhwc.detach().double().cpu()
    if mask_bhw is None:
        mask = torch.ones(reference.shape[:3], dtype=torch.bool)
    else:
        if mask_bhw.ndim != 3 or mask_bhw.shape[1:] != reference.shape[1:3] or mask_bhw.shape[0] not in (1, len(reference)):
            batch, height, width = reference.shape[:3]
            raise ValueError(f"the mask came as {list(mask_bhw.shape)}: [{batch} (or 1), {height}, {width}] is wanted.")
        mask = (mask_bhw.detach().cpu().float() > 0.5).expand(reference.shape[:3])
    _require_pixels(mask, "the mask leaves no pixel of picture {}: paint it where the maps are to be compared.")
    for name, values in (("prediction", prediction), ("reference", reference)):
        broken = int((~torch.isfinite(values).all(-1) & mask).sum())
        if broken:
            raise ValueError(f"the {name} is NaN or infinite at {broken} pixels: mask them out, or fix what made them.")
    # What lies outside the mask never counts, but 0 * NaN would.
    outside = ~mask[..., None]
    return prediction.masked_fill(outside, 0), reference.masked_fill(outside, 0), mask


def _require_pixels(mask_bhw: Tensor, message: str) -> None:
    empty = (~mask_bhw.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(message.format(", ".join(map(str, empty))))


def _masked_mean(values_bhw: Tensor, mask_bhw: Tensor) -> Tensor:
    return (values_bhw * mask_bhw).sum((1, 2)) / mask_bhw.sum((1, 2))


# Normals


def normal_angle_degrees(prediction_bhw3: Tensor, reference_bhw3: Tensor) -> Tensor:
    """Angle between two vector maps, `[b, h, w]`, 0..180 degrees; lengths do not matter.

    A zero vector counts as (0, 0, 1), as everywhere in this pack. atan2 keeps small angles, where acos loses them.
    """
    facing_viewer = torch.tensor([0.0, 0.0, 1.0], dtype=prediction_bhw3.dtype, device=prediction_bhw3.device)
    a, b = (torch.where(v.norm(dim=-1, keepdim=True) > 1e-6, v, facing_viewer) for v in (prediction_bhw3, reference_bhw3))
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)).rad2deg()


def _valid_normals(reference_bhw3: Tensor, mask_bhw: Tensor) -> Tensor:
    """Data sets mark missing normals by a zero vector: those pixels never count."""
    mask = mask_bhw & (reference_bhw3.norm(dim=-1) > 1e-6)
    _require_pixels(mask, "the reference has no normal (only zero vectors) in picture {}: connect normal data, -1..1.")
    return mask


def normal_metrics(prediction_bhw3: Tensor, reference_bhw3: Tensor, mask_bhw: Tensor | None = None) -> dict[str, Tensor]:
    """Angular error of normals, one value per picture: degrees, and percent of pixels within a threshold.

    Pixels whose reference is the zero vector do not count. mask_bhw: > 0.5 counts; batch 1 serves all pictures.
    Raises ValueError for shapes that differ, an empty mask, or NaN inside it.
    """
    prediction, reference, mask = _prepared(prediction_bhw3, reference_bhw3, mask_bhw, 3)
    mask = _valid_normals(reference, mask)
    angle = normal_angle_degrees(prediction, reference)
    median = [float(numpy.median(picture[inside].numpy())) for picture, inside in zip(angle, mask, strict=True)]
    within = {f"within_{limit:g}": 100 * _masked_mean((angle < limit).double(), mask) for limit in (11.25, 22.5, 30.0)}
    return {"mean_degrees": _masked_mean(angle, mask), "median_degrees": torch.tensor(median, dtype=torch.float64), **within}


def normal_l1(prediction_bhw3: Tensor, reference_bhw3: Tensor, mask_bhw: Tensor | None = None) -> Tensor:
    """Mean absolute difference of unit vectors over pixels and xyz, times 100, `[b]` (I-LoRA, table 1). Errors as `normal_metrics`."""
    prediction, reference, mask = _prepared(prediction_bhw3, reference_bhw3, mask_bhw, 3)
    mask = _valid_normals(reference, mask)
    a, b = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-6) for v in (prediction, reference))
    return 100 * _masked_mean((a - b).abs().mean(-1), mask)


# Depth


def align_scale_shift(prediction_bhw1: Tensor, reference_bhw1: Tensor, mask_bhw: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(scale, shift), each `[b]`, that minimise the masked sum of (scale prediction + shift - reference)^2.

    A constant prediction gets scale 0. A negative scale says that the prediction has near and far exchanged. Pixels
    whose reference is not positive do not count. Errors as `depth_metrics`.
    """
    return _align(*_prepared_depth(prediction_bhw1, reference_bhw1, mask_bhw))


def _align(prediction_bhw: Tensor, reference_bhw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
    mean_p, mean_r = _masked_mean(prediction_bhw, mask_bhw), _masked_mean(reference_bhw, mask_bhw)
    centred_p, centred_r = prediction_bhw - mean_p[:, None, None], reference_bhw - mean_r[:, None, None]
    variance = _masked_mean(centred_p**2, mask_bhw)
    covariance = _masked_mean(centred_p * centred_r, mask_bhw)
    # Rounding alone leaves a constant prediction a variance of this order.
    constant = variance <= 1e-28 * mean_p**2
    scale = torch.where(constant, torch.zeros_like(variance), covariance / variance.masked_fill(constant, 1.0))
    return scale, mean_r - scale * mean_p


def _align_scale(prediction_bhw: Tensor, reference_bhw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
    squares = _masked_mean(prediction_bhw**2, mask_bhw)
    scale = _masked_mean(prediction_bhw * reference_bhw, mask_bhw) / squares.clamp(min=1e-300)
    return scale, torch.zeros_like(scale)


def _align_nothing(prediction_bhw: Tensor, reference_bhw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
    ones = prediction_bhw.new_ones(len(prediction_bhw))
    return ones, torch.zeros_like(ones)


SCALE_AND_SHIFT, METRIC = "scale-and-shift", "metric"
# What a depth is given before it is judged: (prediction, reference, mask) -> scale and shift, each `[b]`.
ALIGNMENTS = {SCALE_AND_SHIFT: _align, "scale": _align_scale, METRIC: _align_nothing}


def _prepared_depth(prediction_bhw1: Tensor, reference_bhw1: Tensor, mask_bhw: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """All `[b, h, w]`; the mask is without pixels whose reference is not positive."""
    prediction, reference, mask = _prepared(prediction_bhw1, reference_bhw1, mask_bhw, 1)
    mask = mask & (reference[..., 0] > 0)
    _require_pixels(mask, "the reference depth of picture {} is nowhere positive: AbsRel needs metric depth, larger than 0.")
    return prediction[..., 0], reference[..., 0], mask


def _aligned_depth(
    prediction_bhw1: Tensor, reference_bhw1: Tensor, mask_bhw: Tensor | None, alignment: str = SCALE_AND_SHIFT
) -> tuple[Tensor, Tensor, Tensor]:
    """Aligned prediction, reference and mask, all `[b, h, w]`."""
    prediction, reference, mask = _prepared_depth(prediction_bhw1, reference_bhw1, mask_bhw)
    scale, shift = ALIGNMENTS[alignment](prediction, reference, mask)
    return scale[:, None, None] * prediction + shift[:, None, None], reference, mask


def depth_metrics(
    prediction_bhw1: Tensor, reference_bhw1: Tensor, mask_bhw: Tensor | None = None, alignment: str = SCALE_AND_SHIFT
) -> dict[str, Tensor]:
    """Depth error after an alignment, one value per picture: AbsRel, RMSE (the reference's unit), delta1 (percent).

    The reference is metric (> 0; other pixels do not count), the prediction may be relative. alignment: of ALIGNMENTS, the scale (and
    shift) of least squares, or "metric", which takes the prediction as it is. delta1 is the share of
    pixels with max(p / r, r / p) < 1.25; an aligned depth of zero or less is outside.
    Raises ValueError as `normal_metrics`, and for a reference that is nowhere positive.
    """
    prediction, reference, mask = _aligned_depth(prediction_bhw1, reference_bhw1, mask_bhw, alignment)
    safe_reference = reference.masked_fill(~mask, 1.0)
    ratio = prediction / safe_reference
    close = (ratio < 1.25) & (ratio > 1 / 1.25)
    return {
        "abs_rel": _masked_mean((ratio - 1).abs().masked_fill(~mask, 0), mask),
        "rmse": _masked_mean((prediction - reference) ** 2, mask).sqrt(),
        "delta1": 100 * _masked_mean(close.double(), mask),
    }


# Colours and values


def lmse(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None, window: int = LMSE_WINDOW, step: int = LMSE_STEP):
    """Scale-invariant local mean squared error, `[b]` (Grosse et al. 2009, eq. 4 and 5).

    In each window of `window` x `window` pixels, every `step` pixels, the prediction gets the one scale (shared by its
    channels) that fits the reference best; the squared errors' sum is divided by that of the reference, so that an
    all-black prediction scores 1. Rows and columns past the last whole window do not count; a picture smaller than
    the window is one window. Errors as `normal_metrics`.
    """
    prediction, reference, mask = _prepared(prediction_bhwc, reference_bhwc, mask_bhw, reference_bhwc.shape[-1])
    kernel = tuple(min(window, size) for size in reference.shape[1:3])

    def window_sums(values_bhwc: Tensor) -> Tensor:
        summed = rearrange(reduce(values_bhwc, "b h w c -> b h w", "sum"), "b h w -> b 1 h w")
        return torch.nn.functional.avg_pool2d(summed, kernel, stride=step, divisor_override=1).flatten(1)

    inside = mask[..., None]
    pp, pr, rr = (window_sums(product * inside) for product in (prediction**2, prediction * reference, reference**2))
    black = pp <= 1e-12
    explained = torch.where(black, torch.zeros_like(pr), pr**2 / pp.masked_fill(black, 1.0))
    total = rr.sum(1)
    if (total <= 0).any():
        raise ValueError("the reference is black wherever LMSE looks: it has no scale to compare with.")
    return (rr - explained).clamp(min=0).sum(1) / total


def ssim(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None) -> Tensor:
    """Structural similarity, `[b]` (Wang et al. 2004: Gaussian window of 11 x 11, sigma 1.5, data range 1), the mean over the channels.

    Five pixels at each border, whose windows reach outside, do not count (unless the mask leaves only those). Raises ValueError for
    pictures below 11 x 11; else as `normal_metrics`.
    """
    prediction, reference, mask = _prepared(prediction_bhwc, reference_bhwc, mask_bhw, reference_bhwc.shape[-1])
    if min(reference.shape[1:3]) < SSIM_WINDOW:
        height, width = reference.shape[1:3]
        raise ValueError(f"the pictures are {width} x {height}: SSIM needs at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels.")
    border = SSIM_WINDOW // 2
    inner = torch.zeros_like(mask)
    inner[:, border:-border, border:-border] = mask[:, border:-border, border:-border]
    counted = torch.where(inner.flatten(1).any(1)[:, None, None], inner, mask)
    mean_p, mean_r = _window_mean(prediction), _window_mean(reference)
    variance_p = _window_mean(prediction**2) - mean_p**2
    variance_r = _window_mean(reference**2) - mean_r**2
    covariance = _window_mean(prediction * reference) - mean_p * mean_r
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_p * mean_r + c1) * (2 * covariance + c2) / ((mean_p**2 + mean_r**2 + c1) * (variance_p + variance_r + c2))
    return _masked_mean(similarity.mean(-1), counted)


def _window_mean(values_bhwc: Tensor) -> Tensor:
    """Gaussian mean around each pixel; beyond the border the nearest pixel goes on."""
    border = SSIM_WINDOW // 2
    offsets = torch.arange(-border, border + 1, dtype=values_bhwc.dtype)
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    images = rearrange(values_bhwc, "b h w c -> (b c) 1 h w")
    padded = torch.nn.functional.pad(images, (border,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, weights[None, None, None, :])
    means = torch.nn.functional.conv2d(rows, weights[None, None, :, None])
    return rearrange(means, "(b c) 1 h w -> b h w c", c=values_bhwc.shape[-1])


def value_metrics(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None) -> dict[str, Tensor]:
    """RMSE and mean absolute error over pixels and channels, one value per picture. Errors as `normal_metrics`."""
    prediction, reference, mask = _prepared(prediction_bhwc, reference_bhwc, mask_bhw, reference_bhwc.shape[-1])
    difference = prediction - reference
    return {
        "rmse": _masked_mean((difference**2).mean(-1), mask).sqrt(),
        "mae": _masked_mean(difference.abs().mean(-1), mask),
    }


def color_metrics(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None) -> dict[str, Tensor]:
    """RMSE, SSIM and LMSE of linear albedo or shading, one value per picture. Errors as `ssim` and `lmse`."""
    prediction, reference, mask = _prepared(prediction_bhwc, reference_bhwc, mask_bhw, 3)
    rmse = _masked_mean(((prediction - reference) ** 2).mean(-1), mask).sqrt()
    return {"rmse": rmse, "ssim": ssim(prediction, reference, mask), "lmse": lmse(prediction, reference, mask)}


def scale_invariant_rmse(prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None) -> Tensor:
    """RMSE after the one scale per picture, shared by its channels, that fits the reference best, `[b]`. Errors as `normal_metrics`."""
    prediction, reference, mask = _prepared(prediction_bhwc, reference_bhwc, mask_bhw, reference_bhwc.shape[-1])
    squares = (prediction**2).sum((1, 2, 3))
    scale = (prediction * reference).sum((1, 2, 3)) / squares.clamp(min=1e-300)
    return _masked_mean(((scale[:, None, None, None] * prediction - reference) ** 2).mean(-1), mask).sqrt()


# Where the error lies


def _normal_error(prediction: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    prediction, reference, mask = _prepared(prediction, reference, mask, 3)
    return normal_angle_degrees(prediction, reference), _valid_normals(reference, mask)


def _depth_error(prediction: Tensor, reference: Tensor, mask: Tensor | None, alignment: str = SCALE_AND_SHIFT) -> tuple[Tensor, Tensor]:
    prediction, reference, mask = _aligned_depth(prediction, reference, mask, alignment)
    return (prediction - reference).abs() / reference.masked_fill(~mask, 1.0), mask


def _value_error(prediction: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    prediction, reference, mask = _prepared(prediction, reference, mask, reference.shape[-1])
    return ((prediction - reference) ** 2).mean(-1).sqrt(), mask


@dataclass(frozen=True)
class Evaluation:
    """How one kind of map is measured.

    metrics: (prediction, reference, mask) -> name -> `[b]`; `main` names the one to sort by, less is better.
    error: (prediction, reference, mask) -> error per pixel and the pixels that count, both `[b, h, w]`, in `error_unit`;
    `error_top` is what an error picture shows as the strongest colour.
    """

    metrics: Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]
    main: str
    error: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    error_unit: str
    error_top: float

    def score(self, prediction_bhwc: Tensor, reference_bhwc: Tensor, mask_bhw: Tensor | None = None) -> dict[str, float]:
        """Every metric, averaged over the batch.

        Data as `maps` defines it, except that a reference depth is metric. mask_bhw: `[b or 1, h, w]`, > 0.5 counts. Raises ValueError
        as the metrics do.
        """
        return {name: float(values.mean()) for name, values in self.metrics(prediction_bhwc, reference_bhwc, mask_bhw).items()}


NORMAL = Evaluation(normal_metrics, "mean_degrees", _normal_error, "degrees", 45.0)
DEPTH = Evaluation(depth_metrics, "abs_rel", _depth_error, "of the reference depth, after scale and shift", 0.5)
COLOR = Evaluation(color_metrics, "rmse", _value_error, "linear, root mean square of the channels", 0.25)
VALUE = Evaluation(value_metrics, "rmse", _value_error, "root mean square of the channels", 0.25)


def depth_evaluation(alignment: str) -> Evaluation:
    """DEPTH after another alignment, of ALIGNMENTS."""
    measured, error = partial(depth_metrics, alignment=alignment), partial(_depth_error, alignment=alignment)
    return Evaluation(measured, DEPTH.main, error, f"of the reference depth, alignment {alignment}", DEPTH.error_top)


LABELS = {
    "mean_degrees": "mean angle, degrees (less is better)",
    "median_degrees": "median angle, degrees (less is better)",
    "within_11.25": "within 11.25 degrees, % (more is better)",
    "within_22.5": "within 22.5 degrees, % (more is better)",
    "within_30": "within 30 degrees, % (more is better)",
    "abs_rel": "AbsRel (less is better)",
    "rmse": "RMSE (less is better)",
    "si_rmse": "scale-invariant RMSE (less is better)",
    "l1_x100": "L1 x 100 (less is better)",
    "whdr": "WHDR, % (less is better)",
    "mae": "mean absolute error (less is better)",
    "delta1": "delta1, % (more is better)",
    "ssim": "SSIM (more is better)",
    "lmse": "scale-invariant LMSE (less is better)",
    "unpredicted": "pixels that the prediction says nothing of, % (left out)",
}
