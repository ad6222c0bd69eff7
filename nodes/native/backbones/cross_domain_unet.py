"""Where the exchange of I-LDM holds a Stable Diffusion UNet: the replacement of self-attention between core's own projections."""

from collections.abc import Iterator
from functools import partial

from comfy.ldm.modules import attention
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....methods.ildm.joint_forward import CURRENT, exchange
from ....methods.ildm.schedules import Block

Address = tuple[str, int, int]


def block_addresses(unet: UNetModel) -> dict[Address, Block]:
    """Every self-attention by ComfyUI's address (part, number in the part, transformer block), in order of execution."""
    blocks: dict[Address, Block] = {}
    for part, number, stage, depth in _transformers(unet):
        for inner in range(depth):
            blocks[part, number, inner] = Block(len(blocks), stage)
    return blocks


def _transformers(unet: UNetModel) -> Iterator[tuple[str, int, int, int]]:
    """(part, number, resolution stage, transformer blocks) of every module that holds transformers."""
    stage = 0
    for number, layers in enumerate(unet.input_blocks):
        for layer in layers:
            if isinstance(layer, SpatialTransformer):
                yield "input", number, stage, len(layer.transformer_blocks)
        stage += any(isinstance(layer, Downsample) for layer in layers)
    stage += 1
    for layer in unet.middle_block or ():
        if isinstance(layer, SpatialTransformer):
            yield "middle", 0, stage, len(layer.transformer_blocks)
    stage += 1
    for number, layers in enumerate(unet.output_blocks):
        for layer in layers:
            if isinstance(layer, SpatialTransformer):
                yield "output", number, stage, len(layer.transformer_blocks)
        stage += any(isinstance(layer, Upsample) for layer in layers)


def attach(clone: ModelPatcher, unet: UNetModel) -> tuple[Block, ...]:
    """Puts the exchange into every self-attention of `clone`; returns their blocks in order of execution.

    Raises ValueError where another patch replaces self-attention already: one of the two would be lost without a word.
    """
    taken = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    if taken:
        raise ValueError(
            f"Another node already replaces self-attention of this MODEL ({len(taken)} blocks, first {next(iter(taken))}), and the two "
            "cannot both do so: remove one of them."
        )
    blocks = block_addresses(unet)

    def replaced(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
        part, number = options["block"]
        own_attention = partial(
            attention.optimized_attention, heads=options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
        )
        block = blocks[part, number, options["block_index"]]
        return exchange(CURRENT.get(), block, query, key, value, options["n_heads"], own_attention)

    for part, number in dict.fromkeys((part, number) for part, number, _ in blocks):
        clone.set_model_attn1_replace(replaced, part, number)
    return tuple(blocks.values())
