"""From a ComfyUI model config and weights to a MODEL, as ComfyUI's own loaders do it."""

from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.supported_models_base import BASE
from torch import Tensor

from .folder_files import require_same_weights
from .sampling import NoiseSchedule


def can_assign(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether weights are put in place of the module's own instead of being copied into them (newer versions, dynamic memory)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def set_schedule(config: BASE, schedule: NoiseSchedule) -> None:
    """Give a model config its own noise schedule, over the family's usual one."""
    config.sampling_settings = {**config.sampling_settings, **schedule.settings}


def build_patcher(
    config: BASE,
    weights: dict[str, Tensor],
    part: str,
    dtype: torch.dtype | None = None,
    optional: Callable[[str], bool] = lambda name: False,
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from a model config and weights under ComfyUI's names.

    dtype: in which the weights are kept; None leaves the choice to ComfyUI (device, model size, command line).
    Raises ModelFolderError for missing weights and wrong shapes; `optional` names those that may be missing.
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
    require_same_weights(model.diffusion_model.state_dict(), weights, part, optional)
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=load_device, offload_device=comfy.model_management.unet_offload_device())
    if can_assign(patcher):
        model.load_model_weights(weights, "", assign=True)
    else:
        model.load_model_weights(weights, "")
    return patcher
