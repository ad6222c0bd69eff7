"""`python -m intrinsic_lab.training.experiments NAME`: an experiment of the paper on your base and data; run it again to go on."""

import argparse
import sys
from pathlib import Path

from ...data import DATA_SETS, named_set
from ...methods.maps import MAPS
from ...methods.metrics import ALIGNMENTS
from .. import command_line
from ..intrinsic_lora import IntrinsicLoraConfig
from ..intrinsic_lora.options import BASE, add_options, config_from
from ..pairs import SceneData
from .experiments import EXPERIMENTS, METHODS
from .judging import Judged, JudgedScenes, JudgedSet
from .report import write_report
from .run import ExperimentConfig, run_experiment

SCENES = 100


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.experiments",
        description="Repeat an experiment of the Intrinsic LoRA paper: train all of its runs, judge them on pictures that none has seen, "
        "write NAME.md, NAME.json and NAME.png beside what the paper found. The same command goes on where it was stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    usual = "; ".join(f"{name}: {' '.join(entry.values) or 'none'}" for name, entry in EXPERIMENTS.items())
    parser.add_argument("name", choices=tuple(EXPERIMENTS), help="; ".join(f"{name}: {entry.title}" for name, entry in EXPERIMENTS.items()))
    parser.add_argument("--base", type=Path, nargs="+", required=True, help=f"{BASE}; for bases several, the best last")
    parser.add_argument("--map", nargs="+", required=True, choices=tuple(MAPS), help="what is extracted, one or several")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables and runs; experiments in one folder share their runs")

    experiment = parser.add_argument_group("experiment")
    experiment.add_argument("--values", nargs="+", default=[], help=f"places on the axis, instead of the usual ones ({usual})")
    experiment.add_argument("--methods", nargs="+", default=[], choices=tuple(METHODS), help="of labels, instead of all")
    experiment.add_argument("--seeds", type=int, default=ExperimentConfig.seeds, help="runs of every place, with seeds from --seed on")
    experiment.add_argument("--lora", type=Path, help="of steps and guidance: judge this LoRA of the trainer, train none")
    experiment.add_argument("--judge", metavar="NAME:FOLDER", help=f"data set to judge on ({', '.join(DATA_SETS)}); without --data: scenes")
    experiment.add_argument("--judge-split", default="", help="of --judge; empty: its usual one")
    experiment.add_argument("--judged", type=int, help=f"judge on the first so many pictures (all of a set, {SCENES} scenes)")
    experiment.add_argument("--align", choices=tuple(ALIGNMENTS), default=ExperimentConfig.alignment, help="of a depth before it is judged")
    add_options(parser)
    return parser


def experiment_from(arguments: argparse.Namespace) -> ExperimentConfig:
    """What the command line asks for. Raises ValueError for impossible values."""
    experiment, values = EXPERIMENTS[arguments.name], tuple(arguments.values)
    if experiment.varies == "base":
        if values:
            raise ValueError("the values of bases are its bases: give them all to --base, the best last.")
        values = tuple(map(str, arguments.base))
        if len(values) < 2:
            raise ValueError("one base came, bases compares several: give them all to --base, the best last.")
    else:
        if len(arguments.base) > 1:
            raise ValueError(f"{len(arguments.base)} bases came, {experiment.name} is about one: choose one, or the experiment bases.")
        if experiment.varies and getattr(arguments, experiment.varies) != build_parser().get_default(experiment.varies):
            raise ValueError(f"--{experiment.varies} is what {experiment.name} varies: say its places with --values.")
    run = argparse.Namespace(**{**vars(arguments), "base": arguments.base[0], "map": arguments.map[0]})
    shared = config_from(run)
    judged = _judged(arguments, shared)
    methods = tuple(arguments.methods)
    return ExperimentConfig(
        experiment.name, shared, tuple(arguments.map), judged, values, methods, arguments.seeds, arguments.align, arguments.lora
    )


def _judged(arguments: argparse.Namespace, shared: IntrinsicLoraConfig) -> Judged:
    if arguments.judge is None:
        if not isinstance(shared.data, SceneData):
            raise ValueError(f"say with --judge NAME:FOLDER on which pictures the runs are judged ({', '.join(DATA_SETS)}).")
        return JudgedScenes(SCENES if arguments.judged is None else arguments.judged, shared.data.size)
    if (named := named_set(arguments.judge)) is None:
        raise ValueError(f"--judge is {arguments.judge!r}: name a data set before its folder, as diode:FOLDER ({', '.join(DATA_SETS)}).")
    return JudgedSet(named[0].name, named[1], arguments.judge_split, arguments.judged or 0)


def main(argv: list[str] | None = None) -> int:
    """Run one experiment; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    def start(report) -> Path:
        config = experiment_from(arguments)
        results = run_experiment(config, cache=arguments.cache, report=report, on_result=lambda so_far: write_report(config, so_far))
        return write_report(config, results)

    status = command_line.run(arguments, arguments.output, start)
    if status == 0:
        print((arguments.output / f"{arguments.name}.md").read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.exit(main())
