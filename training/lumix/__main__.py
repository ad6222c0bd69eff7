"""`python -m intrinsic_lab.training.lumix`: train a LumiX adapter on a FLUX.1 base; run it again to resume."""

import argparse
import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path

from accelerate import PartialState

from ...methods.lumix.design import ATTENTIONS, COLOR, HYBRID, LORAS, MAP_NAMES, Design
from ..folder_data import FolderData
from ..loop import Interrupted, LoopConfig, console_report
from ..pairs import SceneData
from .config import OPTIMIZERS, LumixConfig
from .run import train_lumix

# Prodigy finds its own rate; 1 leaves it to that.
LEARNING_RATES = {"adamw": 1e-4, "prodigy": 1.0}


def _default(kind: type, name: str):
    return next(field.default for field in fields(kind) if field.name == name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.lumix",
        description="Train a LumiX adapter: with it a FLUX.1 model makes albedo, irradiance, colour, depth and normals of one scene from "
        "a prompt, or from those of them that are given. Running the same command again resumes; Ctrl+C saves a checkpoint first. Several "
        "devices: accelerate launch -m, then the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of a FLUX.1 model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter, its record and its checkpoints")

    data = parser.add_argument_group("data: a folder of pictures, maps and captions (NAME.txt), or rendered scenes (without --data)")
    data.add_argument(
        "--data", type=Path, help="folder with image/NAME.png and MAP/NAME.png, or NAME.png and NAME_MAP.png; irradiance is called shading"
    )
    data.add_argument("--size", type=int, help="side of the square training pictures (512 for a folder, 128 for scenes)")
    data.add_argument("--normals", choices=("opengl", "directx"), default=_default(FolderData, "normals"), help="of the folder's normals")
    data.add_argument("--depth", choices=("near_dark", "near_bright"), default=_default(FolderData, "depth"), help="of the folder's depth")
    data.add_argument("--colors", choices=("srgb", "linear"), default=_default(FolderData, "colors"), help="of its albedo and shading")
    data.add_argument("--scenes", type=int, default=_default(SceneData, "count"), help="number of rendered scenes")
    data.add_argument("--first-scene", type=int, default=_default(SceneData, "first_seed"), help="seed of the first scene")
    data.add_argument("--cache", type=Path, help="folder of encoded latents, shared by runs (default: the output folder)")

    own = LumixConfig
    model = parser.add_argument_group("what is trained; the defaults are the paper's")
    model.add_argument("--attention", choices=ATTENTIONS, default=_default(Design, "attention"), help="how maps meet in attention")
    model.add_argument("--lora", choices=LORAS, default=_default(Design, "lora"), help="how the update across maps is structured")
    model.add_argument("--maps", nargs="+", choices=MAP_NAMES, default=list(MAP_NAMES), help=f"rows, in order; {COLOR} must be among them")
    model.add_argument("--adapt-query", action="store_true", help="also update queries, which harms alignment (the paper's ablation)")
    model.add_argument("--rank", type=int, default=own.rank, help="of the update; of a map's own part for hybrid")
    model.add_argument("--other-rank", type=int, help="hybrid only: rank between different maps (default: half of --rank)")
    model.add_argument("--clean-share", type=float, default=own.clean_share, help="share of maps given clean, beside their own timesteps")
    model.add_argument("--empty-prompt", type=float, default=own.empty_prompt, help="share of captions left out, for guidance")
    model.add_argument("--guidance", type=float, default=own.guidance, help="told to a base with a guidance embedding, such as FLUX.1-dev")
    model.add_argument("--text-tokens", type=int, default=own.text_tokens, help="length of T5's context")
    model.add_argument("--base-dtype", choices=("float32", "float16", "bfloat16"), default=own.base_dtype, help="of the frozen transformer")
    model.add_argument("--save-dtype", choices=("float32", "float16", "bfloat16"), default=own.save_dtype, help="of the file written")

    loop = parser.add_argument_group("training")
    loop.add_argument("--steps", type=int, default=10_000, help="of the optimiser")
    loop.add_argument("--batch", type=int, default=own.batch, help="pictures, with all their maps, per forward pass and process")
    loop.add_argument("--accumulation", type=int, default=LoopConfig.accumulation, help="forward passes per step")
    loop.add_argument("--optimizer", choices=OPTIMIZERS, default=own.optimizer, help="prodigy: the paper's, needs the package prodigyopt")
    loop.add_argument("--learning-rate", type=float, help="highest rate (default: 1e-4 for adamw, 1 for prodigy)")
    loop.add_argument("--schedule", choices=("constant", "cosine"), default=LoopConfig.schedule, help="of the rate")
    loop.add_argument("--warmup", type=int, default=LoopConfig.warmup, help="steps of linear rise")
    loop.add_argument("--weight-decay", type=float, default=LoopConfig.weight_decay, help="of the optimiser")
    loop.add_argument("--clip-norm", type=float, default=LoopConfig.clip_norm, help="largest norm of the gradient")
    loop.add_argument("--ema-decay", type=float, default=LoopConfig.ema_decay, help="of the average of the weights; 0: none")
    loop.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=LoopConfig.mixed_precision, help="of the passes")
    loop.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a slower step")
    loop.add_argument("--checkpoint-every", type=int, default=LoopConfig.checkpoint_every, help="steps between checkpoints")
    loop.add_argument("--seed", type=int, default=LoopConfig.seed, help="of data and initial weights")
    loop.add_argument("--threads", type=int, default=own.threads, help="of torch on the CPU; 0: torch's choice")
    loop.add_argument("--log-every", type=int, default=50, help="steps between two lines of progress")
    return parser


def config_from(arguments: argparse.Namespace) -> LumixConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""

    def chosen(kind: type, *without: str) -> dict:
        names = {field.name for field in fields(kind)} - set(without)
        return {name: value for name, value in vars(arguments).items() if name in names}

    if arguments.data is None:
        data = SceneData(arguments.first_scene, arguments.scenes, arguments.size or _default(SceneData, "size"))
    else:
        size = arguments.size or _default(FolderData, "size")
        data = FolderData(arguments.data, size, arguments.normals, arguments.depth, arguments.colors)
    design = Design(arguments.attention, arguments.lora, tuple(arguments.maps), arguments.adapt_query)
    rate = LEARNING_RATES[arguments.optimizer] if arguments.learning_rate is None else arguments.learning_rate
    other_rank = arguments.other_rank
    if other_rank is None:
        other_rank = max(1, arguments.rank // 2) if arguments.lora == HYBRID else 0
    loop = LoopConfig(learning_rate=rate, **chosen(LoopConfig, "learning_rate"))
    return LumixConfig(loop=loop, data=data, design=design, other_rank=other_rank, **chosen(LumixConfig, "loop", "data", "other_rank"))


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopped = False

    def stop(number, frame) -> None:
        nonlocal stopped
        stopped = True
        # A second Ctrl+C does not wait for the end of the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    progress = console_report("lumix", arguments.log_every)

    def report(step: int, loss: float, seconds_left: float) -> None:
        progress(step, loss, seconds_left)
        if stopped:
            raise Interrupted

    before = signal.signal(signal.SIGINT, stop)
    try:
        trained = train_lumix(config_from(arguments), cache=arguments.cache, report=report)
    except Interrupted:
        logging.info("stopped and saved in %s: run the same command to go on", arguments.output)
        return 130
    except ValueError as error:
        logging.error("%s", error)
        return 2
    finally:
        signal.signal(signal.SIGINT, before)
    if PartialState().is_main_process:
        logging.info("written: %s", trained.weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
