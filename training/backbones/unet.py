"""Stable Diffusion's UNets: SD 1.x, SD 2.x, SDXL."""

from diffusers import DiffusionPipeline, UNet2DConditionModel

from ...methods.lora.lora_file import kohya_state_dict
from .backbone import Backbone, JointDenoising, TextEmbeddings
from .self_attention import PROJECTIONS, exchange_in


def _is_sdxl(unet: UNet2DConditionModel) -> bool:
    return unet.config.addition_embed_type == "text_time"


def encode(pipeline: DiffusionPipeline, texts: list[str]) -> TextEmbeddings:
    encoded = pipeline.encode_prompt(texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return TextEmbeddings(encoded[0], pooled=encoded[2] if _is_sdxl(pipeline.unet) else None)


def conditions(unet: UNet2DConditionModel, text: TextEmbeddings, size: int) -> dict:
    if not _is_sdxl(unet):
        return {"encoder_hidden_states": text.context}
    time_ids = text.context.new_tensor([size, size, 0, 0, size, size]).expand(text.context.shape[0], -1)
    return {"encoder_hidden_states": text.context, "added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": time_ids}}


UNET = Backbone(
    name="unet",
    title="SD 1.x, SD 2.x, SDXL",
    network=UNet2DConditionModel,
    joint_denoising=JointDenoising(encode, conditions, PROJECTIONS, exchange_in, kohya_state_dict),
)
