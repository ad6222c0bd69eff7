"""What a run goes on from: weights, their average, the optimiser and the losses so far, in `<output>/checkpoint.pt`.

The file is a zip archive with a checksum for every tensor, which reading compares. The one before it is kept beside it: a damaged one is
told of, and the run goes on from there. Files are read as data that runs nothing (`methods.pickled_weights`).
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.pickled_weights import Pickled, read_pickled
from ..methods.plain_files import open_regular
from .atomic import write_atomically
from .history import History

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
# Of a base's file so much is compared: what another training changes, it changes everywhere.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class CheckpointMismatch(ValueError):
    """The checkpoint in a run's folder is no start for this run. changes: (the checkpoint's, this run's) by setting; may be empty."""

    def __init__(self, message: str, changes: Mapping[str, tuple[Any, Any]]):
        super().__init__(message)
        self.changes = dict(changes)


@dataclass
class TrainingState:
    """Everything that changes from step to step. average: of the parameters, or None; scaler: of fp16's gradients, or None."""

    parameters: list[nn.Parameter]
    average: list[Tensor] | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None

    def state_dict(self) -> dict[str, Any]:
        """On the CPU, but for the optimiser's."""
        return {
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "parameters": [p.detach().cpu() for p in self.parameters],
            "average": None if self.average is None else [p.cpu() for p in self.average],
            "optimizer": self.optimizer.state_dict(),
        }

    def is_finite(self) -> bool:
        """Whether all weights, and their averages, are numbers."""
        return all(bool(torch.isfinite(p.detach()).all()) for p in [*self.parameters, *(self.average or ())])

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
            parameter.data.copy_(value)
        if self.average is not None:
            for own, value in zip(self.average, kept["average"], strict=True):
                own.copy_(value)
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(kept["scaler"])


@dataclass(frozen=True)
class Checkpoint:
    """The file, and the run that it must belong to.

    settings: what the weights of step n depend on, in JSON's types. steps: asked for. base: the model that is learnt on, if there is one.
    """

    path: Path
    settings: Mapping[str, Any]
    steps: int
    base: Path | None = None

    @property
    def previous(self) -> Path:
        """The checkpoint before."""
        return self.path.with_name(PREVIOUS)

    def history(self) -> History:
        """What the run has done so far, without its weights; empty where there is no checkpoint. Raises as `restore` for other settings."""

        def without_weights(kept: Pickled) -> History:
            self._require_same_run(kept.content)
            return _history(kept.content)

        return self._read(without_weights)

    def restore(self, state: TrainingState) -> History:
        """Put `state` where the run was, if there is a checkpoint. Raises CheckpointMismatch for one of another run."""

        def with_weights(pickled: Pickled) -> History:
            self._require_same_run(pickled.content)
            kept = pickled.plain(pickled.content)
            if [p.shape for p in kept["parameters"]] != [p.shape for p in state.parameters]:
                raise CheckpointMismatch(
                    f"{self.path} holds other parameters than this model has: choose another output folder, or delete it to start again.",
                    {},
                )
            state.load_state_dict(kept)
            return _history(kept)

        return self._read(with_weights)

    def _read(self, read: Callable[[Pickled], History]) -> History:
        """What `read` makes of the checkpoint, or of the one before where it is damaged; nothing done where there is none."""
        problems = []
        for path in filter(os.path.lexists, (self.path, self.previous)):
            try:
                return read(read_pickled(path))
            except CheckpointMismatch:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                problems.append(f"{path.name}: {error}")
                logging.warning("%s is damaged (%s)", path, error)
        if problems:
            raise ValueError(f"No checkpoint in {self.path.parent} can be read ({'; '.join(problems)}): delete them to start again.")
        return History()

    def keep(self, state: TrainingState, history: History) -> None:
        """Write the file; the earlier one becomes the previous one. Raises OSError where it cannot be written: the earlier one is left."""
        kept = {"step": history.steps, "settings": dict(self.settings)} | state.state_dict() | asdict(history)
        if self.base is not None:
            kept["base_weights"] = weights_fingerprint(self.base)

        def write(partial: Path) -> None:
            torch.save(kept, partial)
            if self.path.is_file():
                os.replace(self.path, self.previous)

        write_atomically(self.path, write)

    def remove(self) -> None:
        """Delete it and the one before."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)

    def _require_same_run(self, kept: Mapping[str, Any]) -> None:
        # A checkpoint written before settings were kept has none to compare.
        before, now = kept.get("settings", self.settings), self.settings
        if changes := {name: (before.get(name), now.get(name)) for name in sorted({*before, *now}) if before.get(name) != now.get(name)}:
            listed = "; ".join(f"{name} was {was}, now {wanted}" for name, (was, wanted) in changes.items())
            raise CheckpointMismatch(
                f"{self.path} belongs to a run with other settings ({listed}): use the same settings to resume it, "
                "choose another output folder, or delete it to start again.",
                changes,
            )
        known = kept.get("base_weights")
        if known is not None and self.base is not None and known != (found := weights_fingerprint(self.base)):
            raise CheckpointMismatch(
                f"{self.path} was trained on other weights than {self.base.name} holds now: put the old model back to resume it, choose "
                "another output folder, or delete it to start again.",
                {"base_weights": (known[:12], found[:12])},
            )
        if kept["step"] > self.steps:
            raise CheckpointMismatch(
                f"{self.path} is at step {kept['step']}, {self.steps} were asked for: ask for more steps or choose another output folder.",
                {"steps": (kept["step"], self.steps)},
            )


def weights_fingerprint(model: Path) -> str:
    """Of the safetensors files of a model, or of its one file: names, sizes, and samples from all over them."""
    digest = hashlib.sha256()
    files = sorted(model.rglob("*.safetensors")) if model.is_dir() else [model]
    for path in filter(os.path.isfile, files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(model).as_posix()} {size}".encode())
        with open_regular(path) as file:
            for place in sorted({max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
                file.seek(place)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _history(kept: Mapping[str, Any]) -> History:
    losses = list(kept["losses"])
    # Earlier checkpoints hold the loss of every step.
    return History(losses, list(kept.get("loss_steps", range(1, len(losses) + 1))), kept["seconds"])
