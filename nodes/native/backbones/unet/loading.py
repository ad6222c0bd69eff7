"""UNet2DConditionModel of any width (SD 1.5, SD 2.1, SDXL) as a native MODEL."""

from collections.abc import Mapping
from typing import ClassVar

import comfy.model_base
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...loading.channel_multipliers import channel_multipliers
from ...loading.folder_files import (
    MOST_LAYERS,
    ModelFolderError,
    read_config,
    read_weights,
    rename,
    require_numbers,
    require_options,
    require_same_weights,
)
from ...loading.patcher import build_patcher, configure
from ...loading.sampling import read_diffusion_schedule
from ..backbone import LoadRequest

PART = "UNet"
# What ComfyUI's UNetModel fixes; first the value that diffusers takes when the config does not say.
FIXED_OPTIONS = {
    "norm_num_groups": (32,),
    "norm_eps": (1e-5,),
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "mid_block_scale_factor": (1,),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "downsample_padding": (1,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "attention_type": ("default",),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "addition_embed_type": (None, "text_time"),
    "addition_time_embed_dim": (None, 256),
    "reverse_transformer_layers_per_block": (None,),
}
BLOCK_ATTENTION = {"DownBlock2D": False, "CrossAttnDownBlock2D": True, "UpBlock2D": False, "CrossAttnUpBlock2D": True}


class AnyWidth:
    """Model config by the folder's own numbers: the base class's published ones (heads, prediction) are not forced on it."""

    unet_extra_config: ClassVar[dict] = {}
    prediction = comfy.model_base.ModelType.EPS

    def model_type(self, state_dict, prefix=""):
        return self.prediction

    def inpaint_model(self):
        return self.unet_config["in_channels"] == 2 * self.latent_format.latent_channels + 1

    def get_model(self, state_dict, prefix="", device=None):
        if self.unet_config["in_channels"] == 2 * self.latent_format.latent_channels:
            return self.picture_conditioned_model(self, model_type=self.prediction, device=device)
        return super().get_model(state_dict, prefix, device)


class AnyWidthSD15(AnyWidth, comfy.supported_models.SD15):
    picture_conditioned_model = comfy.model_base.SD15_instructpix2pix


class AnyWidthSD20(AnyWidth, comfy.supported_models.SD20):
    unet_extra_config: ClassVar[dict] = {"attn_precision": torch.float32}
    picture_conditioned_model = comfy.model_base.SD15_instructpix2pix


class AnyWidthSDXL(AnyWidth, comfy.supported_models.SDXL):
    picture_conditioned_model = comfy.model_base.SDXL_instructpix2pix


CONFIGS = {"sd15": AnyWidthSD15, "sd21": AnyWidthSD20, "sdxl": AnyWidthSDXL}


def _per_level(config: dict, name: str, levels: int, default=None) -> list:
    value = config.get(name, default)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * levels
    if len(values) != levels:
        raise ModelFolderError(f"The {PART} has {levels} levels, but {name} = {value}: config.json is wrong; copy it again.")
    return values


def _attention_by_level(config: dict) -> list[bool]:
    down, up = config["down_block_types"], config["up_block_types"]
    unknown = [block for block in (*down, *up) if block not in BLOCK_ATTENTION]
    if unknown:
        raise ModelFolderError(f"The {PART} has a block {unknown[0]}; one of {', '.join(BLOCK_ATTENTION)} was expected.")
    attention = [BLOCK_ATTENTION[block] for block in down]
    if attention != [BLOCK_ATTENTION[block] for block in reversed(up)]:
        raise ModelFolderError(f"The {PART}'s up blocks {list(up)} do not mirror its down blocks {list(down)}, as ComfyUI's do.")
    return attention


def _heads(widths: list[int], heads: list[int], attention: list[bool]) -> dict[str, int]:
    """Number of heads, or channels per head, of all attention levels (the middle has the last level's)."""
    used = [i for i in range(len(widths)) if attention[i] or i == len(widths) - 1]
    if len({heads[i] for i in used}) == 1:
        return {"num_heads": heads[used[0]], "num_head_channels": -1}
    channels = {widths[i] / heads[i] for i in used}
    if len(channels) > 1:
        raise ModelFolderError(
            f"The {PART} has {heads} heads at widths {widths}: ComfyUI needs the same number of heads, or the same channels per head, "
            "everywhere."
        )
    return {"num_heads": -1, "num_head_channels": int(channels.pop())}


def unet_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a UNet2DConditionModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("block_out_channels", "in_channels", "out_channels", "cross_attention_dim"), PART)
    require_numbers(
        config,
        ("layers_per_block", "transformer_layers_per_block", "num_attention_heads", "attention_head_dim"),
        PART,
        MOST_LAYERS,
        least=0,
    )
    widths = list(config["block_out_channels"])
    levels = len(widths)
    multipliers = channel_multipliers(widths, PART)
    attention = _attention_by_level(config)
    heads = _per_level(config, "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim", levels, 8)
    blocks = _per_level(config, "layers_per_block", levels, 2)
    layers = _per_level(config, "transformer_layers_per_block", levels, 1)
    depth = [layers[i] if attention[i] else 0 for i in range(levels)]
    context = config.get("cross_attention_dim", 1280)
    if not isinstance(context, int) or not all(isinstance(layer, int) for layer in layers):
        raise ModelFolderError(f"The {PART}'s blocks differ in cross_attention_dim or in layers within a level: ComfyUI needs one number.")
    pooled = config.get("projection_class_embeddings_input_dim") if config.get("addition_embed_type") == "text_time" else None
    return {
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_checkpoint": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": multipliers,
        "num_res_blocks": blocks,
        "transformer_depth": [depth[i] for i in range(levels) for _ in range(blocks[i])],
        "transformer_depth_output": [depth[i] for i in range(levels) for _ in range(blocks[i] + 1)],
        "transformer_depth_middle": layers[-1],
        "context_dim": context,
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        "adm_in_channels": pooled,
        **({"num_classes": "sequential"} if pooled else {}),
        **_heads(widths, heads, attention),
    }


