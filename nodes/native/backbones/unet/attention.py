"""Self-attentions of a Stable Diffusion UNet, in core's own patch points between its projections: I-LDM's exchange, and maps that meet."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from comfy.ldm.modules import attention
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from comfy.model_patcher import ModelPatcher
from einops import rearrange, repeat
from torch import Tensor

from .....methods.ildm.joint_forward import exchange, running
from .....methods.ildm.schedules import Block
from .....methods.intrinsic_lora.anchor import attend_with_anchor
from .....methods.lumix.attention import attend_maps
from .....methods.lumix.design import COLOR, CROSS_INTRINSIC, QUERY_BROADCAST
from .....methods.rows import Rows, in_query_windows
from ...batch_rows.lumix_rows import running as map_forward
from ..backbone import ANCHOR

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


def _replace(clone: ModelPatcher, addresses: Iterable[Address], replacement: Callable, refusal: str) -> None:
    """Replaces self-attention at these addresses. Raises ValueError, ending in `refusal`, where another patch does so already."""
    taken = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    if taken:
        raise ValueError(
            f"Another node already replaces self-attention of this MODEL ({len(taken)} blocks, first {next(iter(taken))}), and {refusal}"
        )
    for part, number in dict.fromkeys((part, number) for part, number, _ in addresses):
        clone.set_model_attn1_replace(replacement, part, number)


def exchange_in(clone: ModelPatcher) -> tuple[Block, ...]:
    """Puts the exchange into every self-attention of `clone`; returns their blocks in order of execution.

    Raises ValueError where another patch replaces self-attention already: one of the two would be lost without a word.
    """
    blocks = block_addresses(clone.get_model_object("diffusion_model"))

    def replaced(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
        part, number = options["block"]
        own_attention = partial(
            attention.optimized_attention, heads=options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
        )
        block = blocks[part, number, options["block_index"]]
        return exchange(running(), block, query, key, value, options["n_heads"], own_attention)

    _replace(clone, blocks, replaced, "the two cannot both do so: remove one of them.")
    return tuple(blocks.values())


def read_anchor_in(clone: ModelPatcher) -> None:
    """Lets the rows of every self-attention of `clone` read their anchor's keys. Raises ValueError where another patch replaces it."""
    refusal = "frames could not read their anchor there: remove it, or set the anchor weight to 0."
    _replace(clone, block_addresses(clone.get_model_object("diffusion_model")), _anchored, refusal)


def join_maps_in(clone: ModelPatcher, map_attention: str) -> None:
    """Joins maps in every self-attention of `clone`; map_attention: of `methods.lumix.design.ATTENTIONS`.

    The query is broadcast before its projection, which goes with every other patch. Cross-intrinsic attention is a replacement: raises
    ValueError where another one sits.
    """
    if map_attention == CROSS_INTRINSIC:
        addresses = block_addresses(clone.get_model_object("diffusion_model"))
        refusal = "cross-intrinsic attention would do so too: remove one of them, or choose query-broadcast."
        _replace(clone, addresses, _cross_intrinsic, refusal)
    else:
        clone.set_model_attn1_patch(_broadcast if map_attention == QUERY_BROADCAST else _note)


def _note(query: Tensor, key: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    _running(options)
    return query, key, value


def _broadcast(query: Tensor, key: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """attn1_patch: every map's query is made from the colour map's tokens."""
    rows = _running(options)
    return rows.join(repeat(rows.of(COLOR, query), "group ... -> group map ...", map=len(rows.members))), key, value


def _cross_intrinsic(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """attn1 replacement: queries of every map on the keys of all of them."""
    rows = _running(options)
    key, value = in_query_windows(query, key, value)
    grouped = [
        rearrange(rows.split(x), "group map token (head dim) -> group map head token dim", head=options["n_heads"])
        for x in (query, key, value)
    ]
    out = rows.join(attend_maps(CROSS_INTRINSIC, *grouped))
    return rearrange(out, "row head token dim -> row token (head dim)")


def _anchored(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    return attend_with_anchor(options[ANCHOR], query, key, value, options["n_heads"])


def _running(options: dict) -> Rows:
    """The rows of the forward that runs, which learns that a block of it ran."""
    forward = map_forward(options)
    forward.ran.append(options.get("block"))
    return forward.rows
