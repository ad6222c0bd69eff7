"""An evaluation: picture by picture, each kept as it comes."""

import csv
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import DATA_SETS, Pair, require_same_size
from ..methods import metrics
from ..methods.intrinsic_lora.recipe import AUTO
from ..methods.maps import MAPS, map_kind
from ..training.atomic import write_json, write_text
from . import report
from .measures import fitted, measure, measure_predicted, whdr
from .predictions import FolderPredictions, ModelPredictions, Predictions
from .report import PICTURES, SHEET, TABLE

_LOG = logging.getLogger(__name__)
SETTINGS = "settings.json"


@dataclass(frozen=True)
class EvaluationConfig:
    """What is judged on what.

    data, folder, split: a data set (`data.DATA_SETS`; an empty split is the usual one). map: what is judged. output: folder of the results.
    predictions: a folder of them, or base and lora: a model that makes them (size: see `ModelPredictions`). alignment: of depth,
    `metrics.ALIGNMENTS`. convention: of the predictions, see `FolderPredictions`. limit: the first so many pictures; 0: all.
    Raises ValueError for impossible values.
    """

    data: str
    folder: Path
    map: str
    output: Path
    split: str = ""
    predictions: Path | None = None
    base: Path | None = None
    lora: Path | None = None
    size: int | None = None
    alignment: str = metrics.SCALE_AND_SHIFT
    convention: str = AUTO
    limit: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("map", self.map, MAPS),
            ("data", self.data, DATA_SETS),
            ("alignment", self.alignment, metrics.ALIGNMENTS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}: choose {', '.join(allowed)}.")
        if (self.predictions is None) == (self.base is None) or (self.base is None) != (self.lora is None):
            raise ValueError("either a folder of predictions is judged, or a base with a LoRA: give --predictions, or --base and --lora.")
        if self.base is not None and self.alignment == metrics.METRIC and map_kind(self.map).relative:
            raise ValueError(f"a LoRA's {self.map} is relative, it has no metres: align it by scale-and-shift.")
        if min(self.limit, self.size or 0) < 0:
            raise ValueError(f"limit {self.limit}, size {self.size}: both must be at least 0.")

    def load(self) -> Predictions:
        if self.predictions is not None:
            return FolderPredictions(self.predictions, self.map, self.convention, self.alignment == metrics.METRIC)
        assert self.base is not None and self.lora is not None
        return ModelPredictions(self.base, self.lora, self.map, self.convention, self.size)

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, in JSON's types."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self), default=str)).items() if name not in ("output", "limit")}


Scores = dict[str, dict[str, float]]


def evaluate(config: EvaluationConfig, on_picture: Callable[[int, int], None] = lambda done, of: None) -> Scores:
    """Judge every picture (those that were judged before are not judged again), and write table and sheet.

    Returns the metrics of every picture by its name. on_picture: how many are done, of how many. Raises ValueError, also for an output
    folder that belongs to another evaluation.
    """
    pairs = DATA_SETS[config.data].pairs(config.folder, config.map, config.split)[: config.limit or None]
    kept = _kept_scores(config)
    predictions = config.load()
    scores = {}
    for done, (pair, score) in enumerate(_scored(config, predictions, pairs, kept), 1):
        if score:
            scores[pair.name] = score
        on_picture(done, len(pairs))
    if not scores:
        raise ValueError(f"none of the {len(pairs)} pictures of {config.data} has anything to judge: its masks are empty.")
    title = f"{config.map} on {DATA_SETS[config.data].title}, {len(scores)} pictures"
    write_text(config.output / TABLE, report.table(title, _how(config), scores))
    chosen = report.best_median_worst(scores, main_metric(config))
    rows = [_shown(config, predictions, pair) for name in chosen for pair in pairs if pair.name == name]
    report.write_sheet(config.output / SHEET, report.sheet(rows))
    return scores


def main_metric(config: EvaluationConfig) -> str:
    """The metric that pictures are sorted by, less is better."""
    return map_kind(config.map).evaluation.main if DATA_SETS[config.data].read else "whdr"


def _how(config: EvaluationConfig) -> str:
    made = str(config.predictions) if config.predictions else f"{config.base} with {config.lora}"
    aligned = f", depth after {config.alignment} alignment" if map_kind(config.map).evaluation is metrics.DEPTH else ""
    return f"Predictions: {made}{aligned}."


def _scored(
    config: EvaluationConfig, predictions: Predictions, pairs: tuple[Pair, ...], kept: Scores
) -> Iterator[tuple[Pair, dict[str, float]]]:
    """Each pair with its metrics; none where nothing can be judged, which is logged. New ones are appended to the file of pictures."""
    path = config.output / PICTURES
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        for pair in pairs:
            if pair.name in kept:
                yield pair, kept[pair.name]
                continue
            score = _score(config, predictions, pair)
            if score:
                if not path.stat().st_size:
                    lines.writerow(["picture", *score])
                lines.writerow([pair.name, *score.values()])
                file.flush()
            else:
                _LOG.warning("%s has nothing to judge and is left out", pair.name)
            yield pair, score


def _score(config: EvaluationConfig, predictions: Predictions, pair: Pair) -> dict[str, float]:
    kind = DATA_SETS[config.data]
    picture = kind.picture(pair)
    if kind.read is None:
        judgements = kind.judgements(pair)
        return {"whdr": whdr(_predicted(predictions, pair, picture), judgements)} if judgements else {}
    reference = kind.read(pair, config.map)
    require_same_size(pair, picture, reference)
    if not reference.mask_hw.any():
        return {}
    try:
        # A model's own NaN is a fault, another program's may be a sky.
        how = measure_predicted if config.base is None else measure
        return how(config.map, _predicted(predictions, pair, picture), reference, config.alignment)
    except ValueError as error:
        raise ValueError(f"{pair.name}: {error}") from None


def _predicted(predictions: Predictions, pair: Pair, picture_hw3: Tensor) -> Tensor:
    """At the picture's size. Raises ValueError for a prediction that shows another view."""
    return fitted(predictions.predict(pair, picture_hw3), *picture_hw3.shape[:2])


def _shown(config: EvaluationConfig, predictions: Predictions, pair: Pair) -> report.Shown:
    kind = DATA_SETS[config.data]
    picture = kind.picture(pair)
    reference = None if kind.read is None else kind.read(pair, config.map)
    return report.Shown(pair.name, config.map, picture, _predicted(predictions, pair, picture), reference, config.alignment)


def _kept_scores(config: EvaluationConfig) -> Scores:
    """What was judged before; the folder is made, and a line that was cut off is dropped. Raises ValueError for another evaluation's."""
    settings, path = config.output / SETTINGS, config.output / PICTURES
    if not path.is_file() or not path.stat().st_size:
        write_json(settings, config.settings())
        return {}
    before = json.loads(settings.read_text(encoding="utf-8"))
    if differing := [name for name, value in config.settings().items() if before.get(name) != value]:
        raise ValueError(f"{config.output} holds an evaluation with another {', '.join(differing)}: choose another output folder.")
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    names = header.strip().split(",")[1:]
    if config.predictions is not None and DATA_SETS[config.data].read and "unpredicted" not in names:
        raise ValueError(f"{config.output} holds an evaluation by an earlier version, with fewer columns: choose another output folder.")
    whole = [line for line in lines if line.endswith("\n")]
    write_text(path, "".join([header, *whole]))
    return {name: dict(zip(names, map(float, values), strict=True)) for name, *values in csv.reader(whole)}
