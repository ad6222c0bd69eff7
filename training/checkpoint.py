"""What a run goes on from: weights, their average, the optimiser and the losses so far, in `<output>/checkpoint.pt`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic import write_atomically
from .history import History

CHECKPOINT = "checkpoint.pt"


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
    """The file, and the run that it must belong to. settings: what the weights of step n depend on, in JSON's types; steps: asked for."""

    path: Path
    settings: Mapping[str, Any]
    steps: int

    def history(self) -> History:
        """What the run has done so far, without its weights; empty where there is no checkpoint. Raises as `restore` for other settings."""
        if not self.path.exists():
            return History()
        # The weights stay on the disk.
        kept = torch.load(str(self.path), map_location="cpu", weights_only=True, mmap=True)
        self._require_same_run(kept)
        return _history(kept)

    def restore(self, state: TrainingState) -> History:
        """Put `state` where the run was, if there is a checkpoint. Raises CheckpointMismatch for one of another run."""
        if not self.path.exists():
            return History()
        kept = torch.load(self.path, map_location="cpu", weights_only=True)
        self._require_same_run(kept)
        if [p.shape for p in kept["parameters"]] != [p.shape for p in state.parameters]:
            raise CheckpointMismatch(
                f"{self.path} holds other parameters than this model has: choose another output folder, or delete it to start again.", {}
            )
        state.load_state_dict(kept)
        return _history(kept)

    def keep(self, state: TrainingState, history: History) -> None:
        """Write the file. Raises OSError where it cannot be written; the earlier one is left then."""
        kept = {"step": history.steps, "settings": dict(self.settings)} | state.state_dict() | asdict(history)
        write_atomically(self.path, lambda path: torch.save(kept, path))

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
        if kept["step"] > self.steps:
            raise CheckpointMismatch(
                f"{self.path} is at step {kept['step']}, {self.steps} were asked for: ask for more steps or choose another output folder.",
                {"steps": (kept["step"], self.steps)},
            )


def _history(kept: Mapping[str, Any]) -> History:
    losses = list(kept["losses"])
    # Earlier checkpoints hold the loss of every step.
    return History(losses, list(kept.get("loss_steps", range(1, len(losses) + 1))), kept["seconds"])
