"""Published alias-free generators, StyleGAN3's and StyleGAN-XL's PyTorch `.pkl`, for `AliasFreeGenerator`.

========================== ======================================================================================================
here (see `gan_file`)      the module under `G_ema`
========================== ======================================================================================================
`mapping.N`                `mapping.fcN.*`
`mean_style`               `mapping.w_avg`: one, or (StyleGAN-XL) one for each class
`class_embedding`          `mapping.embed.weight` `[classes, features]`, through `mapping.embed_proj.*` (StyleGAN-XL); or
                           `mapping.embed.*`, a linear layer on one-hot classes
`features`                 `synthesis.input.{weight, freqs, phases, affine.*}`
`layers.N`                 `synthesis.LN_SIDE_CHANNELS.{weight, bias, affine.*, magnitude_ema, up_filter, down_filter}`
========================== ======================================================================================================

Weights have unit variance and are multiplied by He's constants in every forward; here that is done once. The sides in the layers' names
say all sampling rates (`alias_free_gan`); a file whose attributes say otherwise is another network. Two more attributes count:
`synthesis.output_scale`, a factor on the picture, and `conv_clamp`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .alias_free_gan import AliasFreeConfig, zeros_around

# How much slower the mapping network learns, which its weights are divided by.
_MAPPING_RATE = 0.01
_INPUT = {
    "synthesis.input.freqs": "features.frequencies",
    "synthesis.input.phases": "features.phases",
    "synthesis.input.weight": "features.weight",
    "synthesis.input.affine.weight": "features.placement.weight",
    "synthesis.input.affine.bias": "features.placement.bias",
    "mapping.w_avg": "mean_style",
}
# Where the picture is put besides: a tool's choice, which is none in a published file.
_TRANSFORM = "synthesis.input.transform"
_LAYER = re.compile(
    r"synthesis\.L(\d{1,2})_(\d{1,4})_\d{1,4}\.(weight|bias|affine\.weight|affine\.bias|magnitude_ema|up_filter|down_filter)"
)
_EMBEDDING = re.compile(r"mapping\.embed(_proj)?\.(weight|bias)")


def convert_alias_free(published: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[AliasFreeConfig, dict[str, Tensor]]:
    """(config, weights of an `AliasFreeGenerator`) of a published module and its attributes.

    Raises ValueError for weights that make no such network, and for attributes that contradict it.
    """
    names = _layer_names(published)
    named = {_name_here(name): weight for name, weight in published.items() if name != _TRANSFORM and not _EMBEDDING.fullmatch(name)}
    if not torch.equal(published.get(_TRANSFORM, torch.eye(3)).float(), torch.eye(3)):
        raise ValueError(f"its {_TRANSFORM} is not that of a published file, which turns and shifts nothing.")
    try:
        classes = class_embedding(published, settings)
        filters = [[named.get(f"layers.{number}.{kind}_filter") for kind in ("up", "down")] for number in range(len(names))]
        config = AliasFreeConfig(
            sides=tuple(int(name.split("_")[1]) for name in names),
            widths=tuple(len(named[f"layers.{number}.weight"]) for number in range(len(names))),
            up_taps=tuple(0 if up is None else len(up) for up, _ in filters),
            down_taps=tuple(0 if down is None else len(down) for _, down in filters),
            radial=tuple(down is not None and down.ndim == 2 for _, down in filters),
            kernel=named["layers.0.weight"].shape[-1],
            clamp=float(settings.get(f"synthesis.{names[0]}.conv_clamp") or 0),
            latent_dim=named["mapping.0.weight"].shape[1] - (0 if classes is None else classes.shape[1]),
            style_dim=named["mapping.0.weight"].shape[0],
            mapping_layers=sum(bool(re.fullmatch(r"mapping\.\d+\.weight", name)) for name in named),
            classes=0 if classes is None else len(classes),
            class_dim=0 if classes is None else classes.shape[1],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it has no whole {error.args[0]} (in the pack's names): a StyleGAN3 or StyleGAN-XL was expected.") from None
    _require_agreement(config, names, settings)
    if not isinstance(scale := settings.get("synthesis.output_scale"), int | float):
        raise ValueError("it does not say synthesis.output_scale, by which its pictures are multiplied: it is of another kind.")
    last = f"layers.{len(names) - 1}."
    weights = {name: _acting(name, weight, scale if name.startswith(last) else None) for name, weight in named.items()}
    return config, weights | class_weights(classes, weights.get("mean_style"))


def class_embedding(published: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor | None:
    """`[classes, class_dim]`: what the mapping network is told of each class; None in a generator without. Raises ValueError."""
    if not any(map(_EMBEDDING.fullmatch, published)):
        return None
    last = "mapping.embed_proj" if "mapping.embed_proj.weight" in published else "mapping.embed"
    if missing := {"mapping.embed.weight", f"{last}.bias"} - published.keys():
        raise ValueError(f"it has no {missing.pop()}, which a generator of classes needs: it is damaged or of another kind.")
    weight = published["mapping.embed.weight"].float()
    if "mapping.embed_proj.weight" not in published:
        return weight.T / math.sqrt(weight.shape[1]) + published["mapping.embed.bias"].float()
    projection = published["mapping.embed_proj.weight"].float()
    projected = functional.linear(weight, projection / math.sqrt(projection.shape[1]), published["mapping.embed_proj.bias"].float())
    # A generator that was trained further on fewer classes keeps the classifier's table whole.
    classes = settings.get("mapping.c_dim")
    projected = projected[:classes] if isinstance(classes, int) and classes > 0 else projected
    activation = settings.get("mapping.embed_proj.activation")
    if activation not in ("linear", "lrelu"):
        raise ValueError(f"mapping.embed_proj.activation is {activation!r}: 'linear' or 'lrelu' were expected.")
    return functional.leaky_relu(projected, 0.2) * math.sqrt(2) if activation == "lrelu" else projected


def class_weights(classes: Tensor | None, mean_style: Tensor | None) -> dict[str, Tensor]:
    """What a generator of classes has besides: their embedding, and a mean style for each, the same for all where the file has one."""
    if classes is None:
        return {}
    means = {} if mean_style is None else {"mean_style": mean_style.expand(len(classes), -1).contiguous()}
    return {"class_embedding": classes} | means


def mapping_weight(weight: Tensor) -> Tensor:
    """A published weight or bias of the mapping network, as it acts."""
    return weight * (_MAPPING_RATE / math.sqrt(weight.shape[1]) if weight.ndim == 2 else _MAPPING_RATE)


def _layer_names(published: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers, in their order."""
    names = {name.split(".")[1] for name in published if _LAYER.fullmatch(name)}
    ordered = sorted(names, key=lambda name: int(name[1:].split("_")[0]))
    if not ordered or [int(name[1:].split("_")[0]) for name in ordered] != list(range(len(ordered))):
        raise ValueError(f"its layers are {', '.join(ordered) or 'missing'}: L0, L1 and so on were expected, each once.")
    return ordered


