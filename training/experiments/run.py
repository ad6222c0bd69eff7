"""An experiment is a matrix of trainings, each judged on the same pictures; what is finished is kept and never done twice."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...evaluate.predictions import ModelPredictions, NetworkPredictions, Sampling
from ...kernels.machine import machine_and_card
from ...methods import metrics
from ...methods.intrinsic_lora.multi_step import AUGMENTED, MULTI, SINGLE
from ...methods.lora.lora_file import read_lora
from ..atomic import write_json
from ..backbones import single_step_in
from ..folder_data import FewPairs, few_rows
from ..intrinsic_lora import IntrinsicLoraConfig, LatentPairs, load_base, train_intrinsic_lora
from ..intrinsic_lora.config import Data
from ..loop import Diverged, Report
from ..pairs import SceneData
from ..set_data import SetData
from .experiments import EXPERIMENTS, METHODS, Experiment
from .judging import Judged, NotFinite, judge, predictions_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One training of an experiment, and how it is judged. method: of `METHODS`, or empty; value: the place on the axis."""

    map: str
    method: str
    value: str
    config: IntrinsicLoraConfig
    sampling: Sampling

    @property
    def seed(self) -> int:
        return self.config.loop.seed

    @property
    def name(self) -> str:
        method = METHODS[self.method].title if self.method else ""
        return " ".join(filter(None, (self.map, method, self.value, f"seed {self.seed}")))


@dataclass(frozen=True)
class ExperimentConfig:
    """An experiment, tried with every map, every value and so many seeds.

    shared: the settings of all runs; its output is the experiments' folder, in which runs that several experiments need are found by all of
    them; its seed is the first one. values, methods: empty for the usual ones. alignment: of depth before it is judged. lora: of a
    multi-step model, a file that is judged in place of one that is trained; the seeds are then those of its noise.
    Raises ValueError for impossible values.
    """

    name: str
    shared: IntrinsicLoraConfig
    maps: tuple[str, ...]
    judged: Judged
    values: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int = 3
    alignment: str = metrics.SCALE_AND_SHIFT
    lora: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {self.name!r}: choose {', '.join(EXPERIMENTS)}.")
        if self.seeds < 1:
            raise ValueError(f"{self.seeds} seeds were asked for: at least 1 is needed.")
        if self.shared.loop.minutes is not None:
            raise ValueError("runs are compared after equally many steps: leave the limit of minutes out, the same command goes on anyway.")
        if self.shared.kind in ("full", "probe") and (self.experiment.compares or self.experiment.varies == "rank"):
            raise ValueError(
                f"the kind {self.shared.kind!r} has no LoRA, which {self.name} is about: choose attention, transformer or wide."
            )
        if self.methods and not self.experiment.compares:
            raise ValueError(f"{self.name} does not compare methods: leave them out.")
        if unknown := set(self.methods) - METHODS.keys():
            raise ValueError(f"there is no method {sorted(unknown)[0]!r}: choose {', '.join(METHODS)}.")
        if self.experiment.sampling and self.shared.method == SINGLE:
            raise ValueError(f"{self.name} is about multi-step models: choose the method {' or '.join((MULTI, AUGMENTED))}.")
        if self.lora is not None:
            if not self.experiment.sampling:
                raise ValueError(f"{self.name} trains its LoRAs: leave {self.lora.name} out.")
            made = [_header(self.lora, name) for name in ("map", "method")]
            if self.maps != (made[0],) or self.shared.method != made[1]:
                raise ValueError(f"{self.lora.name} makes {made[0] or 'no known map'} by the method {made[1] or SINGLE}: ask for these.")
        if not self.axis_values:
            raise ValueError(f"{self.name} needs its values said: they are of the axis {self.experiment.axis}.")

    @property
    def experiment(self) -> Experiment:
        return EXPERIMENTS[self.name]

    @property
    def output(self) -> Path:
        return self.shared.loop.output

    @property
    def axis_values(self) -> tuple[str, ...]:
        return self.values or self.experiment.values

    @property
    def used_methods(self) -> tuple[str, ...]:
        return self.methods or (tuple(METHODS) if self.experiment.compares else ("",))

    def cells(self) -> list[Cell]:
        """Every run, all places with the first seed first. Raises ValueError for a value that is none."""
        seeds = range(self.shared.loop.seed, self.shared.loop.seed + self.seeds)
        return [
            self._cell(name, method, value, seed)
            for seed in seeds
            for name in self.maps
            for value in self.axis_values
            for method in self.used_methods
        ]

    def _cell(self, map_name: str, method: str, value: str, seed: int) -> Cell:
        data = self.shared.data
        # Which labels are drawn is part of what a seed decides.
        data = replace(data, seed=seed) if isinstance(data, FewPairs | SetData) else data
        config = replace(self.shared, map=map_name, data=data, loop=replace(self.shared.loop, seed=seed))
        config = self.experiment.change(METHODS[method].applied(config) if method else config, value)
        loop = replace(
            config.loop, output=self.output / "runs" / f"{map_name}-{config.kind}-{seed}-{_digest(_identity(config, self.lora))}"
        )
        sampling = replace(self.experiment.sampling(value) if self.experiment.sampling else Sampling(), seed=seed)
        return Cell(map_name, method, value, replace(config, loop=loop), sampling)

    def settings(self) -> dict[str, Any]:
        """What all runs share, of folders only the names. Of a LoRA that is given, nothing of a training."""
        if self.lora is not None:
            return {"base": self.shared.base.name, "method": self.shared.method, "lora": self.lora.name, "size": self.shared.data.size}
        shared = json.loads(self.shared.record())
        return {name: value for name, value in shared.items() if name not in ("map", self.experiment.varies)}


