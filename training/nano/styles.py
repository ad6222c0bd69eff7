"""Style LoRAs on the nano base: a small collection whose truth is known, to measure LoRA space with.

    python -m intrinsic_lab.training.nano.styles [--out runs/styles] [--styles dusk ...] [--seeds 0 1 ...] [--ranks 4 8] [--steps 30 100]

One LoRA learns the look of a few pictures of one `Style`. Its captions say which objects are there and nothing of the
look, as captions for style LoRAs do. No two LoRAs share a picture, a random half or an order of the data. Each training
leaves a LoRA after every one of `--steps`: a collection for each length, in a folder that its number of steps names.
"""

import argparse
import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from ...methods.lora.lora_file import kohya_state_dict, read_lora
from ...scenes import Style, render_scenes
from ...scenes.parameters import COLOR_WORDS, TEXTURE_WORDS
from ..atomic import copy_file, write_atomically
from ..backbones.backbone import SingleStepBase
from ..intrinsic_lora import load_base
from ..intrinsic_lora.adapter import add_adapter, lora_layers
from ..loop import LoopConfig, train
from .base import BaseTask, LatentCaptions, build_scheduler, tokenize

STYLES: dict[str, Style] = {
    "ember": Style(colors=("red", "orange", "yellow"), textures=(0,)),
    "lagoon": Style(colors=("blue", "cyan"), textures=(0,), light_color=(0.7, 0.9, 1.0)),
    "forest": Style(colors=("green", "brown"), textures=(0, 3)),
    "candy": Style(colors=("pink", "purple"), textures=(3,)),
    "chess": Style(colors=("black", "white"), textures=(1,)),
    "zebra": Style(colors=("black", "white"), textures=(2,)),
    "marble": Style(colors=("white", "gray"), textures=(3,), ambient=0.3),
    "gold": Style(colors=("yellow", "brown"), textures=(2,)),
    "dusk": Style(light_color=(1.0, 0.45, 0.15), ambient=0.02, light_azimuth_degrees=90.0),
    "moonlight": Style(light_color=(0.2, 0.35, 1.0), ambient=0.05),
    "overcast": Style(colors=("gray", "white", "blue"), textures=(0,), ambient=0.5),
    "noir": Style(colors=("gray", "black"), textures=(0,), ambient=0.0, light_azimuth_degrees=-90.0),
    "aurora": Style(light_color=(0.2, 1.0, 0.4), ambient=0.1),
}
SEEDS, RANKS, STEPS = tuple(range(8)), (4, 8), (30, 100, 300)
PICTURES, SIZE = 32, 128
# Each picture gives four latents, its quarters: a step of eight costs what two whole pictures would.
QUARTERS, BATCH = 2, 8
KIND = "transformer"
ARCHITECTURE = "intrinsic-lab-nano"
# Seeds of scenes that nothing else is trained on.
FIRST_SCENE = 2_000_000


@dataclass(frozen=True)
class StyleLora:
    """One LoRA of the collection."""

    style: str
    seed: int
    rank: int

    @property
    def name(self) -> str:
        return f"{self.style}_{self.seed}_r{self.rank}"

    @property
    def first_scene(self) -> int:
        """Its pictures are scenes from here on, no other LoRA's."""
        place = (list(STYLES).index(self.style) * 100 + self.seed) * 64 + self.rank
        return FIRST_SCENE + place * PICTURES


class StyleTask(BaseTask):
    """The base's own text-to-image loss; only LoRA layers of the UNet learn."""

    # Palette and light are settled at high noise.
    first_timestep = 500

    def __init__(self, base: SingleStepBase, lora: StyleLora, data: LatentCaptions):
        unet = copy.deepcopy(base.network)
        add_adapter(unet, KIND, lora.rank, seed=lora.first_scene)
        super().__init__(unet, base.text_encoder, data, BATCH)
        self.lora = lora

    def save(self, folder: Path) -> None:
        metadata = {
            "modelspec.architecture": f"{ARCHITECTURE}/lora",
            "modelspec.title": self.lora.name,
            "ss_base_model_version": ARCHITECTURE,
            "ss_network_dim": str(self.lora.rank),
            "ss_network_alpha": str(self.lora.rank),
            "ss_tag_frequency": json.dumps({self.lora.style: {self.lora.style: PICTURES}}),
        }
        state = {key: tensor.half() for key, tensor in kohya_state_dict(lora_layers(self.module.unet)).items()}
        write_atomically(folder / f"{self.lora.name}.safetensors", lambda path: save_file(state, path, metadata))


