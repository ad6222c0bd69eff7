"""Training inside ComfyUI's process: what a run may use and leaves as it was, how it is watched and cancelled, what the graph gets."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import numpy
import torch
from torch import Tensor

from ....methods.extras import extra
from .files import SCENES, Destination, base_path, data_folder, publish, require_free, run_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from ....training.config import TrainerConfig
    from ....training.folder_data import FolderData
    from ....training.history import History
    from ....training.look import Sample
    from ....training.loop import LoopConfig
    from ....training.pairs import SceneData

PACKAGES = ("accelerate", "diffusers", "peft", "transformers")
SECONDS_BETWEEN_PREVIEWS = 1.0
SCENE_SIZE, FOLDER_SIZE = 128, 512
# The trainers' names of some settings -> the nodes'.
_SHOWN = {"seed": "training_seed", "count": "scenes"}


@dataclass(frozen=True)
class Settings:
    """What all training nodes are told, by the names of their inputs. size 0: the data's usual size."""

    base: str
    data: str
    name: str
    steps: int
    learning_rate: float
    batch: int
    size: int = 0
    training_seed: int = 0
    scenes: int = 1000
    normals: str = "opengl"
    depth: str = "near_dark"
    colors: str = "srgb"
    mixed_precision: str = "no"
    checkpoint_every: int = 200

    @property
    def base_path(self) -> Path:
        """Raises ValueError for a name that is not offered."""
        return base_path(self.base)

    def loop(self) -> "LoopConfig":
        """What the one training loop is told. Raises ValueError for impossible values."""
        from ....training.loop import LoopConfig

        return LoopConfig(
            run_folder(self.name),
            self.steps,
            learning_rate=self.learning_rate,
            mixed_precision=self.mixed_precision,
            checkpoint_every=self.checkpoint_every,
            seed=self.training_seed,
        )

    def pairs(self) -> "SceneData | FolderData":
        """Where pictures and maps come from. Raises ValueError for a folder that is not offered and for impossible values."""
        from ....training.folder_data import FolderData
        from ....training.pairs import SceneData

        if self.data == SCENES:
            return SceneData(count=self.scenes, size=self.size or SCENE_SIZE)
        return FolderData(data_folder(self.data), self.size or FOLDER_SIZE, self.normals, self.depth, self.colors)


class Watcher:
    """Shows a run in its node and ends it when the prompt is cancelled: the callbacks that trainers take."""

    def __init__(self) -> None:
        self.total, self._shown = 0, 0.0
        self._bar: comfy.utils.ProgressBar | None = None
        self._kind: str | None = None
        self._sample: Sample | None = None

    def begin(self, steps: int, earlier: "History") -> None:
        """Before the trainer runs. earlier: of the part of the run that is done."""
        self.total, self.history = steps, earlier

    def encoded(self, kind: str, done: int, total: int) -> None:
        """An `on_encoded` of the trainers. Raises `training.loop.Interrupted`."""
        self._update(self._bar_of(kind, total), done, total)

    def step(self, step: int, loss: float, seconds_left: float) -> None:
        """A `report` of `training.loop.train`. Raises `training.loop.Interrupted`, upon which the loop keeps a checkpoint."""
        self.history.add(loss, 0.0)
        picture = None
        if time.monotonic() - self._shown >= SECONDS_BETWEEN_PREVIEWS:
            picture = ("JPEG", self.picture(seconds_left), None)
            self._shown = time.monotonic()
        self._update(self._bar_of(None, self.total), step, self.total, picture)

    def sampled(self, sample: "Sample") -> None:
        """An `OnSample` of the trainers: shown from now on."""
        self._sample = sample

    def picture(self, seconds_left: float | None = None) -> "Image":
        """The loss curve so far, and below it the last sample if there is one."""
        from ....training.history import loss_curve, with_sample

        curve = loss_curve(self.history, seconds_left=seconds_left)
        return curve if self._sample is None else with_sample(curve, self._sample)

    def _bar_of(self, kind: str | None, total: int) -> comfy.utils.ProgressBar:
        """A bar for each kind of pictures that is encoded, and one for the steps."""
        if self._bar is None or kind != self._kind:
            self._bar, self._kind = comfy.utils.ProgressBar(total), kind
        return self._bar

    def _update(self, bar: comfy.utils.ProgressBar, value: int, total: int, preview: tuple | None = None) -> None:
        from ....training.loop import Interrupted

        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
            # Looks for an interrupt too.
            bar.update_absolute(value, total, preview)
        except comfy.model_management.InterruptProcessingException as stop:
            raise Interrupted from stop