def _header(lora: Path, name: str) -> str:
    return read_lora(lora).metadata.get(f"intrinsic_lab.{name}", "")


def _identity(config: IntrinsicLoraConfig, lora: Path | None) -> dict[str, Any]:
    """What the weights depend on: the files too, which may be others under the same name."""
    parts = [*sorted(config.base.glob("*/*.safetensors")), *([] if lora is None else [lora])]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
    return {"base": files, "steps": config.loop.steps, **config.loop.checkpoint(config.task_settings()).settings}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def kept_result(config: ExperimentConfig, cell: Cell) -> Path:
    """Where a run's result is kept: its scores on the judged pictures, or in which words it diverged."""
    how = [config.judged.identity(), config.alignment, *([] if cell.config.method == SINGLE else [asdict(cell.sampling)])]
    return cell.config.loop.output / f"judged-{_digest(how)}.json"


def run_experiment(
    config: ExperimentConfig,
    *,
    cache: Path | None = None,
    report: Callable[[str], Report] | None = None,
    on_result: Callable[[list[tuple[Cell, dict[str, Any]]]], object] = lambda results: None,
) -> list[tuple[Cell, dict[str, Any]]]:
    """Train and judge what has no result yet; returns every run with its result.

    cache: of encoded latents, which all runs share (a folder in the output by default). report: makes what is told of a run's steps
    from its name. on_result: called with the results so far. Raises ValueError before anything is trained where a run cannot be;
    OSError where something cannot be written, with what is finished kept; what `report` raises, after a checkpoint.
    """
    cells = config.cells()
    _require_possible(config, cells)
    results: list[tuple[Cell, dict[str, Any]]] = []
    for number, cell in enumerate(cells, 1):
        path = kept_result(config, cell)
        if not path.is_file():
            _LOG.info("run %d of %d: %s", number, len(cells), cell.name)
            write_json(path, _result(config, cell, cache or config.output / "latents", report(cell.name) if report else None))
            _forget_large_files(cell.config)
        results.append((cell, json.loads(path.read_text(encoding="utf-8"))))
        on_result(results)
    return results


