"""The I-LoRA trainer: normals, depth, albedo or shading out of a Stable Diffusion UNet in one forward pass.

Recipe and defaults: "Intrinsic LoRA: A Generalist Approach for Discovering Knowledge in Generative Models", single step.
"""

from .adapter import KINDS, add_adapter, load_adapter, lora_layers, save_lora
from .config import TIMESTEP, Base, IntrinsicLoraConfig, load_base
from .latents import LatentPairs
from .predict import map_latent, predict_maps
from .run import IntrinsicLoraTask, TrainedIntrinsicLora, train_intrinsic_lora

__all__ = [
    "KINDS",
    "TIMESTEP",
    "Base",
    "IntrinsicLoraConfig",
    "IntrinsicLoraTask",
    "LatentPairs",
    "TrainedIntrinsicLora",
    "add_adapter",
    "load_adapter",
    "load_base",
    "lora_layers",
    "map_latent",
    "predict_maps",
    "save_lora",
    "train_intrinsic_lora",
]
