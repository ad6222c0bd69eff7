"""The trainer's options, for its own command line and for those that train many times."""

import argparse
from pathlib import Path

from ...methods.intrinsic_lora.multi_step import METHODS
from ...methods.intrinsic_lora.recipe import READINGS
from .. import command_line
from ..loop import LoopConfig
from .adapter import KINDS, LAYERS
from .config import IntrinsicLoraConfig

BASE = (
    "Stable Diffusion 1.x or 2.x, FLUX.1, FLUX.2 klein, SD 3, Qwen-Image, Z-Image or Lumina 2 model: a diffusers folder, or a checkpoint "
    "file of the first two"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of `config_from` but --base, --map and --output."""
    own = IntrinsicLoraConfig
    command_line.add_cache_option(command_line.add_data_options(parser, "a folder of pictures and maps"))

    model = parser.add_argument_group("what is trained")
    model.add_argument(
        "--kind",
        choices=KINDS,
        default=own.kind,
        help="attention: the paper's LoRA; wide: convolutions and feed-forward too; full: everything; probe: a linear layer that reads "
        "the network's self-attentions, which stay as they are",
    )
    model.add_argument("--layers", choices=LAYERS, default=own.layers, help="only those of these blocks, or of this attention")
    model.add_argument("--rank", type=int, default=own.rank, help="of the LoRA layers")
    model.add_argument("--loss", choices=("latent", "decoded"), default=own.loss, help="of latents, or of the decoded map (slower)")
    model.add_argument("--init", choices=("trained", "random"), default=own.init, help="random: fresh UNet weights, the paper's control")
    model.add_argument("--save-dtype", choices=("float32", "float16"), default=own.save_dtype, help="number format of the LoRA file")
    model.add_argument(
        "--method",
        choices=METHODS,
        default=own.method,
        help="single: one forward pass; multi: the base's own denoising, sampled from the picture; augmented: I-LoRA_AUG, sampled with the "
        "picture beside the noise",
    )
    model.add_argument(
        "--reading",
        choices=tuple(READINGS),
        default=own.reading,
        help="how the single step's output says the map: as it is, with its sign changed, or as the data that a flow tells of",
    )
    model.add_argument(
        "--picture-channels",
        type=Path,
        help="of augmented: folder or checkpoint of an instruct-pix2pix model, whose weights for the picture are taken and stay "
        "(without: they begin at zero and learn)",
    )

    training = command_line.add_training_options(parser, steps=20_000, batch=own.batch, batch_of="pairs per forward pass and process")
    command_line.add_optimiser_options(training)
    command_line.add_gradient_checkpointing_option(training)
    command_line.add_process_options(training)


def config_from(arguments: argparse.Namespace) -> IntrinsicLoraConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(**command_line.chosen(LoopConfig, arguments))
    data = command_line.data_from(arguments)
    return IntrinsicLoraConfig(loop=loop, data=data, **command_line.chosen(IntrinsicLoraConfig, arguments, "data"))
