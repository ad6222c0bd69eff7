"""Published generators: StyleGAN2 (Karras et al. 2020) of any size, for `StyleGenerator`, in two layouts; others by `published_alias_free`.

=========================== ============================================ ==================================================
here (see `gan_file`)       rosinality's `.pt`, under `g_ema`            NVIDIA's PyTorch `.pkl`, the module under `G_ema`
=========================== ============================================ ==================================================
`mapping.N`                 `style.N+1.*`                                `mapping.fcN.*`
`mean_style`                `latent_avg` of the file, or measured        `mapping.w_avg`
`class_embedding`                                                        `mapping.embed.*`, where it has classes
`constant`                  `input.input`                                `synthesis.b4.const`
`convolutions.0`            `conv1.conv.weight`, `.conv.modulation.*`,   `synthesis.b4.conv1.weight`, `.affine.*`, `.bias`,
                            `.noise.weight`, `.activate.bias`            `.noise_strength`
`convolutions.N`            `convs.N-1. ...` the same                    `synthesis.bSIDE.conv0. ...` and `conv1`
`to_picture.N`              `to_rgb1`, `to_rgbs.N-1`, as far as they go  `synthesis.bSIDE.torgb`
=========================== ============================================ ==================================================

Both keep weights of unit variance and multiply He's constants in at every forward; here that is done once, so that a layer's weight, and a
LoRA's change of it, is what acts. NVIDIA's files are pickled modules with their source: it is neither run nor read.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .alias_free_gan import AliasFreeConfig
from .published_alias_free import class_embedding, class_weights, convert_alias_free, mapping_weight
from .style_gan import FIRST_SIDE, StyleGanConfig

_LAYER = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
}
_FILTERS = re.compile(r".*\.(?:blur\.kernel|upsample\.kernel|resample_filter)")
_UNUSED = re.compile(r"noises\.noise_\d+|.*\.noise_const")


def read_published_gan(path: Path) -> tuple[StyleGanConfig | AliasFreeConfig, dict[str, Tensor]]:
    """(config, weights of its generator, without `mean_style` where the file has none). Raises ValueError, naming the file."""
    from ...pickled_weights import Made, module_settings, read_pickled

    pickled = read_pickled(path)
    content = pickled.content if isinstance(pickled.content, Mapping) else {}
    try:
        if isinstance(state := content.get("g_ema"), Mapping):
            published = pickled.tensors(state)
            if "latent_avg" in content:
                published["latent_avg"] = pickled.tensor(content["latent_avg"])
            return convert({rosinality_name(name): weight for name, weight in _own(published).items()}, scaled=True)
        if isinstance(module := content.get("G_ema"), Made):
            published = pickled.module_tensors(module)
            if any(name.startswith("synthesis.input.") for name in published):
                return convert_alias_free(published, module_settings(module))
            embedding = {name: published.pop(name) for name in list(published) if name.startswith("mapping.embed.")}
            named = {nvidia_name(name): weight for name, weight in _own(published).items()}
            return convert(named, scaled=False, classes=class_embedding(embedding, {}))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    raise ValueError(
        f"{path.name} holds neither 'g_ema' with its weights (rosinality's StyleGAN2) nor 'G_ema' with a PyTorch module (NVIDIA's, "
        "StyleGAN-XL's); files of the TensorFlow StyleGAN2 hold neither: choose a PyTorch one, or convert it."
    )


def convert(named: Mapping[str, Tensor], scaled: bool, classes: Tensor | None = None) -> tuple[StyleGanConfig, dict[str, Tensor]]:
    """Published weights under the names used here. scaled: whether convolutions are multiplied by a constant before they are demodulated.

    classes: their embedding `[classes, class_dim]`, where there are any.
    Raises ValueError for weights that make no StyleGAN2.
    """
    try:
        levels = sum(bool(re.fullmatch(r"to_picture\.\d+\.weight", name)) for name in named)
        config = StyleGanConfig(
            widths=tuple(named[f"convolutions.{2 * level}.weight"].shape[-4] for level in range(levels)),
            latent_dim=named["mapping.0.weight"].shape[1] - (0 if classes is None else classes.shape[1]),
            style_dim=named["mapping.0.weight"].shape[0],
            mapping_layers=sum(bool(re.fullmatch(r"mapping\.\d+\.weight", name)) for name in named),
            filtered=True,
            classes=0 if classes is None else len(classes),
            class_dim=0 if classes is None else classes.shape[1],
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"it has no {error.args[0]} (in the pack's names): a StyleGAN2 with output skips was expected.") from None
    weights = {name: _acting(name, weight, scaled) for name, weight in named.items()}
    return config, weights | class_weights(classes, weights.get("mean_style"))


def _acting(name: str, weight: Tensor, scaled: bool) -> Tensor:
    """A weight as it acts, in the shape used here."""
    if name.startswith("mapping."):
        return mapping_weight(weight)
    if name.endswith("affine.weight"):
        return weight / math.sqrt(weight.shape[1])
    if name == "constant":
        return weight.reshape(1, *weight.shape[-3:])
    if name.endswith("noise_strength"):
        return weight.reshape(())
    if name.endswith(".weight"):
        weight = weight.reshape(weight.shape[-4:])
        if scaled or name.startswith("to_picture."):
            weight = weight / math.sqrt(weight[0].numel())
        number = int(name.split(".")[1])
        # Published layers that enlarge convolve, all others correlate.
        return weight.flip(2, 3) if name.startswith("convolutions.") and number % 2 else weight
    return weight.flatten()


def _own(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without noise and filters. Raises ValueError for a filter other than [1, 3, 3, 1]."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for name, weight in published.items():
        if _FILTERS.fullmatch(name) and (
            weight.shape != (4, 4) or not torch.allclose(weight.float() / weight.sum(), torch.outer(row, row))
        ):
            raise ValueError(f"{name} is not the filter [1, 3, 3, 1] that StyleGAN2 was published with: it is another network.")
    return {name: weight for name, weight in published.items() if not _FILTERS.fullmatch(name) and not _UNUSED.fullmatch(name)}


def rosinality_name(name: str) -> str:
    """The name used here. Raises ValueError for a weight that StyleGAN2 does not have."""
    if whole := {"latent_avg": "mean_style", "input.input": "constant"}.get(name):
        return whole
    if match := re.fullmatch(r"style\.([1-9]\d*)\.(weight|bias)", name):
        return f"mapping.{int(match[1]) - 1}.{match[2]}"
    if (match := re.fullmatch(r"(conv|to_rgb)(?:1|s\.(\d+))\.(.+)", name)) and match[3] in _LAYER:
        kind = {"conv": "convolutions", "to_rgb": "to_picture"}[match[1]]
        return f"{kind}.{0 if match[2] is None else int(match[2]) + 1}.{_LAYER[match[3]]}"
    raise ValueError(f"it holds {name}, which StyleGAN2 does not have: choose a StyleGAN2 generator.")


def nvidia_name(name: str) -> str:
    """The name used here. Raises ValueError for a weight that StyleGAN2 does not have."""
    if whole := {"mapping.w_avg": "mean_style", "synthesis.b4.const": "constant"}.get(name):
        return whole
    if match := re.fullmatch(r"mapping\.fc(\d+)\.(weight|bias)", name):
        return f"mapping.{match[1]}.{match[2]}"
    layer = r"synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(weight|bias|affine\.weight|affine\.bias|noise_strength)"
    if (match := re.fullmatch(layer, name)) and (side := int(match[1])) in (FIRST_SIDE * 2**level for level in range(9)):
        level = (side // FIRST_SIDE).bit_length() - 1
        numbered = {"conv0": f"convolutions.{2 * level - 1}", "conv1": f"convolutions.{2 * level}", "torgb": f"to_picture.{level}"}
        return f"{numbered[match[2]]}.{match[3]}"
    raise ValueError(f"it holds {name}, which StyleGAN2 does not have: choose a StyleGAN2, StyleGAN3 or StyleGAN-XL generator.")
