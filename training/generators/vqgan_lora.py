"""An Intrinsic LoRA on a VQGAN: picture -> codes -> the map, by the same decoder with a LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...methods.intrinsic_lora.generators.adapter import TARGETS, target_names
from ...methods.intrinsic_lora.generators.taming import load_taming
from ...methods.intrinsic_lora.generators.vqgan import downscale, quantised, run_decoder
from ...methods.maps import MAPS
from ...methods.plain_files import read_json
from ..config import TrainerConfig, require_size
from ..folder_data import FolderData
from ..loop import History, LoopConfig, Report, train
from ..losses import picture_loss
from ..pairs import IMAGE, MaskedSource, SceneData
from ..set_data import SetData
from .lora import LoraOn, save_generator_lora

PREFIX = "decoder."


@dataclass(frozen=True)
class VqganLoraConfig(TrainerConfig):
    """base: folder of a diffusers VQModel, or a published .ckpt with its .yaml. data: pictures and maps. rank: the paper's 8.

    init: "trained", or "random" for the paper's control. targets: "attention" is the paper's; "wide" adapts the decoder's convolutions
    too. Raises ValueError for impossible values.
    """

    base: Path
    map: str
    loop: LoopConfig
    data: SceneData | FolderData | SetData = field(default_factory=lambda: SceneData(size=64))
    rank: int = 8
    batch: int = 8
    init: str = "trained"
    targets: str = "attention"

    def __post_init__(self) -> None:
        self._require_choices(map=MAPS, init=("trained", "random"), targets=TARGETS["vqgan"])
        if self.batch < 1 or self.rank < 1:
            raise ValueError(f"batch {self.batch}, rank {self.rank}: both must be at least 1.")

    @property
    def weights(self) -> Path:
        return self.loop.output / f"{self.map}.safetensors"


def load_vqgan(folder: Path, init: str = "trained", seed: int = 0):
    """The VQModel of a folder or of a published checkpoint, float32, frozen. Raises ValueError.

    init: "random" gives the same architecture with fresh weights.
    """
    from diffusers import VQModel

    if folder.is_file():
        vqgan = load_taming(folder, VQModel.from_config)
        return vqgan if init == "trained" else _fresh(vqgan.config, seed)
    try:
        content = read_json(folder / "config.json")
    except ValueError as error:
        raise ValueError(f"{folder} has no readable config.json ({error}): give the folder of a diffusers VQModel.") from None
    if not isinstance(content, dict) or content.get("_class_name") != "VQModel":
        raise ValueError(f"{folder} is not the folder of a diffusers VQModel: its config.json must say so.")
    if init == "random":
        return _fresh(content, seed)
    vqgan = VQModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float()
    return vqgan.requires_grad_(False).eval()


def _fresh(config: Mapping, seed: int):
    from diffusers import VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQModel.from_config(config).requires_grad_(False).eval()


class VqganLoraTask:
    """A `loop.Task`: pixel-space loss of the decoded map (Intrinsic LoRA, eq. 2)."""

    def __init__(self, config: VqganLoraConfig, vqgan):
        self.config, self.vqgan, self.source = config, vqgan, config.data.source(config.map)
        names = [name.removeprefix(PREFIX) for name in target_names(vqgan, "vqgan", config.targets)]
        self.module = LoraOn(vqgan.decoder, names, config.rank, config.loop.seed)

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.source), (self.config.batch,), generator=draw).tolist()
        with torch.no_grad():
            codes = quantised(self.vqgan, 2 * self.source.read(IMAGE, rows).to(self.vqgan.device) - 1)
        decoded = run_decoder(self.vqgan, codes, lambda inputs: module(*inputs))
        mask = self.source.masks(rows).to(decoded.device) if isinstance(self.source, MaskedSource) else None
        return picture_loss(self.config.map, decoded, 2 * self.source.read(self.config.map, rows).to(decoded.device) - 1, mask)

    def save(self, folder: Path) -> None:
        size, base = self.config.data.size, self.config.base.name
        save_generator_lora(self.module, folder / f"{self.config.map}.safetensors", "vqgan", self.config.map, size, base, PREFIX)


def train_vqgan_lora(config: VqganLoraConfig, report: Report | None = None) -> History:
    """Train (or resume) one LoRA and write it to `config.weights`. Raises ValueError for a base or data that do not fit."""
    vqgan = load_vqgan(config.base, config.init, config.loop.seed)
    require_size(config.data.size, downscale(vqgan))
    vqgan.to("cuda" if torch.cuda.is_available() else "cpu")
    return train(VqganLoraTask(config, vqgan), config.loop, report=report, settings=config.task_settings())