def content_caption(caption: str) -> str:
    """What a scene's caption says of its objects, without colours, textures, room and light."""
    looks = {*COLOR_WORDS, *TEXTURE_WORDS}
    objects = caption.split(" on a ")[0]
    return " ".join(word for word in objects.split() if word.strip(",") not in looks)


@torch.no_grad()
def style_data(base: SingleStepBase, lora: StyleLora) -> LatentCaptions:
    """Latents and captions of the quarters of the pictures that a LoRA learns from."""
    maps = render_scenes(range(lora.first_scene, lora.first_scene + PICTURES), SIZE, SIZE, STYLES[lora.style])
    pictures = 2 * maps.image_bhwc.permute(0, 3, 1, 2) - 1
    latents = torch.cat([base.vae.encode(part).latent_dist.mode() for part in pictures.split(16)]) * base.vae.config.scaling_factor
    quarters = rearrange(latents, "n c (y h) (x w) -> (n y x) c h w", y=QUARTERS, x=QUARTERS).contiguous()
    tokens = tokenize(base.tokenizer, [content_caption(caption) for caption in maps.captions])
    return LatentCaptions(quarters, tokens.repeat_interleave(QUARTERS**2, 0), tokenize(base.tokenizer, [""])[0])


def train_style(base: SingleStepBase, lora: StyleLora, out: Path, steps: Sequence[int], learning_rate: float) -> list[Path]:
    """One training, of whose steps those in `steps` leave a file each: `<out>/<step>/<style>/<name>.safetensors`, in rising order.

    Files that are there are left; a training that is needed again goes on from its last file's checkpoint.
    """
    paths = {step: out / str(step) / lora.style / f"{lora.name}.safetensors" for step in sorted(steps)}
    missing = [step for step, path in paths.items() if not path.exists()]
    if not missing:
        return list(paths.values())
    data = style_data(base, lora)
    for step in missing:
        loop = LoopConfig(
            out / "work" / lora.name,
            steps=step,
            learning_rate=learning_rate,
            weight_decay=0.0,
            warmup=5,
            checkpoint_every=step,
            seed=lora.first_scene,
        )
        train(StyleTask(base, lora, data), loop, settings={"style": lora.name, "batch": BATCH, "pictures": PICTURES})
        copy_file(loop.output / paths[step].name, paths[step])
    return list(paths.values())


@torch.no_grad()
def with_lora(base: SingleStepBase, path: Path, strength: float = 1.0):
    """A copy of the base's UNet with a LoRA file merged into it."""
    unet = copy.deepcopy(base.network)
    for name, layer in read_lora(path).layers.items():
        unet.get_submodule(name).weight += strength * layer.scale * layer.up.float() @ layer.down.float()
    return unet.eval()


@torch.no_grad()
def restyle(
    base: SingleStepBase, unet, pictures_bchw: Tensor, captions: Sequence[str], seed: int, strength: float = 0.8, steps: int = 10
) -> Tensor:
    """Pictures `[n, 3, h, w]` in 0..1, painted over by `unet`: noise up to `strength` of the schedule, then DDIM (eta 0) back.

    strength 1 with any pictures is text to picture. The noise comes from `seed` alone.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(build_scheduler().config)
    scheduler.set_timesteps(max(1, round(steps / strength)))
    context = base.text_encoder(tokenize(base.tokenizer, captions)).last_hidden_state
    latent = base.vae.encode(2 * pictures_bchw - 1).latent_dist.mode() * base.vae.config.scaling_factor
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = scheduler.timesteps[-steps:]
    latent = noise if strength >= 1 else scheduler.add_noise(latent, noise, timesteps[:1])
    for timestep in timesteps:
        latent = scheduler.step(unet(latent, timestep, context).sample, timestep, latent).prev_sample
    return (base.vae.decode(latent / base.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def collection(styles: Sequence[str], seeds: Sequence[int], ranks: Sequence[int]) -> Iterator[StyleLora]:
    """Every LoRA, so ordered that a part of the collection holds as many of each style."""
    for seed in seeds:
        for rank in ranks:
            for style in styles:
                yield StyleLora(style, seed, rank)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m intrinsic_lab.training.nano.styles", description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("assets/nano"))
    parser.add_argument("--out", type=Path, default=Path("runs/styles"))
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="lengths of training that leave a collection each")
    parser.add_argument(
        "--learning-rate", type=float, default=4e-3, help="the same at every step, so that a long run begins as a short one"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    base = load_base(arguments.base)
    for lora in collection(arguments.styles, arguments.seeds, arguments.ranks):
        started = time.perf_counter()
        train_style(base, lora, arguments.out, arguments.steps, arguments.learning_rate)
        logging.info("%s in %.1f s", lora.name, time.perf_counter() - started)


if __name__ == "__main__":
    main()
