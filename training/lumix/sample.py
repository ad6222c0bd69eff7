"""Sampling a picture's maps together: Euler's method along the flow, some maps given and kept clean (LumiX, disentangled timesteps)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ...methods.lumix.design import Design
from ..backbones.backbone import TextEmbeddings
from .network import MapDenoiser


@torch.no_grad()
def sample_maps(
    denoiser: MapDenoiser,
    design: Design,
    noise_gchw: Tensor,
    text: TextEmbeddings,
    sigmas: Tensor,
    *,
    empty: TextEmbeddings | None = None,
    cfg: float = 1.0,
    given: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Latents of all maps, `[group, map, c, h, w]`, in the model's scale.

    noise_gchw: the same for every map of a group. sigmas: falling noise levels, the last 0. text: of n = group texts; `empty` the same of
    the empty prompt, for cfg other than 1. given: clean latents by map name; those rows stay as they are, at time 0.
    """
    given = dict(given or {})
    if cfg != 1.0 and empty is None:
        raise ValueError(f"cfg is {cfg}: it needs the embeddings of the empty prompt.")
    latents = torch.stack([given.get(name, noise_gchw) for name in design.maps], dim=1)
    noisy = torch.tensor([name not in given for name in design.maps]).to(latents)
    for now, following in pairwise(sigmas.to(latents)):
        time = (now * noisy).expand(len(latents), -1)
        velocity = denoiser(latents, time, text)
        if cfg != 1.0:
            without = denoiser(latents, time, empty)
            velocity = without + cfg * (velocity - without)
        latents = latents + (following - now) * velocity * noisy[:, None, None, None]
    return latents
