"""AutoencoderKL of any width and depth, and FLUX.2's, as a native VAE."""

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.sd
import torch
from torch import Tensor

from .channel_multipliers import channel_multipliers
from .folder_files import (
    MOST_LAYERS,
    ModelFolderError,
    read_weights,
    rename,
    require_finite,
    require_numbers,
    require_options,
    require_same_weights,
)

PART = "VAE"
MOST_CHANNELS = 1 << 14
FIXED_OPTIONS = {
    "norm_num_groups": (32,),
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# FLUX.2's: latents are 2 x 2 patches of the encoder's, each channel normed by statistics that the file holds.
PATCHED = "AutoencoderKLFlux2"
PATCH = 2
PATCHED_OPTIONS = {"batch_norm_eps": (1e-4,), "patch_size": ([PATCH, PATCH],), "decoder_block_out_channels": (None,)}
# Also the names of files older than diffusers 0.12.
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "query": "q",
    "to_k": "k",
    "key": "k",
    "to_v": "v",
    "value": "v",
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",
}


def _native_name(name: str, levels: int) -> str:
    """ComfyUI's name of a diffusers AutoencoderKL weight; its decoder counts levels from the picture's side."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{levels - 1 - int(found[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", name)
    name = re.sub(
        r"mid_block\.attentions\.0\.(.+)\.(weight|bias)$", lambda found: f"mid.attn_1.{ATTENTION.get(found[1], found[1])}.{found[2]}", name
    )
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _key_map(names: list[str], levels: int) -> dict:
    targets = {}
    for name in names:
        native = _native_name(name, levels)
        attention_weight = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", native)
        targets[name] = (native, None, _as_convolution) if attention_weight else native
    return targets


def load_vae(part: Path, config: dict, dtype: torch.dtype | None = None, pixel_channels: int = 3) -> comfy.sd.VAE:
    """VAE from the folder and config of an AutoencoderKL or AutoencoderKLFlux2; dtype None leaves the choice to ComfyUI.

    pixel_channels: how many the VAE must take and give, 3 for pictures. Raises ModelFolderError for what ComfyUI cannot hold.
    """
    patched = is_patched(config)
    if not patched and config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ModelFolderError(
            f"The {PART} is a {config['_class_name']}, AutoencoderKL was expected: this model cannot be loaded natively."
        )
    options = {**FIXED_OPTIONS, "in_channels": (pixel_channels,), "out_channels": (pixel_channels,)}
    require_options(config, options | (PATCHED_OPTIONS if patched else {}), PART)
    require_numbers(config, ("block_out_channels", "latent_channels"), PART, MOST_CHANNELS)
    require_numbers(config, ("layers_per_block",), PART, MOST_LAYERS, least=0)
    require_finite(config, ("scaling_factor", "shift_factor"), PART)
    for block in (*config["down_block_types"], *config["up_block_types"]):
        if block not in ("DownEncoderBlock2D", "UpDecoderBlock2D"):
            raise ModelFolderError(f"The {PART} has a block {block}, only DownEncoderBlock2D and UpDecoderBlock2D are known to ComfyUI's.")
    widths, channels = list(config["block_out_channels"]), config.get("latent_channels", 4)
    multipliers = channel_multipliers(widths, PART)
    weights = read_weights(part)
    weights = rename(weights, _key_map(list(weights), len(widths)), PART)
    if not config.get("use_quant_conv", True):
        # ComfyUI's AutoencoderKL always has these: the identity changes nothing.
        weights |= _identity_convolution("quant_conv", 2 * channels, weights)
    if not config.get("use_post_quant_conv", True):
        weights |= _identity_convolution("post_quant_conv", channels, weights)
    layout = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": pixel_channels,
        "out_ch": pixel_channels,
        "ch": widths[0],
        "ch_mult": multipliers,
        "num_res_blocks": config.get("layers_per_block", 1),
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": patched,
    }
    require_same_weights(_expected(layout, channels), weights, PART)
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": layout, "embed_dim": channels}}, dtype=dtype)
    vae.latent_channels, vae.output_channels = latent_channels(config), pixel_channels
    vae.downscale_ratio = vae.upscale_ratio = pixels_per_latent(config)
    return vae


def is_patched(config: Mapping) -> bool:
    """Whether a VAE is FLUX.2's."""
    return config.get("_class_name") == PATCHED


def latent_channels(config: Mapping) -> int:
    """Of the latents that a VAE of this config gives."""
    return config.get("latent_channels", 4) * (PATCH**2 if is_patched(config) else 1)


def pixels_per_latent(config: Mapping) -> int:
    """Along a side."""
    return 2 ** (len(config["block_out_channels"]) - 1) * (PATCH if is_patched(config) else 1)


def _identity_convolution(name: str, channels: int, like: dict[str, Tensor]) -> dict[str, Tensor]:
    dtype = next(iter(like.values())).dtype
    return {f"{name}.weight": torch.eye(channels, dtype=dtype)[:, :, None, None], f"{name}.bias": torch.zeros(channels, dtype=dtype)}


def _expected(layout: dict, channels: int) -> dict[str, Tensor]:
    """Names and shapes of the weights, without memory for them: comfy.sd.VAE only logs what is missing."""
    with torch.device("meta"):
        return comfy.sd.AutoencoderKL(ddconfig=dict(layout), embed_dim=channels).state_dict()
