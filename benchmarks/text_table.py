"""Are the things that a prompt names in the picture? A small classifier of rendered scenes counts them.

    OMP_NUM_THREADS=1 python -m intrinsic_lab.benchmarks.text_table [--kinds room world] [--cfg 2 5] [--seeds N] [--sheet FILE]

For each kind of scenes: trains a classifier of things on renderings (minutes; kept in the runs folder), sets each thing's threshold so that
it is seen in one of ten held-out renderings that do not name it, and prints how often it is seen in those that do. Then the base paints
ten held-out prompts, N seeds each. A prompt counts if its first-named thing (of those the classifier can tell) is seen in at least half
of its pictures. Chance: the same pictures asked for the things of the other prompts.

Things of rooms are named with their colour ("purple box"): nearly every room has a box. Other kinds of scenes: by the noun.
"""

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..scenes import KINDS, ROOM
from ..scenes.pictures import save_picture
from ..training.atomic import write_tensors
from ..training.command_line import console_report
from ..training.loop import LoopConfig, train
from ..training.scene_pictures import BASE_SEEDS, HELD_OUT_SEEDS, render_kind
from .lumix_table import decode, encode
from .measuring import ROOT, keep_result, markdown_table
from .nano_gate import Bundle

SIZE, SEEN_SIZE = 128, 64
# The last of their split: the base has seen others.
TRAINING_SEEDS = BASE_SEEDS[-3000:]
PROMPT_SEEDS, CALIBRATION_SEEDS = HELD_OUT_SEEDS[:200], HELD_OUT_SEEDS[200:800]
PROMPTS = 10
FALSE_ALARMS = 0.1
# A thing that is seen less often in its own renderings says nothing about generated pictures.
LEAST_RECALL = 0.6
# Fewer pictures set no threshold and teach nothing.
LEAST_PICTURES = 8
NOUNS = (
    *("table", "chair", "sofa", "bed", "picture", "rug", "lamp", "plant", "book", "cup", "bottle", "vase", "bowl", "apple", "pear"),
    *("tree", "fir", "bush", "house", "person", "cat", "dog", "car", "bench", "stone"),
    *("block", "pyramid", "cone", "ring", "sculpture"),
)
SINGULAR = {"people": "person", "benches": "bench", "bushes": "bush"} | {f"{noun}s": noun for noun in NOUNS}


def named(caption: str, kind: str) -> list[str]:
    """The things that a caption names, in its order."""
    if kind == ROOM:
        return [f"{color} {noun}" for color, noun in re.findall(r"(\w+) (ball|box|cylinder)\b", caption)]
    words = [SINGULAR.get(word, word) for word in re.findall(r"[a-z]+", caption)]
    return list(dict.fromkeys(word for word in words if word in NOUNS))


@dataclass(frozen=True)
class Pictures:
    """Renderings `[n, 3, h, w]`, uint8, as the classifier sees them, and the things that their captions name."""

    pixels: Tensor
    captions: tuple[str, ...]
    things: list[list[str]]

    @classmethod
    def render(cls, seeds: Sequence[int], kind: str) -> "Pictures":
        parts, captions = [], []
        for start in range(0, len(seeds), 64):
            scenes = render_kind(seeds[start : start + 64], SIZE, kind)
            parts.append((seen(scenes.image_bhwc) * 255).round().to(torch.uint8))
            captions += scenes.captions
        return cls(torch.cat(parts), tuple(captions), [named(caption, kind) for caption in captions])

    def labels(self, classes: Sequence[str]) -> Tensor:
        """`[n, classes]`, 1 where the caption names it."""
        return torch.tensor([[float(name in things) for name in classes] for things in self.things])


