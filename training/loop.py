"""The one training loop: every trainer of the pack is a `Task` run by `train`.

A task draws the data of step n from (seed, n, process) alone, so the weights, the optimiser and the step number are
all that a checkpoint has to hold: a run that is killed and resumed ends with the same weights as one that was not.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..kernels.benchmarking import machine

CHECKPOINT = "checkpoint.pt"
# So many numbers of a run of any length; the later half of them belongs to consecutive steps.
MOST_LOSSES = 20_000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a run; written to `<output>/config.json` beside what the run makes.

    steps: optimiser steps; accumulation: forward passes per step; ema_decay: 0 keeps no average;
    schedule: "constant" or "cosine" (to 0); warmup: steps of linear rise. minutes: time for each call of `train`, which ends with
    the step in which it is over, as if that were the last of `steps`; None: no limit. Raises ValueError for impossible values.
    """

    output: Path
    steps: int
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    accumulation: int = 1
    mixed_precision: str = "no"
    ema_decay: float = 0.0
    checkpoint_every: int = 200
    seed: int = 0
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1 or self.checkpoint_every < 1:
            raise ValueError("steps, accumulation and checkpoint_every must be at least 1.")
        if self.learning_rate <= 0:
            raise ValueError(f"the learning rate is {self.learning_rate}, it must be above 0.")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"the schedule {self.schedule!r} is unknown: choose constant or cosine.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"the mixed precision {self.mixed_precision!r} is unknown: choose no, bf16 or fp16.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay is {self.ema_decay}, it must lie in [0, 1).")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"the time for training is {self.minutes} minutes, it must be above 0.")
        if self.minutes is not None and self.schedule == "cosine":
            raise ValueError("the schedule cosine falls to the last step, which a run of limited minutes does not know: choose constant.")

    def record(self) -> dict[str, Any]:
        """The settings for a file that is passed on: without the folder, and without limits that there were none of."""
        return {name: value for name, value in asdict(self).items() if name != "output" and value is not None}


class Task(Protocol):
    """What is trained: `module` holds the parameters (those that require a gradient learn)."""

    module: nn.Module

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        """Mean loss of one batch drawn with `draw`; `module` is `self.module`, wrapped for the devices in use."""

    def save(self, folder: Path) -> None:
        """Write the result into `folder`; called with the averaged weights in place where there is an average."""


