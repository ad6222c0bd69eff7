"""Rows that meet in the attentions of transformers in which text and picture meet too: I-LDM's exchange, LumiX's maps and Tensor LoRA.

What is met is the picture's tokens. Text stays each row's own: rows share a prompt, whose keys would only be counted twice.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import comfy.utils
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.model_patcher import ModelPatcher
from einops import rearrange, repeat
from torch import Tensor

from ....methods.ildm.joint_forward import exchange_pictures, running
from ....methods.ildm.schedules import Block, transformer_blocks
from ....methods.intrinsic_lora.recipe import flow_timestep
from ....methods.lumix.attention import attend_maps
from ....methods.lumix.design import COLOR, CROSS_INTRINSIC, QUERY_BROADCAST, SEPARATE
from ....methods.lumix.intrinsix import RowAdapter
from ....methods.lumix.tensor_lora.layer import BlockAdapter, Update
from ....methods.rows import Rows
from ..batch_rows.attention_calls import DOUBLE, SINGLE, AttentionCall, AttentionPlace, Tokens, answer_attentions
from ..batch_rows.lumix_rows import KEY as MAPS_KEY
from ..batch_rows.lumix_rows import running as map_forward
from .backbone import BindLora, CrossDomain, MapAttention, TensorLora

DOMAINS_KEY = "intrinsic_lab.cross_domain"
# Of a network, in order of execution.
Attentions = Callable[[Any], tuple[AttentionPlace, ...]]


def in_order(places: Sequence[tuple[str, str, str, str, Callable]]) -> tuple[AttentionPlace, ...]:
    """Attentions in order of execution, by stream, module, entry, exit and tokens; entry and exit as they are named inside the module."""
    return tuple(
        AttentionPlace(block, stream, module, f"{module}.{entry}", f"{module}.{leave}", tokens)
        for block, (stream, module, entry, leave, tokens) in zip(transformer_blocks(len(places)), places, strict=True)
    )


def no_text(args: tuple, kwargs: dict, latent: Tensor) -> Tokens:
    """Of an attention over the picture alone."""
    return Tokens(0)


def cross_domain(attentions: Attentions, bind_lora: BindLora) -> CrossDomain:
    """I-LDM on a transformer that predicts a flow."""

    def attach(clone: ModelPatcher) -> tuple[Block, ...]:
        places = attentions(clone.get_model_object("diffusion_model"))
        answer_attentions(clone, DOMAINS_KEY, places, _exchange)
        return tuple(place.block for place in places)

    return CrossDomain(attach, bind_lora, timestep=lambda sampling, sigma: flow_timestep(sigma).clamp(min=0))


def _exchange(call: AttentionCall) -> Tensor:
    operands = call.query, call.key, call.value
    return exchange_pictures(running(), call.place.block, *operands, call.picture, call.own, call.mask, call.others)


def map_attention(attentions: Attentions) -> MapAttention:
    """Maps that meet in every attention of a transformer."""

    def attach(clone: ModelPatcher, kind: str) -> None:
        answer_attentions(clone, MAPS_KEY, attentions(clone.get_model_object("diffusion_model")), _meeting(kind, {}, 0.0, None))

    return MapAttention(attach)


def tensor_lora(attentions: Attentions) -> Callable[[ModelPatcher, TensorLora], None]:
    """LumiX's adapter on a transformer: its double blocks are those with streams for text and picture, its single ones those of one."""

    def attach(clone: ModelPatcher, lora: TensorLora) -> None:
        network = clone.get_model_object("diffusion_model")
        places = attentions(network)
        if isinstance(lora.adapter, RowAdapter):
            raise ValueError(f"{lora.name} is a LoRA of IntrinsiX, which was made for FLUX.1: load FLUX.1-dev.")
        by_stream = {stream: [place for place in places if place.stream == stream] for stream in (DOUBLE, SINGLE)}
        width = comfy.utils.get_attr(network, places[0].exit).out_features
        require_same_size(lora, width, *map(len, by_stream.values()))
        layers: dict[int, BlockAdapter] = {}
        for stream, chosen in ((DOUBLE, lora.double_blocks), (SINGLE, lora.single_blocks)):
            for number in block_numbers(chosen, len(by_stream[stream]), stream):
                layers[by_stream[stream][number].block.index] = getattr(lora.adapter, f"{stream}_blocks")[number]
        joined = None if lora.double_blocks is None and lora.single_blocks is None else frozenset(layers)
        answer_attentions(clone, MAPS_KEY, places, _meeting(lora.attention, layers if lora.strength else {}, lora.strength, joined))

    return attach


