"""What learns: LoRA layers of self-attentions for the intrinsic domain, in a network whose rows are all pictures, then their intrinsics."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ..backbones import joint_denoising_of


def add_joint_adapter(network: nn.Module, rank: int, seed: int, image_domain: bool = True) -> None:
    """Freeze `network` and give its self-attentions a trainable LoRA for the intrinsic domain, in place; it changes nothing yet.

    image_domain False: no picture beside the intrinsics, plain self-attention (the paper's LoRA-only ablation). Raises ValueError for
    an impossible rank and for networks this method does not support.
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}: it must be at least 1.")
    denoising = joint_denoising_of(network)
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=denoising.self_attentions, init_lora_weights=True)
        inject_adapter_in_model(lora, network)
    if image_domain:
        denoising.exchange_in(network)
