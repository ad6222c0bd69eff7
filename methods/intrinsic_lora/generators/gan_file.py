"""The folder of a style-based generator: `config.json` and `model.safetensors`, in keys of our own.

config.json: `_class_name` "IntrinsicLabStyleGenerator", and the fields of `StyleGanConfig`. model.safetensors, all float:

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
Published StyleGAN files are pickles that hold code: they are never opened.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .style_gan import StyleGanConfig, StyleGenerator

CLASS_NAME = "IntrinsicLabStyleGenerator"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_PICKLES = (".pkl", ".pt", ".pth", ".bin", ".ckpt")


def save_gan(generator: StyleGenerator, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"_class_name": CLASS_NAME, **asdict(generator.config)}, indent=1), encoding="utf-8")
    save_file(
        {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in generator.state_dict().items()}, folder / WEIGHTS_FILE
    )
    # safetensors makes files that only their owner may read.
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)


def load_gan(folder: Path) -> StyleGenerator:
    """The generator of a folder, float32 on the CPU, frozen. Raises ValueError, naming the file, what is wrong and what to do."""
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        why = f" {pickles[0]} is a pickle, which may run code when it is opened, and is not read." if pickles else ""
        raise ValueError(f"{folder.name} has no {WEIGHTS_FILE}.{why} Copy the whole folder again, or export the generator as safetensors.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder.name}/{WEIGHTS_FILE} is no complete safetensors file ({error}): copy it again.") from None
    with torch.device("meta"):
        generator = StyleGenerator(config)
    expected = generator.state_dict()
    if wrong := sorted(expected.keys() ^ weights.keys()):
        missing = sum(name in expected for name in wrong)
        raise ValueError(
            f"{folder.name}/{WEIGHTS_FILE} lacks {missing} weights and has {len(wrong) - missing} that its config does not call for "
            f"(first: {wrong[0]}): {CONFIG_FILE} and the weights do not belong together."
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"{folder.name}/{WEIGHTS_FILE}: {name} is {list(weight.shape)}, {list(expected[name].shape)} was expected: "
                f"{CONFIG_FILE} and the weights do not belong together."
            )
        if not weight.is_floating_point() or not torch.isfinite(weight.float()).all():
            raise ValueError(f"{folder.name}/{WEIGHTS_FILE}: {name} is not finite floating point: the training diverged, or it is damaged.")
    generator.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return generator.requires_grad_(False).eval()


def _read_config(folder: Path) -> StyleGanConfig:
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder.name}/{CONFIG_FILE} cannot be read ({error}): copy the folder again.") from None
    known = {field.name for field in fields(StyleGanConfig)}
    if not isinstance(content, dict) or content.get("_class_name") != CLASS_NAME or content.keys() - {"_class_name"} != known:
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
