"""FLUX.2 klein, and its VAE, whose latents are patches of the encoder's, normed by statistics of its own."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ...methods.plain_files import read_json
from ..bases import Base
from .backbone import Backbone, TextEmbeddings
from .flow import flow_step
from .flux import GUIDANCE, pack, unpack

# ComfyUI puts zeros before a shorter text.
TEXT_TOKENS = 512
_DOUBLE, _SINGLE = (rf"{kind}transformer_blocks\.\d+" for kind in ("", "single_"))


class PatchVae(nn.Module):
    """FLUX.2's VAE with the interface of `AutoencoderKL`; its latents are in the model's scale already."""

    def __init__(self, vae: AutoencoderKLFlux2):
        super().__init__()
        self.vae = vae
        # Patches halve the sides once more.
        levels, channels = (*vae.config.block_out_channels, 0), vae.bn.num_features
        self.config = SimpleNamespace(block_out_channels=levels, latent_channels=channels, scaling_factor=1.0, shift_factor=None)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of the patches, `[c, 1, 1]`."""
        mean, variance = (part.to(like).view(-1, 1, 1) for part in (self.vae.bn.running_mean, self.vae.bn.running_var))
        return mean, (variance + self.vae.config.batch_norm_eps).sqrt()

    def encode(self, pictures_bchw: Tensor) -> SimpleNamespace:
        """The distribution of the latents `bchw` of pictures in -1..1, as `latent_dist`."""
        latent = self.vae.encode(pictures_bchw).latent_dist
        mean, std = self._statistics(latent.mean)
        moments = (_patched(latent.mean) - mean) / std, _patched(latent.logvar) - 2 * std.log()
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.cat(moments, dim=1)))

    def decode(self, latent_bchw: Tensor) -> SimpleNamespace:
        """The pictures in -1..1, as `sample`."""
        mean, std = self._statistics(latent_bchw)
        height, width = latent_bchw.shape[-2:]
        patches = latent_bchw * std + mean
        return self.vae.decode(unpack(patches.flatten(2).mT, 2 * height, 2 * width))


def _patched(latent_bchw: Tensor) -> Tensor:
    height, width = latent_bchw.shape[-2:]
    return pack(latent_bchw).mT.unflatten(2, (height // 2, width // 2))


def velocity(transformer: Any, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings) -> Tensor:
    """noise - latent, at flow times 0..1."""
    height, width = latent_bchw.shape[-2:]
    context = nn.functional.pad(text.context, (0, 0, max(0, TEXT_TOKENS - text.context.shape[1]), 0))
    device = latent_bchw.device
    tokens = transformer(
        hidden_states=latent_bchw.flatten(2).mT,
        encoder_hidden_states=context,
        timestep=time_b,
        # Time, row, column, and the text's order.
        img_ids=torch.cartesian_prod(*(torch.arange(count, device=device) for count in (1, height, width, 1))),
        txt_ids=torch.cartesian_prod(*(torch.arange(count, device=device) for count in (1, 1, 1, context.shape[1]))),
        guidance=torch.full_like(time_b, GUIDANCE) if transformer.config.guidance_embeds else None,
    ).sample
    return tokens.mT.unflatten(2, (height, width))


@torch.no_grad()
def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """Three layers of the language model beside each other, by the pipeline of klein; it is let go afterwards.

    Raises ValueError for a base whose text encoder is no Qwen3 (FLUX.2-dev).
    """
    from transformers import Qwen2Tokenizer, Qwen3Model

    config = base.path / "text_encoder" / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else "missing"
    if kind != "qwen3":
        raise ValueError(f"{base.path.name}'s text encoder is {kind}, Qwen3 was expected: give a FLUX.2 klein model in diffusers format.")
    pipeline = Flux2KleinPipeline(
        scheduler=None,
        vae=None,
        text_encoder=base.module(Qwen3Model, "text_encoder"),
        tokenizer=base.tokenizer(Qwen2Tokenizer, "tokenizer"),
        transformer=None,
    )
    context, _ = pipeline.encode_prompt(prompt, device=torch.device("cpu"))
    return TextEmbeddings(context.float())


FLUX2 = Backbone(
    name="flux2",
    part="transformer",
    network=Flux2Transformer2DModel,
    single_step=flow_step(
        "FLUX.2 klein",
        Flux2Transformer2DModel,
        velocity,
        encode_text,
        (
            rf"{_DOUBLE}\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|{_SINGLE}\.attn\.(?:to_qkv_mlp_proj|to_out)",
            rf"{_DOUBLE}\.ff(?:_context)?\.linear_(?:in|out)",
            # ComfyUI's LoraLoader does not know the modulations, which all blocks share.
            r"norm_out\.linear|x_embedder|context_embedder|proj_out",
        ),
        load_vae=lambda base: PatchVae(base.module(AutoencoderKLFlux2, "vae")),
        patch=1,
    ),
)
