"""PixArt-alpha and FLUX.1 transformers of any width as native MODELs."""

from pathlib import Path

import comfy.model_base
import comfy.supported_models
import comfy.utils
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .folder_files import ModelFolderError, read_config, read_weights, rename, require_options
from .patcher import build_patcher, configure
from .sampling import NoiseSchedule

PIXART, FLUX = "PixArt transformer", "FLUX transformer"
PIXART_OPTIONS = {
    "norm_type": ("ada_norm_single",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "num_embeds_ada_norm": (1000, None),
    "num_vector_embeds": (None,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
}
FLUX_OPTIONS = {"patch_size": (1,)}
FLUX_PATCH = 2
FLUX_THETA = 10000
PIXART_TOKENS = 120
# ComfyUI's PixArt scales positions to a base size of round(mean side / 64) * 64 latent pixels: below 33 that is zero, and divides by it.
PIXART_SMALLEST_MEAN_SIDE = 33


def pixart_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a PixArtTransformer2DModel (or the older Transformer2DModel) of any width."""
    require_options(config, PIXART_OPTIONS, PIXART)
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    patch, channels, sample = config.get("patch_size") or 2, config["in_channels"], config.get("sample_size") or 128
    uses_size = config.get("use_additional_conditions")
    uses_size = sample == 128 if uses_size is None else uses_size
    if hidden % 4 or (uses_size and hidden % 3):
        raise ModelFolderError(
            f"The {PIXART} is {hidden} wide: its positions need a multiple of 4, and size conditions (use_additional_conditions) a "
            "multiple of 3 too."
        )
    if config.get("cross_attention_dim", hidden) not in (None, hidden):
        raise ModelFolderError(
            f"The {PIXART} has cross_attention_dim {config['cross_attention_dim']}, its own width {hidden} was expected."
        )
    out_channels = config.get("out_channels") or channels
    if out_channels not in (channels, 2 * channels):
        raise ModelFolderError(f"The {PIXART} gives {out_channels} channels for {channels}: as many, or twice as many, were expected.")
    return {
        "image_model": "pixart_alpha",
        "num_heads": config["num_attention_heads"],
        "hidden_size": hidden,
        "patch_size": patch,
        "depth": config.get("num_layers", 28),
        "in_channels": channels,
        "pred_sigma": out_channels == 2 * channels,
        "caption_channels": config.get("caption_channels") or 4096,
        "micro_condition": bool(uses_size),
        "pe_interpolation": config.get("interpolation_scale") or max(sample // 64, 1),
        "model_max_length": PIXART_TOKENS,
        "input_size": sample,
    }


class AnyWidthPixArt(comfy.supported_models.PixArtAlpha):
    """PixArt-alpha by the folder's own numbers and prediction."""

    prediction = comfy.model_base.ModelType.EPS

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.PixArt(self, model_type=self.prediction, device=device).eval()


def _refuse_small_latents(executor, x, *args, **kwargs):
    """APPLY_MODEL wrapper: says what ComfyUI's PixArt would only divide by zero on."""
    height, width = x.shape[-2:]
    if (height + width) // 2 < PIXART_SMALLEST_MEAN_SIDE:
        raise ValueError(
            f"PixArt got a latent of {height} x {width}; in ComfyUI its height and width must be {PIXART_SMALLEST_MEAN_SIDE} or more on "
            f"average ({8 * PIXART_SMALLEST_MEAN_SIDE} pixels): use a larger picture, such as 512 x 512."
        )
    return executor(x, *args, **kwargs)


def load_pixart(
    part: Path,
    schedule: NoiseSchedule,
    latent_format: LatentFormat,
    dtype: torch.dtype | None = None,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """MODEL from the folder of a PixArt transformer; the last two as `build_patcher` says."""
    native = pixart_config(read_config(part))
    _require_channels(native["in_channels"], latent_format, PIXART)
    weights = rename(read_weights(part), comfy.utils.pixart_to_diffusers(native), PIXART, ignore=("pos_embed.pos_embed",))
    # Only dropped captions in training use it; diffusers does not save it.
    weights.setdefault("y_embedder.y_embedding", torch.zeros(PIXART_TOKENS, native["caption_channels"]))
    model_config = configure(AnyWidthPixArt(native), schedule, latent_format)
    patcher = build_patcher(model_config, weights, PIXART, dtype, disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "intrinsic_lab_pixart_size", _refuse_small_latents)
    return patcher


def flux_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a FluxTransformer2DModel of any width."""
    require_options(config, FLUX_OPTIONS, FLUX)
    head = config["attention_head_dim"]
    axes = list(config.get("axes_dims_rope", (16, 56, 56)))
    if sum(axes) != head or any(axis % 2 for axis in axes):
        raise ModelFolderError(
            f"The {FLUX} has axes_dims_rope {axes} and attention_head_dim {head}: even numbers that sum to it were expected."
        )
    pixels = FLUX_PATCH**2
    return {
        "image_model": "flux",
        "axes_dim": axes,
        "num_heads": config["num_attention_heads"],
        "hidden_size": config["num_attention_heads"] * head,
        "mlp_ratio": 4.0,
        "theta": FLUX_THETA,
        "patch_size": FLUX_PATCH,
        "in_channels": config["in_channels"] // pixels,
        "out_channels": (config.get("out_channels") or config["in_channels"]) // pixels,
        "qkv_bias": True,
        "txt_ids_dims": [],
        "context_in_dim": config["joint_attention_dim"],
        "vec_in_dim": config["pooled_projection_dim"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "guidance_embed": bool(config.get("guidance_embeds", False)),
    }


class AnyWidthFlux(comfy.supported_models.Flux):
    """FLUX.1 by the folder's own numbers and schedule."""

    prediction = comfy.model_base.ModelType.FLUX

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.Flux(self, model_type=self.prediction, device=device)


def load_flux(
    part: Path,
    schedule: NoiseSchedule,
    latent_format: LatentFormat,
    dtype: torch.dtype | None = None,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """MODEL from the folder of a FLUX.1 transformer; the last two as `build_patcher` says."""
    native = flux_config(read_config(part))
    _require_channels(native["out_channels"], latent_format, FLUX)
    weights = rename(read_weights(part), comfy.utils.flux_to_diffusers(native), FLUX)
    model_config = configure(AnyWidthFlux(native), schedule, latent_format)
    return build_patcher(model_config, weights, FLUX, dtype, disable_dynamic)


def _require_channels(channels: int, latent_format: LatentFormat, part: str) -> None:
    if channels != latent_format.latent_channels:
        raise ModelFolderError(
            f"The {part} takes latents of {channels} channels, the VAE's have {latent_format.latent_channels}: "
            "transformer and vae do not belong together."
        )
