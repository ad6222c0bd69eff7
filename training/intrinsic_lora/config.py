"""The settings of one I-LoRA training."""

from dataclasses import dataclass, field
from pathlib import Path

from ...methods.maps import MAPS
from ..backbones.backbone import TIMESTEP
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import JoinedData, SceneData
from ..set_data import SetData
from .adapter import KINDS


@dataclass(frozen=True)
class IntrinsicLoraConfig(TrainerConfig):
    """One I-LoRA: which map, learnt from which pairs, by what part of which base. Defaults are the paper's.

    base: an SD 1.x / 2.x model (`bases`). loop: steps, rate, output folder.
    kind, rank: see `add_adapter`. loss: "latent" (MSE of latents) or "decoded" (of the decoded map: `losses.picture_loss`).
    init: "trained", or "random" for the paper's control. save_dtype: of the file written, "float32" or "float16".
    Raises ValueError for impossible values.
    """

    base: Path
    map: str
    loop: LoopConfig
    data: SceneData | JoinedData | FolderData | SetData = field(default_factory=SceneData)
    kind: str = "attention"
    rank: int = 8
    batch: int = 4
    loss: str = "latent"
    init: str = "trained"
    save_dtype: str = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        self._require_choices(
            map=MAPS, kind=KINDS, loss=("latent", "decoded"), init=("trained", "random"), save_dtype=("float32", "float16")
        )
        if self.batch < 1 or self.rank < 1:
            raise ValueError(f"batch {self.batch}, rank {self.rank}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        """Where the result is written: a LoRA file, or a diffusers folder for kind "full"."""
        return self.loop.output / ("unet" if self.kind == "full" else f"{self.map}.safetensors")

    def metadata(self) -> dict[str, str]:
        """The header of the LoRA file. Maps are learnt in their own convention, whatever the data's files hold."""
        return file_header(
            **MAPS[self.map].files.header,
            base=self.base.name,
            map=self.map,
            prompt=MAPS[self.map].prompt,
            rank=str(self.rank),
            timestep=str(TIMESTEP),
            resolution=str(self.data.size),
            config=self.record(),
        )
