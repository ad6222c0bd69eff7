"""FLUX.2 (dev and klein): modulation shared by all blocks, gated feed-forward parts, four axes of positions, no vector of text.

klein reads three layers of a Qwen3, and its folders are loaded whole; dev reads a Mistral of 24 billion weights, which core loads.
"""

from collections.abc import Mapping

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.utils
from comfy.ldm.flux.model import Flux
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import nn

from .....methods.ildm.schedules import transformer_blocks
from ...loading.folder_files import MOST_LAYERS, read_config, read_weights, rename, require_finite, require_numbers, require_options
from ...loading.patcher import build_patcher, configure, require_channels
from ...loading.rope import rope_axes
from ...loading.sampling import NoiseSchedule
from ...loading.text_encoder import TextFamily, TextPart
from ..backbone import INTRINSIC_LORA, Backbone, Family, LoadRequest
from ..flow_step import flow_step
from ..joint_attention import cross_domain, map_attention, tensor_lora
from . import attentions

PART = "FLUX.2 transformer"
FIXED_OPTIONS = {"patch_size": (1,), "timestep_guidance_channels": (256,), "eps": (1e-6,)}
# Of diffusers -> native, beyond what ComfyUI's own map knows.
_MORE = {
    f"time_guidance_embed.{name}.linear_{number}": f"{target}.{layer}"
    for name, target in (("timestep_embedder", "time_in"), ("guidance_embedder", "guidance_in"))
    for number, layer in ((1, "in_layer"), (2, "out_layer"))
} | {
    f"{name}.linear": f"{name}.lin" for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
}


def flux2_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a Flux2Transformer2DModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("attention_head_dim", "num_attention_heads", "num_layers", "num_single_layers"), PART, MOST_LAYERS, least=0)
    require_numbers(config, ("axes_dims_rope", "in_channels", "out_channels", "joint_attention_dim", "rope_theta"), PART)
    require_finite(config, ("mlp_ratio",), PART)
    return {
        "image_model": "flux2",
        "axes_dim": rope_axes(config, PART, (32, 32, 32, 32)),
        "num_heads": config["num_attention_heads"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "mlp_ratio": config["mlp_ratio"],
        "theta": config["rope_theta"],
        "patch_size": 1,
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels") or config["in_channels"],
        "qkv_bias": False,
        "ops_bias": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "txt_ids_dims": [3],
        "context_in_dim": config["joint_attention_dim"],
        "vec_in_dim": None,
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "guidance_embed": bool(config.get("guidance_embeds", True)),
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }


def key_map(native: Mapping) -> dict:
    """Where diffusers' weights go."""
    names = comfy.utils.flux_to_diffusers(native) | {f"{name}.weight": f"{target}.weight" for name, target in _MORE.items()}
    for block in range(native["depth_single_blocks"]):
        # As LoRA files are read here: the old name of an output projection.
        names[f"single_transformer_blocks.{block}.attn.to_out.0.weight"] = f"single_blocks.{block}.linear2.weight"
    return names


class AnyWidthFlux2(comfy.supported_models.Flux2):
    """FLUX.2 by the folder's own numbers."""

    prediction = ModelType.FLUX

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.Flux2(self, model_type=self.prediction, device=device)


def load_flux2(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` of a diffusers folder, with ComfyUI's own schedule of FLUX.2.

    Raises ModelFolderError for what ComfyUI cannot hold.
    """
    part = request.folder / "transformer"
    native = flux2_config(read_config(part))
    require_channels(native["out_channels"], request.latent_format, PART)
    weights = rename(read_weights(part), key_map(native), PART)
    model_config = configure(AnyWidthFlux2(native), NoiseSchedule(ModelType.FLUX), request.latent_format)
    return build_patcher(model_config, weights, PART, request.dtype, request.disable_dynamic)


def is_flux2(network: nn.Module) -> bool:
    """Whether a network is a FLUX.2, not another of core's Flux class."""
    return isinstance(network, Flux) and network.params.global_modulation and network.params.mlp_silu_act


def family_of(config: Mapping) -> str | None:
    """The family of a diffusers config: klein knows no guidance."""
    if config.get("_class_name") != "Flux2Transformer2DModel":
        return None
    return "flux2" if config.get("guidance_embeds", True) else "flux2_klein"


SINGLE_STEP = flow_step(key_map, lambda network: network.in_channels, lambda network: network.params.context_in_dim)

FLUX2 = Backbone(
    name="flux2",
    title="FLUX.2",
    matches=is_flux2,
    part="transformer",
    family_of=family_of,
    families=(
        Family("flux2", "FLUX.2 dev", text=None, trainers=()),
        Family(
            "flux2_klein",
            "FLUX.2 klein",
            # Core's class for the 4B reads any width.
            text=TextFamily(
                (TextPart("qwen3_4b", "text_encoder", "tokenizer"),),
                comfy.text_encoders.flux.KleinTokenizer,
                comfy.text_encoders.flux.klein_te(),
                fewest_layers=28,
            ),
            trainers=(INTRINSIC_LORA,),
        ),
    ),
    load=load_flux2,
    latent_formats=(comfy.latent_formats.Flux2,),
    layouts={"FLUX.2 dev": transformer_blocks(56), "FLUX.2 klein 4B": transformer_blocks(25), "FLUX.2 klein 9B": transformer_blocks(32)},
    single_step=SINGLE_STEP,
    cross_domain=cross_domain(attentions, SINGLE_STEP.bind_lora),
    map_attention=map_attention(attentions),
    attach_tensor_lora=tensor_lora(attentions),
    attentions=attentions,
)
