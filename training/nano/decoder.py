"""The nano VAE's decoder, trained further while its encoder stays: latents, and all that was trained on them, keep their meaning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic import write_atomically
from ..autoencoder import reconstruction_loss
from ..scene_pictures import PicturePool

# Of the pictures that a step decodes, this many in a hundred are pictures, the others maps.
PICTURE_PERCENT = 40


@dataclass(frozen=True)
class DecoderPairs:
    """uint8 pictures `[kind, scene, 3, h, w]` (kind 0 the picture, then the maps) and their latents `[kind, scene, c, h, w]`, unscaled."""

    pool: PicturePool
    latents: Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, vae, pool: PicturePool, cache: Path | None = None) -> "DecoderPairs":
        """Encode (mode) every picture of the pool; `cache`: a file that keeps the latents."""
        drawn = {"pictures": hashlib.sha256(pool.pictures.numpy().data).hexdigest()}
        if cache is not None and cache.exists():
            with safe_open(cache, "pt") as kept:
                if kept.metadata() == drawn:
                    return cls(pool, kept.get_tensor("latents"))
        kinds = []
        for kind in range(len(pool.pictures)):
            rows = range(pool.pictures.shape[1])
            parts = [pool.latents_input(kind, rows[start : start + 16]) for start in rows[::16]]
            kinds.append(torch.cat([_latents(vae, part) for part in parts]))
        latents = torch.stack(kinds).contiguous()
        if cache is not None:
            write_atomically(cache, lambda path: save_file({"latents": latents}, path, drawn))
        return cls(pool, latents)


def _latents(vae, pictures_bchw: Tensor) -> Tensor:
    return vae.encode(pictures_bchw.to(vae.device, memory_format=torch.channels_last)).latent_dist.mode().cpu()


class DecoderTask:
    """Reconstruction of whole pictures and maps from their latents; `module` is the VAE with a frozen encoder."""

    def __init__(self, vae, pairs: Sequence[DecoderPairs], batch: int = 3):
        self.module, self.pairs, self.batch = vae, tuple(pairs), batch
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)

    def loss(self, module: Any, draw: torch.Generator) -> Tensor:
        latents, targets = zip(*(self._draw(draw) for _ in range(self.batch)), strict=True)
        device = next(module.parameters()).device
        output = module.decode(torch.stack(latents).to(device, memory_format=torch.channels_last)).sample
        return reconstruction_loss(output.float(), torch.stack(targets).to(device))

    def _draw(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        def below(count: int) -> int:
            return int(torch.randint(count, (1,), generator=draw))

        pairs = self.pairs[below(len(self.pairs))]
        kinds, scenes = pairs.latents.shape[:2]
        kind = 0 if below(100) < PICTURE_PERCENT else 1 + below(kinds - 1)
        scene = below(scenes)
        return pairs.latents[kind, scene], pairs.pool.pictures[kind, scene].float() / 127.5 - 1

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder / "vae")
