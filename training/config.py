"""What the settings of every trainer have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from .folder_data import FolderData
from .history import History
from .loop import LoopConfig
from .set_data import SetData

# The weights do not depend on these, or they are kept with the loop's settings.
_NOT_OF_THE_TASK = ("loop", "save_dtype", "gradient_checkpointing")


class TrainerConfig(ABC):
    """Settings of one training; each trainer's own are a frozen dataclass of this kind.

    base: folder of the model that is learnt on. loop: steps, rate, output folder.
    """

    base: Path
    loop: LoopConfig

    @property
    @abstractmethod
    def weights(self) -> Path:
        """The file or the folder that the training writes."""

    def task_settings(self) -> dict[str, Any]:
        """What the weights depend on besides the loop's settings, in JSON's types."""
        every = json.loads(json.dumps(asdict(cast(Any, self)), default=str))
        return {name: value for name, value in every.items() if name not in _NOT_OF_THE_TASK}

    def kept_history(self) -> History:
        """What the run has done so far, see `Checkpoint.history`."""
        return self.loop.checkpoint(self.task_settings()).history()

    def record(self) -> str:
        """All settings as JSON for a file that is passed on: of folders only the names."""
        settings = self.task_settings() | {name: value.name for name, value in vars(self).items() if isinstance(value, Path)}
        if isinstance(data := getattr(self, "data", None), FolderData | SetData):
            settings["data"] |= {"folder": data.folder.name}
        return json.dumps(settings | {"loop": self.loop.record()})

    def _require_choices(self, **choices: Iterable[str]) -> None:
        """Raises ValueError for a setting that is none of its choices."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(allowed)}.")


def require_size(pixels: int, multiple: int) -> None:
    """Raises ValueError for training pictures whose side is no multiple of what the base's networks need."""
    if pixels % multiple:
        raise ValueError(f"the training size is {pixels} pixels, this base needs a multiple of {multiple}: choose another size.")


def file_header(**entries: str) -> dict[str, str]:
    """Metadata of a file that a training writes, under names of our own."""
    return {f"intrinsic_lab.{name}": value for name, value in entries.items()}
