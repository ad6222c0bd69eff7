"""The intrinsic VAE of I-LDM (section 3.2): all intrinsics of a picture in one latent of the base VAE's shape.

It is the base VAE with its first and last convolution widened from 3 colours to the channels of all intrinsics, then fine-tuned
(`training.ildm`). A picture's intrinsics go in and come out as one tensor in -1..1, in the order of `INTRINSICS`; an intrinsic that is
not there is zero, as in training, where each is left out at times.
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from einops import repeat
from torch import Tensor

from ..maps import map_kind

# The published order of channels. As data: depth any monotone one in, relative 0..1 out; nothing is clamped.
INTRINSICS = {name: map_kind(name) for name in ("depth", "normal", "segmentation", "line")}
TOTAL_CHANNELS = sum(intrinsic.channels for intrinsic in INTRINSICS.values())
_STARTS = dict(zip(INTRINSICS, accumulate((intrinsic.channels for intrinsic in INTRINSICS.values()), initial=0), strict=False))


def channel_slice(name: str) -> slice:
    """Where an intrinsic sits among the TOTAL_CHANNELS."""
    return slice(_STARTS[name], _STARTS[name] + INTRINSICS[name].channels)


def join_intrinsics(maps: Mapping[str, Tensor]) -> Tensor:
    """Intrinsics as data, `bhwc` each and of one size, to the VAE's `[b, h, w, TOTAL_CHANNELS]`; missing ones are zero.

    Raises ValueError without any, for an unknown name, and for sizes or channels that do not fit.
    """
    if not maps or (unknown := maps.keys() - INTRINSICS.keys()):
        came = "none" if not maps else ", ".join(sorted(unknown))
        raise ValueError(f"{came} of the intrinsics came: give at least one of {', '.join(INTRINSICS)}.")
    first = next(iter(maps.values()))
    joined = first.new_zeros(*first.shape[:3], TOTAL_CHANNELS)
    for name, values in maps.items():
        if values.shape != (*first.shape[:3], INTRINSICS[name].channels):
            raise ValueError(
                f"{name} is {list(values.shape)}, wanted {[*first.shape[:3], INTRINSICS[name].channels]}: give maps of one size."
            )
        joined[..., channel_slice(name)] = 2 * INTRINSICS[name].to_picture(values)[..., : values.shape[-1]] - 1
    return joined


def split_intrinsics(joined_bhwc: Tensor) -> dict[str, Tensor]:
    """The VAE's `[b, h, w, TOTAL_CHANNELS]` to data, `bhwc` each. Raises ValueError for another number of channels."""
    if joined_bhwc.shape[-1] != TOTAL_CHANNELS:
        raise ValueError(
            f"{joined_bhwc.shape[-1]} channels came, an intrinsic VAE has {TOTAL_CHANNELS}: use the VAE that goes with the LoRA."
        )
    return {name: intrinsic.from_picture((joined_bhwc[..., channel_slice(name)] + 1) / 2) for name, intrinsic in INTRINSICS.items()}


def intrinsics_from_pictures(pictures: Mapping[str, Tensor]) -> Tensor:
    """Pictures of maps, `[b, h, w, 3]` in 0..1 as training pairs hold them, to the VAE's channels; missing ones are zero."""
    return join_intrinsics({name: INTRINSICS[name].from_picture(picture) for name, picture in pictures.items()})


def zero_masked(joined_bchw: Tensor, probability: float, draw: torch.Generator) -> Tensor:
    """Each intrinsic of each row is zeroed with `probability` (I-LDM: 0.1), independently. `[b, TOTAL_CHANNELS, h, w]`."""
    keep = torch.rand(joined_bchw.shape[0], len(INTRINSICS), generator=draw) >= probability
    counts = torch.tensor([intrinsic.channels for intrinsic in INTRINSICS.values()])
    return joined_bchw * keep.repeat_interleave(counts, dim=1)[:, :, None, None].to(joined_bchw)


def widen(weights: Mapping[str, Tensor], config: Mapping) -> tuple[dict[str, Tensor], dict]:
    """Weights and config of any diffusers AutoencoderKL with 3 colours, widened to all intrinsics; every other weight is kept.

    The start is the base's view of pictures: an encoder that sees the mean of all intrinsics (a one-channel map as grey), a decoder that
    gives each its colours (a one-channel map their mean). Raises ValueError for a VAE that does not take 3 channels.
    """
    names = {"encoder.conv_in.weight": 1, "decoder.conv_out.weight": 0, "decoder.conv_out.bias": 0}
    for name, side in names.items():
        if name not in weights or weights[name].shape[side] != 3:
            shape = list(weights[name].shape) if name in weights else "not there"
            raise ValueError(f"{name} is {shape}, 3 colours were expected: start from the base model's own VAE (AutoencoderKL).")
    conv_in, conv_out, bias = (weights[name] for name in names)
    columns, rows, biases = [], [], []
    for intrinsic in INTRINSICS.values():
        grey = intrinsic.channels == 1
        columns.append(conv_in.sum(1, keepdim=True) if grey else conv_in)
        rows.append(conv_out.mean(0, keepdim=True) if grey else conv_out)
        biases.append(repeat(bias.mean(), "-> one", one=1) if grey else bias)
    widened = {
        "encoder.conv_in.weight": torch.cat(columns, 1) / len(INTRINSICS),
        "decoder.conv_out.weight": torch.cat(rows),
        "decoder.conv_out.bias": torch.cat(biases),
    }
    # diffusers forgets what this list names when it builds a model from a config.
    kept = {name: value for name, value in config.items() if name != "_use_default_values"}
    return {**weights, **widened}, {**kept, "in_channels": TOTAL_CHANNELS, "out_channels": TOTAL_CHANNELS}
