"""PixArt-alpha."""

from collections.abc import Mapping

from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from torch import Tensor

from ...methods.lora.layers import LoraLayer
from ...methods.lora.lora_file import peft_state_dict
from ...methods.lora.spellings import PEFT
from .backbone import Backbone, JointDenoising, TextEmbeddings
from .self_attention import PROJECTIONS, exchange_in


def encode(pipeline: DiffusionPipeline, texts: list[str]) -> TextEmbeddings:
    """What the pipeline's own text encoders make of some texts."""
    context, mask, *_ = pipeline.encode_prompt(texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return TextEmbeddings(context, mask=mask)


def conditions(transformer: PixArtTransformer2DModel, text: TextEmbeddings, size: int) -> dict:
    """Keyword arguments of the network's forward for square pictures of `size` pixels."""
    context, config = text.context, transformer.config
    rows = context.shape[0]
    sizes = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions or (config.use_additional_conditions is None and config.sample_size == 128):
        sizes = {"resolution": context.new_full((rows, 2), size), "aspect_ratio": context.new_ones(rows, 1)}
    return {"encoder_hidden_states": context, "encoder_attention_mask": text.mask, "added_cond_kwargs": sizes}


def lora_state(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """peft's own spelling."""
    return peft_state_dict(layers, PEFT)


PIXART = Backbone(
    name="pixart",
    part="transformer",
    network=PixArtTransformer2DModel,
    joint_denoising=JointDenoising("PixArt-alpha", encode, conditions, PROJECTIONS, exchange_in, lora_state),
)
