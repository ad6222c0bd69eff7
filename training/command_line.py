"""What the trainers' command lines share: options, progress, Ctrl+C, errors in words and exit codes."""

import argparse
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data import DATA_SETS, named_set
from ..methods.maps.files import COLOR_FILES, DEPTH_FILES, NORMAL_FILES
from .folder_data import FewPairs, FolderData
from .loop import Diverged, Interrupted, LoopConfig, Report
from .pairs import SceneData
from .set_data import SetData

REFUSED, STOPPED = 2, 130
FOLDER_LAYOUT = "folder with image/NAME.png and MAP/NAME.png, or NAME.png and NAME_MAP.png"
SETS = f"NAME:FOLDER of a data set ({', '.join(DATA_SETS)})"
# Default pixels of a folder's pictures and of rendered ones.
SIZES = (FolderData.size, SceneData.size)
_LOG = logging.getLogger(__name__)


def add_data_options(
    parser: argparse.ArgumentParser,
    title: str,
    *,
    layout: str = FOLDER_LAYOUT,
    sizes: tuple[int, int] = SIZES,
    colors: bool = True,
) -> "argparse._ArgumentGroup":
    """Where pairs come from, for `data_from`; returns the group. colors: for trainers of albedo and shading."""
    group = parser.add_argument_group(f"data: {title}, or rendered scenes (without --data)")
    group.add_argument("--data", type=Path, help=f"{layout}; or {SETS} (docs/data.md)")
    group.add_argument("--split", default="", help="of a data set: train, val, test or all; empty: its usual one")
    group.add_argument("--size", type=int, help=f"side of the square training pictures ({sizes[0]} for a folder, {sizes[1]} for scenes)")
    group.add_argument(
        "--normals",
        choices=tuple(NORMAL_FILES.readings),
        default=FolderData.normals,
        help=f"of the folder's normals. {NORMAL_FILES.meanings}",
    )
    group.add_argument(
        "--depth", choices=tuple(DEPTH_FILES.readings), default=FolderData.depth, help=f"of the folder's depth. {DEPTH_FILES.meanings}"
    )
    if colors:
        group.add_argument(
            "--colors", choices=tuple(COLOR_FILES.readings), default=FolderData.colors, help="of the folder's albedo and shading"
        )
    group.add_argument("--scenes", type=int, help=f"number of rendered scenes ({SceneData.count}), or of the first pairs of --data (all)")
    group.add_argument("--labels", type=int, default=0, help="learn from this many pairs of --data, drawn by --seed; 0: all")
    group.add_argument("--first-scene", type=int, default=SceneData.first_seed, help="seed of the first scene")
    return group


def data_from(arguments: argparse.Namespace, sizes: tuple[int, int] = SIZES) -> SceneData | FolderData | SetData:
    """The pairs that `add_data_options` asks for. Raises ValueError for impossible values."""
    if arguments.data is None:
        if arguments.labels:
            raise ValueError("--labels draws from the pairs of --data: of rendered scenes, --scenes says how many.")
        count = SceneData.count if arguments.scenes is None else arguments.scenes
        return SceneData(arguments.first_scene, count, arguments.size or sizes[1])
    few = {"count": arguments.scenes or 0, "labels": arguments.labels, "seed": arguments.seed}
    if named := named_set(str(arguments.data)):
        for name in ("normals", "depth", "colors"):
            if (came := getattr(arguments, name, usual := getattr(FolderData, name))) != usual:
                raise ValueError(f"--{name} {came} is of a plain folder's files: {named[0].name} has its own convention, leave it out.")
        return SetData(named[0].name, named[1], arguments.split, arguments.size or sizes[0], **few)
    # A colon after one letter is a drive's.
    if arguments.split or (":" in str(arguments.data)[2:] and not arguments.data.exists()):
        why = f"--split {arguments.split} is a part of a data set" if arguments.split else "it names no data set"
        raise ValueError(f"--data is {arguments.data}, but {why}: write NAME:FOLDER, NAME one of {', '.join(DATA_SETS)}.")
    folder = FolderData(arguments.data, arguments.size or sizes[0], **chosen(FolderData, arguments, "size"))
    return FewPairs(**vars(folder), **few) if few["count"] or few["labels"] else folder


