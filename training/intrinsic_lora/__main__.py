"""`python -m intrinsic_lab.training.intrinsic_lora`: train an I-LoRA on a diffusers base; run it again to resume."""

import argparse
import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path

from accelerate import PartialState

from ...methods.maps import MAPS
from ..folder_data import FolderData
from ..loop import Diverged, Interrupted, LoopConfig, console_report
from ..pairs import SceneData
from .adapter import KINDS
from .config import IntrinsicLoraConfig
from .run import train_intrinsic_lora


def _default(kind: type, name: str):
    return next(field.default for field in fields(kind) if field.name == name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.intrinsic_lora",
        description="Train an Intrinsic LoRA: a LoRA with which a Stable Diffusion model turns a picture into one of its intrinsic maps. "
        "Running the same command again resumes; Ctrl+C saves a checkpoint first. Several devices: accelerate launch -m, then the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of a Stable Diffusion 1.x or 2.x model")
    parser.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA extracts")
    parser.add_argument("--output", type=Path, required=True, help="folder for the LoRA, its record and its checkpoints")

    data = parser.add_argument_group("data: a folder of pictures and maps, or rendered scenes (without --data)")
    data.add_argument("--data", type=Path, help="folder with image/NAME.png and MAP/NAME.png, or NAME.png and NAME_MAP.png")
    data.add_argument("--size", type=int, help="side of the square training pictures (512 for a folder, 128 for scenes)")
    data.add_argument(
        "--normals", choices=("opengl", "directx"), default=_default(FolderData, "normals"), help="green up or down in the folder's normals"
    )
    data.add_argument(
        "--depth", choices=("near_dark", "near_bright"), default=_default(FolderData, "depth"), help="convention of the folder's depth"
    )
    data.add_argument(
        "--colors", choices=("srgb", "linear"), default=_default(FolderData, "colors"), help="of the folder's albedo and shading"
    )
    data.add_argument("--scenes", type=int, default=_default(SceneData, "count"), help="number of rendered scenes")
    data.add_argument("--first-scene", type=int, default=_default(SceneData, "first_seed"), help="seed of the first scene")
    data.add_argument("--cache", type=Path, help="folder of encoded latents, shared by runs (default: the output folder)")

    model = parser.add_argument_group("what is trained")
    own = IntrinsicLoraConfig
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

    loop = parser.add_argument_group("training")
    loop.add_argument("--steps", type=int, default=20_000, help="of the optimiser")
    loop.add_argument("--batch", type=int, default=own.batch, help="pairs per forward pass and process")
    loop.add_argument("--accumulation", type=int, default=LoopConfig.accumulation, help="forward passes per step")
    loop.add_argument("--learning-rate", type=float, default=LoopConfig.learning_rate, help="highest rate")
    loop.add_argument("--schedule", choices=("constant", "cosine"), default=LoopConfig.schedule, help="of the rate")
    loop.add_argument("--warmup", type=int, default=LoopConfig.warmup, help="steps of linear rise")
    loop.add_argument("--weight-decay", type=float, default=LoopConfig.weight_decay, help="of AdamW")
    loop.add_argument("--clip-norm", type=float, default=LoopConfig.clip_norm, help="largest norm of the gradient")
    loop.add_argument("--ema-decay", type=float, default=LoopConfig.ema_decay, help="of the average of the weights; 0: none")
    loop.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=LoopConfig.mixed_precision, help="of the passes")
    loop.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a slower step")
    loop.add_argument("--checkpoint-every", type=int, default=LoopConfig.checkpoint_every, help="steps between checkpoints")
    loop.add_argument("--seed", type=int, default=LoopConfig.seed, help="of data and initial weights")
    loop.add_argument("--threads", type=int, default=own.threads, help="of torch on the CPU; 0: torch's choice")
    loop.add_argument("--log-every", type=int, default=50, help="steps between two lines of progress")
    return parser


def config_from(arguments: argparse.Namespace) -> IntrinsicLoraConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(**{field.name: getattr(arguments, field.name) for field in fields(LoopConfig) if hasattr(arguments, field.name)})
    if arguments.data is None:
        size = arguments.size or _default(SceneData, "size")
        data = SceneData(arguments.first_scene, arguments.scenes, size)
    else:
        size = arguments.size or _default(FolderData, "size")
        data = FolderData(arguments.data, size, arguments.normals, arguments.depth, arguments.colors)
    names = ("base", "map", "kind", "rank", "batch", "loss", "init", "save_dtype", "gradient_checkpointing", "threads")
    return IntrinsicLoraConfig(loop=loop, data=data, **{name: getattr(arguments, name) for name in names})


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopped = False

    def stop(number, frame) -> None:
        nonlocal stopped
        stopped = True
        # A second Ctrl+C does not wait for the end of the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    progress = console_report(arguments.map, arguments.log_every)

    def report(step: int, loss: float, seconds_left: float) -> None:
        progress(step, loss, seconds_left)
        if stopped:
            raise Interrupted

    before = signal.signal(signal.SIGINT, stop)
    try:
        config = config_from(arguments)
        trained = train_intrinsic_lora(config, cache=arguments.cache, report=report)
    except Interrupted:
        logging.info("stopped and saved in %s: run the same command to go on", arguments.output)
        return 130
    except (ValueError, OSError, Diverged) as error:
        logging.error("%s", error)
        return 2
    finally:
        signal.signal(signal.SIGINT, before)
    if PartialState().is_main_process:
        logging.info("written: %s", trained.weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
