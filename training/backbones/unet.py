"""Stable Diffusion's UNets: SD 1.x, SD 2.x, SDXL."""

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...methods.lora.lora_file import kohya_state_dict
from ..bases import base_at
from .backbone import TIMESTEP, Backbone, JointDenoising, Probe, SingleStep, SingleStepBase, TextEmbeddings, randomly_initialised
from .self_attention import PROJECTIONS, exchange_in

_ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
# Full names, because peft's suffix "proj" would also match time_proj, which has no weights.
_WIDE = (
    rf"(?:.*\.)?(?:{_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|conv1|conv2|conv_shortcut|time_emb_proj"
    r"|downsamplers\.0\.conv|upsamplers\.0\.conv)|conv_in|conv_out"
)
_TRANSFORMER = rf".*\.(?:{_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2)"
SINGLE_STEP_LAYERS = {"attention": rf".*\.{_ATTENTION}", "transformer": _TRANSFORMER, "wide": _WIDE}
_PARTS = {"up": r"up_blocks\.", "mid": r"mid_block\.", "down": r"down_blocks\.", "self": r".*\.attn1\.", "cross": r".*\.attn2\."}


def _is_sdxl(unet: UNet2DConditionModel) -> bool:
    return unet.config.addition_embed_type == "text_time"


def encode(pipeline: DiffusionPipeline, texts: list[str]) -> TextEmbeddings:
    """What the pipeline's own text encoders make of some texts."""
    encoded = pipeline.encode_prompt(texts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return TextEmbeddings(encoded[0], pooled=encoded[2] if _is_sdxl(pipeline.unet) else None)


def conditions(unet: UNet2DConditionModel, text: TextEmbeddings, size: int) -> dict:
    """Keyword arguments of the network's forward for square pictures of `size` pixels."""
    if not _is_sdxl(unet):
        return {"encoder_hidden_states": text.context}
    time_ids = text.context.new_tensor([size, size, 0, 0, size, size]).expand(text.context.shape[0], -1)
    return {"encoder_hidden_states": text.context, "added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": time_ids}}


def load_single_step(path: Path, init: str, seed: int) -> SingleStepBase:
    """Read an SD 1.x or 2.x base; init "random" gives the UNet fresh weights drawn with `seed`. Raises ValueError for others."""
    base = base_at(path)
    unet = base.module(UNet2DConditionModel, "unet")
    if unet.config.addition_embed_type is not None or unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"the UNet in {path} takes {unet.config.in_channels} channels and extra embeddings ({unet.config.addition_embed_type}): "
            "this trainer needs a plain Stable Diffusion 1.x or 2.x UNet."
        )
    vae, text_encoder = base.module(AutoencoderKL, "vae"), base.module(CLIPTextModel, "text_encoder")
    tokenizer = base.tokenizer(CLIPTokenizer, "tokenizer")
    for module in (vae, text_encoder):
        module.requires_grad_(False)
    if init == "random":
        unet = randomly_initialised(unet, seed)
    return SingleStepBase(unet, vae, partial(_embed, tokenizer, text_encoder), tokenizer, text_encoder)


@torch.no_grad()
def _embed(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompt: str) -> TextEmbeddings:
    """The last hidden state, as the diffusers pipeline takes it."""
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return TextEmbeddings(text_encoder(tokens.input_ids.to(text_encoder.device))[0].float())


def raw_output(unet: UNet2DConditionModel, latent_bchw: Tensor, text: TextEmbeddings) -> Tensor:
    """At t = 999."""
    return denoise(unet, latent_bchw, torch.tensor(TIMESTEP, device=latent_bchw.device), text)


def denoise(unet: UNet2DConditionModel, latent_bchw: Tensor, timestep: Tensor, text: TextEmbeddings) -> Tensor:
    """The raw output. timestep: of each row, or one of all."""
    return unet(latent_bchw, timestep, encoder_hidden_states=text.expanded(len(latent_bchw)).context).sample


UNET = Backbone(
    name="unet",
    part="unet",
    network=UNet2DConditionModel,
    single_step=SingleStep(
        models="Stable Diffusion 1.x or 2.x",
        load=load_single_step,
        raw_output=raw_output,
        layers=SINGLE_STEP_LAYERS,
        lora_state=kohya_state_dict,
        denoise=denoise,
        parts=_PARTS,
        probe=Probe(self_attentions=r".*\.attn1", output="conv_out"),
    ),
    joint_denoising=JointDenoising("SD 1.x, SD 2.x, SDXL", encode, conditions, PROJECTIONS, exchange_in, kohya_state_dict),
)
