"""The nano VQGAN: a VQModel of the pictures of `scenes` (never of their maps)."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...methods.intrinsic_lora.generators.vqgan import quantised
from ..autoencoder import reconstruction_loss, start_near_linear
from ..scene_pictures import PicturePool
from .adversarial import PatchDiscriminator, both_players

CODES = 1024
ADVERSARIAL_WEIGHT = 0.02


def build_vqgan():
    """VQModel of 0.75 M parameters, 4 times smaller codes, with random weights; attention in all blocks of the decoder but the last.

    A LoRA may change nothing but that attention, so it stands wherever the maps are still small.
    """
    from diffusers import VQModel

    vqgan = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(64, 64, 64),
        layers_per_block=0,
        latent_channels=8,
        sample_size=64,
        num_vq_embeddings=CODES,
        norm_num_groups=16,
        scaling_factor=1.0,
    )
    start_near_linear(vqgan)
    return vqgan


class VqganTask:
    """Reconstruction, commitment, and a small patch discriminator (Esser et al. 2021, eq. 4 to 6) of random pictures.

    quantise: off for the first part, an ordinary autoencoder whose latents the codebook is then made from.
    """

    def __init__(self, vqgan, pool: PicturePool, batch: int, quantise: bool):
        self.vqgan, self.pool, self.batch, self.quantise = vqgan, pool, batch, quantise
        parts = {"vqgan": vqgan}
        if quantise:
            parts["discriminator"] = PatchDiscriminator()
        self.module = nn.ModuleDict(parts)
        vqgan.quantize.requires_grad_(quantise)

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        target = self.pool.latents_input(0, torch.randint(self.pool.pictures.shape[1], (self.batch,), generator=draw)).to(self.vqgan.device)
        latent = self.vqgan.encode(target).latents
        if not self.quantise:
            return reconstruction_loss(self.vqgan.decode(latent, force_not_quantize=True).sample, target)
        decoded = self.vqgan.decode(latent)
        adversarial = both_players(self.module["discriminator"], decoded.sample, target)
        return reconstruction_loss(decoded.sample, target) + decoded.commit_loss + ADVERSARIAL_WEIGHT * adversarial

    def save(self, folder: Path) -> None:
        self.vqgan.save_pretrained(folder / "vqgan")


@torch.no_grad()
def codebook_from_latents(vqgan, pictures_bchw: Tensor, rounds: int = 10) -> None:
    """Make the codebook the k-means centres of the latents of `pictures_bchw`; a code that nobody uses becomes a latent."""
    latents = torch.cat([vqgan.encode(part).latents for part in pictures_bchw.split(16)])
    vectors = rearrange(latents, "b c h w -> (b h w) c")
    draw = torch.Generator().manual_seed(0)
    codes = vectors[torch.randperm(len(vectors), generator=draw)[: vqgan.config.num_vq_embeddings]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, codes).argmin(1) for part in vectors.split(8192)])
        count = torch.bincount(nearest, minlength=len(codes))
        total = torch.zeros_like(codes).index_add_(0, nearest, vectors)
        codes = total / count.clamp(min=1)[:, None]
        unused = (count == 0).nonzero().flatten()
        codes[unused] = vectors[torch.randint(len(vectors), (len(unused),), generator=draw)]
    vqgan.quantize.embedding.weight.copy_(codes)


@torch.no_grad()
def reconstruction_report(vqgan, pictures_bchw: Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio (dB) of reconstructed pictures in -1..1, and the share of the codes that they use."""
    squares, used = [], torch.zeros(vqgan.config.num_vq_embeddings, dtype=torch.bool)
    for part in pictures_bchw.split(16):
        codes = vqgan.encode(part).latents
        used[vqgan.quantize(codes)[2][2].flatten()] = True
        squares.append(functional.mse_loss(vqgan.decode(codes).sample, part) / 4)
    return {"psnr": float(-10 * torch.stack(squares).mean().log10()), "codes_used": float(used.float().mean())}


@torch.no_grad()
def reconstruct(vqgan, pictures_bchw: Tensor) -> Tensor:
    """Pictures in -1..1 through the codes and back."""
    return torch.cat([vqgan.decode(quantised(vqgan, part), force_not_quantize=True).sample for part in pictures_bchw.split(16)])
