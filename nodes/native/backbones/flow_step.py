"""Intrinsic LoRA's single step on transformers that predict a flow: a clean latent in, time at the noise end, the raw output back."""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ....methods.intrinsic_lora.recipe import flow_time
from ....methods.lora.layers import LoraLayer
from ..batch_rows.fused_layers import bind_layers
from ..batch_rows.row_lora import MapAdapter
from ..loading.folder_files import KeyMap
from .backbone import SingleStep


class FlowToImage(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.IMG_TO_IMG_FLOW):
    """The model's input goes in unscaled, its raw output comes out; noise is not shifted."""


def _model_sampling(model: ModelPatcher) -> nn.Module:
    sampling = FlowToImage()
    # What the network takes for time 1: 1000 (SD 3), or 1.
    sampling.set_parameters(multiplier=float(model.get_model_object("model_sampling").timestep(torch.ones(()))))
    return sampling


def flow_step(key_map: Callable[[Mapping], KeyMap], channels: Callable[[Any], int], context: Callable[[Any], int]) -> SingleStep:
    """key_map: where diffusers' weights go, for ComfyUI's `unet_config`. channels: of latents, that a network takes; context: numbers that
    it takes for a text token.
    """

    def bind_lora(model: ModelPatcher, layers: Mapping[str, LoraLayer], strength: float, source: str) -> MapAdapter:
        targets = key_map(model.model.model_config.unet_config)
        return bind_layers(model.get_model_object("diffusion_model"), layers, targets, strength, source)

    def check(model: ModelPatcher) -> None:
        taken, wanted = channels(model.get_model_object("diffusion_model")), model.get_model_object("latent_format").latent_channels
        if taken != wanted:
            raise ValueError(
                f"This transformer takes {taken} input channels, {wanted} were expected: load a plain text-to-image model, not one for "
                "inpainting or control."
            )

    return SingleStep(
        check=check,
        model_sampling=_model_sampling,
        noise_levels=lambda model, timesteps: flow_time(timesteps),
        context_width=lambda model: context(model.get_model_object("diffusion_model")),
        bind_lora=bind_lora,
        joint_text=True,
    )
