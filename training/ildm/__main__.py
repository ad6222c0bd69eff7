"""`python -m intrinsic_lab.training.ildm {vae,lora}`: the intrinsic VAE of a base, then the LoRA; run a command again to resume."""

import argparse
import sys
from pathlib import Path

from ...methods.ildm.intrinsic_vae import INTRINSICS
from .. import command_line
from ..loop import LoopConfig
from ..pairs import SceneData
from .autoencoder import IntrinsicVaeConfig, train_intrinsic_vae
from .data import JointFolderData, JointSceneData, held
from .run import JointConfig, train_joint_lora


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.training.ildm",
        description="Train I-LDM on a Stable Diffusion, SDXL or PixArt-alpha base: first its intrinsic VAE, then the LoRA with which it "
        "generates a picture's depth, normals, segmentation and lines beside it. Ctrl+C saves a checkpoint first.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--base", type=Path, required=True, help="base model: a diffusers folder or a checkpoint file")
    shared.add_argument("--output", type=Path, required=True, help="folder for the result, its record and its checkpoints")
    data = command_line.add_data_options(shared, "a folder of pictures, maps and captions (NAME.txt)", colors=False)
    data.add_argument(
        "--intrinsics", nargs="+", choices=tuple(INTRINSICS), help="the maps the folder holds (all of them; of a data set, those it has)"
    )
    training = command_line.add_training_options(
        shared, steps=20_000, batch=JointConfig.batch, batch_of="rows per forward pass and process"
    )
    command_line.add_optimiser_options(training)
    command_line.add_process_options(training)

    defaults = argparse.ArgumentDefaultsHelpFormatter
    vae = commands.add_parser("vae", parents=[shared], help="the intrinsic VAE", formatter_class=defaults)
    vae.add_argument("--zero-mask", type=float, default=IntrinsicVaeConfig.zero_mask, help="how often each intrinsic is left out")
    vae.add_argument("--kl", type=float, default=IntrinsicVaeConfig.kl, help="weight of the divergence from a unit Gaussian")
    vae.add_argument("--lines", type=float, default=IntrinsicVaeConfig.lines, help="weight of the line drawing's squared error")
    vae.add_argument("--decoder-of", type=Path, help="go on from this intrinsic VAE, by its decoder alone: LoRAs for it stay valid")
    lora = commands.add_parser("lora", parents=[shared], help="the LoRA of the intrinsic domain", formatter_class=defaults)
    lora.add_argument("--intrinsic-vae", type=Path, required=True, help="folder that the command `vae` wrote for this base")
    command_line.add_cache_option(lora)
    lora.add_argument("--rank", type=int, default=JointConfig.rank, help="of the LoRA layers")
    lora.add_argument("--balance", type=float, default=JointConfig.balance, help="lambda: weight of the intrinsic domain's loss")
    lora.add_argument("--empty-prompt", type=float, default=JointConfig.empty_prompt, help="share of captions left out, for guidance")
    lora.add_argument("--without-image-domain", dest="image_domain", action="store_false", help="the paper's LoRA-only ablation")
    lora.add_argument("--save-dtype", choices=("float32", "float16"), default=JointConfig.save_dtype, help="number format of the LoRA file")
    command_line.add_gradient_checkpointing_option(lora)
    return parser


def config_from(arguments: argparse.Namespace) -> IntrinsicVaeConfig | JointConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    pairs = command_line.data_from(arguments)
    data = JointSceneData(pairs) if isinstance(pairs, SceneData) else JointFolderData(pairs, tuple(arguments.intrinsics or held(pairs)))
    kind = IntrinsicVaeConfig if arguments.command == "vae" else JointConfig
    loop = LoopConfig(**command_line.chosen(LoopConfig, arguments))
    return kind(loop=loop, data=data, **command_line.chosen(kind, arguments, "data"))


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)

    def start(report) -> Path:
        config = config_from(arguments)
        if isinstance(config, IntrinsicVaeConfig):
            train_intrinsic_vae(config, report=report(arguments.command))
        else:
            train_joint_lora(config, cache=arguments.cache, report=report(arguments.command))
        return config.weights

    return command_line.run(arguments, arguments.output, start)


if __name__ == "__main__":
    sys.exit(main())
