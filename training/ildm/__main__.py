"""`python -m intrinsic_lab.training.ildm {vae,lora}`: the intrinsic VAE of a base, then the LoRA; run a command again to resume."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from accelerate import PartialState

from ...methods.ildm.intrinsic_vae import INTRINSICS
from ..folder_data import FolderData
from ..loop import Interrupted, LoopConfig, console_report
from ..pairs import SceneData
from .autoencoder import IntrinsicVaeConfig, train_intrinsic_vae
from .data import JointFolderData, JointSceneData
from .run import JointConfig, train_joint_lora


def _default(kind: type, name: str):
    return next(field.default for field in fields(kind) if field.name == name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.ildm",
        description="Train I-LDM on a Stable Diffusion, SDXL or PixArt-alpha base: first its intrinsic VAE, then the LoRA with which it "
        "generates a picture's depth, normals, segmentation and lines beside it. Ctrl+C saves a checkpoint first.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--base", type=Path, required=True, help="diffusers folder of the base model")
    shared.add_argument("--output", type=Path, required=True, help="folder for the result, its record and its checkpoints")
    data = shared.add_argument_group("data: a folder of pictures, maps and captions (NAME.txt), or rendered scenes (without --data)")
    data.add_argument("--data", type=Path, help="folder with image/NAME.png and MAP/NAME.png, or NAME.png and NAME_MAP.png")
    data.add_argument("--intrinsics", nargs="+", choices=tuple(INTRINSICS), default=list(INTRINSICS), help="the maps the folder holds")
    data.add_argument("--size", type=int, help="side of the square training pictures (512 for a folder, 128 for scenes)")
    data.add_argument("--normals", choices=("opengl", "directx"), default=_default(FolderData, "normals"), help="of the folder's normals")
    data.add_argument("--depth", choices=("near_dark", "near_bright"), default=_default(FolderData, "depth"), help="of the folder's depth")
    data.add_argument("--scenes", type=int, default=_default(SceneData, "count"), help="number of rendered scenes")
    data.add_argument("--first-scene", type=int, default=_default(SceneData, "first_seed"), help="seed of the first scene")
    loop = shared.add_argument_group("training")
    loop.add_argument("--steps", type=int, default=20_000, help="of the optimiser")
    loop.add_argument("--batch", type=int, default=JointConfig.batch, help="rows per forward pass and process")
    loop.add_argument("--accumulation", type=int, default=LoopConfig.accumulation, help="forward passes per step")
    loop.add_argument("--learning-rate", type=float, default=LoopConfig.learning_rate, help="highest rate")
    loop.add_argument("--schedule", choices=("constant", "cosine"), default=LoopConfig.schedule, help="of the rate")
    loop.add_argument("--warmup", type=int, default=LoopConfig.warmup, help="steps of linear rise")
    loop.add_argument("--weight-decay", type=float, default=LoopConfig.weight_decay, help="of AdamW")
    loop.add_argument("--clip-norm", type=float, default=LoopConfig.clip_norm, help="largest norm of the gradient")
    loop.add_argument("--ema-decay", type=float, default=LoopConfig.ema_decay, help="of the average of the weights; 0: none")
    loop.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default=LoopConfig.mixed_precision, help="of the passes")
    loop.add_argument("--checkpoint-every", type=int, default=LoopConfig.checkpoint_every, help="steps between checkpoints")
    loop.add_argument("--seed", type=int, default=LoopConfig.seed, help="of data and initial weights")
    loop.add_argument("--threads", type=int, default=JointConfig.threads, help="of torch on the CPU; 0: torch's choice")
    loop.add_argument("--log-every", type=int, default=50, help="steps between two lines of progress")

    defaults = argparse.ArgumentDefaultsHelpFormatter
    vae = commands.add_parser("vae", parents=[shared], help="the intrinsic VAE", formatter_class=defaults)
    vae.add_argument("--zero-mask", type=float, default=IntrinsicVaeConfig.zero_mask, help="how often each intrinsic is left out")
    vae.add_argument("--kl", type=float, default=IntrinsicVaeConfig.kl, help="weight of the divergence from a unit Gaussian")
    vae.add_argument("--lines", type=float, default=IntrinsicVaeConfig.lines, help="weight of the line drawing's squared error")
    vae.add_argument("--decoder-of", type=Path, help="go on from this intrinsic VAE, by its decoder alone: LoRAs for it stay valid")
    lora = commands.add_parser("lora", parents=[shared], help="the LoRA of the intrinsic domain", formatter_class=defaults)
    lora.add_argument("--intrinsic-vae", type=Path, required=True, help="folder that the command `vae` wrote for this base")
    lora.add_argument("--cache", type=Path, help="folder of encoded latents, shared by runs (default: the output folder)")
    lora.add_argument("--rank", type=int, default=JointConfig.rank, help="of the LoRA layers")
    lora.add_argument("--balance", type=float, default=JointConfig.balance, help="lambda: weight of the intrinsic domain's loss")
    lora.add_argument("--empty-prompt", type=float, default=JointConfig.empty_prompt, help="share of captions left out, for guidance")
    lora.add_argument("--without-image-domain", dest="image_domain", action="store_false", help="the paper's LoRA-only ablation")
    lora.add_argument("--save-dtype", choices=("float32", "float16"), default=JointConfig.save_dtype, help="number format of the LoRA file")
    lora.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a slower step")
    return parser


def config_from(arguments: argparse.Namespace) -> IntrinsicVaeConfig | JointConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""

    def chosen(kind: type) -> dict:
        names = {field.name for field in fields(kind)} - {"loop", "data"}
        return {name: value for name, value in vars(arguments).items() if name in names}

    if arguments.data is None:
        data = JointSceneData(SceneData(arguments.first_scene, arguments.scenes, arguments.size or _default(SceneData, "size")))
    else:
        folder = FolderData(arguments.data, arguments.size or _default(FolderData, "size"), arguments.normals, arguments.depth)
        data = JointFolderData(folder, tuple(arguments.intrinsics))
    kind = IntrinsicVaeConfig if arguments.command == "vae" else JointConfig
    return kind(loop=LoopConfig(**chosen(LoopConfig)), data=data, **chosen(kind))


def _run(arguments: argparse.Namespace, report: Callable[[int, float, float], None]) -> Path:
    config = config_from(arguments)
    if isinstance(config, IntrinsicVaeConfig):
        train_intrinsic_vae(config, report=report)
    else:
        train_joint_lora(config, cache=arguments.cache, report=report)
    return config.weights


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopped = False

    def stop(number, frame) -> None:
        nonlocal stopped
        stopped = True
        # A second Ctrl+C does not wait for the end of the step.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    progress = console_report(arguments.command, arguments.log_every)

    def report(step: int, loss: float, seconds_left: float) -> None:
        progress(step, loss, seconds_left)
        if stopped:
            raise Interrupted

    signal.signal(signal.SIGINT, stop)
    try:
        weights = _run(arguments, report)
    except Interrupted:
        logging.info("stopped and saved in %s: run the same command to go on", arguments.output)
        return 130
    except ValueError as error:
        logging.error("%s", error)
        return 2
    if PartialState().is_main_process:
        logging.info("written: %s", weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
