"""Running a VAE: it belongs to its latents, or is refused in words, a cancel ends it where it is, and what it gives is float32."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .interrupts import stopping_inside


def encode(vae: Any, pictures_bhwc: Tensor) -> Tensor:
    """Latents of pictures, as `vae.encode` makes them."""
    return _run(vae, "encode", pictures_bhwc)


def decode(vae: Any, latent_bchw: Tensor) -> Tensor:
    """Pictures of latents, as `vae.decode` makes them. Raises ValueError for latents of another kind of VAE."""
    wanted = getattr(vae, "latent_channels", None)
    if latent_bchw.ndim == 4 and wanted is not None and latent_bchw.shape[1] != wanted:
        raise ValueError(
            f"This VAE decodes latents of {wanted} channels, these have {latent_bchw.shape[1]}: connect the VAE of the model that sampled."
        )
    return _run(vae, "decode", latent_bchw)


def encode_pictures(vae: Any, pictures_bhwc: Tensor) -> Tensor:
    """Latents `bchw` of pictures, each by itself where the VAE would take them for the frames of one video (Qwen-Image's)."""
    if getattr(vae, "latent_dim", 2) != 3:
        return encode(vae, pictures_bhwc)
    return torch.cat([encode(vae, picture)[:, :, 0] for picture in pictures_bhwc.split(1)])


def decode_pictures(vae: Any, latent_bchw: Tensor) -> Tensor:
    """Pictures of latents `bchw`, also of a VAE for videos."""
    if getattr(vae, "latent_dim", 2) != 3:
        return decode(vae, latent_bchw)
    return decode(vae, latent_bchw.unsqueeze(2))[:, 0]


def _run(vae: Any, direction: str, values: Tensor) -> Tensor:
    run = getattr(_in_float32(vae), direction)
    network = getattr(vae, "first_stage_model", None)
    if not isinstance(network, nn.Module):
        return run(values)
    with stopping_inside(network):
        return run(values)


def _in_float32(vae: Any) -> Any:
    """A view of the VAE whose results are float32 also under --fp16-intermediates, which would round maps on the way to their data."""
    if not hasattr(vae, "vae_output_dtype"):
        return vae
    view = copy.copy(vae)
    view.vae_output_dtype = lambda: torch.float32
    return view
