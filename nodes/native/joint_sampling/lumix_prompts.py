"""A conditioning that tells every map of a picture something of its own."""

import math
from collections.abc import Mapping

import comfy.utils
import torch
from torch import Tensor

from .lumix_sampling import split_maps


def prompts_of_maps(latent: dict, shared: list, own: Mapping[str, list]) -> list:
    """One CONDITIONING with a row for every row of `latent`: of the map's own prompt where there is one, else of `shared`.

    own: CONDITIONINGs by map name. What a prompt carries beside its text (masks, ControlNets, time ranges) is taken from `shared`. Texts of
    different lengths are repeated to one, as core does it. Raises ValueError for maps that the latent has not, and for prompts of several
    parts.
    """
    rows = {name: len(part["samples"]) for name, part in split_maps(latent).items()}
    if unknown := sorted(own.keys() - rows.keys()):
        raise ValueError(f"This latent has no {unknown[0]}; its maps are {', '.join(rows)}: disconnect the others.")
    chosen = {name: own.get(name, shared) for name in rows}
    for name, prompt in chosen.items():
        if len(prompt) != 1:
            raise ValueError(
                f"The prompt of {name} has {len(prompt)} parts, one was expected: put Conditioning Combine after this node, not before."
            )
    texts = {name: prompt[0][0] for name, prompt in chosen.items()}
    length = math.lcm(*(text.shape[1] for text in texts.values()))
    extra = dict(shared[0][1])
    pooled = {name: prompt[0][1].get("pooled_output") for name, prompt in chosen.items()}
    if all(tensor is not None for tensor in pooled.values()):
        extra["pooled_output"] = _rows(pooled, rows)
    return [[_rows({name: text.repeat(1, length // text.shape[1], 1) for name, text in texts.items()}, rows), extra]]


def _rows(of_map: Mapping[str, Tensor], rows: Mapping[str, int]) -> Tensor:
    return torch.cat([comfy.utils.repeat_to_batch_size(of_map[name], count) for name, count in rows.items()])
