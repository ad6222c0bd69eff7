"""An Intrinsic LoRA on a style-based generator, taught by an Intrinsic LoRA on a diffusion model.

The exact maps of a generated picture are not known, so a predictor's stand in for them, as in the paper (section 3, eq. 1).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ...methods.intrinsic_lora.extract import resize
from ...methods.intrinsic_lora.generators.adapter import target_names
from ...methods.intrinsic_lora.generators.gan_file import Gan, load_gan
from ...methods.intrinsic_lora.generators.sample import draw as draw_latents
from ...methods.intrinsic_lora.generators.sample import pictures
from ...methods.lora.lora_file import read_lora
from ...methods.maps import MAPS
from ..config import TrainerConfig
from ..intrinsic_lora import load_base, predict_maps
from ..loop import History, LoopConfig, Report, train
from ..losses import picture_loss
from .lora import LoraOn, save_generator_lora


@dataclass(frozen=True)
class GanLoraConfig(TrainerConfig):
    """base: a style-based generator. teacher: diffusers folder of a Stable Diffusion model; adapter: its I-LoRA for `map`.

    base is a folder or a published file. pictures: how many generated pictures are labelled; their truncation is drawn from 0.5 to 1, and
    in a generator of classes their class. teacher_size: pixels at which the teacher sees them. Raises ValueError for impossible values.
    """

    base: Path
    map: str
    loop: LoopConfig
    teacher: Path
    adapter: Path
    pictures: int = 1000
    teacher_size: int = 512
    rank: int = 8
    batch: int = 8

    def __post_init__(self) -> None:
        self._require_choices(map=MAPS)
        if min(self.pictures, self.rank, self.batch) < 1 or self.teacher_size < 8:
            raise ValueError("pictures, rank and batch must be at least 1, the teacher's size at least 8 pixels.")

    @property
    def weights(self) -> Path:
        return self.loop.output / f"{self.map}.safetensors"


def truncations(count: int) -> Tensor:
    """A truncation for each labelled picture, `[count, 1]` in 0.5..1."""
    return 0.5 + 0.5 * torch.rand(count, 1, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def teacher_labels(config: GanLoraConfig, generator: Gan) -> Tensor:
    """What the teacher sees in the generated pictures: the map in picture form, `[n, 3, h, w]` in -1..1."""
    base = load_base(config.teacher)
    _merge(base.network, config.adapter)
    base.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    kind, labels = MAPS[config.map], []
    text = base.embed(kind.prompt)
    draws, psi = draw_latents(generator.config, config.loop.seed, config.pictures), truncations(config.pictures)
    for rows in torch.arange(config.pictures).split(16):
        made = pictures(generator, draws[rows], psi[rows]).clamp(-1, 1) / 2 + 0.5
        seen = resize(rearrange(made, "b c h w -> b h w c"), config.teacher_size, config.teacher_size).clamp(0, 1)
        data = predict_maps(base.network, base.vae, text, rearrange(seen, "b h w c -> b c h w"), config.map)
        small = resize(kind.to_picture(data), *made.shape[2:])
        labels.append(2 * rearrange(small, "b h w c -> b c h w") - 1)
    return torch.cat(labels)


def _merge(unet: nn.Module, path: Path) -> None:
    """Add a LoRA file to the weights. Raises ValueError if it is for another UNet."""
    modules = dict(unet.named_modules())
    for name, layer in read_lora(path).layers.items():
        if name not in modules:
            raise ValueError(f"{path.name} was made for another model ({name} does not exist here): give the teacher's own base.")
        change = layer.scale * layer.up.flatten(1).float() @ layer.down.flatten(1).float()
        modules[name].weight.data += change.view_as(modules[name].weight)


class GanLoraTask:
    """A `loop.Task`: the same latent and noise make the picture and, through the LoRA, its map."""

    def __init__(self, config: GanLoraConfig, generator: Gan, labels: Tensor):
        self.config, self.generator, self.labels = config, generator, labels
        self.draws, self.truncation = draw_latents(generator.config, config.loop.seed, config.pictures), truncations(config.pictures)
        self.module = LoraOn(generator, target_names(generator, "gan"), config.rank, config.loop.seed)

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.labels), (self.config.batch,), generator=draw)
        device = self.generator.mean_style.device
        draws = self.draws[rows].to(device)
        w_bd = self.generator.style(draws.z_bd, self.truncation[rows].to(device), draws.classes_b)
        return picture_loss(self.config.map, module(w_bd, draws.noise), self.labels[rows].to(device))

    def save(self, folder: Path) -> None:
        resolution, base = self.generator.config.resolution, self.config.base.name
        save_generator_lora(self.module, folder / f"{self.config.map}.safetensors", "gan", self.config.map, resolution, base)


def train_gan_lora(config: GanLoraConfig, report: Report | None = None) -> History:
    """Label generated pictures, train (or resume) one LoRA and write it to `config.weights`. Raises ValueError."""
    generator = load_gan(config.base)
    return train(
        GanLoraTask(config, generator, teacher_labels(config, generator)), config.loop, report=report, settings=config.task_settings()
    )
