"""Pairs as latents, encoded once before training: the VAE is frozen, so no step needs to encode again."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ..atomic import write_tensors
from ..pairs import IMAGE, MaskedSource, OnEncoded, PairSource

_LOG = logging.getLogger(__name__)
# Pixels encoded at once: 16 pictures of 128 x 128, one of 512 x 512.
_PIXELS = 2**18


@dataclass(frozen=True)
class LatentPairs:
    """Latents of pictures and of their maps, `[n, c, h, w]` float32, in the model's scale.

    image_bchw: mode of the encoded pictures. map_mean_bchw, map_std_bchw: the distribution of the encoded maps.
    mask_b1hw: bool, the latents all of whose pixels count; None: all of them do.
    """

    image_bchw: Tensor
    map_mean_bchw: Tensor
    map_std_bchw: Tensor
    mask_b1hw: Tensor | None = None

    @classmethod
    def encode(
        cls, vae: AutoencoderKL, source: PairSource, map_name: str, cache: Path | None = None, on_encoded: OnEncoded | None = None
    ) -> "LatentPairs":
        """Encode every pair of `source` on the VAE's device. `cache`: a folder to keep the latents in, and to find them."""
        kinds = encode_model_latents(vae, source, (IMAGE, map_name), cache, on_encoded)
        mask = latent_masks(source, map_name, downscale(vae), cache) if isinstance(source, MaskedSource) else None
        return cls(kinds[IMAGE][0], *kinds[map_name], mask)

    def __len__(self) -> int:
        return len(self.image_bchw)

    def chosen(self, rows: Sequence[int]) -> "LatentPairs":
        """A selection of them."""
        index = torch.tensor(rows)
        mask = None if self.mask_b1hw is None else self.mask_b1hw[index]
        return LatentPairs(self.image_bchw[index], self.map_mean_bchw[index], self.map_std_bchw[index], mask)

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
    vae: AutoencoderKL, source: PairSource, kinds: Sequence[str], cache: Path | None, on_encoded: OnEncoded | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of `encode_kinds`, in the model's scale."""
    shift = _shift(vae) * vae.config.scaling_factor
    encoded = encode_kinds(vae, source, kinds, cache, on_encoded)
    return {kind: (encoded[kind][0] - shift, encoded[kind][1]) for kind in kinds}


@torch.no_grad()
def encode_kinds(
    vae: AutoencoderKL, source: PairSource, kinds: Sequence[str], cache: Path | None, on_encoded: OnEncoded | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation, `[n, c, h, w]`, of the latents of all of the source's pictures of each kind, scaled but not shifted.

    Row by row: a source that makes all kinds of a row at once has to do so once only.
    """
    paths = {kind: None if cache is None else cache / f"latents-{kind}-{_fingerprint(vae, source, kind)}.safetensors" for kind in kinds}
    encoded = {kind: (kept["mean"], kept["std"]) for kind, path in paths.items() if (kept := _kept(path, "mean", "std"))}
    missing = [kind for kind in kinds if kind not in encoded]
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in missing}
    factor, start = vae.config.scaling_factor, 0
    step = 1
    while missing and start < len(source):
        rows = range(start, min(start + step, len(source)))
        for kind in missing:
            pictures = source.read(kind, rows)
            posterior = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype)).latent_dist
            parts[kind].append((posterior.mode().float().cpu() * factor, posterior.std.float().cpu() * factor))
            if on_encoded is not None:
                on_encoded(kind, rows.stop, len(source))
            if rows.stop // 256 != start // 256 or rows.stop == len(source):
                _LOG.info("encoded %d of %d pictures (%s)", rows.stop, len(source), kind)
        start, step = rows.stop, max(1, _PIXELS // pictures[0, 0].numel())
    for kind in missing:
        mean, std = (torch.cat(half).contiguous() for half in zip(*parts[kind], strict=True))
        if (path := paths[kind]) is not None:
            write_tensors(path, {"mean": mean, "std": std})
        encoded[kind] = mean, std
    return encoded


def latent_masks(source: MaskedSource, map_name: str, factor: int, cache: Path | None) -> Tensor:
    """`[n, 1, h, w]` bool: the latents all of whose `factor` x `factor` pixels count."""
    digest = hashlib.sha256(json.dumps([source.identity(map_name), factor], sort_keys=True).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"masks-{map_name}-{digest}.safetensors"
    if kept := _kept(path, "mask"):
        return kept["mask"]
    unknown = [functional.max_pool2d((~source.masks([row])).float(), factor) for row in range(len(source))]
    mask = torch.cat(unknown) == 0
    if path is not None:
        write_tensors(path, {"mask": mask})
    return mask


def _kept(path: Path | None, *names: str) -> dict[str, Tensor] | None:
    """What was encoded before, if it is there and whole."""
    if path is None or not path.exists():
        return None
    try:
        kept = load_file(path)
        return {name: kept[name] for name in names}
    except (SafetensorError, KeyError):
        _LOG.warning("%s is damaged: encoding again", path)
        return None


def _fingerprint(vae: AutoencoderKL, source: PairSource, kind: str) -> str:
    """Changes with the pictures and with the encoder's weights."""
    digest = hashlib.sha256(json.dumps([source.identity(kind), vae.config.scaling_factor], sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        # A VAE in a frame of ours (FLUX.2's, Qwen-Image's) has them one level down; FLUX.2's statistics scale its latents.
        if name.removeprefix("vae.").startswith(("encoder.", "quant_conv.", "bn.")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
