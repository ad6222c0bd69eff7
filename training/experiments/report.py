"""What an experiment leaves: a table as Markdown and as JSON, and a plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...evaluate.predictions import Sampling
from ...kernels.machine import machine_and_card
from ...methods.intrinsic_lora.multi_step import SINGLE
from ...methods.maps import map_kind
from ...methods.metrics import LABELS
from ..atomic import write_atomically, write_json, write_text
from . import paper
from .experiments import METHODS
from .plot import Curve, Panel, draw
from .run import Cell, ExperimentConfig, rows

Results = list[tuple[Cell, dict[str, Any]]]


def write_report(config: ExperimentConfig, results: Results) -> Path:
    """Write NAME.md, NAME.json and NAME.png into the output; returns the table's path. What has no result yet is left empty."""
    path = config.output / f"{config.name}.md"
    record = _record(config, results)
    write_json(path.with_suffix(".json"), record)
    panels = [_panel(config, record, name) for name in config.maps]
    if any(curve.points for panel in panels for curve in panel.curves):
        write_atomically(path.with_suffix(".png"), lambda partial: draw(panels).save(partial, format="PNG"))
    write_text(path, _table(config, record))
    return path


def _record(config: ExperimentConfig, results: Results) -> dict[str, Any]:
    machines = {result["machine"] for _, result in results} or {machine_and_card()}
    return {
        "experiment": config.name,
        "judged": str(config.judged),
        "settings": config.settings(),
        "machine": sorted(machines),
        "rows": [
            {
                "map": map_name,
                "method": method,
                "value": shown_value(value),
                "runs": runs,
                "scores": _by_metric(runs),
                "paper": paper.said(config.name, method, value),
                "paper_degrees": paper.degrees(config.name, method, value),
            }
            for map_name, method, value, runs in rows(config, results)
        ],
    }


def _by_metric(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The values of every run that did not diverge."""
    scored = [run["scores"] for run in runs if "scores" in run]
    return {name: [scores[name] for scores in scored] for name in (scored[0] if scored else ())}


def shown_value(value: str) -> str:
    """Of a folder its name alone: the record is passed on."""
    return Path(value).name


def _table(config: ExperimentConfig, record: dict[str, Any]) -> str:
    experiment, settings = config.experiment, record["settings"]
    if config.lora is not None:
        made = f"{config.lora.name}, noise drawn by the seeds"
    else:
        loop = settings["loop"]
        made = f"{loop['steps']} steps of {settings['batch'] * loop['accumulation']} pairs at {loop['learning_rate']:g}"
    shared = [
        made,
        f"judged on {record['judged']}",
    ]
    if config.shared.method != SINGLE:
        usual = f" ({Sampling.steps} steps, guidance {Sampling.guidance:g})"
        shared.append(f"method {config.shared.method}" + ("" if experiment.sampling else usual))
    if any(name.startswith("depth") for name in config.maps):
        shared.append(f"depth after {config.alignment} alignment")
    lines = [
        f"# {config.name}: {experiment.title}",
        "",
        f"{', '.join(shared)}. {'; '.join(record['machine'])}. Mean over the runs, ± their standard deviation.",
        "",
        f"The paper: {paper.FINDINGS[config.name]}",
    ]
    for name in config.maps:
        lines += ["", f"## {name}", "", *_rows(config, [row for row in record["rows"] if row["map"] == name])]
    lines += ["", "Settings that all runs share:", "", "```json", json.dumps(settings, indent=1), "```", ""]
    return "\n".join(lines)


def _rows(config: ExperimentConfig, table_rows: Sequence[dict[str, Any]]) -> list[str]:
    names = next((list(row["scores"]) for row in table_rows if row["scores"]), [])
    head = [config.experiment.axis, *(["method"] if config.used_methods != ("",) else []), "runs", *(LABELS[name] for name in names)]
    head += ["trained parameters", paper.SOURCE]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in table_rows:
        runs = [run for run in row["runs"] if "scores" in run]
        diverged = len(row["runs"]) - len(runs)
        cells = [config.experiment.titles.get(row["value"], row["value"]), *([METHODS[row["method"]].title] if row["method"] else [])]
        cells.append(f"{len(runs)}" + (f", {diverged} diverged" if diverged else ""))
        cells += [spread(row["scores"].get(name, [])) for name in names]
        cells += [f"{runs[0]['parameters']:,}" if runs else "", row["paper"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    if not values:
        return ""
    return f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _panel(config: ExperimentConfig, record: dict[str, Any], map_name: str) -> Panel:
    metric = map_kind(map_name).evaluation.main
    table_rows = [row for row in record["rows"] if row["map"] == map_name]
    curves = []
    for method in config.used_methods:
        own = [row for row in table_rows if row["method"] == method]
        points = {place: values for place, row in enumerate(own) if (values := row["scores"].get(metric))}
        curves.append(Curve(METHODS[method].title if method else "here", points))
    if map_name == "normal":
        for method in config.used_methods:
            own = [row["paper_degrees"] for row in table_rows if row["method"] == method]
            numbers = {place: [number] for place, number in enumerate(own) if number is not None}
            curves.append(Curve(f"{METHODS[method].title}, the paper" if method else paper.SOURCE, numbers, dashed=True))
    places = tuple(config.experiment.titles.get(shown_value(value), shown_value(value)) for value in config.axis_values)
    return Panel(f"{map_name}: {LABELS[metric]}", config.experiment.axis, places, tuple(curve for curve in curves if curve.points))
