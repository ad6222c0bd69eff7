"""A look at a training while it runs: pictures of what it has learnt so far, beside the true ones."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ..methods.formats import picture_of
from ..methods.maps import map_kind
from .loop import LoopConfig, Report
from .pairs import Pairs, PairSource, SceneData
from .scene_pictures import HELD_OUT_SEEDS

# Rows of pictures by what is written above each: `[h, w, 3]` in 0..1, all of one size and as many in every row.
Sample = Sequence[Mapping[str, Tensor]]
OnSample = Callable[[Sample], None]
# What the looks between the first and the last may take of a run's time.
SHARE = 0.05


def with_looks(report: Report | None, loop: LoopConfig, module: nn.Module, look: Callable[[], Sample], on_sample: OnSample) -> Report:
    """`report`, after a look with the first checkpoint, with the later ones that SHARE of the time has room for, and with the last step.

    module: of the task, which is in evaluation mode while `look` is called. A look changes nothing of the run if it draws from
    generators of its own.
    """
    spent, since = 0.0, -math.inf

    def looking(step: int, loss: float, seconds_left: float) -> None:
        nonlocal spent, since
        now = time.perf_counter()
        if step == loop.steps or (step % loop.checkpoint_every == 0 and SHARE * (now - since) >= spent):
            module.eval()
            with torch.no_grad():
                on_sample(look())
            module.train()
            since = time.perf_counter()
            spent = since - now
        if report is not None:
            report(step, loss, seconds_left)

    return looking


def shown_source(source: Pairs) -> Pairs:
    """What a look is taken of, in row 0: a scene that no training sees; of other data their first pair, which is learnt too."""
    return replace(source, first_seed=HELD_OUT_SEEDS.start, count=1) if isinstance(source, SceneData) else source


def true_pictures(source: PairSource, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Of row 0, as they are looked at."""
    return {kind: looked_at(kind, rearrange(source.read(kind, [0]), "b c h w -> b h w c")) for kind in kinds}


def looked_at(kind: str, picture_1hwc: Tensor) -> Tensor:
    """A map in the picture form that training pairs have, as it is looked at, `[h, w, 3]`."""
    return picture_of(kind, map_kind(kind).from_picture(picture_1hwc))[0]
