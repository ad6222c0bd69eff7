"""The model that a trainer starts from: a diffusers folder, or a checkpoint in one file. Both give the same parts."""

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline

from ..methods.plain_files import read_json
from .single_file import SingleFile


class Base(Protocol):
    """A model's parts by their names in a diffusers folder. Everything raises ValueError where a part is missing."""

    path: Path

    def network_class(self, part: str) -> str | None:
        """The diffusers class of a part (unet, transformer); None where there is no such part."""

    def module(self, kind: Any, part: str, dtype: torch.dtype = torch.float32) -> Any:
        """A part with its weights, of a class of diffusers or transformers, for evaluation."""

    def tokenizer(self, kind: Any, part: str) -> Any:
        """A tokenizer of a class of transformers."""

    def pipeline(self) -> DiffusionPipeline:
        """All parts, in float32."""


def base_at(path: Path) -> Base:
    """The base in a folder or a file."""
    return SingleFile(path) if path.is_file() else DiffusersFolder(path)


class DiffusersFolder:
    """A `Base` of a folder in diffusers format."""

    def __init__(self, path: Path):
        self.path = path

    def network_class(self, part: str) -> str | None:
        config = self.path / part / "config.json"
        return read_json(config).get("_class_name") if config.is_file() else None

    def module(self, kind: Any, part: str, dtype: torch.dtype = torch.float32) -> Any:
        self._require(part)
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        # Many folders hold only the fp16 variant.
        half = (self.path / part / f"{stem}.fp16.safetensors").exists() and not (self.path / part / f"{stem}.safetensors").exists()
        variant = "fp16" if half else None
        return kind.from_pretrained(self.path, subfolder=part, local_files_only=True, variant=variant, torch_dtype=dtype).eval()

    def tokenizer(self, kind: Any, part: str) -> Any:
        self._require(part)
        # By its own folder: of a subfolder, transformers overlooks a tokenizer.model that stands alone, and makes an empty vocabulary.
        return kind.from_pretrained(self.path / part, local_files_only=True)

    def pipeline(self) -> DiffusionPipeline:
        if not (self.path / "model_index.json").is_file():
            raise ValueError(f"{self.path} has no model_index.json: give a model in diffusers format, or a checkpoint file.")
        files = [path.name for path in self.path.glob("*/diffusion_pytorch_model*.safetensors")]
        half = bool(files) and all(".fp16." in name for name in files)
        return DiffusionPipeline.from_pretrained(self.path, local_files_only=True, variant="fp16" if half else None).to(torch.float32)

    def _require(self, part: str) -> None:
        if not (self.path / part).is_dir():
            raise ValueError(f"{self.path} has no {part} folder: give a whole model in diffusers format, or a checkpoint file.")
