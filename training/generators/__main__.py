"""`python -m intrinsic_lab.training.generators`: VQGANs, style-based GANs and Intrinsic LoRAs on them; run again to resume."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...methods.intrinsic_lora.generators.adapter import TARGETS
from ...methods.maps import MAPS
from .. import command_line
from ..loop import LoopConfig, Report
from ..scene_pictures import BUNDLED_MAPS
from .gan import PLAYERS, GanConfig, train_gan
from .gan_lora import GanLoraConfig, train_gan_lora
from .nano import CONTROLS, train_nano_loras, train_nano_vqgan
from .vqgan_lora import VqganLoraConfig, train_vqgan_lora

VQGAN_SIZES = (256, 64)
Reports = Callable[[str], Report]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.generators", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = argparse.ArgumentDefaultsHelpFormatter

    lora = commands.add_parser("vqgan-lora", help="train one map's LoRA on a diffusers VQModel", formatter_class=shown)
    lora.add_argument("--base", type=Path, required=True, help="folder of a diffusers VQModel, or a published .ckpt with its .yaml")
    lora.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA extracts")
    lora.add_argument("--output", type=Path, required=True, help="folder for the LoRA and its checkpoints")
    command_line.add_data_options(lora, "a folder of pictures and maps", sizes=VQGAN_SIZES, sets=True)
    lora.add_argument("--rank", type=int, default=VqganLoraConfig.rank, help="of the LoRA layers")
    lora.add_argument(
        "--targets",
        choices=tuple(TARGETS["vqgan"]),
        default=VqganLoraConfig.targets,
        help="attention: the paper's; wide: the decoder's convolutions too, for small networks",
    )
    lora.add_argument(
        "--init", choices=("trained", "random"), default=VqganLoraConfig.init, help="random: fresh weights, the paper's control"
    )
    training = command_line.add_training_options(
        lora, steps=4000, batch=VqganLoraConfig.batch, batch_of="pairs per step", learning_rate=1e-3
    )
    command_line.add_optimiser_options(training)

    gan = commands.add_parser("gan", help="train a small style-based generator on rendered scenes of 64 x 64 pixels", formatter_class=shown)
    gan.add_argument("--output", type=Path, required=True, help="folder for the generator (OUTPUT/gan) and its checkpoints")
    gan.add_argument("--scenes", type=int, default=GanConfig.scenes, help="number of rendered scenes")
    command_line.add_training_options(
        gan, steps=20_000, batch=GanConfig.batch, batch_of="pictures per step", learning_rate=1e-3, learning_rate_help="of both players"
    )

    lora = commands.add_parser(
        "gan-lora", help="train one map's LoRA on a style-based generator, taught by an I-LoRA", formatter_class=shown
    )
    lora.add_argument(
        "--base",
        type=Path,
        required=True,
        help="folder of the generator, or a StyleGAN2 .pt, or a StyleGAN2, StyleGAN3 or StyleGAN-XL .pkl",
    )
    lora.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA makes")
    lora.add_argument("--output", type=Path, required=True, help="folder for the LoRA and its checkpoints")
    lora.add_argument("--teacher", type=Path, required=True, help="diffusers folder of the Stable Diffusion model that labels the pictures")
    lora.add_argument("--adapter", type=Path, required=True, help="the teacher's I-LoRA for this map")
    lora.add_argument("--teacher-size", type=int, default=GanLoraConfig.teacher_size, help="pixels at which the teacher sees a picture")
    lora.add_argument("--pictures", type=int, default=GanLoraConfig.pictures, help="number of generated pictures to learn from")
    lora.add_argument("--rank", type=int, default=GanLoraConfig.rank, help="of the LoRA layers")
    training = command_line.add_training_options(
        lora, steps=4000, batch=GanLoraConfig.batch, batch_of="pictures per step", learning_rate=1e-3
    )
    command_line.add_optimiser_options(training)

    for name, text in (
        ("nano", "train the nano VQGAN on rendered scenes, and its LoRAs"),
        ("nano-control", "train what they are compared with: the same on random weights, and LoRAs on the attention alone, on both"),
    ):
        nano = commands.add_parser(name, help=text, formatter_class=shown)
        nano.add_argument("--runs", type=Path, default=Path("runs/generators"), help="folder of checkpoints and results")
        nano.add_argument("--assets", type=Path, default=Path("assets"), help="where the results are written")
        nano.add_argument("--maps", nargs="+", choices=tuple(MAPS), default=list(BUNDLED_MAPS), help="which LoRAs")
    command_line.add_process_options(parser)
    return parser


def config_from(arguments: argparse.Namespace) -> VqganLoraConfig | GanLoraConfig | GanConfig:
    """The run that a command other than the nano ones asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(**command_line.chosen(LoopConfig, arguments))
    if arguments.command == "vqgan-lora":
        data = command_line.set_data_from(arguments, VQGAN_SIZES) or command_line.data_from(arguments, VQGAN_SIZES)
        return VqganLoraConfig(loop=loop, data=data, **command_line.chosen(VqganLoraConfig, arguments, "data"))
    if arguments.command == "gan":
        return GanConfig(loop=replace(loop, **PLAYERS), **command_line.chosen(GanConfig, arguments))
    return GanLoraConfig(loop=loop, **command_line.chosen(GanLoraConfig, arguments))


def train_one(arguments: argparse.Namespace, report: Reports) -> Path:
    """One network or one LoRA."""
    config = config_from(arguments)
    if isinstance(config, VqganLoraConfig):
        train_vqgan_lora(config, report(config.map))
    elif isinstance(config, GanLoraConfig):
        train_gan_lora(config, report(config.map))
    else:
        train_gan(config, report("gan"))
    return config.weights


def train_nano(arguments: argparse.Namespace, report: Reports) -> Path:
    """The bundled VQGAN with its LoRAs, or what they are compared with."""
    if arguments.command == "nano":
        if not (arguments.assets / "nano_vqgan" / "record.json").exists():
            train_nano_vqgan(arguments.runs, arguments.assets, report)
        train_nano_loras(arguments.runs, arguments.assets, arguments.maps, report=report)
        return arguments.assets
    for targets, init in CONTROLS:
        train_nano_loras(arguments.runs, arguments.assets, arguments.maps, targets, init, report)
    return arguments.runs


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.command in ("nano", "nano-control"):
        return command_line.run(arguments, arguments.runs, lambda report: train_nano(arguments, report))
    return command_line.run(arguments, arguments.output, lambda report: train_one(arguments, report))


if __name__ == "__main__":
    sys.exit(main())