def _require_fit(native: dict, widths: list[int], weights: Mapping[str, Tensor]) -> None:
    """Check what a config says against the weights, before memory is taken by it."""
    told = {f"down_blocks.{level}.resnets.0.conv1.weight": (width, widths[max(0, level - 1)], 3, 3) for level, width in enumerate(widths)}
    require_same_weights({name: torch.empty(shape, device="meta") for name, shape in told.items()}, weights, PART)
    layers = sum(native["num_res_blocks"]) + sum(native["transformer_depth"] + native["transformer_depth_output"])
    if layers + native["transformer_depth_middle"] > len(weights):
        raise ModelFolderError(
            f"The {PART}'s config.json tells of more layers than its {len(weights)} weights: they do not belong together."
        )


def load_unet(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `unet` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    part = request.folder / "unet"
    config = read_config(part)
    native = unet_config(config)
    latent = request.latent_format.latent_channels
    # The blank picture of an inpainting model without one is a constant of the published 4-channel VAE.
    allowed = {latent, 2 * latent} | ({2 * latent + 1} if latent == 4 else set())
    if native["in_channels"] not in allowed or native["out_channels"] != latent:
        raise ModelFolderError(
            f"The {PART} takes {native['in_channels']} channels and gives {native['out_channels']}, the VAE's latents have {latent}: "
            f"{' or '.join(map(str, sorted(allowed)))} in and {latent} out were expected; unet and vae do not belong together."
        )
    schedule = read_diffusion_schedule(request.folder / "scheduler")
    model_config = configure(CONFIGS[request.family.name](native), schedule, request.latent_format)
    if config.get("upcast_attention"):
        model_config.unet_config["attn_precision"] = torch.float32
    weights = read_weights(part)
    _require_fit(native, config["block_out_channels"], weights)
    weights = rename(weights, comfy.utils.unet_to_diffusers(native), PART)
    return build_patcher(model_config, weights, PART, request.dtype, request.disable_dynamic)
