"""`python -m intrinsic_lab.training.generators`: VQGANs, style-based GANs and Intrinsic LoRAs on them; run again to resume."""

import argparse
import logging
import sys
from pathlib import Path

import torch

from ...methods.intrinsic_lora.generators.adapter import TARGETS
from ...methods.intrinsic_lora.generators.style_gan import StyleGanConfig
from ...methods.maps import MAPS
from ..folder_data import FolderData
from ..loop import LoopConfig, console_report, train
from ..nano.data import BASE_SEEDS, PicturePool
from ..pairs import SceneData
from .gan import GanTask
from .gan_lora import GanLoraConfig, train_gan_lora
from .nano import CONTROLS, train_nano_loras, train_nano_vqgan
from .vqgan_lora import VqganLoraConfig, train_vqgan_lora


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.generators", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}

    lora = commands.add_parser("vqgan-lora", help="train one map's LoRA on a diffusers VQModel", **shown)
    lora.add_argument("--base", type=Path, required=True, help="folder of a diffusers VQModel")
    lora.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA extracts")
    lora.add_argument("--output", type=Path, required=True, help="folder for the LoRA and its checkpoints")
    lora.add_argument("--data", type=Path, help="folder with image/NAME.png and MAP/NAME.png; rendered scenes without it")
    lora.add_argument("--size", type=int, help="side of the square training pictures (256 for a folder, 64 for scenes)")
    lora.add_argument("--normals", choices=("opengl", "directx"), default="opengl", help="green up or down in the folder's normals")
    lora.add_argument("--depth", choices=("near_dark", "near_bright"), default="near_dark", help="convention of the folder's depth")
    lora.add_argument("--colors", choices=("srgb", "linear"), default="srgb", help="of the folder's albedo and shading")
    lora.add_argument("--rank", type=int, default=VqganLoraConfig.rank, help="of the LoRA layers")
    lora.add_argument(
        "--targets",
        choices=tuple(TARGETS["vqgan"]),
        default=VqganLoraConfig.targets,
        help="attention: the paper's; wide: the decoder's convolutions too, for small networks",
    )
    lora.add_argument("--init", choices=("trained", "random"), default="trained", help="random: fresh weights, the paper's control")
    lora.add_argument("--steps", type=int, default=4000, help="of the optimiser")
    lora.add_argument("--batch", type=int, default=VqganLoraConfig.batch, help="pairs per step")
    lora.add_argument("--learning-rate", type=float, default=1e-3, help="highest rate")
    lora.add_argument("--seed", type=int, default=0, help="of data and initial weights")

    gan = commands.add_parser("gan", help="train a small style-based generator on rendered scenes of 64 x 64 pixels", **shown)
    gan.add_argument("--output", type=Path, required=True, help="folder for the generator (OUTPUT/gan) and its checkpoints")
    gan.add_argument("--scenes", type=int, default=20_000, help="number of rendered scenes")
    gan.add_argument("--steps", type=int, default=20_000, help="of both players")
    gan.add_argument("--batch", type=int, default=16, help="pictures per step")
    gan.add_argument("--learning-rate", type=float, default=1e-3, help="of both players")
    gan.add_argument("--seed", type=int, default=0, help="of data and initial weights")

    lora = commands.add_parser("gan-lora", help="train one map's LoRA on a style-based generator, taught by an I-LoRA", **shown)
    lora.add_argument("--base", type=Path, required=True, help="folder of the generator (config.json, model.safetensors)")
    lora.add_argument("--map", required=True, choices=tuple(MAPS), help="what the LoRA makes")
    lora.add_argument("--output", type=Path, required=True, help="folder for the LoRA and its checkpoints")
    lora.add_argument("--teacher", type=Path, required=True, help="diffusers folder of the Stable Diffusion model that labels the pictures")
    lora.add_argument("--adapter", type=Path, required=True, help="the teacher's I-LoRA for this map")
    lora.add_argument("--teacher-size", type=int, default=GanLoraConfig.teacher_size, help="pixels at which the teacher sees a picture")
    lora.add_argument("--pictures", type=int, default=GanLoraConfig.pictures, help="number of generated pictures to learn from")
    lora.add_argument("--rank", type=int, default=GanLoraConfig.rank, help="of the LoRA layers")
    lora.add_argument("--steps", type=int, default=4000, help="of the optimiser")
    lora.add_argument("--batch", type=int, default=GanLoraConfig.batch, help="pictures per step")
    lora.add_argument("--learning-rate", type=float, default=1e-3, help="highest rate")
    lora.add_argument("--seed", type=int, default=0, help="of latents and initial weights")

    for name, text in (
        ("nano", "train the nano VQGAN on rendered scenes, and its LoRAs"),
        ("nano-control", "train what they are compared with: the same on random weights, and LoRAs on the attention alone, on both"),
    ):
        nano = commands.add_parser(name, help=text, **shown)
        nano.add_argument("--runs", type=Path, default=Path("runs/generators"), help="folder of checkpoints and results")
        nano.add_argument("--assets", type=Path, default=Path("assets"), help="where the results are written")
        nano.add_argument("--maps", nargs="+", choices=tuple(MAPS), default=list(MAPS), help="which LoRAs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    return parser


def lora_config(arguments: argparse.Namespace) -> VqganLoraConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(arguments.output, arguments.steps, learning_rate=arguments.learning_rate, seed=arguments.seed)
    if arguments.data is None:
        data = SceneData(size=arguments.size or 64)
    else:
        data = FolderData(arguments.data, arguments.size or 256, arguments.normals, arguments.depth, arguments.colors)
    return VqganLoraConfig(arguments.base, arguments.map, loop, data, arguments.rank, arguments.batch, arguments.init, arguments.targets)


def gan_lora_config(arguments: argparse.Namespace) -> GanLoraConfig:
    """The run that the command line asks for. Raises ValueError for impossible values."""
    loop = LoopConfig(arguments.output, arguments.steps, learning_rate=arguments.learning_rate, seed=arguments.seed)
    names = ("base", "map", "teacher", "adapter", "pictures", "teacher_size", "rank", "batch")
    return GanLoraConfig(loop=loop, **{name: getattr(arguments, name) for name in names})


def train_gan(arguments: argparse.Namespace) -> None:
    """A style-based generator of rendered scenes, both players' settings as in the papers but for the rate."""
    config = StyleGanConfig()
    loop = LoopConfig(
        arguments.output,
        arguments.steps,
        learning_rate=arguments.learning_rate,
        betas=(0.0, 0.99),
        weight_decay=0.0,
        # Both players share one norm: clipping would let one slow the other.
        clip_norm=1e6,
        ema_decay=0.998,
        seed=arguments.seed,
    )
    torch.manual_seed(arguments.seed)
    pool = PicturePool.render(BASE_SEEDS[: arguments.scenes], config.resolution, kinds=("image",))
    settings = {"scenes": arguments.scenes, "batch": arguments.batch}
    train(GanTask(config, pool, arguments.batch), loop, report=console_report("gan"), settings=settings)


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    try:
        if arguments.command == "vqgan-lora":
            config = lora_config(arguments)
            train_vqgan_lora(config, console_report(config.map))
            logging.info("written: %s", config.weights)
        elif arguments.command == "gan":
            train_gan(arguments)
            logging.info("written: %s", arguments.output / "gan")
        elif arguments.command == "gan-lora":
            config = gan_lora_config(arguments)
            train_gan_lora(config, console_report(config.map))
            logging.info("written: %s", config.weights)
        elif arguments.command == "nano":
            if not (arguments.assets / "nano_vqgan" / "record.json").exists():
                train_nano_vqgan(arguments.runs, arguments.assets)
            train_nano_loras(arguments.runs, arguments.assets, arguments.maps)
        else:
            for targets, init in CONTROLS:
                train_nano_loras(arguments.runs, arguments.assets, arguments.maps, targets, init)
    except ValueError as error:
        logging.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