def _require_possible(config: ExperimentConfig, cells: list[Cell]) -> None:
    """Raises ValueError for a run whose data or base are not there, and if one would be judged on what it has learnt from."""
    for cell in cells:
        config.judged.require_unseen(cell.map, cell.config.data.source(cell.map))
        single_step_in(cell.config.base)
    for name in config.maps:
        next(iter(config.judged.pictures(name)), None)


def _result(config: ExperimentConfig, cell: Cell, cache: Path, report: Report | None) -> dict[str, Any]:
    try:
        predictions, spent = _judged_network(config, cell, cache, report)
        scores = judge(predictions, config.judged, config.alignment)
    except (Diverged, NotFinite) as diverged:
        _LOG.warning("%s diverged: %s", cell.name, diverged)
        reason = f"{diverged.told} at step {diverged.step}" if isinstance(diverged, Diverged) else str(diverged)
        return {"diverged": reason, "machine": machine_and_card()}
    return {"scores": scores, **spent, "machine": machine_and_card()}


def _judged_network(config: ExperimentConfig, cell: Cell, cache: Path, report: Report | None) -> tuple[NetworkPredictions, dict[str, Any]]:
    """What makes a run's maps, and what is said of it beside its scores."""
    if config.lora is not None:
        size, weights = cell.config.data.size, read_lora(config.lora)
        learnt = sum(layer.down.numel() + layer.up.numel() for layer in weights.layers.values())
        learnt += 0 if weights.picture_in is None else weights.picture_in.numel()
        return ModelPredictions(cell.config.base, config.lora, cell.map, size=size, sampling=cell.sampling), {"parameters": learnt}
    trained = train_intrinsic_lora(cell.config, pairs=_pairs(config, cell, cache), report=report)
    learning = [parameter for parameter in trained.base.network.parameters() if parameter.requires_grad]
    return predictions_of(trained.base, cell.config, cell.sampling), {
        "parameters": sum(parameter.numel() for parameter in learning),
        "final_loss": trained.history.final_loss(),
        "seconds": round(trained.history.seconds, 1),
    }


def _pairs(config: ExperimentConfig, cell: Cell, cache: Path) -> LatentPairs:
    """The pairs of a run, out of all that any run of the experiment learns from: these are encoded once for every base."""
    own = cell.config.data
    every = _encoded(cell.config.base, _all_data(config), cell.map, cache)
    if isinstance(own, FewPairs | SetData):
        return every.chosen(few_rows(len(every), 0, own.labels, own.seed))
    return every.chosen(range(len(own.source(cell.map))))


# Runs of one base and map follow each other.
@lru_cache(maxsize=1)
def _encoded(base: Path, data: Data, map_name: str, cache: Path) -> LatentPairs:
    return LatentPairs.encode(load_base(base).vae, data.source(map_name), map_name, cache)


def _all_data(config: ExperimentConfig) -> Data:
    """Without any number of labels; of scenes, the largest."""
    datas = [cell.config.data for cell in config.cells()]
    scenes = [data for data in datas if isinstance(data, SceneData)]
    if scenes:
        return max(scenes, key=lambda data: data.count)
    return replace(datas[0], labels=0) if isinstance(datas[0], FewPairs | SetData) else datas[0]


def _forget_large_files(config: IntrinsicLoraConfig) -> None:
    """A network that was trained whole is as large as its base, and its checkpoint three times that."""
    if config.kind == "full":
        shutil.rmtree(config.weights, ignore_errors=True)
        config.loop.checkpoint().remove()


def rows(config: ExperimentConfig, results: list[tuple[Cell, dict[str, Any]]]) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    """(map, method, value, its results over the seeds) of every row, in the order of a table."""
    for name in config.maps:
        for method in config.used_methods:
            for value in config.axis_values:
                yield (
                    name,
                    method,
                    value,
                    [
                        {"seed": cell.seed} | result
                        for cell, result in results
                        if (cell.map, cell.method, cell.value) == (name, method, value)
                    ],
                )
