"""Stable Diffusion 3 and 3.5 (medium with its second, picture-only attention, and large): MMDiT of any width, and its LoRA layers."""

from collections.abc import Mapping

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.text_encoders.sd3_clip
import comfy.utils
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....methods.ildm.schedules import transformer_blocks
from ..batch_rows.attention_calls import DOUBLE, PICTURE, AttentionPlace, Tokens
from ..loading.folder_files import (
    MOST_LAYERS,
    ModelFolderError,
    read_config,
    read_weights,
    rename,
    require_numbers,
    require_options,
)
from ..loading.patcher import build_patcher, configure, require_channels
from ..loading.sampling import NoiseSchedule, read_flow_schedule
from ..loading.text_encoder import CLIP_L, TextFamily, TextPart
from .backbone import INTRINSIC_LORA, Backbone, Family, LoadRequest
from .flow_step import flow_step
from .joint_attention import cross_domain, in_order, map_attention, tensor_lora

PART = "SD 3 transformer"
# What ComfyUI's MMDiT fixes.
FIXED_OPTIONS = {"attention_head_dim": (64,), "qk_norm": (None, "rms_norm")}
TIMESTEPS = 1000.0


def sd3_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of an SD3Transformer2DModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("num_attention_heads", "num_layers"), PART, MOST_LAYERS)
    sizes = ("patch_size", "in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size")
    require_numbers(config, sizes, PART)
    width = config["num_attention_heads"] * FIXED_OPTIONS["attention_head_dim"][0]
    if config["caption_projection_dim"] != width:
        raise ModelFolderError(
            f"The {PART} has caption_projection_dim {config['caption_projection_dim']}, its own width {width} was expected."
        )
    dual = config.get("dual_attention_layers") or []
    if not all(type(layer) is int and 0 <= layer < config["num_layers"] for layer in dual):
        raise ModelFolderError(
            f"The {PART} has dual_attention_layers {str(dual)[:80]}: numbers of its {config['num_layers']} layers were expected."
        )
    return {
        "input_size": None,
        "patch_size": config["patch_size"],
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels") or config["in_channels"],
        "depth": config["num_attention_heads"],
        "num_blocks": config["num_layers"],
        "adm_in_channels": config["pooled_projection_dim"],
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": config["joint_attention_dim"], "out_features": width},
        },
        "num_patches": config["pos_embed_max_size"] ** 2,
        "pos_embed_max_size": config["pos_embed_max_size"],
        "pos_embed_scaling_factor": None,
        "qk_norm": "rms" if config.get("qk_norm") else None,
        "x_block_self_attn_layers": list(dual),
    }


def key_map(native: Mapping) -> dict:
    """Where diffusers' weights go. ComfyUI's own map takes the depth for the number of heads, as published models have it."""
    blocks, heads = native.get("num_blocks") or native["depth"], native["depth"]
    names = dict(comfy.utils.mmdit_to_diffusers({**native, "num_blocks": blocks}))
    for end in ("weight", "bias"):

        def modulation(block: int, end: str = end) -> tuple[str, str]:
            return f"transformer_blocks.{block}.norm1_context.linear.{end}", f"joint_blocks.{block}.context_block.adaLN_modulation.1.{end}"

        names.pop(modulation(heads - 1)[0], None)
        if heads < blocks:
            name, target = modulation(heads - 1)
            names[name] = target
        name, target = modulation(blocks - 1)
        # The last block's text ends before its output: scale and shift alone, in the other order.
        names[name] = (target, None, comfy.utils.swap_scale_shift)
    return names


class AnyWidthSD3(comfy.supported_models.SD3):
    """SD 3 by the folder's own numbers and shift."""

    prediction = ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.SD3(self, model_type=self.prediction, device=device)


def load_sd3(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    part = request.folder / "transformer"
    native = sd3_config(read_config(part))
    require_channels(native["in_channels"], request.latent_format, PART)
    schedule = read_flow_schedule(request.folder / "scheduler")
    if schedule.prediction is not ModelType.FLOW:
        raise ModelFolderError(
            f"The scheduler shifts by the picture's size (use_dynamic_shifting), a fixed shift was expected of the {PART}."
        )
    weights = rename(read_weights(part), key_map(native), PART)
    schedule = NoiseSchedule(ModelType.FLOW, schedule.settings | {"multiplier": TIMESTEPS})
    model_config = configure(AnyWidthSD3(native), schedule, request.latent_format)
    return build_patcher(model_config, weights, PART, request.dtype, request.disable_dynamic)


def attentions(network: MMDiT) -> tuple[AttentionPlace, ...]:
    """One with the text in every block; of SD 3.5 medium's first blocks a second one, of the picture alone."""
    places = []
    for number, block in enumerate(network.joint_blocks):
        module = f"joint_blocks.{number}"
        places.append((DOUBLE, module, "x_block.attn.qkv", "x_block.attn.proj", _tokens))
        if block.x_block.x_block_self_attn:
            places.append((PICTURE, module, "x_block.attn2.qkv", "x_block.attn2.proj", _tokens))
    return in_order(places)


def _tokens(args: tuple, kwargs: Mapping, latent: Tensor) -> Tokens:
    return Tokens(args[0].shape[1])


SINGLE_STEP = flow_step(key_map, lambda network: network.in_channels, lambda network: network.context_embedder.in_features)

SD3 = Backbone(
    name="sd3",
    title="SD 3 and 3.5",
    matches=lambda network: isinstance(network, MMDiT),
    part="transformer",
    family_of=lambda config: "sd3" if config.get("_class_name") == "SD3Transformer2DModel" else None,
    families=(
        Family(
            "sd3",
            "SD 3 / 3.5",
            text=TextFamily(
                (CLIP_L, TextPart("clip_g", "text_encoder_2", "tokenizer_2"), TextPart("t5xxl", "text_encoder_3", "tokenizer_3")),
                comfy.text_encoders.sd3_clip.SD3Tokenizer,
                comfy.text_encoders.sd3_clip.sd3_clip(),
                fewest_layers=3,
            ),
            trainers=(INTRINSIC_LORA,),
        ),
    ),
    load=load_sd3,
    latent_formats=(comfy.latent_formats.SD3,),
    layouts={
        "SD 3 medium": transformer_blocks(24),
        "SD 3.5 medium": transformer_blocks(37),
        "SD 3.5 large": transformer_blocks(38),
    },
    single_step=SINGLE_STEP,
    cross_domain=cross_domain(attentions, SINGLE_STEP.bind_lora),
    map_attention=map_attention(attentions),
    attach_tensor_lora=tensor_lora(attentions),
    attentions=attentions,
)
