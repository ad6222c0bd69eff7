"""Untrained models that are small enough to train in a test; FLUX.1 and a VQGAN, as folders in diffusers format."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, VQModel
from intrinsic_lab.training.nano.flux import build_scheduler, build_t5, write_t5_tokenizer
from intrinsic_lab.training.nano.text import build_text_encoder, write_tokenizer
from transformers import CLIPTokenizer, T5TokenizerFast


def tiny_transformer(**options) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            axes_dims_rope=(2, 2, 4),
            joint_attention_dim=64,
            pooled_projection_dim=64,
            **options,
        ).eval()


def write_flux_base(folder: Path) -> Path:
    """A FLUX.1 folder with every part."""
    write_tokenizer(folder / "words")
    write_t5_tokenizer(folder / "pieces")
    words, pieces = CLIPTokenizer.from_pretrained(folder / "words"), T5TokenizerFast.from_pretrained(folder / "pieces")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=0,
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
        clip, t5 = build_text_encoder(len(words)), build_t5(len(pieces))
    FluxPipeline(build_scheduler(), vae, clip, words, t5, pieces, tiny_transformer()).save_pretrained(folder)
    return folder


def tiny_vqgan() -> VQModel:
    torch.manual_seed(0)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 16),
        layers_per_block=0,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=8,
    )


def write_vqgan(folder: Path) -> Path:
    model = tiny_vqgan()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder)
    return folder
