"""The settings of one I-LoRA training, and the diffusers folder it starts from."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...methods.maps import MAPS
from ..config import TrainerConfig, file_header
from ..folder_data import FolderData
from ..loop import LoopConfig
from ..pairs import SceneData
from .adapter import KINDS, randomly_initialised

# The timestep of the only forward pass (I-LoRA, single step).
TIMESTEP = 999


@dataclass(frozen=True)
class IntrinsicLoraConfig(TrainerConfig):
    """One I-LoRA: which map, learnt from which pairs, by what part of which base. Defaults are the paper's.

    base: diffusers folder of an SD 1.x / 2.x model (unet, vae, tokenizer, text_encoder). loop: steps, rate, output folder.
    kind, rank: see `add_adapter`. loss: "latent" (MSE of latents) or "decoded" (of the decoded map: `losses.picture_loss`).
    init: "trained", or "random" for the paper's control. save_dtype: of the file written, "float32" or "float16".
    Raises ValueError for impossible values.
    """

    base: Path
    map: str
    loop: LoopConfig
    data: SceneData | FolderData = field(default_factory=SceneData)
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
        """The header of the LoRA file."""
        return file_header(
            base=self.base.name,
            map=self.map,
            prompt=MAPS[self.map].prompt,
            rank=str(self.rank),
            timestep=str(TIMESTEP),
            resolution=str(self.data.size),
            config=self.record(),
        )


@dataclass(frozen=True)
class Base:
    """The parts of a Stable Diffusion model that the single-step recipe needs; VAE and text encoder frozen."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    @torch.no_grad()
    def embed(self, prompt: str) -> Tensor:
        """Text embedding of `prompt`, `[1, token, dim]`, float32: the last hidden state, as the diffusers pipeline takes it."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0].float()


def load_base(folder: Path, init: str = "trained", seed: int = 0) -> Base:
    """Read a diffusers folder in float32; init "random" gives the UNet fresh weights drawn with `seed`. Raises ValueError."""
    for part in ("unet", "vae", "tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part} folder: give a Stable Diffusion 1.x or 2.x model in diffusers format.")
    unet = _weights(UNet2DConditionModel, folder, "unet", "diffusion_pytorch_model")
    if unet.config.addition_embed_type is not None or unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"the UNet in {folder} takes {unet.config.in_channels} channels and extra embeddings ({unet.config.addition_embed_type}): "
            "this trainer needs a plain Stable Diffusion 1.x or 2.x UNet."
        )
    base = Base(
        unet if init == "trained" else randomly_initialised(unet, seed),
        _weights(AutoencoderKL, folder, "vae", "diffusion_pytorch_model"),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
        _weights(CLIPTextModel, folder, "text_encoder", "model"),
    )
    for module in (base.vae, base.text_encoder):
        module.requires_grad_(False).eval()
    return base


def _weights(kind, folder: Path, part: str, stem: str):
    """One part of the base, as float32; many folders hold only its fp16 variant."""
    only_half = not (folder / part / f"{stem}.safetensors").exists() and (folder / part / f"{stem}.fp16.safetensors").exists()
    return kind.from_pretrained(folder, subfolder=part, local_files_only=True, variant="fp16" if only_half else None).float()
