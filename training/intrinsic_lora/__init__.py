"""The I-LoRA trainer: one of the maps (`methods.maps`) out of a Stable Diffusion UNet in one forward pass.

Recipe and defaults: "Intrinsic LoRA: A Generalist Approach for Discovering Knowledge in Generative Models", single step.
"""

from ..backbones.backbone import TIMESTEP, SingleStepBase
from .adapter import KINDS, add_adapter, load_adapter, lora_layers, save_lora
from .config import IntrinsicLoraConfig
from .latents import LatentPairs
from .predict import load_base, map_latent, predict_maps
from .run import IntrinsicLoraTask, TrainedIntrinsicLora, train_intrinsic_lora

__all__ = [
    "KINDS",
    "TIMESTEP",
    "IntrinsicLoraConfig",
    "IntrinsicLoraTask",
    "LatentPairs",
    "SingleStepBase",
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
