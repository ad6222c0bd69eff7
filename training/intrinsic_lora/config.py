"""The settings of one I-LoRA training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...methods.maps import MAPS
from ..backbones.backbone import TIMESTEP
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import JoinedData, SceneData
from ..set_data import SetData
from .adapter import ALL, KINDS, LAYERS

Data = SceneData | JoinedData | FolderData | SetData


@dataclass(frozen=True)
class IntrinsicLoraConfig(TrainerConfig):
    """One I-LoRA: which map, learnt from which pairs, by what part of which base. Defaults are the paper's.

    base: diffusers folder of an SD 1.x / 2.x model (unet, vae, tokenizer, text_encoder). loop: steps, rate, output folder.
    kind, rank, layers: see `add_adapter`. loss: "latent" (MSE of latents) or "decoded" (of the decoded map: `losses.picture_loss`).
    init: "trained", or "random" for the paper's control. save_dtype: of the file written, "float32" or "float16".
    Raises ValueError for impossible values.
    """

    base: Path
    map: str
    loop: LoopConfig
    data: Data = field(default_factory=SceneData)
    kind: str = "attention"
    rank: int = 8
    batch: int = 4
    loss: str = "latent"
    init: str = "trained"
    save_dtype: str = "float32"
    gradient_checkpointing: bool = False
    layers: str = ALL

    def __post_init__(self) -> None:
        self._require_choices(
            map=MAPS,
            kind=KINDS,
            layers=LAYERS,
            loss=("latent", "decoded"),
            init=("trained", "random"),
            save_dtype=("float32", "float16"),
        )
        if self.kind == "probe" and self.layers != ALL:
            raise ValueError(f"layers is {self.layers!r}: a linear probe reads every self-attention, choose all.")
        if self.batch < 1 or self.rank < 1:
            raise ValueError(f"batch {self.batch}, rank {self.rank}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        """Where the result is written: a LoRA file, a diffusers folder for kind "full", a file of its own for a probe."""
        return self.loop.output / {"full": "unet", "probe": f"{self.map}_probe.safetensors"}.get(self.kind, f"{self.map}.safetensors")

    def task_settings(self) -> dict[str, Any]:
        settings = super().task_settings()
        # A run from before layers could be chosen goes on.
        return {name: value for name, value in settings.items() if (name, value) != ("layers", ALL)}

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
