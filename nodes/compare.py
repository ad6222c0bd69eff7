"""Judging maps: a prediction against a reference."""

import torch
from comfy_api.latest import io, ui

from ..methods import metrics
from ..methods.formats import COLOR_MAPS, color_map
from ..methods.maps import MAPS, MapKind, map_from_image, map_kind, require_normals
from .native.map_sockets import image_of, map_input
from .native.node import Node
from .native.node_text import preview_text, show_on_node
from .native.schema import schema

REFUSE, RESIZE = "error", "resize prediction"
LISTED_PICTURES = 8
NOT_COMPARED = 0.35  # grey of masked-out pixels in the error picture


class CompareMaps(Node):
    """Prediction + reference (+ mask) -> metrics table and error picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabCompareMaps",
            display_name="Compare Maps",
            category="intrinsic lab/judge",
            description="Measures a predicted map against a reference with the metrics of the field, and shows where the error lies.",
            search_aliases=["metrics", "evaluate", "compare with ground truth", "error map", "angular error", "AbsRel", "SSIM", "LMSE"],
            is_output_node=True,
            inputs=[
                map_input(
                    "prediction",
                    "The map to judge, as data: normals -1 to 1 (camera space, OpenGL); depth larger is farther, any "
                    "scale and shift; "
                    "the others linear.",
                ),
                map_input(
                    "reference",
                    "The true map, as data in the same convention; depth metric (larger than 0). One picture may serve a whole batch.",
                ),
                io.Combo.Input("map", options=list(MAPS), default="normal", tooltip="What the maps show; decides the metrics."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Pixels to compare: white counts, black does not. Without it every pixel counts."
                ),
                io.Combo.Input(
                    "sizes",
                    display_name="if sizes differ",
                    options=[REFUSE, RESIZE],
                    default=REFUSE,
                    tooltip="When the sizes differ: stop with an error, or resize the prediction (bilinear, antialiased) to the "
                    "reference's size.",
                ),
                io.Float.Input(
                    "error_top",
                    display_name="strongest colour at",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.01,
                    tooltip="The error shown in the strongest colour: degrees, share of the depth (0.5 = 50 %), or linear value. "
                    "0: 45 degrees, 0.5 and 0.25.",
                ),
                io.Combo.Input(
                    "color_map", options=list(COLOR_MAPS), default="magma", tooltip="Colours of the error picture, small errors first."
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="All metrics as text: the batch's mean, then the single pictures."),
                io.Image.Output(
                    display_name="error",
                    tooltip="Error per pixel, from 0 (first colour) to the range stated in the table; grey: not compared.",
                ),
                io.Float.Output(
                    display_name="main_metric",
                    tooltip="The metric to sort by, mean over the batch, less is better: normals mean angle in degrees, depth "
                    "AbsRel, the others RMSE.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, prediction, reference, map, sizes, error_top, color_map, mask=None) -> io.NodeOutput:
        kind = map_kind(map)
        predicted = map_from_image(image_of(prediction, map), kind.channels, "prediction", grey=not kind.vector, finite=False)
        true = map_from_image(image_of(reference, map), kind.channels, "reference", grey=not kind.vector, finite=False)
        if kind.vector:
            require_normals(predicted, "prediction")
            require_normals(true, "reference")
        predicted, true = _matched(predicted, true, sizes)
        mask = mask if mask is None or mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])

        evaluation = kind.evaluation
        scores = evaluation.metrics(predicted, true, mask)
        error, counted = evaluation.error(predicted, true, mask)
        top = error_top or evaluation.error_top
        table = "\n".join(
            [
                f"{map}: {len(true)} picture(s) of {true.shape[2]} x {true.shape[1]}, {100 * counted.double().mean():.1f} % of "
                f"the pixels compared",
                *_rows(scores),
                f"error picture: 0 to {top:g} {evaluation.error_unit}, {color_map}; grey was not compared",
                *_notes(kind, predicted, true, counted),
            ]
        )
        picture = _error_picture(error, counted, color_map, top)
        show_on_node(table, cls.hidden.unique_id if cls.hidden else None)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | preview_text(table).as_dict()
        return io.NodeOutput(table, picture, float(scores[evaluation.main].mean()), ui=shown)


def _matched(prediction: torch.Tensor, reference: torch.Tensor, sizes: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of one batch size and one picture size; ValueError where the choices do not allow it."""
    if prediction.shape[1:3] != reference.shape[1:3]:
        came = " and ".join(f"{m.shape[2]} x {m.shape[1]}" for m in (prediction, reference))
        if sizes != RESIZE:
            raise ValueError(f"prediction and reference are {came}: make them one size, or set `sizes` to '{RESIZE}'.")
        planes = prediction.movedim(-1, 1)
        resized = torch.nn.functional.interpolate(planes, size=reference.shape[1:3], mode="bilinear", antialias=True)
        prediction = resized.movedim(1, -1)
    batches = len(prediction), len(reference)
    if batches[0] != batches[1] and 1 not in batches:
        raise ValueError(f"{batches[0]} predictions came with {batches[1]} references: give as many, or one for all.")
    batch = max(batches)
    return prediction.expand(batch, -1, -1, -1), reference.expand(batch, -1, -1, -1)


def _rows(scores: dict[str, torch.Tensor]) -> list[str]:
    pictures = len(next(iter(scores.values())))
    listed = min(pictures, LISTED_PICTURES) if pictures > 1 else 0
    width = max(len(metrics.LABELS[name]) for name in scores)
    head = " ".join(["metric".ljust(width), "mean".rjust(9), *(f"#{i}".rjust(9) for i in range(listed))])
    rows = [
        " ".join([metrics.LABELS[name].ljust(width), f"{values.mean():9.4f}", *(f"{value:9.4f}" for value in values[:listed].tolist())])
        for name, values in scores.items()
    ]
    return [
        head,
        *rows,
        *([f"(the first {listed} of {pictures} pictures are listed; the mean is over all)"] if pictures > listed > 0 else []),
    ]


def _notes(kind: MapKind, prediction: torch.Tensor, reference: torch.Tensor, counted: torch.Tensor) -> list[str]:
    """What most often goes wrong in such a comparison, if it looks as if it did."""
    notes = []
    if kind.relative:
        scale, _ = metrics.align_scale_shift(prediction, reference, counted)
        if (scale < 0).any():
            notes.append("note: the best scale is negative, near and far look exchanged; depth data is larger where it is farther")
    return notes


def _error_picture(error_bhw: torch.Tensor, counted_bhw: torch.Tensor, name: str, top: float) -> torch.Tensor:
    colors = color_map(error_bhw[..., None].float(), name, 0.0, top)
    return torch.where(counted_bhw[..., None], colors, torch.full_like(colors, NOT_COMPARED))


NODES = [CompareMaps]
