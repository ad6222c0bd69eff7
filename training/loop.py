"""The one training loop: every trainer of the pack is a `Task` run by `train`.

A task draws the data of step n from (seed, n, process) alone, so the weights, the optimiser and the step number are
all that a checkpoint has to hold: a run that is killed and resumed ends with the same weights as one that was not.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..kernels.machine import machine_and_card
from .atomic import write_json
from .checkpoint import CHECKPOINT, Checkpoint, TrainingState
from .history import History, save_history

if TYPE_CHECKING:
    from accelerate import Accelerator

# Called after every step with its number, its loss and the seconds left; may raise `Interrupted`.
Report = Callable[[int, float, float], None]
# What a resumed run may change: nothing that is drawn or computed depends on it.
_FREE_TO_CHANGE = ("output", "checkpoint_every", "minutes")


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
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: a number is wanted.")
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

    def checkpoint(self, settings: Mapping[str, Any] | None = None) -> Checkpoint:
        """Where the run with these settings of its task goes on."""
        own = {name: value for name, value in asdict(self).items() if name not in _FREE_TO_CHANGE}
        if self.schedule == "constant":
            # More steps only continue such a run.
            del own["steps"]
        every = json.loads(json.dumps(own | dict(settings or {}), default=str))
        base = Path(every["base"]) if isinstance(every.get("base"), str) and os.path.exists(every["base"]) else None
        return Checkpoint(self.output / CHECKPOINT, every, self.steps, base)


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters; those that require a gradient learn."""

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        """Mean loss of one batch drawn with `draw`; `module` is `self.module`, wrapped for the devices in use."""

    def save(self, folder: Path) -> None:
        """Write the result into `folder`; called with the averaged weights in place where there is an average."""


class Interrupted(Exception):
    """Raised by a `report` callback to end a run early; the last step is checkpointed first."""


class Diverged(RuntimeError):
    """The loss of a step, or the weights after it, are no numbers any more; the last checkpoint, in `output`, is from before.

    told: which of the two, in words.
    """

    def __init__(self, told: str, step: int, output: Path):
        super().__init__(f"{told} at step {step}: lower the learning rate; the last checkpoint is in {output}.")
        self.told, self.step, self.output = told, step, output


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
    report: Report | None = None,
    settings: Mapping[str, Any] | None = None,
) -> History:
    """Run `task` to `config.steps`, or for `config.minutes`, resuming from `<output>/checkpoint.pt` if it is there.

    optimizer: makes the optimiser of the trainable parameters, AdamW with the config's settings by default. report: if it raises
    `Interrupted`, a checkpoint is saved, and it is raised again. settings: the task's own settings (of JSON's types), kept in config.json
    beside the loop's. Writes config.json, loss.json, loss.png and whatever the task saves. Returns the history. Raises
    CheckpointMismatch, before anything is written, if the checkpoint's settings differ in what the weights depend on; Diverged if the
    loss or a weight is not finite; OSError where a file cannot be written.
    """
    deadline = math.inf if config.minutes is None else time.perf_counter() + 60 * config.minutes
    accelerator = _accelerator(config)
    learning = [p for p in task.module.parameters() if p.requires_grad]
    if not learning:
        raise ValueError("nothing to train: no parameter of the task's module requires a gradient.")
    module, optimiser = accelerator.prepare(task.module, optimizer(learning) if optimizer else _adamw(learning, config))
    learning = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in learning] if config.ema_decay else None
    state = TrainingState(learning, average, optimiser, accelerator.scaler)
    # Read before a checkpoint brings back the rates of its last step.
    base_rates = [group["lr"] for group in optimiser.param_groups]
    checkpoint = config.checkpoint(settings)
    history = checkpoint.restore(state)
    main_process = accelerator.is_main_process
    if main_process:
        write_json(config.output / "config.json", asdict(config) | {"task": dict(settings or {}), "machine": machine_and_card()})

    def keep() -> None:
        # A loss may still be a number when the step that it led to has broken the weights.
        if not state.is_finite():
            raise Diverged("the weights became NaN or infinite", history.steps, config.output)
        if main_process:
            checkpoint.keep(state, history)

    module.train()
    first = history.steps
    for step in range(first, config.steps):
        started = time.perf_counter()
        for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
            group["lr"] = rate * learning_rate_at(config, step) / config.learning_rate
        loss = _optimiser_step(task, module, state, accelerator, config, step)
        if not math.isfinite(loss):
            raise Diverged(f"the loss became {loss}", step, config.output)
        if average is not None:
            # A young average follows the weights closely, so that the random start is forgotten.
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in learning], 1 - decay)
        now = time.perf_counter()
        history.add(loss, now - started)
        done, left = history.steps, config.steps - history.steps
        if done % config.checkpoint_every == 0 and left:
            keep()
        if report is not None and main_process:
            try:
                report(done, loss, min(history.seconds / done * left, max(0.0, deadline - now)))
            except Interrupted:
                keep()
                raise
        if config.minutes is not None and _any_process(accelerator, now >= deadline):
            break
    if first < history.steps:
        keep()
    if average is not None:
        for parameter, value in zip(learning, average, strict=True):
            parameter.data.copy_(value)
    # Takes mixed precision out of the module's forward again.
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    task.module.eval()
    if main_process:
        task.save(config.output)
        save_history(history, config.output)
    accelerator.wait_for_everyone()
    return history


def _accelerator(config: LoopConfig) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps one precision per process and refuses another: each run chooses its own.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation, cpu=not torch.cuda.is_available()
    )


def _adamw(parameters: list[nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def _optimiser_step(
    task: Task, module: nn.Module, state: TrainingState, accelerator: "Accelerator", config: LoopConfig, step: int
) -> float:
    """Draw the data of a step, accumulate its gradients, change the weights. Returns the mean loss over passes and processes."""
    draw = step_generator(config.seed, step, accelerator.process_index)
    # Dropout draws from the global generator: it too depends on the step alone.
    torch.manual_seed(draw.initial_seed())
    total = 0.0
    for _ in range(config.accumulation):
        with accelerator.accumulate(module):
            with accelerator.autocast():
                loss = task.loss(module, draw)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(state.parameters, config.clip_norm)
            state.optimizer.step()
            state.optimizer.zero_grad()
        total += accelerator.reduce(loss.detach().float(), "mean").item() / config.accumulation
    return total


def _any_process(accelerator: "Accelerator", here: bool) -> bool:
    """Whether something holds in one of the processes; all of them must ask."""
    if here:
        accelerator.set_trigger()
    return accelerator.check_trigger()
