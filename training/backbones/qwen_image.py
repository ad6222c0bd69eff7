"""Qwen-Image, and its VAE, which takes pictures as videos of one frame."""

from types import SimpleNamespace

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ..bases import Base
from .backbone import Backbone, TextEmbeddings
from .flow import flow_step
from .flux import pack, unpack

_BLOCKS = r"transformer_blocks\.\d+"
# The VAE halves a picture's sides so many times.
_LEVELS = 3


class FrameVae(nn.Module):
    """A video VAE on pictures, with the interface of `AutoencoderKL`; its latents are in the model's scale already."""

    def __init__(self, vae: AutoencoderKLQwenImage):
        super().__init__()
        self.vae = vae
        self.config = SimpleNamespace(
            block_out_channels=(0,) * (_LEVELS + 1), latent_channels=vae.config.z_dim, scaling_factor=1.0, shift_factor=None
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of the VAE's latents, `[c, 1, 1]`."""
        mean, std = (torch.tensor(values).to(like).view(-1, 1, 1) for values in (self.vae.config.latents_mean, self.vae.config.latents_std))
        return mean, std

    def encode(self, pictures_bchw: Tensor) -> SimpleNamespace:
        """The distribution of the latents `bchw` of pictures in -1..1, as `latent_dist`."""
        latent = self.vae.encode(pictures_bchw.unsqueeze(2)).latent_dist
        mean, std = self._statistics(latent.mean)
        moments = (latent.mean.squeeze(2) - mean) / std, latent.logvar.squeeze(2) - 2 * std.log()
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.cat(moments, dim=1)))

    def decode(self, latent_bchw: Tensor) -> SimpleNamespace:
        """The pictures in -1..1, as `sample`."""
        mean, std = self._statistics(latent_bchw)
        return SimpleNamespace(sample=self.vae.decode((latent_bchw * std + mean).unsqueeze(2)).sample.squeeze(2))


def velocity(transformer: nn.Module, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings) -> Tensor:
    """noise - latent, at flow times 0..1."""
    height, width = latent_bchw.shape[-2:]
    shapes = [[(1, height // 2, width // 2)]] * len(latent_bchw)
    return unpack(transformer(pack(latent_bchw), text.context, text.mask, time_b, shapes).sample, height, width)


@torch.no_grad()
def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """The language model's last layer after the pipeline's own instruction, without padding; it is let go afterwards."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    pipeline = QwenImagePipeline(
        scheduler=None,
        vae=None,
        text_encoder=base.module(Qwen2_5_VLForConditionalGeneration, "text_encoder"),
        tokenizer=base.tokenizer(Qwen2Tokenizer, "tokenizer"),
        transformer=None,
    )
    context, mask = pipeline.encode_prompt(prompt, device=torch.device("cpu"))
    return TextEmbeddings(context.float(), mask=mask)


QWEN_IMAGE = Backbone(
    name="qwen_image",
    part="transformer",
    network=QwenImageTransformer2DModel,
    single_step=flow_step(
        "Qwen-Image",
        QwenImageTransformer2DModel,
        velocity,
        encode_text,
        (
            rf"{_BLOCKS}\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
            rf"{_BLOCKS}\.(?:img|txt)_mlp\.net\.(?:0\.proj|2)",
            rf"{_BLOCKS}\.(?:img|txt)_mod\.1|norm_out\.linear|img_in|txt_in|proj_out",
        ),
        load_vae=lambda base: FrameVae(base.module(AutoencoderKLQwenImage, "vae")),
    ),
)
