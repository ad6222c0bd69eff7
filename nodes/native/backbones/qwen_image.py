"""Qwen-Image of any width: ComfyUI's names of its weights are diffusers'."""

from collections.abc import Mapping

import comfy.model_base
import comfy.supported_models
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....methods.ildm.schedules import transformer_blocks
from ..batch_rows.attention_calls import DOUBLE, AttentionPlace, Tokens
from ..loading.folder_files import MOST_LAYERS, read_config, read_weights, require_numbers, require_options
from ..loading.patcher import build_patcher, configure, require_channels
from ..loading.rope import rope_axes
from ..loading.sampling import read_flow_schedule
from .backbone import INTRINSIC_LORA, Backbone, Family, LoadRequest
from .flow_step import flow_step
from .joint_attention import cross_domain, in_order, map_attention, tensor_lora

PART = "Qwen-Image transformer"
# What ComfyUI's Qwen-Image fixes; the others are of models that edit layers or several pictures.
FIXED_OPTIONS = {
    "patch_size": (2,),
    "guidance_embeds": (False,),
    "zero_cond_t": (False,),
    "use_additional_t_cond": (False,),
    "use_layer3d_rope": (False,),
}


def qwen_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a QwenImageTransformer2DModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("num_layers",), PART, MOST_LAYERS)
    sizes = ("in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "axes_dims_rope")
    require_numbers(config, sizes, PART)
    return {
        "image_model": "qwen_image",
        "patch_size": 2,
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels") or config["in_channels"],
        "num_layers": config["num_layers"],
        "attention_head_dim": config["attention_head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "joint_attention_dim": config["joint_attention_dim"],
        "axes_dims_rope": rope_axes(config, PART),
    }


class AnyWidthQwenImage(comfy.supported_models.QwenImage):
    """Qwen-Image by the folder's own numbers and schedule."""

    prediction = ModelType.FLUX

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.QwenImage(self, model_type=self.prediction, device=device)


def load_qwen(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    part = request.folder / "transformer"
    native = qwen_config(read_config(part))
    require_channels(native["in_channels"] // native["patch_size"] ** 2, request.latent_format, PART)
    model_config = configure(AnyWidthQwenImage(native), read_flow_schedule(request.folder / "scheduler"), request.latent_format)
    return build_patcher(model_config, read_weights(part), PART, request.dtype, request.disable_dynamic)


def attentions(network: QwenImageTransformer2DModel) -> tuple[AttentionPlace, ...]:
    """One in every block, of two streams."""
    return in_order(
        [(DOUBLE, f"transformer_blocks.{number}.attn", "to_k", "to_out.0", _tokens) for number in range(len(network.transformer_blocks))]
    )


def _tokens(args: tuple, kwargs: Mapping, latent: Tensor) -> Tokens:
    return Tokens(kwargs["encoder_hidden_states"].shape[1], kwargs["image_rotary_emb"])


SINGLE_STEP = flow_step(
    lambda config: {}, lambda network: network.in_channels // network.patch_size**2, lambda network: network.txt_in.in_features
)

QWEN_IMAGE = Backbone(
    name="qwen_image",
    title="Qwen-Image",
    matches=lambda network: isinstance(network, QwenImageTransformer2DModel),
    part="transformer",
    family_of=lambda config: "qwen_image" if config.get("_class_name") == "QwenImageTransformer2DModel" else None,
    families=(Family("qwen_image", "Qwen-Image", text=None, trainers=(INTRINSIC_LORA,)),),
    load=load_qwen,
    # Its VAE is not read from folders; a format of no scale would be taken for that of others.
    latent_formats=(),
    layouts={"Qwen-Image": transformer_blocks(60)},
    attentions=attentions,
    single_step=SINGLE_STEP,
    cross_domain=cross_domain(attentions, SINGLE_STEP.bind_lora),
    map_attention=map_attention(attentions),
    attach_tensor_lora=tensor_lora(attentions),
)
