"""A look at a training while it runs: a picture, its map as it is learnt so far, and the true map."""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from ...methods.formats import picture_of
from ...methods.maps import MAPS
from ..backbones.backbone import SingleStepBase, TextEmbeddings
from ..loop import Report
from ..pairs import IMAGE, PairSource, SceneData
from ..scene_pictures import HELD_OUT_SEEDS
from .config import IntrinsicLoraConfig
from .predict import predict_maps

# Called with `[3, h, w, 3]` in 0..1: picture, map so far, true map.
OnSample = Callable[[Tensor], None]


def with_samples(config: IntrinsicLoraConfig, base: SingleStepBase, text: TextEmbeddings, report: Report, on_sample: OnSample) -> Report:
    """`report`, after a look with every checkpoint and the last step; it changes nothing of the run (single-step LoRAs only)."""
    source = shown_source(config)
    picture_bchw = source.read(IMAGE, [0])
    images = {kind: rearrange(source.read(kind, [0]), "b c h w -> b h w c") for kind in (IMAGE, config.map)}
    true = picture_of(config.map, MAPS[config.map].from_picture(images[config.map]))

    def look(step: int, loss: float, seconds_left: float) -> None:
        if step % config.loop.checkpoint_every == 0 or step == config.loop.steps:
            base.network.eval()
            predicted = predict_maps(base.network, base.vae, text, picture_bchw, config.map, reading=config.reading)
            base.network.train()
            on_sample(torch.cat([images[IMAGE], picture_of(config.map, predicted), true]).clamp(0, 1))
        report(step, loss, seconds_left)

    return look


def shown_source(config: IntrinsicLoraConfig) -> PairSource:
    """What the look is taken of, in row 0: a scene that no training sees; of other data their first pair, which is learnt too."""
    source = config.data.source(config.map)
    return replace(source, first_seed=HELD_OUT_SEEDS.start, count=1) if isinstance(source, SceneData) else source
