"""Z-Image."""

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from ..bases import Base
from .backbone import Backbone, TextEmbeddings
from .flow import flow_step

_BLOCKS = r"(?:layers|noise_refiner|context_refiner)\.\d+"


def velocity(transformer: nn.Module, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings) -> Tensor:
    """noise - latent, at flow times 0..1; the network itself counts time from the noise, and points the other way."""
    return -torch.stack(transformer(list(latent_bchw.unsqueeze(2)), 1 - time_b, list(text.context)).sample).squeeze(2)


@torch.no_grad()
def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """The last layer but one of the language model, without padding; it is let go afterwards."""
    from transformers import Qwen2Tokenizer, Qwen3Model

    pipeline = ZImagePipeline(
        scheduler=None,
        vae=None,
        text_encoder=base.module(Qwen3Model, "text_encoder"),
        tokenizer=base.tokenizer(Qwen2Tokenizer, "tokenizer"),
        transformer=None,
    )
    [encoded], _ = pipeline.encode_prompt(prompt, device=torch.device("cpu"), do_classifier_free_guidance=False)
    return TextEmbeddings(encoded.float().unsqueeze(0))


Z_IMAGE = Backbone(
    name="z_image",
    part="transformer",
    network=ZImageTransformer2DModel,
    single_step=flow_step(
        "Z-Image",
        ZImageTransformer2DModel,
        velocity,
        encode_text,
        (
            rf"{_BLOCKS}\.attention\.(?:to_[qkv]|to_out\.0)",
            rf"{_BLOCKS}\.feed_forward\.w[123]",
            rf"{_BLOCKS}\.adaLN_modulation\.0|all_x_embedder\.2-1|all_final_layer\.2-1\.linear|cap_embedder\.1",
        ),
    ),
)
