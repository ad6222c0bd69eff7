"""Published VQGANs (Esser et al. 2021, as taming-transformers keeps them): a `.ckpt` and its `.yaml`, as diffusers' VQModel.

The two are one network under two names: `decoder.up.4.block.0` counts from the full size, diffusers' `decoder.up_blocks.0.resnets.0` from
the smallest; attention is written as 1 x 1 convolutions, diffusers' as matrices. A transformer's checkpoint holds the VQGAN it was trained
on, as `first_stage_model.*`: the faces' f16 is published in no other way. Everything else in a checkpoint is left alone, unread.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...plain_files import read_text
from .weights import require_same_weights

_TARGET, _FIRST_STAGE = "taming.models.vqgan.VQModel", "first_stage_model."
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_LONGEST_SETTINGS = 1 << 20
_MOST_BLOCKS = 512
_RENAMED = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
        (r"\.(down|up)\.(\d+)\.attn\.", r".\1_blocks.\2.attentions."),
        (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
        (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    )
)


def settings_file(checkpoint: Path) -> Path | None:
    """The yaml that belongs to a checkpoint: of its name beside it, or in the `configs` folder of a published download; None without."""
    configs = checkpoint.parent.parent / "configs"
    beside = [checkpoint.with_suffix(".yaml"), checkpoint.with_suffix(".yml"), configs / "model.yaml"]
    return next((path for path in (*beside, *sorted(configs.glob("*project.yaml"))) if os.path.isfile(path)), None)


def load_taming(checkpoint: Path, build: Callable[[dict], Any]) -> Any:
    """The VQGAN of a checkpoint, float32, frozen. build: makes a network of its config, diffusers' `VQModel.from_config`.

    Raises ValueError, naming the file, what is wrong with it and what to do.
    """
    from ...pickled_weights import read_pickled

    settings = settings_file(checkpoint)
    if settings is None:
        raise ValueError(
            f"{checkpoint.name} has no {checkpoint.stem}.yaml beside it, which says what network it is: copy the yaml that was published "
            "with it there, under this name."
        )
    config, prefix = _read_settings(settings)
    pickled = read_pickled(checkpoint)
    state = pickled.content.get("state_dict") if isinstance(pickled.content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{checkpoint.name} holds no 'state_dict', so it is no checkpoint of taming-transformers: pick another file.")
    own = {key: value for key, value in state.items() if isinstance(key, str) and key.startswith(tuple(prefix + part for part in _PARTS))}
    try:
        found = pickled.tensors(own)
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error}") from None
    weights = diffusers_weights({key.removeprefix(prefix): weight for key, weight in found.items()}, len(config["block_out_channels"]))
    with torch.device("meta"):
        vqgan = build(config)
    together = f"{settings.name} describes another network (names are diffusers'), or it is the checkpoint of another model"
    require_same_weights(vqgan, weights, checkpoint.name, together)
    vqgan.load_state_dict(weights, assign=True)
    return vqgan.requires_grad_(False).eval()


def diffusers_weights(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Weights of a taming VQGAN with `levels` resolutions, in float32 under the names of diffusers' VQModel."""
    renamed = {}
    for name, weight in weights.items():
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", name)
        for old, new in _RENAMED:
            name = old.sub(new, name)
        is_matrix = ".attentions." in name and weight.ndim == 4
        renamed[name] = (weight[:, :, 0, 0] if is_matrix else weight).float()
    return renamed


def _read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """(config of diffusers' VQModel, prefix of its weights in the checkpoint)."""
    import yaml

    try:
        if path.stat().st_size > _LONGEST_SETTINGS:
            raise ValueError("it is longer than a megabyte")
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name} is no readable YAML ({' '.join(str(error).split())}): copy it again.") from None
    model, prefix = _entry(content, "model"), ""
    if _entry(model, "target") != _TARGET and isinstance(first := _entry(_entry(model, "params"), "first_stage_config"), Mapping):
        model, prefix = first, _FIRST_STAGE
    if (target := _entry(model, "target")) != _TARGET:
        raise ValueError(f"{path.name} describes {target or 'no model'}, {_TARGET} was expected: choose a VQGAN's files.")
    try:
        return _diffusers_config(_entry(model, "params")), prefix
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} does not describe a whole VQGAN ({error}): use the yaml that was published with the file.") from None


def _entry(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _diffusers_config(params: Mapping) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError, saying what is missing or impossible."""
    network = params["ddconfig"]
    width, blocks, side, latent = (_number(network, name) for name in ("ch", "num_res_blocks", "resolution", "z_channels"))
    multiples = [_number(dict(enumerate(network["ch_mult"])), level) for level in range(len(network["ch_mult"]))]
    if not 1 <= len(multiples) <= 8 or network.get("double_z"):
        raise ValueError(f"{len(multiples)} resolutions and double_z {network.get('double_z')}; 1 to 8 and false are possible")
    if (channels := (network.get("in_channels", 3), network.get("out_ch", 3))) != (3, 3):
        raise ValueError(f"it takes {channels[0]} channels and gives {channels[1]}; 3 are possible")
    if blocks > _MOST_BLOCKS or max(multiples) > _MOST_BLOCKS:
        raise ValueError(f"num_res_blocks is {blocks} and ch_mult {multiples}; up to {_MOST_BLOCKS} are possible")
    if width % 32:
        raise ValueError(f"ch is {width}; multiples of 32 are possible")
    attends = [side // 2**level in network["attn_resolutions"] for level in range(len(multiples))]
    return {
        "down_block_types": tuple("AttnDownEncoderBlock2D" if attending else "DownEncoderBlock2D" for attending in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if attending else "UpDecoderBlock2D" for attending in reversed(attends)),
        "block_out_channels": tuple(width * multiple for multiple in multiples),
        "layers_per_block": blocks,
        "latent_channels": latent,
        "sample_size": side,
        "num_vq_embeddings": _number(params, "n_embed"),
        "vq_embed_dim": _number(params, "embed_dim"),
        "norm_num_groups": 32,
        "scaling_factor": 1.0,
    }


def _number(settings: Mapping, name: Any) -> int:
    value = settings[name]
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise ValueError(f"{name} is {value!r}; a whole number from 1 on was expected")
    return value
