"""The I-LoRA trainer: one of the maps (`methods.maps`) out of a Stable Diffusion UNet in one forward pass.

Recipe and defaults: "Intrinsic LoRA: A Generalist Approach for Discovering Knowledge in Generative Models", single step; section 5 for
the multi-step ones (`denoising`, `sample`).
"""

from ..backbones.backbone import TIMESTEP, SingleStepBase
from .adapter import KINDS, add_adapter, load_adapter, lora_layers, save_lora
from .config import IntrinsicLoraConfig
from .latents import LatentPairs
from .noise import noise_for
from .predict import load_base, map_latent, predict_maps
from .run import IntrinsicLoraTask, TrainedIntrinsicLora, train_intrinsic_lora
from .sample import predict_maps_in_steps

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
    "noise_for",
    "predict_maps",
    "predict_maps_in_steps",
    "save_lora",
    "train_intrinsic_lora",
]
