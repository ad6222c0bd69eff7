"""Public data sets in the graph: their pictures with what is true, and any maps measured against it."""

from pathlib import Path

import numpy
import torch
from comfy_api.latest import io, ui

from ..data import DATA_SETS, MapData, Pair, require_same_size
from ..data.base import ALL
from ..evaluate import measures, report
from ..methods import metrics
from ..methods.intrinsic_lora.recipe import conventions
from ..methods.maps import MAPS, MapKind, image_from_map, map_from_image, map_kind
from .native.node import Node
from .native.node_text import preview_text, show_on_node
from .native.paths import bundled_file
from .native.schema import schema
from .native.training.files import data_folder, data_set_folders, name_problem, output_folder

BUNDLED, BUNDLED_FOLDER = "made-up DIODE (bundled)", "diode"
USUAL, DATA = "usual", "data"
# Those with maps; the others hold judgements.
SETS = {name: kind for name, kind in DATA_SETS.items() if kind.read is not None}
SPLITS = tuple(dict.fromkeys([ALL, *(split for kind in SETS.values() for split in kind.splits)]))
_CATEGORY = "intrinsic lab/judge"


def _folder(name: str) -> Path:
    return bundled_file(BUNDLED_FOLDER) if name == BUNDLED else data_folder(name)


def _pairs(data_set: str, folder: str, map_name: str, split: str, first: int, count: int) -> tuple[Pair, ...]:
    """The chosen pairs. Raises ValueError that says what is missing."""
    pairs = SETS[data_set].pairs(_folder(folder), map_name, "" if split == USUAL else split)
    chosen = pairs[first : first + count if count else None]
    if not chosen:
        raise ValueError(f"first is {first}, the data set has {len(pairs)} pictures: start at {len(pairs) - 1} or before.")
    return chosen


