"""From a ComfyUI model config and weights to a MODEL, as ComfyUI's own loaders do it."""

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.latent_formats import LatentFormat
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder_files import ModelFolderError, require_same_weights
from .sampling import NoiseSchedule


def configure(config: BASE, schedule: NoiseSchedule, latent_format: LatentFormat) -> BASE:
    """A model config with the folder's own noise schedule and latents, instead of the family's usual ones; returns `config`."""
    config.prediction = schedule.prediction
    config.sampling_settings = {**config.sampling_settings, **schedule.settings}
    config.latent_format = latent_format
    return config


def build_patcher(
    config: BASE,
    weights: dict[str, Tensor],
    part: str,
    dtype: torch.dtype | None = None,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from a model config and weights under ComfyUI's names.

    dtype: in which the weights are kept; None leaves the choice to ComfyUI (device, model size, command line).
    disable_dynamic: hold them without ComfyUI's dynamic memory, which it asks for itself when it needs a plain copy.
    Raises ModelFolderError for missing weights and wrong shapes.
    """
    load_device = comfy.model_management.get_torch_device()
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(weights),
            supported_dtypes=list(config.supported_inference_dtypes),
            weight_dtype=comfy.utils.weight_dtype(weights),
        )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes))
    model = config.get_model(weights, "")
    require_same_weights(model.diffusion_model.state_dict(), weights, part)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=comfy.model_management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    return patcher


def require_channels(channels: int, latent_format: LatentFormat, part: str) -> None:
    """Raises ModelFolderError unless a transformer of `channels` channels fits its VAE's latents."""
    if channels != latent_format.latent_channels:
        raise ModelFolderError(
            f"The {part} takes latents of {channels} channels, the VAE's have {latent_format.latent_channels}: "
            "transformer and vae do not belong together."
        )