def require_same_size(lora: TensorLora, width: int, double: int, single: int) -> None:
    """Raises ValueError for an adapter of another width or depth than the network's."""
    found, wanted = lora.adapter.size, (width, double, single)
    if found != wanted:
        raise ValueError(
            "{} was trained on a transformer of width {} with {} double and {} single blocks, this MODEL has width {}, {} and {}: load the "
            "base model it belongs to.".format(lora.name, *found, *wanted)
        )


def block_numbers(chosen: Collection[int] | None, depth: int, kind: str) -> Collection[int]:
    """The chosen blocks, None for all. Raises ValueError for numbers that the network has not."""
    if chosen is None:
        return range(depth)
    if beyond := sorted(number for number in chosen if not 0 <= number < depth):
        raise ValueError(f"There is no {kind} block {beyond[0]}: this MODEL has {depth}, numbered 0 to {depth - 1}.")
    return chosen


def _meeting(kind: str, layers: dict[int, BlockAdapter], strength: float, joined: frozenset[int] | None) -> Callable:
    """kind: of `methods.lumix.design.ATTENTIONS`. layers: by place's index. joined: the places where maps meet, None for all."""

    def answer(call: AttentionCall) -> Tensor:
        index = call.place.block.index
        if joined is not None and index not in joined:
            return call.own(call.query, call.key, call.value, call.mask)
        forward = map_forward(call.options)
        forward.ran.append(index)
        # Single streams project all their tokens alike, and share all their queries (LumiX, as released).
        text = 0 if call.place.stream == SINGLE else call.tokens.text
        query, key, value = call.query, call.key, call.value
        if (layer := layers.get(index)) is not None:
            updates = layer.input(forward.rows.split(call.entered), strength)
            for operand, update in zip((value, key, query), reversed(updates), strict=False):
                _add(operand, update, forward.rows, text, call.tokens.rotation if operand is not value else None)
            call.at_exit(lambda out: _added_at_exit(layer, out, forward.rows, strength))
        return _attend(kind, query, key, value, text, call, forward.rows)

    return answer


def _add(operand: Tensor, update: Update, rows: Rows, text: int, rotation: Tensor | None) -> None:
    """operand [row, head, token, dim] += the update of its tokens behind the text, rotated as they are."""
    heads, behind = operand.shape[1], operand[:, :, text:]
    tokens = operand.new_zeros(operand.shape[0], behind.shape[2], heads * operand.shape[3])
    change = rearrange(rows.join(update.add_to_(rows.split(tokens))), "row token (head dim) -> row head token dim", head=heads)
    behind += change if rotation is None else apply_rope1(change, rotation[..., text:, :, :, :]).to(behind.dtype)


def _added_at_exit(layer: BlockAdapter, out: Tensor, rows: Rows, strength: float) -> Tensor:
    grouped = rows.split(out)
    [update] = layer.proj(grouped, strength)
    return rows.join(update.add_to_(grouped))


def _attend(kind: str, query: Tensor, key: Tensor, value: Tensor, text: int, call: AttentionCall, rows: Rows) -> Tensor:
    """[row, token, head x dim]. Through `kernels` where nothing but core has a say in the attention."""
    plain = call.mask is None and not call.others
    if kind == QUERY_BROADCAST:
        shared = rows.of(COLOR, query[:, :, text:])
        if plain:
            own = rows.split(query[:, :, :text]) if text else None
            return _rows_of(attend_maps(kind, shared, rows.split(key), rows.split(value), text_query=own), rows)
        shared = rows.join(repeat(shared, "group ... -> group map ...", map=len(rows.members)))
        return call.own(torch.cat([query[:, :, :text], shared], dim=2), key, value, call.mask)
    if kind == SEPARATE:
        return call.own(query, key, value, call.mask)
    if plain:
        return _rows_of(attend_maps(CROSS_INTRINSIC, *map(rows.split, (query, key, value))), rows)
    maps = len(rows.members)
    q, k, v = (rearrange(rows.split(x), "group map head token dim -> group head (map token) dim") for x in (query, key, value))
    out = call.own(q, k, v, _mask_of_all(call.mask, rows))
    return rows.join(rearrange(out, "group (map token) c -> group map token c", map=maps))


def _mask_of_all(mask: Tensor | None, rows: Rows) -> Tensor | None:
    """Of queries of all maps on keys of all maps: what each map's keys allow."""
    if mask is None:
        return None
    grouped = rows.split(mask.expand(len(rows), *mask.shape[1:]))
    joined = rearrange(grouped, "group map head query key -> group head query (map key)")
    return joined if mask.shape[2] == 1 else joined.repeat(1, 1, len(rows.members), 1)


def _rows_of(out: Tensor, rows: Rows) -> Tensor:
    return rearrange(rows.join(out), "row head token dim -> row token (head dim)")
