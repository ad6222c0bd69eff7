"""What the transformers that predict a flow have in common: parts of their bases, and the noise end of time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from ...methods.intrinsic_lora.recipe import flow_time
from ...methods.lora.lora_file import peft_state_dict
from ..bases import Base, base_at
from .backbone import TIMESTEP, SingleStep, SingleStepBase, TextEmbeddings, randomly_initialised

# The network, latents, flow times 0..1 of each row, texts of each row -> noise - latent.
Velocity = Callable[[nn.Module, Tensor, Tensor, TextEmbeddings], Tensor]
# Every text encoder that a published LoRA of these networks leaves alone is outside "transformer.".
lora_state = partial(peft_state_dict, prefix="transformer.")


def flow_step(
    models: str,
    network: type[ModelMixin],
    velocity: Velocity,
    encode_text: Callable[[Base, str], TextEmbeddings],
    layers: tuple[str, str, str],
    load_vae: Callable[[Base], nn.Module] = lambda base: base.module(AutoencoderKL, "vae"),
    patch: int = 2,
) -> SingleStep:
    """Intrinsic LoRA's single step on a flow: the velocity at time 1, where noise alone is expected, for a picture's clean latent.

    velocity: by the network in diffusers. encode_text: as ComfyUI's own CLIP for this network encodes a prompt. layers: regular
    expressions for the kinds attention, transformer and wide; each holds the one before. load_vae: with `AutoencoderKL`'s interface.
    """
    attention, blocks, ends = layers

    def load(path: Path, init: str, seed: int) -> SingleStepBase:
        base = base_at(path)
        transformer, vae = base.module(network, "transformer"), load_vae(base)
        for module in (transformer, vae):
            module.requires_grad_(False)
        if init == "random":
            transformer = randomly_initialised(transformer, seed)
        return SingleStepBase(transformer, vae, partial(encode_text, base))

    def raw_output(transformer: nn.Module, latent_bchw: Tensor, text: TextEmbeddings) -> Tensor:
        rows = len(latent_bchw)
        return velocity(transformer, latent_bchw, latent_bchw.new_full((rows,), flow_time(TIMESTEP)), text.expanded(rows))

    return SingleStep(
        models=models,
        load=load,
        raw_output=raw_output,
        layers={"attention": attention, "transformer": f"{attention}|{blocks}", "wide": f"{attention}|{blocks}|{ends}"},
        lora_state=lora_state,
        patch=patch,
    )