class LoadDataSet(Node):
    """A data set's folder -> lists of pictures, their true maps and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoadDataSet",
            display_name="Load Data Set",
            category=_CATEGORY,
            description=(
                "Reads pictures of a public data set with what is true of them, as they are published (docs/data.md): one after the other, "
                "each at its own size. Run any nodes on the pictures, then Evaluate Maps."
            ),
            search_aliases=["benchmark", "ground truth", "DIODE", "Hypersim", "NYUv2", "ScanNet", "InteriorVerse", "MIT intrinsic", "ARAP"],
            inputs=[
                io.Combo.Input(
                    "data_set", options=list(SETS), default="diode", tooltip="Which data set the folder holds, in its own layout."
                ),
                io.Combo.Input(
                    "folder",
                    options=[BUNDLED, *data_set_folders()],
                    default=BUNDLED,
                    tooltip="A folder in ComfyUI's input that holds the unpacked data set (a link will do), or four rendered rooms in "
                    "DIODE's layout that come with the pack.",
                ),
                io.Combo.Input("map", options=list(MAPS), default="normal", tooltip="Which map is to be judged."),
                io.Combo.Input(
                    "split",
                    options=[USUAL, *SPLITS],
                    default=USUAL,
                    tooltip="Part of the data set; usual: the one that results are given for.",
                ),
                io.Int.Input(
                    "first",
                    display_name="leave out first",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="Pictures to leave out at the start, in order of their names.",
                ),
                io.Int.Input(
                    "count",
                    display_name="how many",
                    default=8,
                    min=0,
                    max=10_000_000,
                    tooltip="How many pictures; 0: all. They are held in memory together.",
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", display_name="image", is_output_list=True, tooltip="The pictures, sRGB, one after the other."),
                io.Image.Output(
                    "REFERENCE",
                    display_name="reference",
                    is_output_list=True,
                    tooltip="The true maps as data: normals -1 to 1, depth in metres, the others linear; 0 where nothing is known.",
                ),
                io.Mask.Output("MASK", display_name="mask", is_output_list=True, tooltip="White where the reference counts."),
                io.String.Output("NAME", display_name="name", is_output_list=True, tooltip="The data set's names of the pictures."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, data_set, folder, map, split, first, count):
        """Changes with the chosen files; a folder that cannot be read is told when the node runs."""
        try:
            files = [file for pair in _pairs(data_set, folder, map, split, first, count) for file in (pair.picture, pair.map)]
            return tuple((str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files)
        except (ValueError, KeyError, OSError):
            return float("nan")

    @classmethod
    def execute(cls, data_set, folder, map, split, first, count) -> io.NodeOutput:
        kind, images, references, masks, names = SETS[data_set], [], [], [], []
        assert kind.read is not None
        for pair in _pairs(data_set, folder, map, split, first, count):
            picture, data = kind.picture(pair), kind.read(pair, map)
            require_same_size(pair, picture, data)
            images.append(picture[None])
            references.append(image_from_map(data.values_hwc[None]))
            masks.append(data.mask_hw[None].float())
            names.append(pair.name)
        return io.NodeOutput(images, references, masks, names)


class EvaluateMaps(Node):
    """Predictions + references + masks -> a table with intervals, every picture's numbers, the best, median and worst."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabEvaluateMaps",
            display_name="Evaluate Maps",
            category=_CATEGORY,
            description=(
                "Measures maps against a data set, picture by picture: means with 95 % intervals, a CSV file, and a sheet of the best, the "
                "median and the worst picture."
            ),
            search_aliases=[
                "benchmark",
                "metrics",
                "angular error",
                "AbsRel",
                "delta1",
                "confidence interval",
                "CSV",
                "evaluate MoGe",
                "evaluate Marigold",
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "prediction", tooltip="The maps to judge, in the order of the pictures: of this pack, of core, or of anybody's nodes."
                ),
                io.Image.Input("reference", tooltip="`reference` of Load Data Set."),
                io.Combo.Input("map", options=list(MAPS), default="normal", tooltip="What the maps show; decides the metrics."),
                io.Combo.Input(
                    "convention",
                    options=[DATA, *conventions()],
                    default=DATA,
                    tooltip="data: numbers as this pack's nodes give them. Otherwise pictures of 0 to 1, as other nodes draw them: opengl "
                    "for normal_opengl of Render MoGe Geometry, near_bright for its depth and Depth Anything's.",
                ),
                io.Combo.Input(
                    "align",
                    options=list(metrics.ALIGNMENTS),
                    default=metrics.SCALE_AND_SHIFT,
                    tooltip="Of a depth before it is judged: the least-squares scale and shift, the scale alone, or metric: metres as they "
                    "are.",
                ),
                io.String.Input(
                    "name",
                    default="evaluation",
                    tooltip="Results go to intrinsic_lab/evaluation/NAME in the output folder, and replace those of an earlier run.",
                ),
                io.Image.Input("image", optional=True, tooltip="`image` of Load Data Set, for the sheet."),
                io.Mask.Input("mask", optional=True, tooltip="`mask` of Load Data Set: white counts. Without it every pixel does."),
                io.String.Input(
                    "picture_name", optional=True, force_input=True, tooltip="`name` of Load Data Set, for the CSV file and the sheet."
                ),
            ],
            outputs=[
                io.String.Output(
                    "TABLE", display_name="table", tooltip="Every metric's mean, its 95 % interval, and the median, as Markdown."
                ),
                io.Image.Output(
                    "SHEET",
                    display_name="sheet",
                    tooltip="Best, median and worst: picture, prediction, reference, error (grey: does not count).",
                ),
                io.Float.Output(
                    "MAIN_METRIC", display_name="main_metric", tooltip="Mean angle, AbsRel or RMSE over all pictures: less is better."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: list[str] | str | None = None) -> bool | str:
        """A linked name is checked when it is known."""
        names = [name] if isinstance(name, str) else name or []
        return next((problem for one in names if (problem := name_problem(one))), None) or True

    @classmethod
    def execute(cls, prediction, reference, map, convention, align, name, image=None, mask=None, picture_name=None) -> io.NodeOutput:
        [map_name], [convention], [alignment], [name] = map, convention, align, name
        folder = output_folder("evaluation", name)
        rows = _rows(map_name, convention, prediction, reference, mask, image, picture_name, alignment)
        scores = {row.name: _scored(row, row.reference) for row in rows if row.reference and row.reference.mask_hw.any()}
        if not scores:
            raise ValueError(f"none of the {len(rows)} pictures has anything to judge: the masks are empty.")
        main = map_kind(map_name).evaluation.main
        how = f"Depth after {alignment} alignment." if map_kind(map_name).evaluation is metrics.DEPTH else "No alignment."
        table = report.table(f"{map_name}, {len(scores)} pictures", how, scores)
        by_name = {row.name: row for row in rows}
        page = report.sheet([by_name[chosen] for chosen in report.best_median_worst(scores, main)])
        report.write(folder, table, scores, page)
        show_on_node(table, cls.hidden.unique_id if cls.hidden else None)
        shown = torch.from_numpy(numpy.array(page)).float()[None] / 255
        mean = sum(score[main] for score in scores.values()) / len(scores)
        ui_shown = ui.PreviewImage(shown, cls=cls).as_dict() | preview_text(table).as_dict()
        return io.NodeOutput(table, shown, mean, ui=ui_shown)


def _rows(
    map_name: str,
    convention: str,
    predictions: list[torch.Tensor],
    references: list[torch.Tensor],
    masks: list[torch.Tensor] | None,
    images: list[torch.Tensor] | None,
    names: list[str] | None,
    alignment: str,
) -> list[report.Shown]:
    """One row a picture; lists and batches alike. Raises ValueError for inputs that do not belong together."""
    kind = map_kind(map_name)
    made, true = _singles(predictions, 4), _singles(references, 4)
    known, seen = (_singles(found, rank) for found, rank in ((masks, 3), (images, 4)))
    named = names or [f"picture {number + 1}" for number in range(len(true))]
    for what, found in (("predictions", made), ("masks", known), ("images", seen), ("picture names", named)):
        if found and len(found) != len(true):
            raise ValueError(f"{len(found)} {what} came with {len(true)} references: connect all to the same Load Data Set.")
    if len(set(named)) < len(named):
        raise ValueError("two pictures have one name: connect `name` of one Load Data Set, or nothing.")
    rows = []
    for place, name in enumerate(named):
        values = map_from_image(true[place], kind.channels, "reference", grey=not kind.vector, finite=False)[0]
        height, width = values.shape[:2]
        inside = known[place][0] > 0.5 if known else torch.ones(height, width, dtype=torch.bool)
        if inside.shape != (height, width):
            size = " x ".join(str(side) for side in reversed(inside.shape))
            raise ValueError(f"the mask of {name} is {size}, its reference {width} x {height}: both must have one size.")
        try:
            data = measures.fitted(_as_data(kind, made[place], convention), height, width)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        picture = measures.resized(seen[place][0, ..., :3].float(), height, width) if seen else torch.zeros(height, width, 3)
        rows.append(report.Shown(name, map_name, picture, data, MapData(values, inside), alignment))
    return rows


def _as_data(kind: MapKind, image_1hwc: torch.Tensor, convention: str) -> torch.Tensor:
    """A prediction as `[h, w, c]` of data. Raises ValueError for a convention of another map."""
    if convention == DATA:
        return map_from_image(image_1hwc, kind.channels, "prediction", grey=not kind.vector, finite=False)[0]
    if convention not in kind.files.readings:
        choices = ", ".join((DATA, *filter(None, kind.files.readings)))
        raise ValueError(f"the convention is {convention}, {kind.name} has {choices}: choose one of these.")
    return measures.data_of_picture(kind, map_from_image(image_1hwc, 3, "prediction", grey=True, finite=False), convention)[0]


def _scored(row: report.Shown, reference: MapData) -> dict[str, float]:
    try:
        return measures.measure_predicted(row.map_name, row.prediction_hwc, reference, row.alignment)
    except ValueError as error:
        raise ValueError(f"{row.name}: {error}") from None


def _singles(items: list[torch.Tensor] | None, rank: int) -> list[torch.Tensor]:
    """Each picture or mask as a batch of one, on the CPU; lists of batches and lists of pictures alike."""
    batches = (item if item.ndim == rank else item[None] for item in items or ())
    return [single.cpu() for batch in batches for single in batch.split(1)]


NODES = [LoadDataSet, EvaluateMaps]
