"""Running a VAE: it belongs to its latents, or is refused in words, and a cancel ends it where it is."""

from typing import Any

from torch import Tensor, nn

from .interrupts import stopping_inside


def encode(vae: Any, pictures_bhwc: Tensor) -> Tensor:
    """Latents of pictures, as `vae.encode` makes them."""
    return _run(vae, vae.encode, pictures_bhwc)


def decode(vae: Any, latent_bchw: Tensor) -> Tensor:
    """Pictures of latents, as `vae.decode` makes them. Raises ValueError for latents of another kind of VAE."""
    wanted = getattr(vae, "latent_channels", None)
    if latent_bchw.ndim == 4 and wanted is not None and latent_bchw.shape[1] != wanted:
        raise ValueError(
            f"This VAE decodes latents of {wanted} channels, these have {latent_bchw.shape[1]}: connect the VAE of the model that sampled."
        )
    return _run(vae, vae.decode, latent_bchw)


def _run(vae: Any, run: Any, values: Tensor) -> Tensor:
    network = getattr(vae, "first_stage_model", None)
    if not isinstance(network, nn.Module):
        return run(values)
    with stopping_inside(network):
        return run(values)
