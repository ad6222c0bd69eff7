"""The I-LDM trainers: the intrinsic VAE, and the LoRA that generates intrinsics beside the picture (eq. 5).

Recipe: "Towards Spatially Consistent Image Generation: On Incorporating Intrinsic Scene Properties into Diffusion Models".
"""

from ..backbones.backbone import TextEmbeddings
from .adapter import add_joint_adapter
from .autoencoder import IntrinsicVaeConfig, IntrinsicVaeTask, train_intrinsic_vae
from .base import DiffusionBase, encode_captions, load_diffusion_base
from .data import INTRINSICS_KIND, JointFolderData, JointSceneData, JointSource
from .run import JointConfig, JointDenoiser, JointTask, train_joint_lora

__all__ = [
    "INTRINSICS_KIND",
    "DiffusionBase",
    "IntrinsicVaeConfig",
    "IntrinsicVaeTask",
    "JointConfig",
    "JointDenoiser",
    "JointFolderData",
    "JointSceneData",
    "JointSource",
    "JointTask",
    "TextEmbeddings",
    "add_joint_adapter",
    "encode_captions",
    "load_diffusion_base",
    "train_intrinsic_vae",
    "train_joint_lora",
]
