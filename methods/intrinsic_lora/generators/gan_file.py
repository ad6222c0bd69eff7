"""The files of a style-based generator: our folder with `config.json` and `model.safetensors`, or a published file (`published_gan`).

config.json: `_class_name` "IntrinsicLabStyleGenerator", and the fields of `StyleGanConfig`, `filtered` if true. model.safetensors, all
float:

=============================== ============================= =====================================================
key                             shape                         meaning
=============================== ============================= =====================================================
`mapping.N.weight`, `.bias`     [style, latent or style]      mapping network, leaky ReLU (0.2, times root 2) after each
`mean_style`                    [style]                       mean of w, for truncation
`constant`                      [1, widths[0], 4, 4]          the learnt input
`convolutions.N.affine.weight`  [inputs, style] (and `.bias`) w -> style s
`convolutions.N.weight`         [outputs, inputs, 3, 3]       modulated and demodulated; also `.bias` [outputs]
`convolutions.N.noise_strength` []                            factor on the noise, one for all channels
`to_picture.N.affine.weight`    [widths[N], style] (and bias) w -> style s of the output at resolution 4 x 2^N
`to_picture.N.weight`, `.bias`  [3, widths[N], 1, 1], [3]     modulated, not demodulated; the resolutions' outputs add up
=============================== ============================= =====================================================

convolutions: 0 works at 4 x 4; then two for each resolution, the first of which enlarges its input.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..generator_kinds import CLASSES
from .published_gan import read_published_gan
from .style_gan import StyleGanConfig, StyleGenerator
from .weights import require_same_weights

CLASS_NAME = CLASSES["gan"]
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_PICKLES = (".pkl", ".pt", ".pth", ".bin", ".ckpt")
# Fields that came after the first files.
_LATER_FIELDS = {"filtered"}


def save_gan(generator: StyleGenerator, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Fields that came later are left out where they say nothing new: earlier versions read the file too.
    settings = {name: value for name, value in asdict(generator.config).items() if value or name not in _LATER_FIELDS}
    (folder / CONFIG_FILE).write_text(json.dumps({"_class_name": CLASS_NAME, **settings}, indent=1), encoding="utf-8")
    save_file(
        {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in generator.state_dict().items()}, folder / WEIGHTS_FILE
    )
    # safetensors makes files that only their owner may read.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def load_gan(path: Path) -> StyleGenerator:
    """The generator of a folder or a published file, float32 on the CPU, frozen. Raises ValueError, naming the file and what is wrong."""
    return _load_folder(path) if path.is_dir() else _load_published(path)


def _load_published(path: Path) -> StyleGenerator:
    config, weights = read_published_gan(path)
    if "mean_style" in weights:
        return _generator(config, weights, path.name, "they are not those of one network")
    generator = _generator(config, weights | {"mean_style": torch.zeros(config.style_dim)}, path.name, "they are not those of one network")
    generator.measure_mean_style()
    return generator


def _load_folder(folder: Path) -> StyleGenerator:
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        why = f" {pickles[0]} is no part of such a folder: a published file is chosen by itself, in models/vae." if pickles else ""
        raise ValueError(f"{folder.name} has no {WEIGHTS_FILE}.{why} Copy the whole folder again, or export the generator as safetensors.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder.name}/{WEIGHTS_FILE} is no complete safetensors file ({error}): copy it again.") from None
    return _generator(config, weights, f"{folder.name}/{WEIGHTS_FILE}", f"{CONFIG_FILE} and the weights do not belong together")


def _generator(config: StyleGanConfig, weights: Mapping[str, Tensor], source: str, otherwise: str) -> StyleGenerator:
    with torch.device("meta"):
        generator = StyleGenerator(config)
    require_same_weights(generator, weights, source, otherwise)
    generator.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return generator.requires_grad_(False).eval()


def _read_config(folder: Path) -> StyleGanConfig:
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder.name}/{CONFIG_FILE} cannot be read ({error}): copy the folder again.") from None
    known = {field.name for field in fields(StyleGanConfig)}
    named = content.keys() - {"_class_name"} if isinstance(content, dict) and content.get("_class_name") == CLASS_NAME else None
    if named is None or not known - _LATER_FIELDS <= named <= known:
        raise ValueError(
            f"{folder.name}/{CONFIG_FILE} is not that of a {CLASS_NAME} with {', '.join(sorted(known))}: choose another folder."
        )
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in known
    }
    try:
        return StyleGanConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.name}/{CONFIG_FILE}: {error}") from None
