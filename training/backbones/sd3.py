"""Stable Diffusion 3 and 3.5."""

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from ..bases import Base
from .backbone import Backbone, TextEmbeddings
from .flow import flow_step

# The length to which ComfyUI pads T5's prompts for SD 3.
T5_TOKENS = 77
_BLOCKS = r"transformer_blocks\.\d+"


def velocity(transformer: nn.Module, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings) -> Tensor:
    """noise - latent, at flow times 0..1."""
    return transformer(latent_bchw, text.context, text.pooled, 1000 * time_b).sample


@torch.no_grad()
def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """Both CLIPs beside each other, then T5, as the pipeline joins them; the encoders are let go afterwards."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    pieces = base.tokenizer(T5TokenizerFast, "tokenizer_3")
    pipeline = StableDiffusion3Pipeline(
        transformer=None,
        scheduler=None,
        vae=None,
        text_encoder=base.module(CLIPTextModelWithProjection, "text_encoder"),
        tokenizer=base.tokenizer(CLIPTokenizer, "tokenizer"),
        text_encoder_2=base.module(CLIPTextModelWithProjection, "text_encoder_2"),
        tokenizer_2=base.tokenizer(CLIPTokenizer, "tokenizer_2"),
        text_encoder_3=base.module(T5EncoderModel, "text_encoder_3"),
        tokenizer_3=pieces,
    )
    length = min(T5_TOKENS, pieces.model_max_length)
    encoded = pipeline.encode_prompt(prompt, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=length)
    return TextEmbeddings(encoded[0].float(), pooled=encoded[2].float())


SD3 = Backbone(
    name="sd3",
    part="transformer",
    network=SD3Transformer2DModel,
    single_step=flow_step(
        "SD 3 or 3.5",
        SD3Transformer2DModel,
        velocity,
        encode_text,
        (
            rf"{_BLOCKS}\.(?:attn2?\.(?:to_[qkv]|to_out\.0)|attn\.(?:add_[qkv]_proj|to_add_out))",
            rf"{_BLOCKS}\.ff(?:_context)?\.net\.(?:0\.proj|2)",
            rf"{_BLOCKS}\.norm1(?:_context)?\.linear|norm_out\.linear|context_embedder|proj_out",
        ),
    ),
)
