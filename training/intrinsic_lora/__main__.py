"""`python -m intrinsic_lab.training.intrinsic_lora`: train an I-LoRA on a diffusers base; run it again to resume."""

import argparse
import sys
from pathlib import Path

from ...methods.maps import MAPS
from .. import command_line
from .options import BASE, add_options, config_from
from .run import train_intrinsic_lora


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.intrinsic_lora",
        description="Train an Intrinsic LoRA: a LoRA with which a diffusion model turns a picture into one of its intrinsic maps. "
        "Running the same command again resumes; Ctrl+C saves a checkpoint first. Several devices: accelerate launch -m, then the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, help=BASE)
    parser.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA extracts")
    parser.add_argument("--output", type=Path, required=True, help="folder for the LoRA, its record and its checkpoints")
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)

    def start(report) -> Path:
        return train_intrinsic_lora(config_from(arguments), cache=arguments.cache, report=report(arguments.map)).weights

    return command_line.run(arguments, arguments.output, start)


if __name__ == "__main__":
    sys.exit(main())