def _name_here(name: str) -> str:
    if name in _INPUT:
        return _INPUT[name]
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", name):
        return f"mapping.{match[1]}.{match[2]}"
    if match := _LAYER.fullmatch(name):
        return f"layers.{int(match[1])}.{match[3].removesuffix('_ema')}"
    raise ValueError(f"it holds {name}, which StyleGAN3 and StyleGAN-XL do not have.")


def _acting(name: str, weight: Tensor, scale: float | None) -> Tensor:
    """A weight as it acts. scale: of the picture, for the last layer, which is not demodulated."""
    kind = name.rpartition("layers.")[2].partition(".")[2]
    if name.startswith("mapping."):
        return mapping_weight(weight)
    if name == "features.weight" or name.endswith(("affine.weight", "placement.weight")):
        return weight / math.sqrt(weight.shape[1])
    if name == "mean_style":
        return weight[0] if len(weight) == 1 and weight.ndim == 2 else weight
    if kind.endswith("_filter"):
        if not torch.allclose(weight, weight.flip(tuple(range(weight.ndim))), atol=1e-5) or abs(weight.sum() - 1) > 1e-3:
            raise ValueError(f"{name} is not symmetric, or does not keep the mean: it is damaged or of another network.")
        return weight
    if kind == "magnitude":
        return weight.reshape(())
    if scale is not None and kind in ("weight", "bias"):
        return weight * scale / (math.sqrt(weight[0].numel()) if kind == "weight" else 1)
    return weight


def _require_agreement(config: AliasFreeConfig, names: list[str], settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a layer whose attributes, where it has them, are not those that its name and its filters come to."""
    for number, name in enumerate(names):
        up, down = config.factors(number)
        taps = (config.up_taps[number] or 1, config.down_taps[number] or 1)
        kernel = 1 if number == len(names) - 1 else config.kernel
        before, after = zeros_around(config.sides[max(number - 1, 0)] + kernel - 1, config.sides[number], (up, down), taps)
        # Published padding counts from after the zeros that follow the last pixel.
        wanted = {"up_factor": up, "down_factor": down, "padding": [before, after - up + 1] * 2, "conv_kernel": kernel}
        for attribute, value in wanted.items():
            if (came := settings.get(f"synthesis.{name}.{attribute}", value)) != value:
                raise ValueError(f"{name} has {attribute} {came}, {value} was expected of its name and its filters: it is another network.")
