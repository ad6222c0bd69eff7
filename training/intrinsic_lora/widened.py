"""A first convolution that also takes the picture's latent: noisy and clean channels side by side (I-LoRA_AUG, section 5)."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn

from ...methods.lora.header import BadFile
from ...methods.lora.lora_file import load_tensors
from ...methods.lora.weight_file import Reader

_MAP = ".of_map"
_INPAINTING = "one more for the mask makes an inpainting model"
# Where instruct-pix2pix keeps its first convolution: in a folder's unet, in a checkpoint.
_WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")
_KEYS = ("conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight")


class WidenedConvolution(nn.Module):
    """One convolution of both latents, kept as the sum of two, so that the base's own part stays as it was."""

    def __init__(self, of_map: nn.Module, of_picture: nn.Conv2d):
        super().__init__()
        self.of_map, self.of_picture = of_map, of_picture

    def forward(self, both_bchw: Tensor) -> Tensor:
        of_map, of_picture = both_bchw.chunk(2, dim=1)
        return self.of_map(of_map) + self.of_picture(of_picture)


def widen(network: UNet2DConditionModel, weight: Tensor | None = None) -> None:
    """Lets a UNet (with or without LoRA layers, in place) take a picture's latent after the map's.

    weight: `[width, channels, kernel, kernel]`, zero where there is none. Raises ValueError where it does not fit.
    """
    first = network.conv_in
    own = first.get_parameter("base_layer.weight" if isinstance(first, PeftLayer) else "weight")
    if weight is not None and weight.shape != own.shape:
        raise ValueError(
            f"the weights of the picture's channels are {tuple(weight.shape)}, this base needs {tuple(own.shape)}: pick its own."
        )
    width, channels, kernel, _ = own.shape
    of_picture = nn.Conv2d(channels, width, kernel, padding=(kernel - 1) // 2, bias=False).to(own)
    with torch.no_grad():
        of_picture.weight.copy_(torch.zeros_like(own) if weight is None else weight)
    network.conv_in = WidenedConvolution(first, of_picture)
    network.register_to_config(in_channels=2 * channels)


def picture_in(network: nn.Module) -> Tensor | None:
    """The weight by which a widened network takes the picture; None for others."""
    entry = getattr(network, "conv_in", None)
    return entry.of_picture.weight if isinstance(entry, WidenedConvolution) else None


def lora_name(module: str) -> str:
    """A layer's name in LoRA files: that of the network before it was widened."""
    return module.removesuffix(_MAP)


def pix2pix_weight(path: Path, channels: int) -> Tensor:
    """The part of an instruct-pix2pix model's first convolution that takes the picture. path: a diffusers folder or a checkpoint.

    channels: of a latent. Raises ValueError for other models.
    """
    file = next((path / name for name in _WEIGHTS if (path / name).is_file()), None) if path.is_dir() else path
    if file is None or not file.is_file():
        raise ValueError(f"{path} is no diffusers folder with {_WEIGHTS[0]}, and no checkpoint: give an instruct-pix2pix model.")
    weight = _first_convolution(file)
    if weight.ndim != 4 or weight.shape[1] != 2 * channels:
        raise ValueError(
            f"{path.name} takes {weight.shape[1]} input channels, an instruct-pix2pix model for this base takes {2 * channels}: "
            f"{channels} make a plain model, {_INPAINTING}."
        )
    return weight[:, channels:].float().clone()


def _first_convolution(file: Path) -> Tensor:
    try:
        with Reader(file) as reader:
            found = next((reader.any_tensor(key) for key in _KEYS if key in reader.header.layout.tensors), None)
    except BadFile:
        # A .ckpt, read as data.
        pickled, _ = load_tensors(file)
        found = next((pickled[key] for key in _KEYS if key in pickled), None)
    if found is None:
        raise ValueError(f"{file.name} holds no {' or '.join(_KEYS)}: give the UNet of an instruct-pix2pix model.")
    return found
