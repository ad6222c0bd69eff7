"""The settings of one LumiX training."""

from dataclasses import dataclass, field
from pathlib import Path

from ...methods.lumix.design import HYBRID, Design
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import SceneData
from ..set_data import SetData

OPTIMIZERS = ("adamw", "prodigy")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class LumixConfig(TrainerConfig):
    """One adapter. The paper's: rank 8, 512 pixels, 16 pictures a step, 10,000 steps, Prodigy at a rate of 1.

    base: of FLUX.1 (`bases`). rank, other_rank: see `AdapterConfig`. batch: pictures (of all maps each) per forward pass.
    empty_prompt: share of captions left out, for guidance. clean_share: share of maps that are given clean instead of noisy, beside the
    timestep that every map draws for itself; 0 is the paper's. guidance: for bases that have an embedding for it.
    text_tokens: length of T5's context. base_dtype: of the frozen transformer. Raises ValueError for impossible values.
    """

    base: Path
    loop: LoopConfig
    data: SceneData | FolderData | SetData = field(default_factory=SceneData)
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

    def __post_init__(self) -> None:
        self._require_choices(optimizer=OPTIMIZERS, base_dtype=DTYPES, save_dtype=DTYPES)
        if min(self.rank, self.batch, self.text_tokens) < 1:
            raise ValueError(f"rank {self.rank}, batch {self.batch}, text_tokens {self.text_tokens}: at least 1 is needed.")
        if not 0 <= self.empty_prompt <= 1 or not 0 <= self.clean_share < 1:
            raise ValueError(f"empty_prompt {self.empty_prompt}, clean_share {self.clean_share}: shares of 0 to 1 are wanted.")
        if (self.other_rank > 0) != (self.design.lora == HYBRID):
            raise ValueError(f"other_rank is {self.other_rank} for a {self.design.lora} LoRA: hybrid, and hybrid alone, needs one.")

    @property
    def weights(self) -> Path:
        """Where the adapter is written."""
        return self.loop.output / "lumix.safetensors"

    def metadata(self) -> dict[str, str]:
        """The file's header, beside what the format itself writes; names of folders only."""
        return file_header(method="lumix", base=self.base.name, resolution=str(self.data.size), rank=str(self.rank), config=self.record())
