"""The settings of one I-LoRA training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...methods.intrinsic_lora.multi_step import AUGMENTED, METHODS, SINGLE
from ...methods.intrinsic_lora.recipe import RAW, READINGS
from ...methods.maps import MAPS
from ..backbones import single_step_part
from ..backbones.backbone import TIMESTEP
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import JoinedData, SceneData
from ..set_data import SetData
from .adapter import ALL, KINDS, LAYERS
from .noise import noise_for

Data = SceneData | JoinedData | FolderData | SetData
_MULTI_STEP = ("method", "picture_channels")


@dataclass(frozen=True)
class IntrinsicLoraConfig(TrainerConfig):
    """One I-LoRA: which map, learnt from which pairs, by what part of which base. Defaults are the paper's.

    base: a model (`bases`) of a kind that `training.backbones` knows in a single step. loop: steps, rate, output folder.
    kind, rank, layers: see `add_adapter`. loss: "latent" (MSE of latents) or "decoded" (of the decoded map: `losses.picture_loss`).
    init: "trained", or "random" for the paper's control. save_dtype: of the file written, "float32" or "float16".
    method: of `methods.intrinsic_lora.multi_step`. picture_channels: of the augmented method, the instruct-pix2pix folder or checkpoint
    that gives the weights of the picture's channels, which then stay; without one they begin at zero and learn.
    reading: of READINGS, how the single step's output says the map.
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
    method: str = SINGLE
    picture_channels: Path | None = None
    layers: str = ALL
    reading: str = RAW

    def __post_init__(self) -> None:
        self._require_choices(
            map=MAPS,
            kind=KINDS,
            layers=LAYERS,
            reading=READINGS,
            loss=("latent", "decoded"),
            init=("trained", "random"),
            save_dtype=("float32", "float16"),
            method=METHODS,
        )
        if self.method != SINGLE and self.loss != "latent":
            raise ValueError(f"the loss {self.loss!r} came for the method {self.method!r}, which denoises latents: choose the loss latent.")
        if self.method != SINGLE and self.reading != RAW:
            raise ValueError(f"the reading {self.reading!r} came for the method {self.method!r}: it is of the single step only.")
        if self.method == AUGMENTED and self.kind == "full":
            raise ValueError("the kind 'full' came for the augmented method, which learns a LoRA: choose attention, transformer or wide.")
        if self.method != AUGMENTED and self.picture_channels is not None:
            raise ValueError(f"picture_channels came for the method {self.method!r}: only 'augmented' has such channels.")
        if self.kind == "probe" and (self.layers != ALL or self.method != SINGLE):
            raise ValueError(
                f"layers {self.layers!r}, method {self.method!r} came for a linear probe, which reads every self-attention in one step."
            )
        if self.batch < 1 or self.rank < 1:
            raise ValueError(f"batch {self.batch}, rank {self.rank}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        """Where the result is written: a LoRA file, a diffusers folder for kind "full", a file of its own for a probe."""
        if self.kind == "full":
            return self.loop.output / single_step_part(self.base)
        return self.loop.output / (f"{self.map}_probe.safetensors" if self.kind == "probe" else f"{self.map}.safetensors")

    def task_settings(self) -> dict[str, Any]:
        """As `TrainerConfig`, without what there was no choice of once, where that was chosen: runs from before go on."""
        absent = ("layers",) * (self.layers == ALL) + ("reading",) * (self.reading == RAW) + _MULTI_STEP * (self.method == SINGLE)
        return {name: value for name, value in super().task_settings().items() if name not in absent}

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
            return {"timestep": str(TIMESTEP)} | ({} if self.reading == RAW else {"reading": self.reading})
        return {"method": self.method, "noise": noise_for(self.base, self.method).header()}
