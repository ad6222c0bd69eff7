"""`python -m intrinsic_lab.training.intrinsic_lora`: train an I-LoRA on a diffusers base; run it again to resume."""

import argparse
import sys
from pathlib import Path

from ...methods.intrinsic_lora.multi_step import METHODS
from ...methods.maps import MAPS
from .. import command_line
from ..loop import LoopConfig
from .adapter import KINDS
from .config import IntrinsicLoraConfig
from .run import train_intrinsic_lora


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.intrinsic_lora",
        description="Train an Intrinsic LoRA: a LoRA with which a Stable Diffusion model turns a picture into one of its intrinsic maps. "
        "Running the same command again resumes; Ctrl+C saves a checkpoint first. Several devices: accelerate launch -m, then the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    own = IntrinsicLoraConfig
    parser.add_argument(
        "--base", type=Path, required=True, help="Stable Diffusion 1.x or 2.x model: a diffusers folder or a checkpoint file"
    )
    parser.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA extracts")
    parser.add_argument("--output", type=Path, required=True, help="folder for the LoRA, its record and its checkpoints")
    command_line.add_cache_option(command_line.add_data_options(parser, "a folder of pictures and maps"))

    model = parser.add_argument_group("what is trained")
    model.add_argument(
        "--kind",
        choices=KINDS,
        default=own.kind,
        help="attention: the paper's LoRA; wide: convolutions and feed-forward too; full: everything",
    )
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
        "--picture-channels",
        type=Path,
        help="of augmented: folder or checkpoint of an instruct-pix2pix model, whose weights for the picture are taken and stay "
        "(without: they begin at zero and learn)",
    )

    training = command_line.add_training_options(parser, steps=20_000, batch=own.batch, batch_of="pairs per forward pass and process")
    command_line.add_optimiser_options(training)
    command_line.add_gradient_checkpointing_option(training)
    command_line.add_process_options(training)
    return parser


def config_from(arguments: argparse.Namespace) -> IntrinsicLoraConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(**command_line.chosen(LoopConfig, arguments))
    data = command_line.data_from(arguments)
    return IntrinsicLoraConfig(loop=loop, data=data, **command_line.chosen(IntrinsicLoraConfig, arguments, "data"))


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)

    def start(report) -> Path:
        return train_intrinsic_lora(config_from(arguments), cache=arguments.cache, report=report(arguments.map)).weights

    return command_line.run(arguments, arguments.output, start)


if __name__ == "__main__":
    sys.exit(main())
