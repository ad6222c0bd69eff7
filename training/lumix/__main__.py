"""`python -m intrinsic_lab.training.lumix`: train a LumiX adapter on a FLUX.1 base; run it again to resume."""

import argparse
import sys
from pathlib import Path

from ...methods.lumix.design import ATTENTIONS, COLOR, HYBRID, LORAS, MAP_NAMES, Design
from .. import command_line
from ..loop import LoopConfig
from .config import DTYPES, OPTIMIZERS, LumixConfig
from .run import train_lumix

# Prodigy finds its own rate; 1 leaves it to that.
LEARNING_RATES = {"adamw": 1e-4, "prodigy": 1.0}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.lumix",
        description="Train a LumiX adapter: with it a FLUX.1 model makes albedo, irradiance, colour, depth and normals of one scene from "
        "a prompt, or from those of them that are given. Running the same command again resumes; Ctrl+C saves a checkpoint first. Several "
        "devices: accelerate launch -m, then the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, help="FLUX.1 model: a diffusers folder or a checkpoint file with all its parts")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter, its record and its checkpoints")

    data = command_line.add_data_options(
        parser, "a folder of pictures, maps and captions (NAME.txt)", layout=f"{command_line.FOLDER_LAYOUT}; irradiance is called shading"
    )
    command_line.add_cache_option(data)

    own = LumixConfig
    model = parser.add_argument_group("what is trained; the defaults are the paper's")
    model.add_argument("--attention", choices=ATTENTIONS, default=Design.attention, help="how maps meet in attention")
    model.add_argument("--lora", choices=LORAS, default=Design.lora, help="how the update across maps is structured")
    model.add_argument("--maps", nargs="+", choices=MAP_NAMES, default=list(MAP_NAMES), help=f"rows, in order; {COLOR} must be among them")
    model.add_argument("--adapt-query", action="store_true", help="also update queries, which harms alignment (the paper's ablation)")
    model.add_argument("--rank", type=int, default=own.rank, help="of the update; of a map's own part for hybrid")
    model.add_argument("--other-rank", type=int, help="hybrid only: rank between different maps (default: half of --rank)")
    model.add_argument("--clean-share", type=float, default=own.clean_share, help="share of maps given clean, beside their own timesteps")
    model.add_argument("--empty-prompt", type=float, default=own.empty_prompt, help="share of captions left out, for guidance")
    model.add_argument("--guidance", type=float, default=own.guidance, help="told to a base with a guidance embedding, such as FLUX.1-dev")
    model.add_argument("--text-tokens", type=int, default=own.text_tokens, help="length of T5's context")
    model.add_argument("--base-dtype", choices=DTYPES, default=own.base_dtype, help="of the frozen transformer")
    model.add_argument("--save-dtype", choices=DTYPES, default=own.save_dtype, help="of the file written")

    training = command_line.add_training_options(
        parser,
        steps=10_000,
        batch=own.batch,
        batch_of="pictures, with all their maps, per forward pass and process",
        learning_rate=None,
        learning_rate_help="highest rate (default: 1e-4 for adamw, 1 for prodigy)",
    )
    training.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=own.optimizer, help="prodigy: the paper's, needs the package prodigyopt"
    )
    command_line.add_optimiser_options(training)
    command_line.add_gradient_checkpointing_option(training)
    command_line.add_process_options(training)
    return parser


def config_from(arguments: argparse.Namespace) -> LumixConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    design = Design(arguments.attention, arguments.lora, tuple(arguments.maps), arguments.adapt_query)
    rate = LEARNING_RATES[arguments.optimizer] if arguments.learning_rate is None else arguments.learning_rate
    other_rank = arguments.other_rank
    if other_rank is None:
        other_rank = max(1, arguments.rank // 2) if arguments.lora == HYBRID else 0
    loop = LoopConfig(learning_rate=rate, **command_line.chosen(LoopConfig, arguments, "learning_rate"))
    own = command_line.chosen(LumixConfig, arguments, "data", "other_rank")
    return LumixConfig(loop=loop, data=command_line.data_from(arguments), design=design, other_rank=other_rank, **own)


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)

    def start(report) -> Path:
        return train_lumix(config_from(arguments), cache=arguments.cache, report=report("lumix")).weights

    return command_line.run(arguments, arguments.output, start)


if __name__ == "__main__":
    sys.exit(main())