@dataclass(frozen=True)
class Trained:
    """What a training node puts out. curve, shown: `[1, h, w, 3]`, 0..1; shown: the curve with a sample below it, if there is one."""

    name: str
    curve: Tensor
    report: str
    shown: Tensor


# What a run is to do, and the trainer that takes the callbacks.
Trainer = Callable[[Settings], tuple["TrainerConfig", Callable[[Watcher], Any]]]


def train_in_graph(settings: Settings, destination: Destination, trainer: Trainer) -> Trained:
    """Run (or resume) a training, put its result in its destination, and tell about it.

    Raises ValueError that names the input to change, and ComfyUI's own exception if the prompt is cancelled; what is done by then is
    kept, and the same settings go on from there.
    """
    require_packages()
    run = run_folder(settings.name)
    require_free(run, destination)
    with training_session():
        from ....training.checkpoint import CheckpointMismatch
        from ....training.history import loss_curve
        from ....training.loop import Diverged, Interrupted

        watcher = Watcher()
        try:
            config, start = trainer(settings)
            # Before models are loaded and pictures encoded for nothing.
            earlier = config.kept_history()
            done = earlier.steps
            watcher.begin(settings.steps, earlier)
            start(watcher)
            history = config.kept_history()
        except Interrupted:
            raise comfy.model_management.InterruptProcessingException() from None
        except CheckpointMismatch as error:
            raise ValueError(_other_settings(settings.name, error.changes)) from error
        except Diverged as error:
            raise ValueError(
                f"{error.told[0].upper()}{error.told[1:]} at step {error.step}: lower learning_rate, and choose another name. The last "
                "good checkpoint is kept."
            ) from error
        publish(run, config.weights, destination)
    watcher.history = history
    shown = _image(watcher.picture())
    return Trained(destination.name, _image(loss_curve(history)), _report(settings, destination, done, history), shown)


def require_packages() -> None:
    """Raises ValueError if something that only training needs is not installed, or too old."""
    for name in PACKAGES:
        extra(name, "Training")


@contextmanager
def training_session() -> Iterator[None]:
    """Gradients and free memory, on ComfyUI's device; afterwards random numbers, threads and accelerate's state are as they were."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count())
    try:
        # ComfyUI runs nodes in inference mode, whose tensors have no gradients.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices), _own_accelerate_state():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        gc.collect()
        comfy.model_management.soft_empty_cache()


@contextmanager
def _own_accelerate_state() -> Iterator[None]:
    """accelerate keeps its choices once per process, where another pack may have made some already."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(values) for values in shared]
    for values in shared:
        values.clear()
    try:
        # So that ComfyUI's --cpu counts here too.
        PartialState(cpu=comfy.model_management.get_torch_device().type != "cuda")
        yield
    finally:
        for values, earlier in zip(shared, before, strict=True):
            values.clear()
            values.update(earlier)


def _other_settings(name: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    changed = "; ".join(f"{setting} was {_short(was)}, now {_short(now)}" for setting, was, now in _flat(changes)) or "another model"
    return (
        f"There is a run {name!r} with other settings already ({changed}): choose another name, or set them back to go on with that run. "
        "Only more steps can be asked of it."
    )


def _flat(changes: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    for setting, (was, now) in changes.items():
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _flat({key: (was.get(key), now.get(key)) for key in {**was, **now} if was.get(key) != now.get(key)})
        else:
            yield _SHOWN.get(setting, setting), was, now


def _short(value: Any) -> str:
    """Whoever looks at the graph need not learn where folders lie."""
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return "not set" if value is None else str(value)


def _image(picture: "Image") -> Tensor:
    return torch.from_numpy(numpy.array(picture)).float()[None] / 255


def _report(settings: Settings, destination: Destination, earlier: int, history: "History") -> str:
    from ....kernels.machine import machine_and_card

    losses, count = history.losses, max(1, len(history.losses) // 10)
    first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
    spent = f"{history.seconds:.0f} seconds" if history.seconds < 120 else f"{history.seconds / 60:.1f} minutes"
    lines = [f"{destination.name} is ready: {history.steps} steps in {spent} on {machine_and_card()}."]
    if earlier == history.steps:
        lines.append("The run was complete: raise steps to go on with it, or choose another name for a new one.")
    elif earlier:
        lines.append(f"{earlier} of the steps were done before and kept.")
    lines.append(f"Loss: {first:.4g} at first, {last:.4g} at last (means of {count} steps).")
    lines.append(f"Checkpoint and records: intrinsic_lab/training/{settings.name} in the output folder.")
    return "\n".join(lines)
