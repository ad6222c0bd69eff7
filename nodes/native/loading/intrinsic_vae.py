"""Intrinsic VAEs as native VAE objects: core manages their memory, tiles them and batches them like any other."""

import os
from functools import partial
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....methods.ildm.intrinsic_vae import INTRINSICS, TOTAL_CHANNELS
from ....methods.plain_files import visible
from ..paths import model_folders
from .folder_files import ModelFolderError, read_config
from .vae import load_vae

SUBFOLDER = "intrinsic_vae"


def intrinsic_vae_folders() -> dict[str, Path]:
    """Every folder a node may offer, by the name it shows: `intrinsic_vae` in a model folder, then folders in models/vae."""
    found = {name: folder / SUBFOLDER for name, folder in model_folders().items() if os.path.isfile(folder / SUBFOLDER / "config.json")}
    for search_path in folder_paths.get_folder_paths("vae"):
        for config in sorted(visible(Path(search_path).glob("*/config.json"), Path(search_path))):
            found.setdefault(f"vae/{config.parent.name}", config.parent)
    return found


def intrinsic_vae_folder(name: str) -> Path:
    """The folder behind a name of `intrinsic_vae_folders`. Raises ValueError for any other text, such as a path."""
    folders = intrinsic_vae_folders()
    if name not in folders:
        raise ValueError(
            f"There is no intrinsic VAE {name!r} (offered: {', '.join(folders) or 'there is none yet'}). Put its folder into "
            "models/vae, or into its base model's folder under the name intrinsic_vae."
        )
    return folders[name]


def load_intrinsic_vae(folder: Path, dtype: torch.dtype | None = None) -> comfy.sd.VAE:
    """A widened AutoencoderKL in diffusers format; its pixels are the channels of `methods.ildm.intrinsic_vae`, -1..1, never clamped.

    Raises ModelFolderError for folders that do not hold one.
    """
    config = read_config(folder)
    if config.get("in_channels", 3) != TOTAL_CHANNELS:
        raise ModelFolderError(
            f"The VAE in {folder.name} takes {config.get('in_channels', 3)} channels, an intrinsic VAE {TOTAL_CHANNELS} "
            f"({', '.join(INTRINSICS)}): make one with the node Train Intrinsic VAE (I-LDM), or load this one with Load VAE."
        )
    vae = load_vae(folder, config, dtype, pixel_channels=TOTAL_CHANNELS)
    vae.process_input = vae.process_output = _unchanged
    vae.decode_tiled_ = partial(_decode_tiles, vae)
    return vae


def _unchanged(pixels: Tensor) -> Tensor:
    return pixels


def _decode_tiles(vae: comfy.sd.VAE, latent_bchw: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
    """Core's tiles for large pictures; its own method for them has room for three channels only. Returns [b, channel, h, w]."""

    def decode(tile: Tensor) -> Tensor:
        return vae.first_stage_model.decode(tile.to(vae.device, vae.vae_dtype)).float()

    return comfy.utils.tiled_scale(
        latent_bchw,
        decode,
        tile_x,
        tile_y,
        overlap,
        upscale_amount=vae.upscale_ratio,
        out_channels=TOTAL_CHANNELS,
        output_device=vae.output_device,
    )
