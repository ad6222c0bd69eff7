"""The files of a style-based generator: our folder with `config.json` and `model.safetensors`, or a published file (`published_gan`).

config.json: `_class_name` "IntrinsicLabStyleGenerator", and the fields of `StyleGanConfig`, `filtered` and the classes' if not false or 0;
or "IntrinsicLabAliasFreeGenerator", and those of `AliasFreeConfig`. model.safetensors, all float:

=============================== ============================= =====================================================
key                             shape                         meaning
=============================== ============================= =====================================================
`mapping.N.weight`, `.bias`     [style, latent or style]      mapping network, leaky ReLU (0.2, times root 2) after each
`mean_style`                    [style] or [classes, style]   mean of w, for truncation
`class_embedding`               [classes, class_dim]          what the mapping network is given beside z, with classes only
`constant`                      [1, widths[0], 4, 4]          the learnt input
`convolutions.N.affine.weight`  [inputs, style] (and `.bias`) w -> style s
`convolutions.N.weight`         [outputs, inputs, 3, 3]       modulated and demodulated; also `.bias` [outputs]
`convolutions.N.noise_strength` []                            factor on the noise, one for all channels
`to_picture.N.affine.weight`    [widths[N], style] (and bias) w -> style s of the output at resolution 4 x 2^N
`to_picture.N.weight`, `.bias`  [3, widths[N], 1, 1], [3]     modulated, not demodulated; the resolutions' outputs add up
=============================== ============================= =====================================================

convolutions: 0 works at 4 x 4; then two for each resolution, the first of which enlarges its input. An alias-free generator has, in place
of the constant and what follows it:

=================================== ====================================== ==================================================
key                                 shape                                  meaning
=================================== ====================================== ==================================================
`features.frequencies`, `.phases`   [channels, 2], [channels]              periods per picture in x and y; periods
`features.placement.weight`         [4, style] (and `.bias`)               w -> cosine, sine, shift in x and y
`features.weight`                   [channels, channels]                   mixes the sines
`layers.N.affine.weight`            [inputs, style] (and `.bias`)          w -> style s
`layers.N.weight`, `.bias`          [outputs, inputs, kernel, kernel]      modulated, and demodulated but in the last layer
`layers.N.magnitude`                []                                     mean square of the inputs in training
`layers.N.up_filter`                [up_taps]                              where the sampling rate rises, sums to 1
`layers.N.down_filter`              [down_taps], or squared where radial   where it falls again, sums to 1
=================================== ====================================== ==================================================
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...lora.header import BadFile
from ...lora.weight_file import load_safetensors
from ...plain_files import read_json
from ..generator_kinds import CLASSES
from .alias_free_gan import AliasFreeConfig, AliasFreeGenerator
from .published_gan import read_published_gan
from .style_gan import StyleGanConfig, StyleGenerator
from .weights import require_same_weights

Gan = StyleGenerator | AliasFreeGenerator
CONFIGS = dict(zip(CLASSES["gan"], (StyleGanConfig, AliasFreeConfig), strict=True))
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_PICKLES = (".pkl", ".pt", ".pth", ".bin", ".ckpt")
# Fields that came after the first files.
_LATER_FIELDS = {"filtered", "classes", "class_dim"}


def save_gan(generator: Gan, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Fields that came later are left out where they say nothing new: earlier versions read the file too.
    settings = {name: value for name, value in asdict(generator.config).items() if value or name not in _LATER_FIELDS}
    [class_name] = [name for name, config in CONFIGS.items() if isinstance(generator.config, config)]
    (folder / CONFIG_FILE).write_text(json.dumps({"_class_name": class_name, **settings}, indent=1), encoding="utf-8")
    save_file(
        {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in generator.state_dict().items()}, folder / WEIGHTS_FILE
    )
    # safetensors makes files that only their owner may read.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def load_gan(path: Path) -> Gan:
    """The generator of a folder or a published file, float32 on the CPU, frozen. Raises ValueError, naming the file and what is wrong."""
    return _load_folder(path) if path.is_dir() else _load_published(path)


def _load_published(path: Path) -> Gan:
    config, weights = read_published_gan(path)
    if "mean_style" in weights or config.classes:
        return _generator(config, weights, path.name, "they are not those of one network")
    generator = _generator(config, weights | {"mean_style": torch.zeros(config.style_dim)}, path.name, "they are not those of one network")
    generator.measure_mean_style()
    return generator


def _load_folder(folder: Path) -> Gan:
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        why = f" {pickles[0]} is no part of such a folder: a published file is chosen by itself, in models/vae." if pickles else ""
        raise ValueError(f"{folder.name} has no {WEIGHTS_FILE}.{why} Copy the whole folder again, or export the generator as safetensors.")
    try:
        weights, _ = load_safetensors(path)
    except BadFile as error:
        raise ValueError(f"{folder.name}/{WEIGHTS_FILE} is no complete safetensors file ({error}): copy it again.") from None
    return _generator(config, weights, f"{folder.name}/{WEIGHTS_FILE}", f"{CONFIG_FILE} and the weights do not belong together")


def _generator(config: StyleGanConfig | AliasFreeConfig, weights: Mapping[str, Tensor], source: str, otherwise: str) -> Gan:
    with torch.device("meta"):
        generator = StyleGenerator(config) if isinstance(config, StyleGanConfig) else AliasFreeGenerator(config)
    require_same_weights(generator, weights, source, otherwise)
    generator.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return generator.requires_grad_(False).eval()


def _read_config(folder: Path) -> StyleGanConfig | AliasFreeConfig:
    path = folder / CONFIG_FILE
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{folder.name}/{CONFIG_FILE} cannot be read ({error}): copy the folder again.") from None
    settings: dict[str, Any] = dict(content) if isinstance(content, dict) else {}
    class_name = settings.pop("_class_name", None)
    config = CONFIGS.get(class_name) if isinstance(class_name, str) else None
    known = {field.name for field in fields(config)} if config else set()
    if config is None or not known - _LATER_FIELDS <= settings.keys() <= known:
        raise ValueError(
            f"{folder.name}/{CONFIG_FILE} is not that of a generator ({', '.join(CONFIGS)}) with its fields "
            f"({', '.join(sorted(known)) or 'those of its kind'}): choose another folder."
        )
    try:
        return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.name}/{CONFIG_FILE}: {error}") from None
