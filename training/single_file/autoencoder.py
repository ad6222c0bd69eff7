"""The VAE of latent diffusion in its authors' layout (`first_stage_model.encoder.down.0.block.0...`)."""

import re

from diffusers import AutoencoderKL

from .checkpoint import Checkpoint, Shapes, count, filled

PREFIXES = ("first_stage_model.", "vae.")
_NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def _renamed(name: str, levels: int) -> str:
    """diffusers' name; its decoder counts levels from the latent's side."""
    name = re.sub(r"\.up\.(\d+)\.block\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.resnets.", name)
    name = re.sub(r"\.up\.(\d+)\.upsample\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.upsamplers.0.", name)
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_autoencoder(checkpoint: Checkpoint, scaling: float, shift: float | None = None) -> AutoencoderKL:
    """The checkpoint's VAE. scaling, shift: of its latents, which no file says. Raises ValueError without one."""
    prefix = next((prefix for prefix in PREFIXES if checkpoint.below(f"{prefix}decoder.")), None)
    if prefix is None:
        raise ValueError(f"{checkpoint.path.name} holds no VAE: take a checkpoint with one, or the model in diffusers format.")
    shapes: Shapes = checkpoint.below(prefix)
    levels = count(shapes, "encoder.down.{}.block.0.conv1.weight")
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    weights = {}
    for name, weight in checkpoint.weights(prefix).items():
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            name = _renamed(name, levels)
            weights[name] = weight[..., 0, 0] if ".attentions." in name and weight.ndim == 4 else weight

    def build() -> AutoencoderKL:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(widths),
            layers_per_block=count(shapes, "encoder.down.0.block.{}.conv1.weight"),
            latent_channels=shapes["decoder.conv_in.weight"][1],
            use_quant_conv="quant_conv.weight" in shapes,
            use_post_quant_conv="post_quant_conv.weight" in shapes,
            scaling_factor=scaling,
            shift_factor=shift,
        )

    return filled(build, weights, checkpoint.path, "VAE")
