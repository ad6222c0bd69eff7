"""Lumina 2, which ComfyUI holds as it holds Z-Image."""

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor, nn

from ..bases import Base
from .backbone import Backbone, TextEmbeddings
from .flow import flow_step

_BLOCKS = r"(?:layers|noise_refiner|context_refiner)\.\d+"


def velocity(transformer: nn.Module, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings) -> Tensor:
    """noise - latent, at flow times 0..1; the network itself counts time from the noise, and points the other way."""
    every = torch.ones(text.context.shape[:2], dtype=torch.int64, device=text.context.device)
    return -transformer(latent_bchw, 1 - time_b, text.context, every).sample


@torch.no_grad()
def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """The last layer but one of the language model, without padding and without the pipeline's instruction: ComfyUI's CLIP adds none.

    It is let go afterwards.
    """
    from transformers import Gemma2Model, GemmaTokenizer

    words = base.tokenizer(GemmaTokenizer, "tokenizer")(prompt, return_tensors="pt")
    encoded = base.module(Gemma2Model, "text_encoder")(words.input_ids, attention_mask=words.attention_mask, output_hidden_states=True)
    return TextEmbeddings(encoded.hidden_states[-2].float())


LUMINA2 = Backbone(
    name="z_image",
    part="transformer",
    network=Lumina2Transformer2DModel,
    single_step=flow_step(
        "Lumina 2",
        Lumina2Transformer2DModel,
        velocity,
        encode_text,
        (
            rf"{_BLOCKS}\.attn\.(?:to_[qkv]|to_out\.0)",
            rf"{_BLOCKS}\.feed_forward\.linear_[123]",
            rf"{_BLOCKS}\.norm1\.linear|norm_out\.linear_[12]|x_embedder|time_caption_embed\.caption_embedder\.1",
        ),
    ),
)