@dataclass
class History:
    """Losses of the optimiser steps, and the seconds spent, over all resumed parts of a run.

    loss_steps: the step of each loss, from 1. Of more than MOST_LOSSES every second one of the older half is dropped.
    """

    losses: list[float] = field(default_factory=list)
    loss_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.loss_steps[-1] if self.loss_steps else 0

    def add(self, loss: float, seconds: float) -> None:
        """Count one more step."""
        self.loss_steps.append(self.steps + 1)
        self.losses.append(loss)
        self.seconds += seconds
        if len(self.losses) > MOST_LOSSES:
            older = slice(1, MOST_LOSSES // 2, 2)
            del self.losses[older], self.loss_steps[older]


class Interrupted(Exception):
    """Raised by a `report` callback to end a run early; the last step is checkpointed first."""


class Diverged(RuntimeError):
    """The loss is not a number any more; the last checkpoint is from before."""


class CheckpointMismatch(ValueError):
    """The checkpoint in a run's folder is no start for this run. changes: (the checkpoint's, this run's) by setting; may be empty."""

    def __init__(self, message: str, changes: Mapping[str, tuple[Any, Any]]):
        super().__init__(message)
        self.changes = dict(changes)


def machine_name() -> str:
    """What a run is made on: graphics card if there is one, processor, cores, version of torch."""
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return card + machine()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a temporary file beside `path`, flush it to disk, then rename: a kill leaves the old file or the new one.

    Raises OSError, which names the file, where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        # safetensors makes files that only their owner may read.
        partial.chmod(mode)
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors tell a full disk in their own words.
        raise OSError(f"{path} could not be written ({error}): free some disk space or choose another folder.") from error
    finally:
        # A full disk must not be filled further by what could not be finished.
        partial.unlink(missing_ok=True)


def learning_rate_at(config: LoopConfig, step: int) -> float:
    """Learning rate of optimiser step `step` (0-based)."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.schedule == "cosine" else 1.0
    return config.learning_rate * rise * fall


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """The generator that draws the data of one step."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) * 64 + process)
    return generator


def train(
    task: Task,
    config: LoopConfig,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    report: Callable[[int, float, float], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> History:
    """Run `task` to `config.steps`, or for `config.minutes`, resuming from `<output>/checkpoint.pt` if it is there.

    optimizer: makes the optimiser of the trainable parameters, AdamW with the config's settings by default.
    report(step, loss, seconds_left): called after every step; may raise `Interrupted`, which saves a checkpoint and is
    raised again. settings: the task's own settings (of JSON's types), kept in config.json beside the loop's.
    Writes config.json, loss.json, loss.png and whatever the task saves. Returns the history. Raises CheckpointMismatch,
    before anything is written, if the checkpoint's settings differ in what the weights depend on.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    deadline = math.inf if config.minutes is None else time.perf_counter() + 60 * config.minutes
    # accelerate keeps one precision per process and refuses another: each run chooses its own.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation, cpu=not torch.cuda.is_available()
    )
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("nothing to train: no parameter of the task's module requires a gradient.")
    make = optimizer or (lambda ps: torch.optim.AdamW(ps, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay))
    module, optimiser = accelerator.prepare(task.module, make(parameters))
    parameters = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters] if config.ema_decay else None

    # Read before a checkpoint brings back the rates of its last step.
    base_rates = [group["lr"] for group in optimiser.param_groups]
    checkpoint = config.output / CHECKPOINT
    history = History()
    if checkpoint.exists():
        history = _restore(checkpoint, config, settings, parameters, average, optimiser, accelerator.scaler)
    if accelerator.is_main_process:
        text = json.dumps(asdict(config) | {"task": dict(settings or {}), "machine": machine_name()}, indent=1, default=str)
        write_atomically(config.output / "config.json", lambda path: path.write_text(text))

    def keep(step: int) -> None:
        if accelerator.is_main_process:
            _keep(config, settings, step, parameters, average, optimiser, accelerator.scaler, history)

    module.train()
    first = history.steps
    for step in range(first, config.steps):
        started = time.perf_counter()
        draw = step_generator(config.seed, step, accelerator.process_index)
        # Dropout draws from the global generator: it too depends on the step alone.
        torch.manual_seed(draw.initial_seed())
        total = 0.0
        for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
            group["lr"] = rate * learning_rate_at(config, step) / config.learning_rate
        for _ in range(config.accumulation):
            with accelerator.accumulate(module):
                with accelerator.autocast():
                    loss = task.loss(module, draw)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, config.clip_norm)
                optimiser.step()
                optimiser.zero_grad()
            total += accelerator.reduce(loss.detach().float(), "mean").item() / config.accumulation
        if not math.isfinite(total):
            raise Diverged(f"the loss became {total} at step {step}: lower the learning rate; the last checkpoint is in {config.output}.")
        if average is not None:
            # A young average follows the weights closely, so that the random start is forgotten.
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        now = time.perf_counter()
        history.add(total, now - started)
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps:
            keep(done)
        if report is not None and accelerator.is_main_process:
            try:
                report(done, total, min(history.seconds / done * (config.steps - done), max(0.0, deadline - now)))
            except Interrupted:
                keep(done)
                raise
        if config.minutes is not None:
            if now >= deadline:
                accelerator.set_trigger()
            # The processes' clocks differ: all stop as soon as one does.
            if accelerator.check_trigger():
                break
    if first < history.steps:
        keep(history.steps)
    if average is not None:
        for parameter, value in zip(parameters, average, strict=True):
            parameter.data.copy_(value)
    # Takes mixed precision out of the module's forward again.
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    task.module.eval()
    if accelerator.is_main_process:
        task.save(config.output)
        _save_history(config.output, history)
    accelerator.wait_for_everyone()
    return history


# What a resumed run may change: nothing that is drawn or computed depends on it.
_FREE_TO_CHANGE = ("output", "checkpoint_every", "minutes")


def _run_settings(config: LoopConfig, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the weights of step n depend on, in JSON's types."""
    own = {name: value for name, value in asdict(config).items() if name not in _FREE_TO_CHANGE}
    if config.schedule == "constant":
        # More steps only continue such a run.
        del own["steps"]
    return json.loads(json.dumps(own | dict(settings or {}), default=str))


def _keep(config: LoopConfig, settings, step, parameters, average, optimiser, scaler, history: History) -> None:
    state = {
        "step": step,
        "settings": _run_settings(config, settings),
        "scaler": None if scaler is None else scaler.state_dict(),
        "parameters": [p.detach().cpu() for p in parameters],
        "average": None if average is None else [p.cpu() for p in average],
        "optimizer": optimiser.state_dict(),
        **asdict(history),
    }
    write_atomically(config.output / CHECKPOINT, lambda path: torch.save(state, path))


def kept_history(config: LoopConfig, settings: Mapping[str, Any] | None = None) -> History:
    """What the run that `train` would go on with has done so far, without its weights; empty where there is no checkpoint.

    Raises CheckpointMismatch as `train` does, where settings tell.
    """
    checkpoint = config.output / CHECKPOINT
    if not checkpoint.exists():
        return History()
    # The weights stay on the disk.
    state = torch.load(str(checkpoint), map_location="cpu", weights_only=True, mmap=True)
    _require_same_run(checkpoint, state, config, settings)
    return _history(state)


def _require_same_run(checkpoint: Path, state: dict[str, Any], config: LoopConfig, settings: Mapping[str, Any] | None) -> None:
    wanted = _run_settings(config, settings)
    # A checkpoint written before settings were kept has none to compare.
    kept = state.get("settings", wanted)
    if changed := [name for name in sorted(kept.keys() | wanted.keys()) if kept.get(name) != wanted.get(name)]:
        told = "; ".join(f"{name} was {kept.get(name)}, now {wanted.get(name)}" for name in changed)
        raise CheckpointMismatch(
            f"{checkpoint} belongs to a run with other settings ({told}): use the same settings to resume it, "
            "choose another output folder, or delete it to start again.",
            {name: (kept.get(name), wanted.get(name)) for name in changed},
        )
    if state["step"] > config.steps:
        raise CheckpointMismatch(
            f"{checkpoint} is at step {state['step']}, {config.steps} were asked for: ask for more steps or choose another output folder.",
            {"steps": (state["step"], config.steps)},
        )


def _restore(checkpoint: Path, config: LoopConfig, settings, parameters, average, optimiser, scaler) -> History:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    _require_same_run(checkpoint, state, config, settings)
    if [p.shape for p in state["parameters"]] != [p.shape for p in parameters]:
        raise CheckpointMismatch(
            f"{checkpoint} holds other parameters than this model has: choose another output folder, or delete it to start again.", {}
        )
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.data.copy_(value)
    if average is not None:
        for own, value in zip(average, state["average"], strict=True):
            own.copy_(value)
    optimiser.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    return _history(state)


def _history(state: Mapping[str, Any]) -> History:
    losses = list(state["losses"])
    # Earlier checkpoints hold the loss of every step.
    return History(losses, list(state.get("loss_steps", range(1, len(losses) + 1))), state["seconds"])


def _save_history(output: Path, history: History) -> None:
    text = json.dumps(asdict(history))
    write_atomically(output / "loss.json", lambda path: path.write_text(text))
    write_atomically(output / "loss.png", lambda path: loss_curve(history).save(path, format="PNG"))


def loss_curve(history: History, width: int = 640, height: int = 320):
    """The losses on a logarithmic scale as a PIL image: each step in grey, a running mean in black."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    values = torch.tensor(history.losses).clamp(min=1e-8).log10()
    low, high = values.min().item(), max(values.max().item(), values.min().item() + 1e-3)
    smooth = max(1, len(values) // 50)
    padded = torch.cat([values[:1].expand(smooth - 1), values])
    mean = padded.unfold(0, smooth, 1).mean(-1)

    x = 40 + (torch.tensor(history.loss_steps, dtype=torch.float64) - 1) / max(1, history.steps - 1) * (width - 50)

    def points(curve: Tensor) -> list[tuple[float, float]]:
        y = 20 + (high - curve) / (high - low) * (height - 50)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    for curve, color in ((values, "#c8c8c8"), (mean, "black")):
        if len(curve) > 1:
            pen.line(points(curve), fill=color)
    pen.text((4, 12), f"{10**high:.3g}", fill="black")
    pen.text((4, height - 38), f"{10**low:.3g}", fill="black")
    pen.text((width // 2 - 60, height - 16), f"loss over {history.steps} steps", fill="black")
    return picture


def console_report(name: str, every: int = 50) -> Callable[[int, float, float], None]:
    """A `report` that logs the mean loss and the time left every so many steps."""
    recent: list[float] = []

    def report(step: int, loss: float, seconds_left: float) -> None:
        recent.append(loss)
        if step % every == 0:
            _LOG.info("%s step %d loss %.4f, %.1f min left", name, step, sum(recent) / len(recent), seconds_left / 60)
            recent.clear()

    return report