def add_cache_option(parser: "argparse._ActionsContainer") -> None:
    """For trainers that encode their data once."""
    parser.add_argument("--cache", type=Path, help="folder of encoded latents, shared by runs (default: the output folder)")


def add_training_options(
    parser: argparse.ArgumentParser,
    *,
    steps: int,
    batch: int,
    batch_of: str,
    learning_rate: float | None = LoopConfig.learning_rate,
    learning_rate_help: str = "highest rate",
) -> "argparse._ArgumentGroup":
    """How long and how fast, for a `LoopConfig` of `chosen` values; returns the group. batch_of: what a batch counts."""
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=steps, help="of the optimiser")
    group.add_argument("--minutes", type=float, help="end after this time, if it is over before the steps; run again to go on")
    group.add_argument("--batch", type=int, default=batch, help=batch_of)
    group.add_argument("--learning-rate", type=float, default=learning_rate, help=learning_rate_help)
    group.add_argument("--checkpoint-every", type=int, default=LoopConfig.checkpoint_every, help="steps between checkpoints")
    group.add_argument("--seed", type=int, default=LoopConfig.seed, help="of data and initial weights")
    return group


def add_optimiser_options(group: "argparse._ActionsContainer") -> None:
    """The other fields of a `LoopConfig`."""
    group.add_argument("--accumulation", type=int, default=LoopConfig.accumulation, help="forward passes per step")
    group.add_argument("--schedule", choices=("constant", "cosine"), default=LoopConfig.schedule, help="of the rate")
    group.add_argument("--warmup", type=int, default=LoopConfig.warmup, help="steps of linear rise")
    group.add_argument("--weight-decay", type=float, default=LoopConfig.weight_decay, help="of the optimiser")
    group.add_argument("--clip-norm", type=float, default=LoopConfig.clip_norm, help="largest norm of the gradient")
    group.add_argument("--ema-decay", type=float, default=LoopConfig.ema_decay, help="of the average of the weights; 0: none")
    group.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=LoopConfig.mixed_precision, help="of the passes")


def add_gradient_checkpointing_option(parser: "argparse._ActionsContainer") -> None:
    """For trainers of large networks."""
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a slower step")


def add_process_options(parser: "argparse._ActionsContainer") -> None:
    """What `run` reads."""
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: torch's choice")
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines of progress")


def chosen(kind: type, arguments: argparse.Namespace, *without: str) -> dict[str, Any]:
    """The arguments that are called like fields of a dataclass."""
    names = {field.name for field in fields(kind)} - set(without)
    return {name: value for name, value in vars(arguments).items() if name in names}


def console_report(name: str, every: int = 50) -> Report:
    """A `report` that logs the mean loss and the time left every so many steps."""
    recent: list[float] = []

    def report(step: int, loss: float, seconds_left: float) -> None:
        recent.append(loss)
        if step % every == 0:
            _LOG.info("%s step %d loss %.4f, %.1f min left", name, step, sum(recent) / len(recent), seconds_left / 60)
            recent.clear()

    return report


def run(arguments: argparse.Namespace, output: Path, start: Callable[[Callable[[str], Report]], Path]) -> int:
    """Run one command and return its exit code: 0, REFUSED with the reason in the log, or STOPPED by Ctrl+C with a checkpoint.

    output: where the checkpoint is. start: gets what makes the report of a training from its name, returns what was written.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        if arguments.threads < 0:
            raise ValueError(f"threads is {arguments.threads}: it must be at least 0.")
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        with _ctrl_c_as_event() as stop:
            written = start(lambda name: _until(stop, console_report(name, arguments.log_every)))
    except Interrupted:
        logging.info("stopped and saved in %s: run the same command to go on", output)
        return STOPPED
    except (ValueError, OSError, Diverged) as error:
        logging.error("%s", error)
        return REFUSED
    if PartialState().is_main_process:
        logging.info("written: %s", written)
    return 0


def _until(stop: threading.Event, progress: Report) -> Report:
    def report(step: int, loss: float, seconds_left: float) -> None:
        progress(step, loss, seconds_left)
        if stop.is_set():
            raise Interrupted

    return report


@contextmanager
def _ctrl_c_as_event() -> Iterator[threading.Event]:
    """Ctrl+C sets the event, so that a step can end; pressed again it does not wait. Afterwards it does what it did before."""
    event = threading.Event()

    def stop(number, frame) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
