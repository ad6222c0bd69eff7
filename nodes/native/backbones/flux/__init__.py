"""FLUX.1."""

from collections.abc import Mapping

import comfy.latent_formats
import comfy.text_encoders.flux
import comfy.utils
from comfy.ldm.flux.model import Flux
from torch import Tensor, nn

from .....methods.ildm.schedules import transformer_blocks
from .....methods.lumix.intrinsix import MAPS as INTRINSIX_MAPS
from .....methods.lumix.schedule import published_shift, shift_by_tokens, shifted_sigmas
from ...batch_rows.attention_calls import DOUBLE, SINGLE, AttentionPlace, Tokens
from ...loading.text_encoder import CLIP_L, TextFamily, TextPart
from ..backbone import INTRINSIC_LORA, TENSOR_LORA, Backbone, Family, MapAttention
from ..flow_step import flow_step
from ..joint_attention import cross_domain, in_order
from .loading import PATCH, load_flux
from .maps import attach_tensor_lora, join_maps_in

# What other networks of core's Flux class have, and FLUX.1 has not.
_LATER_VARIANTS = ("global_modulation", "mlp_silu_act", "yak_mlp")


def is_flux1(network: nn.Module) -> bool:
    """Whether a network is a FLUX.1, not one of its successors."""
    return isinstance(network, Flux) and not any(getattr(network.params, variant, False) for variant in _LATER_VARIANTS)


def input_channels(network: Flux) -> int:
    """Of latents."""
    return network.in_channels // network.patch_size**2


def attentions(network: Flux) -> tuple[AttentionPlace, ...]:
    """Of FLUX.1 and FLUX.2: blocks of two streams, then of one."""
    double = [(DOUBLE, f"double_blocks.{number}", "img_attn.qkv", "img_attn.proj", _double) for number in range(len(network.double_blocks))]
    single = [(SINGLE, f"single_blocks.{number}", "linear1", "linear2", _single) for number in range(len(network.single_blocks))]
    return in_order(double + single)


def _double(args: tuple, kwargs: Mapping, latent: Tensor) -> Tokens:
    return Tokens(kwargs["txt"].shape[1], kwargs["pe"])


def _single(args: tuple, kwargs: Mapping, latent: Tensor) -> Tokens:
    return Tokens(kwargs["transformer_options"]["img_slice"][0], kwargs["pe"])


def image_tokens(latent: dict) -> int:
    """How many image tokens FLUX makes of one row of a LATENT."""
    height, width = latent["samples"].shape[-2:]
    return -(-height // PATCH) * -(-width // PATCH)


def map_sigmas(maps: tuple[str, ...], latent: dict, steps: int) -> Tensor:
    """LumiX's published noise levels; FLUX.1's own for the maps of IntrinsiX."""
    shift = shift_by_tokens if maps == INTRINSIX_MAPS else published_shift
    return shifted_sigmas(steps, shift(image_tokens(latent)))


SINGLE_STEP = flow_step(comfy.utils.flux_to_diffusers, input_channels, lambda network: network.params.context_in_dim)

FLUX = Backbone(
    name="flux",
    title="FLUX.1",
    matches=is_flux1,
    part="transformer",
    family_of=lambda config: "flux" if config.get("_class_name") == "FluxTransformer2DModel" else None,
    families=(
        Family(
            "flux",
            "FLUX.1",
            text=TextFamily(
                (CLIP_L, TextPart("t5xxl", "text_encoder_2", "tokenizer_2")),
                comfy.text_encoders.flux.FluxTokenizer,
                comfy.text_encoders.flux.flux_clip(),
            ),
            trainers=(INTRINSIC_LORA, TENSOR_LORA),
        ),
    ),
    load=load_flux,
    latent_formats=(comfy.latent_formats.Flux,),
    layouts={"FLUX.1": transformer_blocks(57)},
    single_step=SINGLE_STEP,
    cross_domain=cross_domain(attentions, SINGLE_STEP.bind_lora),
    map_attention=MapAttention(join_maps_in, map_sigmas),
    attach_tensor_lora=attach_tensor_lora,
    attentions=attentions,
)
