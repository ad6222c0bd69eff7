"""Pairs as latents, encoded once before training: the VAE is frozen, so no step needs to encode again."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..atomic import write_atomically
from ..pairs import IMAGE, PairSource

_LOG = logging.getLogger(__name__)
# Pixels encoded at once: 16 pictures of 128 x 128, one of 512 x 512.
_PIXELS = 2**18

# Called while data are encoded before the first step: what, how many are done, of how many. May raise `loop.Interrupted`.
OnEncoded = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LatentPairs:
    """Latents of pictures and of their maps, `[n, c, h, w]` float32, in the model's scale.

    image_bchw: mode of the encoded pictures. map_mean_bchw, map_std_bchw: the distribution of the encoded maps.
    """

    image_bchw: Tensor
    map_mean_bchw: Tensor
    map_std_bchw: Tensor

    @classmethod
    def encode(
        cls, vae: AutoencoderKL, source: PairSource, map_name: str, cache: Path | None = None, on_encoded: OnEncoded | None = None
    ) -> "LatentPairs":
        """Encode every pair of `source` on the VAE's device. `cache`: a folder to keep the latents in, and to find them."""
        image, _ = encode_model_latents(vae, source, IMAGE, cache, on_encoded)
        return cls(image, *encode_model_latents(vae, source, map_name, cache, on_encoded))

    def __len__(self) -> int:
        return len(self.image_bchw)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[list[int], Tensor, Tensor]:
        """Random rows, their input latents, and samples of their target latents (the paper's VAE `sample()`)."""
        rows = torch.randint(len(self), (batch,), generator=generator)
        mean, std = self.map_mean_bchw[rows], self.map_std_bchw[rows]
        return rows.tolist(), self.image_bchw[rows], mean + std * torch.randn(mean.shape, generator=generator)


def downscale(vae: AutoencoderKL) -> int:
    """Pixels of a picture's side per latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _shift(vae: AutoencoderKL) -> float:
    return vae.config.shift_factor or 0.0


def model_latents(vae: AutoencoderKL, latents_bchw: Tensor) -> Tensor:
    """A VAE's latents in the model's scale, as ComfyUI and the nodes take them: shifted, then scaled."""
    return (latents_bchw - _shift(vae)) * vae.config.scaling_factor


def vae_latents(vae: AutoencoderKL, latents_bchw: Tensor) -> Tensor:
    """Inverse of `model_latents`, in the VAE's number format."""
    return latents_bchw.to(vae.dtype) / vae.config.scaling_factor + _shift(vae)


def encode_model_latents(
    vae: AutoencoderKL, source: PairSource, kind: str, cache: Path | None, on_encoded: OnEncoded | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of `encode_kind`, in the model's scale."""
    mean, deviation = encode_kind(vae, source, kind, cache, on_encoded)
    return mean - _shift(vae) * vae.config.scaling_factor, deviation


@torch.no_grad()
def encode_kind(
    vae: AutoencoderKL, source: PairSource, kind: str, cache: Path | None, on_encoded: OnEncoded | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation, `[n, c, h, w]`, of the latents of all of the source's pictures of one kind, scaled but not shifted."""
    path = None if cache is None else cache / f"latents-{kind}-{_fingerprint(vae, source, kind)}.safetensors"
    if path is not None and path.exists():
        try:
            kept = load_file(path)
            return kept["mean"], kept["std"]
        except (SafetensorError, KeyError):
            _LOG.warning("%s is damaged: encoding again", path)
    means, deviations = [], []
    factor, start = vae.config.scaling_factor, 0
    step = 1
    while start < len(source):
        pictures = source.read(kind, range(start, min(start + step, len(source))))
        posterior = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype)).latent_dist
        means.append(posterior.mode().float().cpu() * factor)
        deviations.append(posterior.std.float().cpu() * factor)
        start += len(pictures)
        if on_encoded is not None:
            on_encoded(kind, start, len(source))
        step = max(1, _PIXELS // pictures[0, 0].numel())
        if start // 256 != (start - len(pictures)) // 256 or start == len(source):
            _LOG.info("encoded %d of %d pictures (%s)", start, len(source), kind)
    mean, std = torch.cat(means), torch.cat(deviations)
    if path is not None:
        write_atomically(path, lambda partial: save_file({"mean": mean, "std": std}, partial))
    return mean, std


def _fingerprint(vae: AutoencoderKL, source: PairSource, kind: str) -> str:
    """Changes with the pictures and with the encoder's weights."""
    digest = hashlib.sha256(json.dumps([source.identity(kind), vae.config.scaling_factor], sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