def seen(image_bhwc: Tensor) -> Tensor:
    """Pictures at the classifier's size, `[n, 3, h, w]`: half of them, so that what a VAE blurs counts little."""
    return functional.avg_pool2d(rearrange(image_bhwc, "b h w c -> b c h w").clamp(0, 1), SIZE // SEEN_SIZE)


class MeanAndMost(nn.Module):
    """Features `[n, c, h, w]` -> their mean and largest value, `[n, 2 c]`: how much there is, and whether there is any."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


class Classifier(nn.Sequential):
    """Pictures `[n, 3, 64, 64]` in 0..1 -> a logit for each thing."""

    def __init__(self, classes: int, width: int = 32):
        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

        layers = block(3, width, 2) + block(width, 2 * width, 2) + block(2 * width, 2 * width, 1) + block(2 * width, 4 * width, 2)
        super().__init__(*layers, MeanAndMost(), nn.Linear(8 * width, classes))


class NamingTask:
    """A `loop.Task`: which things a picture shows. Mirrored pictures are drawn too; no caption says where things are."""

    def __init__(self, pictures: Pictures, classes: Sequence[str], batch: int = 32):
        self.module = Classifier(len(classes)).to(memory_format=torch.channels_last)
        self.pixels, self.labels, self.batch = pictures.pixels, pictures.labels(classes), batch
        self.rarity = ((1 - self.labels.mean(0)) / self.labels.mean(0)).sqrt()

    def loss(self, module: nn.Module, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.pixels), (self.batch,), generator=draw)
        pixels = self.pixels[rows].float() / 255
        mirrored = torch.rand(self.batch, generator=draw) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        return functional.binary_cross_entropy_with_logits(module(pixels), self.labels[rows], pos_weight=self.rarity)

    def save(self, folder: Path) -> None:
        write_tensors(folder / "classifier.safetensors", {name: value.contiguous() for name, value in self.module.state_dict().items()})


@dataclass
class Judge:
    """A trained classifier. threshold: of each thing's logit; recall: share of held-out renderings that name a thing and show it."""

    classes: list[str]
    module: nn.Module
    threshold: Tensor
    recall: Tensor

    @classmethod
    def train(cls, kind: str, folder: Path, steps: int) -> "Judge":
        """Trains it, or reads what was trained; the thresholds are of the even calibration pictures, the recall of the odd ones."""
        calibration = Pictures.render(CALIBRATION_SEEDS, kind)
        counts = {name: sum(name in things for things in calibration.things) for name in all_things(kind)}
        classes = [name for name, count in counts.items() if count >= 2 * LEAST_PICTURES]
        weights = folder / "classifier.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            task = NamingTask(Pictures.render(TRAINING_SEEDS, kind), classes)
            config = LoopConfig(folder, steps, learning_rate=2e-3, schedule="cosine", warmup=50)
            train(task, config, report=console_report(f"classifier {kind}", every=250), settings={"classes": classes})
        module = Classifier(len(classes)).eval()
        module.load_state_dict(load_file(weights))
        judge = cls(classes, module, torch.zeros(len(classes)), torch.zeros(len(classes)))
        logits, labels = judge.logits(calibration.pixels.float() / 255), calibration.labels(classes)
        for index in range(len(classes)):
            absent = logits[::2, index][labels[::2, index] == 0]
            judge.threshold[index] = absent.quantile(1 - FALSE_ALARMS)
            judge.recall[index] = (logits[1::2, index][labels[1::2, index] == 1] > judge.threshold[index]).float().mean()
        return judge

    @torch.no_grad()
    def logits(self, pixels_b3hw: Tensor) -> Tensor:
        return torch.cat([self.module(part) for part in pixels_b3hw.split(100)])

    def sees(self, image_bhwc: Tensor) -> Tensor:
        """`[n, classes]`, whether each thing is seen."""
        return self.logits(seen(image_bhwc)) > self.threshold


def all_things(kind: str) -> list[str]:
    """Everything that captions of a kind can name."""
    from ..scenes.parameters import COLOR_WORDS

    return [f"{color} {noun}" for noun in ("ball", "box", "cylinder") for color in COLOR_WORDS] if kind == ROOM else list(NOUNS)


@dataclass(frozen=True)
class Prompt:
    """A held-out caption, the thing it is asked for, and its own rendering `[h, w, 3]`."""

    text: str
    thing: str
    rendering: Tensor


def held_out_prompts(judge: Judge, kind: str) -> list[Prompt]:
    """The first PROMPTS held-out captions whose things differ and are told well enough; the thing is the first of those named."""
    scenes = render_kind(PROMPT_SEEDS, SIZE, kind)
    known = {name for name, recall in zip(judge.classes, judge.recall.tolist(), strict=True) if recall >= LEAST_RECALL}
    prompts: dict[str, Prompt] = {}
    for caption, rendering in zip(scenes.captions, scenes.image_bhwc, strict=True):
        thing = next((name for name in named(caption, kind) if name in known and name not in prompts), None)
        if thing and len(prompts) < PROMPTS:
            prompts[thing] = Prompt(caption, thing, rendering)
    return list(prompts.values())


def count(judge: Judge, prompts: list[Prompt], kind: str, images: Tensor) -> dict[str, float]:
    """Of pictures `[seed, prompt, h, w, 3]`: prompts recognised, share of pictures, and the share for other prompts' things (chance)."""
    seen_things = judge.sees(rearrange(images, "seed prompt h w c -> (seed prompt) h w c"))
    seen_things = rearrange(seen_things, "(seed prompt) thing -> prompt seed thing", prompt=len(prompts)).float()
    column = {name: index for index, name in enumerate(judge.classes)}
    own = [seen_things[row, :, column[prompt.thing]].mean().item() for row, prompt in enumerate(prompts)]
    others = [
        seen_things[row, :, column[other.thing]].mean().item()
        for row, prompt in enumerate(prompts)
        for other in prompts
        if other.thing not in named(prompt.text, kind)
    ]
    return {"prompts": sum(share >= 0.5 for share in own), "pictures": mean(own), "chance": mean(others), "of each": own}


def painted(bundle: Bundle, prompts: list[Prompt], seeds: int, cfg: float) -> Tensor:
    """`[seed, prompt, h, w, 3]`."""
    texts = tuple(prompt.text for prompt in prompts)
    return torch.stack([decode(bundle.base.vae, bundle.sample(texts, seed, cfg)) for seed in range(seeds)])


def sheet(prompts: list[Prompt], images: Tensor, most: int = 6) -> Image.Image:
    """A row for each prompt: its own rendering, then the first seeds."""
    canvas = Image.new("RGB", ((min(most, len(images)) + 1) * SIZE, len(prompts) * (SIZE + 16)), "white")
    for row, prompt in enumerate(prompts):
        strip = torch.cat([prompt.rendering, *images[:most, row]], dim=1).clamp(0, 1)
        canvas.paste(Image.fromarray((strip * 255).round().to(torch.uint8).numpy()), (0, row * (SIZE + 16) + 16))
        ImageDraw.Draw(canvas).text((2, row * (SIZE + 16) + 2), f"[{prompt.thing}] {prompt.text}"[:150], fill="black")
    return canvas


def rows_of(kind: str, bundle: Bundle, runs: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """The rows of a kind of scenes: its renderings, then pictures at each guidance."""
    judge = Judge.train(kind, runs / f"classifier-{kind}-{options.steps}", options.steps)
    prompts = held_out_prompts(judge, kind)
    told = [recall for recall in judge.recall.tolist() if recall >= LEAST_RECALL]
    about = {"recall": judge.recall.mean().item(), "things": len(judge.classes), "told": len(told)}
    logging.info("%s: of %d things %d are told; asked: %s", kind, len(judge.classes), len(told), ", ".join(p.thing for p in prompts))
    renderings = torch.stack([prompt.rendering for prompt in prompts])[None]
    yield f"{kind}: the prompts' own renderings", about | count(judge, prompts, kind, renderings)
    rebuilt = decode(bundle.base.vae, encode(bundle.base.vae, rearrange(renderings[0], "b h w c -> b c h w")))[None]
    yield f"{kind}: the same through the VAE", count(judge, prompts, kind, rebuilt)
    for cfg in options.cfg:
        images = painted(bundle, prompts, options.seeds, cfg)
        if options.sheet:
            save_picture(sheet(prompts, images), options.sheet.with_stem(f"{options.sheet.stem}_{kind}_{cfg:g}"))
        yield f"{kind}: painted, guidance {cfg:g}", count(judge, prompts, kind, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["room", "world"])
    parser.add_argument("--cfg", type=float, nargs="+", default=[2.0, 5.0], help="guidance (%(default)s)")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4000, help="of 32 pictures, of the classifier (%(default)s)")
    parser.add_argument("--assets", type=Path, default=ROOT / "assets")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "text_table")
    parser.add_argument("--sheet", type=Path, help="also write the pictures to FILE_KIND_CFG")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle = Bundle(options.assets)
    rows: dict[str, dict] = {}
    for kind in options.kinds:
        rows |= dict(rows_of(kind, bundle, options.runs, options))
    cells = []
    for name, row in rows.items():
        told = f"{row['recall']:.0%} of {row['things']} things, {row['told']} of them told" if "recall" in row else ""
        cells.append([name, f"{row['prompts']} of {len(row['of each'])}", f"{row['pictures']:.0%}", f"{row['chance']:.0%}", told])
    header = ["row", "prompts recognised", "pictures", "chance: things of other prompts", "classifier on held-out renderings"]
    record = {"seeds": options.seeds, "classifier steps": options.steps, "false alarms": FALSE_ALARMS, "rows": rows}
    keep_result("text_table", markdown_table(header, cells), record)


if __name__ == "__main__":
    main()
