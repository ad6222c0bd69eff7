"""The settings of one LumiX training."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...methods.lumix.design import HYBRID, Design
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import SceneData

OPTIMIZERS = ("adamw", "prodigy")


@dataclass(frozen=True)
class LumixConfig:
    """One adapter. The paper's: rank 8, 512 pixels, 16 pictures a step, 10,000 steps, Prodigy at a rate of 1.

    base: diffusers FLUX.1 folder. rank, other_rank: see `AdapterConfig`. batch: pictures (of all maps each) per forward pass.
    empty_prompt: share of captions left out, for guidance. clean_share: share of maps that are given clean instead of noisy, beside the
    timestep that every map draws for itself; 0 is the paper's. guidance: told to bases that have an embedding for it.
    text_tokens: length of T5's context. base_dtype: of the frozen transformer. Raises ValueError for impossible values.
    """

    base: Path
    loop: LoopConfig
    data: SceneData | FolderData = field(default_factory=SceneData)
    design: Design = field(default_factory=Design)
    rank: int = 8
    other_rank: int = 0
    batch: int = 1
    optimizer: str = "adamw"
    empty_prompt: float = 0.1
    clean_share: float = 0.0
    guidance: float = 3.5
    text_tokens: int = 512
    base_dtype: str = "float32"
    save_dtype: str = "float32"
    gradient_checkpointing: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        choices = {
            "optimizer": OPTIMIZERS,
            "base_dtype": ("float32", "float16", "bfloat16"),
            "save_dtype": ("float32", "float16", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(allowed)}.")
        if self.rank < 1 or self.batch < 1 or self.text_tokens < 1 or self.threads < 0:
            raise ValueError(
                f"rank {self.rank}, batch {self.batch}, text_tokens {self.text_tokens}, threads {self.threads}: at least 1 (threads 0) "
                "is needed."
            )
        if not 0 <= self.empty_prompt <= 1 or not 0 <= self.clean_share < 1:
            raise ValueError(f"empty_prompt {self.empty_prompt}, clean_share {self.clean_share}: shares of 0 to 1 are wanted.")
        if (self.other_rank > 0) != (self.design.lora == HYBRID):
            raise ValueError(f"other_rank is {self.other_rank} for a {self.design.lora} LoRA: hybrid, and hybrid alone, needs one.")

    @property
    def weights(self) -> Path:
        """Where the adapter is written."""
        return self.loop.output / "lumix.safetensors"

    def task_settings(self) -> dict[str, Any]:
        """What the weights depend on besides the loop's settings, in JSON's types."""
        left_out = ("loop", "threads", "save_dtype", "gradient_checkpointing")
        return {name: value for name, value in json.loads(json.dumps(asdict(self), default=str)).items() if name not in left_out}

    def metadata(self) -> dict[str, str]:
        """The file's header, beside what the format itself writes; names of folders only."""
        settings = self.task_settings() | {"base": self.base.name}
        if isinstance(self.data, FolderData):
            settings["data"] |= {"folder": self.data.folder.name}
        record = {"method": "lumix", "base": self.base.name, "resolution": str(self.data.size), "rank": str(self.rank)}
        record["config"] = json.dumps(settings | {"loop": self.loop.record()})
        return {f"intrinsic_lab.{name}": value for name, value in record.items()}
