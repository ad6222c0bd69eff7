"""Intrinsic maps out of generators that are no diffusion models (Intrinsic LoRA, sections 3 and 4.1): VQGAN and style-based GANs.

The maps come out of the generator's own head: the same network runs once more with a low-rank change of a few of its layers.
"""

from .adapter import GeneratorLora, adapted_weights, fit, read_generator_lora, run_adapted
from .alias_free_gan import AliasFreeConfig, AliasFreeGenerator
from .gan_file import load_gan, save_gan
from .sample import ANY_CLASS, Draws, draw, map_pictures, pictures
from .style_gan import StyleGanConfig, StyleGenerator
from .vqgan import decode, quantised, vqgan_generator

__all__ = [
    "ANY_CLASS",
    "AliasFreeConfig",
    "AliasFreeGenerator",
    "Draws",
    "GeneratorLora",
    "StyleGanConfig",
    "StyleGenerator",
    "adapted_weights",
    "decode",
    "draw",
    "fit",
    "load_gan",
    "map_pictures",
    "pictures",
    "quantised",
    "read_generator_lora",
    "run_adapted",
    "save_gan",
    "vqgan_generator",
]
