"""FLUX.1 transformers of any width as native MODELs."""

import comfy.model_base
import comfy.supported_models
import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...loading.folder_files import MOST_LAYERS, read_config, read_weights, rename, require_numbers, require_options
from ...loading.patcher import build_patcher, configure, require_channels
from ...loading.rope import rope_axes
from ...loading.sampling import read_flow_schedule
from ..backbone import LoadRequest

PART = "FLUX transformer"
# What ComfyUI's FLUX fixes.
FIXED_OPTIONS = {"patch_size": (1,)}
PATCH = 2
THETA = 10000


def flux_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a FluxTransformer2DModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("attention_head_dim", "num_attention_heads", "num_layers", "num_single_layers"), PART, MOST_LAYERS, least=0)
    require_numbers(config, ("axes_dims_rope", "in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim"), PART)
    pixels = PATCH**2
    return {
        "image_model": "flux",
        "axes_dim": rope_axes(config, PART),
        "num_heads": config["num_attention_heads"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "mlp_ratio": 4.0,
        "theta": THETA,
        "patch_size": PATCH,
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


def load_flux(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    part = request.folder / "transformer"
    native = flux_config(read_config(part))
    require_channels(native["out_channels"], request.latent_format, PART)
    weights = rename(read_weights(part), comfy.utils.flux_to_diffusers(native), PART)
    model_config = configure(AnyWidthFlux(native), read_flow_schedule(request.folder / "scheduler"), request.latent_format)
    return build_patcher(model_config, weights, PART, request.dtype, request.disable_dynamic)
