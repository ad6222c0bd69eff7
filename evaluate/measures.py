"""One picture's metrics."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..data import Judgement, MapData
from ..methods import metrics
from ..methods.maps import MapKind, map_kind

WHDR_THRESHOLD = 0.1
# No metric depth is wrong by such a factor; one in millimetres is, times what it is wrong by.
_FARTHEST_FROM_A_THOUSAND = 4.0

# What is measured here beside an evaluation's own metrics.
_FURTHER: dict[metrics.Evaluation, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    metrics.NORMAL: ("l1_x100", metrics.normal_l1),
    metrics.COLOR: ("si_rmse", metrics.scale_invariant_rmse),
}


def evaluation_of(map_name: str, alignment: str) -> metrics.Evaluation:
    """How a map is measured. alignment: of `metrics.ALIGNMENTS`, for depth."""
    evaluation = map_kind(map_name).evaluation
    return metrics.depth_evaluation(alignment) if evaluation is metrics.DEPTH else evaluation


def measure(map_name: str, prediction_hwc: Tensor, reference: MapData, alignment: str) -> dict[str, float]:
    """Every metric of one picture. Raises ValueError as the metrics do."""
    if map_kind(map_name).relative and alignment == metrics.METRIC:
        _require_metres(prediction_hwc, reference)
    batch = prediction_hwc[None], reference.values_hwc[None], reference.mask_hw[None]
    scores = evaluation_of(map_name, alignment).score(*batch)
    if further := _FURTHER.get(map_kind(map_name).evaluation):
        name, metric = further
        scores[name] = float(metric(*batch))
    return scores


def predicted_part(prediction_hwc: Tensor, reference: MapData) -> tuple[MapData, float]:
    """The reference where the prediction has finite numbers, and how much of what counts that leaves out, in percent.

    Some predictors say NaN or infinity where they know nothing (MoGe of the sky). Raises ValueError where nothing is left.
    """
    mask = reference.mask_hw & prediction_hwc.isfinite().all(-1)
    if not mask.any():
        raise ValueError("the prediction is NaN or infinite wherever the reference counts.")
    return replace(reference, mask_hw=mask), 100 * (1 - float(mask.sum()) / float(reference.mask_hw.sum()))


def measure_predicted(map_name: str, prediction_hwc: Tensor, reference: MapData, alignment: str) -> dict[str, float]:
    """`measure` of the predicted part, and as "unpredicted" how much that leaves out, in percent."""
    part, left_out = predicted_part(prediction_hwc, reference)
    return measure(map_name, prediction_hwc, part, alignment) | {"unpredicted": left_out}


def _require_metres(prediction_hwc: Tensor, reference: MapData) -> None:
    """Raises ValueError for a prediction whose median is the reference's in millimetres, or the other way round."""
    predicted, true = (float(values[reference.mask_hw].median()) for values in (prediction_hwc, reference.values_hwc))
    for larger, smaller, units in (
        (predicted, true, "millimetres, divide them by 1000"),
        (true, predicted, "kilometres, multiply them by 1000"),
    ):
        if smaller > 0 and 1 / _FARTHEST_FROM_A_THOUSAND < larger / smaller / 1000 < _FARTHEST_FROM_A_THOUSAND:
            raise ValueError(f"the median depth is {predicted:g}, the reference's {true:g} metres: the predictions look like {units}.")


def whdr(albedo_hw3: Tensor, judgements: Sequence[Judgement], threshold: float = WHDR_THRESHOLD) -> float:
    """Weighted human disagreement rate in percent (Bell et al. 2014, eq. 1) of a linear albedo.

    A point is darker where its mean over the channels is smaller by more than `threshold`. Raises ValueError without judgements.
    """
    if not judgements:
        raise ValueError("nobody judged any two points of this picture: leave it out.")
    height, width = albedo_hw3.shape[:2]

    def lightness(point: tuple[float, float]) -> float:
        x, y = (min(side - 1, int(share * side)) for share, side in zip(point, (width, height), strict=True))
        return max(1e-10, float(albedo_hw3[y, x].mean()))

    def darker(judgement: Judgement) -> str:
        first, second = lightness(judgement.first), lightness(judgement.second)
        return "1" if second / first > 1 + threshold else "2" if first / second > 1 + threshold else "E"

    wrong = sum(judgement.weight for judgement in judgements if darker(judgement) != judgement.darker)
    return 100 * wrong / sum(judgement.weight for judgement in judgements)


def data_of_picture(kind: MapKind, picture_bhw3: Tensor, convention: str) -> Tensor:
    """Map data out of its picture in a convention of the map's `files.readings`."""
    return kind.from_picture(kind.files.readings[convention](picture_bhw3))


def resized(values_hwc: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, antialiased; the same tensor where the size fits already."""
    if values_hwc.shape[:2] == (height, width):
        return values_hwc
    picture = rearrange(values_hwc, "h w c -> 1 c h w")
    return rearrange(functional.interpolate(picture, (height, width), mode="bilinear", antialias=True), "1 c h w -> h w c")


def fitted(data_hwc: Tensor, height: int, width: int) -> Tensor:
    """A prediction at the picture's size. Raises ValueError for one that shows another view."""
    own_height, own_width = data_hwc.shape[:2]
    if abs(width * own_height - height * own_width) > max(width, height):
        raise ValueError(f"the prediction is {own_width} x {own_height}, the picture {width} x {height}: both must show the same view.")
    return resized(data_hwc, height, width)


def error_picture(map_name: str, prediction_hwc: Tensor, reference: MapData, alignment: str) -> tuple[Tensor, Tensor]:
    """Error per pixel, 1 where it is as large as is shown, and the pixels that count; both `[h, w]`."""
    evaluation = evaluation_of(map_name, alignment)
    error, counted = evaluation.error(prediction_hwc[None], reference.values_hwc[None], reference.mask_hw[None])
    return (error[0] / evaluation.error_top).clamp(0, 1).to(torch.float32), counted[0]
