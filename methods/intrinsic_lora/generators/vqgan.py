"""Maps out of a VQGAN (Esser et al. 2021) in one forward: picture -> encoder -> quantisation -> decoder with a map's LoRA.

The network is any module built like diffusers' VQModel; nothing here imports diffusers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...lora.layers import LoraLayer
from ..extract import Generator
from .adapter import run_adapted

# A module built like diffusers' VQModel, whose parts have no declared types.
VQModel = Any

_DECODER = "decoder."


def downscale(vqgan: VQModel) -> int:
    """Pixels per code of a VQModel."""
    return 2 ** (len(vqgan.config.block_out_channels) - 1)


def quantised(vqgan: VQModel, picture_bchw: Tensor) -> Tensor:
    """Codebook vectors `[b, c, h, w]` of pictures in -1..1, sides multiples of `downscale`."""
    return vqgan.quantize(vqgan.encode(picture_bchw).latents)[0]


def decode(vqgan: VQModel, quantised_bchw: Tensor, layers: Mapping[str, LoraLayer] | None = None, strength: float = 1.0) -> Tensor:
    """Pictures in -1..1 (not clamped) of codebook vectors, by the decoder with `layers` (names of the whole VQModel)."""
    return run_decoder(vqgan, quantised_bchw, lambda inputs: run_adapted(vqgan.decoder, inside_decoder(layers or {}), inputs, strength))


def run_decoder(vqgan: VQModel, quantised_bchw: Tensor, run: Callable[[tuple], Tensor]) -> Tensor:
    """What `run` makes of the inputs of the decoder's forward."""
    # "spatial" decoders normalise by the codes themselves.
    spatial = quantised_bchw if vqgan.config.norm_type == "spatial" else None
    return run((vqgan.post_quant_conv(quantised_bchw), spatial))


def inside_decoder(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """Layers by their names inside the decoder. Raises ValueError for a layer outside of it: the codes are the same for all maps."""
    if outside := [name for name in layers if not name.startswith(_DECODER)]:
        raise ValueError(f"{outside[0]} is not in the decoder: a VQGAN's LoRA may change the decoder alone.")
    return {name.removeprefix(_DECODER): layer for name, layer in layers.items()}


def vqgan_generator(vqgan: VQModel, layers_of_map: Mapping[str, Mapping[str, LoraLayer]], strength: float = 1.0) -> Generator:
    """The Generator of `intrinsic_lora.extract` for the maps of `layers_of_map`, in that order. Runs on the module's device."""
    example = next(vqgan.parameters())

    def encode(picture_bhw3: Tensor) -> Tensor:
        return quantised(vqgan, rearrange(picture_bhw3.to(example.device, example.dtype) * 2 - 1, "b h w c -> b c h w"))

    def decode_rows(quantised_bchw: Tensor) -> Tensor:
        parts = quantised_bchw.chunk(len(layers_of_map))
        decoded = [decode(vqgan, part, layers, strength) for part, layers in zip(parts, layers_of_map.values(), strict=True)]
        return rearrange(torch.cat(decoded).float() / 2 + 0.5, "n c h w -> n h w c")

    return Generator(encode, predict=lambda latent, _: latent, decode=decode_rows, downscale=downscale(vqgan))
