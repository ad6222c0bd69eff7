"""The settings of one I-LoRA training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...methods.intrinsic_lora.multi_step import AUGMENTED, METHODS, SINGLE
from ...methods.maps import MAPS
from ..backbones.backbone import TIMESTEP
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import JoinedData, SceneData
from ..set_data import SetData
from .adapter import KINDS
from .noise import noise_for

_MULTI_STEP = ("method", "picture_channels")


@dataclass(frozen=True)
class IntrinsicLoraConfig(TrainerConfig):
    """One I-LoRA: which map, learnt from which pairs, by what part of which base. Defaults are the paper's.

    base: an SD 1.x / 2.x model (`bases`). loop: steps, rate, output folder.
    kind, rank: see `add_adapter`. loss: "latent" (MSE of latents) or "decoded" (of the decoded map: `losses.picture_loss`).
    init: "trained", or "random" for the paper's control. save_dtype: of the file written, "float32" or "float16".
    method: of `methods.intrinsic_lora.multi_step`. picture_channels: of the augmented method, the instruct-pix2pix folder or checkpoint
    that gives the weights of the picture's channels, which then stay; without one they begin at zero and learn.
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
    method: str = SINGLE
    picture_channels: Path | None = None

    def __post_init__(self) -> None:
        self._require_choices(
            map=MAPS,
            kind=KINDS,
            loss=("latent", "decoded"),
            init=("trained", "random"),
            save_dtype=("float32", "float16"),
            method=METHODS,
        )
        if self.method != SINGLE and self.loss != "latent":
            raise ValueError(f"the loss {self.loss!r} came for the method {self.method!r}, which denoises latents: choose the loss latent.")
        if self.method == AUGMENTED and self.kind == "full":
            raise ValueError("the kind 'full' came for the augmented method, which learns a LoRA: choose attention, transformer or wide.")
        if self.method != AUGMENTED and self.picture_channels is not None:
            raise ValueError(f"picture_channels came for the method {self.method!r}: only 'augmented' has such channels.")
        if self.batch < 1 or self.rank < 1:
            raise ValueError(f"batch {self.batch}, rank {self.rank}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        """Where the result is written: a LoRA file, or a diffusers folder for kind "full"."""
        return self.loop.output / ("unet" if self.kind == "full" else f"{self.map}.safetensors")

    def task_settings(self) -> dict[str, Any]:
        """As `TrainerConfig`; a single step has none of the multi-step settings, so runs from before there were any go on."""
        settings = super().task_settings()
        return settings if self.method != SINGLE else {name: settings[name] for name in settings if name not in _MULTI_STEP}

    def metadata(self) -> dict[str, str]:
        """The header of the LoRA file. Maps are learnt in their own convention, whatever the data's files hold."""
        return file_header(
            **MAPS[self.map].files.header,
            base=self.base.name,
            map=self.map,
            prompt=MAPS[self.map].prompt,
            rank=str(self.rank),
            **self._method_header(),
            resolution=str(self.data.size),
            config=self.record(),
        )

    def _method_header(self) -> dict[str, str]:
        if self.method == SINGLE:
            return {"timestep": str(TIMESTEP)}
        return {"method": self.method, "noise": noise_for(self.base, self.method).header()}
