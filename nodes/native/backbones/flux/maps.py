"""LumiX in FLUX.1's blocks, as core's block replacements: shared queries, Tensor LoRA after the key's norm and after the output projection.

A replaced block does what core's block does, through the block's own layers, so LoRAs, fp8 and partly loaded weights keep their effect;
patches of core and of other packs inside the block still run. Where nothing but core itself has a say in the attention, it runs through
`kernels`, and the query is projected for the colour map alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.flux.layers import DoubleStreamBlock, QKNorm, SingleStreamBlock, apply_mod
from comfy.ldm.flux.math import apply_rope, apply_rope1
from comfy.ldm.flux.math import attention as core_attention
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from einops import rearrange, repeat
from torch import Tensor, nn

from .....kernels.tensor_lora import norm_lora_rotary
from .....methods.lumix.attention import attend_maps, images_of_all
from .....methods.lumix.design import COLOR, CROSS_INTRINSIC, IMAGE_SHARING, QUERY_BROADCAST, SEPARATE
from .....methods.lumix.intrinsix import RowAdapter, RowBlock
from .....methods.lumix.tensor_lora.layer import BlockAdapter, Update
from .....methods.rows import Rows
from ...batch_rows.lumix_rows import running
from ..backbone import TensorLora
from ..joint_attention import block_numbers, require_same_size

# Older versions of core have no attn1_patch in FLUX; there it must not start to act because of us.
_CORE_RUNS_ATTN1_PATCH = "attn1_patch" in DoubleStreamBlock.forward.__code__.co_consts
# Of a feed-forward part, activated at once: 24 MB of FLUX, which an allocator gives again without asking the system.
_TOKENS_AT_ONCE = 1024
_PLAIN_LINEARS = (comfy.ops.disable_weight_init.Linear, comfy.ops.manual_cast.Linear)


def join_maps_in(clone: ModelPatcher, map_attention: str) -> None:
    """Joins maps in every block of `clone`, without weights; map_attention: of `methods.lumix.design.ATTENTIONS`."""
    network: Flux = clone.get_model_object("diffusion_model")
    for kind, count in _depth(network).items():
        for number in range(count):
            _replace(clone, kind, number, Attention(map_attention, None, 0.0))


def attach_tensor_lora(clone: ModelPatcher, lora: TensorLora) -> None:
    """Joins maps in the chosen blocks of `clone`, with the adapter's update. Raises ValueError for another width or depth."""
    network: Flux = clone.get_model_object("diffusion_model")
    require_same_size(lora, network.hidden_size, *_depth(network).values())
    chosen = {"double": lora.double_blocks, "single": lora.single_blocks}
    for kind, count in _depth(network).items():
        for number in block_numbers(chosen[kind], count, kind):
            layer = getattr(lora.adapter, f"{kind}_blocks")[number] if lora.strength else None
            attention = RowAttention if isinstance(lora.adapter, RowAdapter) else Attention
            _replace(clone, kind, number, attention(lora.attention, layer, lora.strength))


def _depth(network: Flux) -> dict[str, int]:
    """How many blocks of each kind."""
    return {"double": len(network.double_blocks), "single": len(network.single_blocks)}


def _replace(clone: ModelPatcher, kind: str, number: int, shared: "Attention") -> None:
    """Replaces one block; a replacement that is there already stays, around ours."""
    taken = clone.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    ours = {"double": double_block, "single": single_block}[kind](number, shared)
    clone.set_model_patch_replace(_inside(taken.get((f"{kind}_block", number)), ours), "dit", f"{kind}_block", number)


def _inside(outer: Callable | None, ours: Callable) -> Callable:
    """Another pack's replacement of the same block, which calls the original block: ours is the original to it."""
    if outer is None:
        return lambda args, extra: ours(args)
    return lambda args, extra: outer(args, {**extra, "original_block": ours})


@dataclass(frozen=True)
class Projected:
    """Projections of a block's modulated input x [row, token, width]; the query of colour rows only where it is broadcast."""

    x: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class Attention:
    """Projections of one stream and the attention of a block, of one kind (`methods.lumix.design`) and with a block's update of LumiX."""

    def __init__(self, kind: str, layer: BlockAdapter | None, strength: float):
        self.kind, self.layer, self.strength = kind, layer, strength

    def project(self, linear: nn.Module, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The query, of the colour map's rows alone where it is broadcast, and all that follows it in the fused projection."""
        width = x.shape[-1]
        if self.kind != QUERY_BROADCAST:
            projected = linear(x)
            return projected[..., :width], projected[..., width:]
        if not _is_plain(linear):
            projected = linear(x)
            return rows.of(COLOR, projected[..., :width]), projected[..., width:]
        weight, bias, stream = comfy.ops.cast_bias_weight(linear, x, offloadable=True)
        query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        query, others = F.linear(rows.of(COLOR, x), weight[:width], query_bias), F.linear(x, weight[width:], other_bias)
        comfy.ops.uncast_bias_weight(linear, weight, bias, stream)
        return query, others

    def _updates(self, x: Tensor, rows: Rows) -> tuple[Update | None, Update | None, Update | None]:
        """Of query, key and value."""
        if self.layer is None:
            return None, None, None
        found = self.layer.input(rows.split(x), self.strength)
        return (None,) * (3 - len(found)) + tuple(found)

    def project_out(self, linear: nn.Module, x: Tensor, rows: Rows) -> Tensor:
        """The output projection with its update."""
        out = linear(x)
        if self.layer is None:
            return out
        grouped = rows.split(out)
        [update] = self.layer.proj(grouped, self.strength)
        return rows.join(update.add_to_(grouped))

    def attend(
        self, projected: Projected, norm: QKNorm, heads: int, text: tuple[Tensor, ...] | None, args: dict, rows: Rows
    ) -> tuple[Tensor | None, Tensor]:
        """Attention of text tokens, if they have a stream of their own, and of the rest: [row, token, width] each.

        text: query, key, value [row, head, token, dim], normed. args: what core hands to the block.
        """
        options, mask, pe = args["transformer_options"], args.get("attn_mask"), args["pe"]
        query_update, key_update, value_update = self._updates(projected.x, rows)
        key, value = projected.key, projected.value
        query = norm.query_norm(_by_head(projected.query, heads)).to(value.dtype)
        if query_update is not None:
            query = self._add_to_query(query, query_update, rows)
        if value_update is not None:
            value = rows.join(value_update.add_to_(rows.split(value)))
        value = _by_head(value, heads)
        length = None if text is None else text[0].shape[2]
        patched = _CORE_RUNS_ATTN1_PATCH and "attn1_patch" in options.get("patches", {})
        others = mask is not None or patched or options.get("optimized_attention_override") is not None
        if self.kind == SEPARATE or others or pe is None:
            out = self._through_core(query, _by_head(key, heads), value, norm, key_update, text, mask, pe, options, rows)
            return _output_patched(out, length, options)
        key = _rotated_key(norm, _by_head(key, heads), key_update, pe[:, :, length:], rows)
        query = apply_rope1(query, pe[: query.shape[0], :, length:])
        if self.kind != QUERY_BROADCAST:
            query = rows.split(query)
        if text is None:
            kind = CROSS_INTRINSIC if self.kind == IMAGE_SHARING else self.kind
            return _output_patched(_joined(attend_maps(kind, query, rows.split(key), rows.split(value)), rows), length, options)
        text_query, text_key = apply_rope(text[0], text[1], pe[:, :, :length])
        key, value = (rows.split(torch.cat(streams, dim=2)) for streams in ((text_key, key), (text[2], value)))
        kind = self.kind
        if kind == IMAGE_SHARING:
            key, value, kind = images_of_all(key, text_key.shape[2]), images_of_all(value, text_key.shape[2]), SEPARATE
        # Apart, because the projections that follow are apart: no copy joins them. Text queries stay per map.
        text_kind = SEPARATE if kind == QUERY_BROADCAST else kind
        text_out = _joined(attend_maps(text_kind, rows.split(text_query), key, value), rows)
        out = _joined(attend_maps(kind, query, key, value), rows)
        if not _output_patches(options):
            return text_out, out
        return _output_patched(torch.cat([text_out, out], dim=1), length, options)

    def _add_to_query(self, query: Tensor, update: Update, rows: Rows) -> Tensor:
        tokens = rearrange(query, "row head token dim -> row token (head dim)").contiguous()
        if self.kind == QUERY_BROADCAST:
            color = rows.members.index(COLOR)
            one = slice(color, color + 1)
            tokens = Update(update.hidden[:, one], update.up[one], update.scale).add_to_(tokens.unsqueeze(1)).squeeze(1)
        else:
            tokens = rows.join(update.add_to_(rows.split(tokens)))
        return _by_head(tokens, query.shape[1])

    def _through_core(self, query, key, value, norm, key_update, text, mask, pe, options, rows) -> Tensor:
        """As core's block does it: every row has its query, patches run, core chooses the attention."""
        key = norm.key_norm(key).to(value.dtype)
        if key_update is not None:
            tokens = rearrange(key, "row head token dim -> row token (head dim)").contiguous()
            key = _by_head(rows.join(key_update.add_to_(rows.split(tokens))), key.shape[1])
        if self.kind == QUERY_BROADCAST:
            query = rows.join(repeat(query, "group ... -> group map ...", map=len(rows.members)))
        extra = {**options}
        if text is not None:
            query, key, value = (torch.cat(pair, dim=2) for pair in zip(text, (query, key, value), strict=True))
            extra["img_slice"] = [text[0].shape[2], query.shape[2]]
        if _CORE_RUNS_ATTN1_PATCH:
            for patch in options.get("patches", {}).get("attn1_patch", ()):
                changed = patch(query, key, value, pe=pe, attn_mask=mask, extra_options=extra)
                query, key, value = (changed.get(name, old) for name, old in (("q", query), ("k", key), ("v", value)))
                pe, mask = changed.get("pe", pe), changed.get("attn_mask", mask)
        if self.kind not in (CROSS_INTRINSIC, IMAGE_SHARING):
            return core_attention(query, key, value, pe=pe, mask=mask, transformer_options=options)
        if pe is not None:
            query, key = apply_rope(query, key, pe)
        own = text[0].shape[2] if text is not None and self.kind == IMAGE_SHARING else 0
        key, value = (rows.join(images_of_all(rows.split(tensor), own)) for tensor in (key, value))
        if mask is not None:
            mask = torch.cat([mask[..., :own], mask[..., own:].repeat(*[1] * (mask.ndim - 1), len(rows.members))], dim=-1)
        return optimized_attention(query, key, value, query.shape[1], skip_reshape=True, mask=mask, transformer_options=options)


class RowAttention(Attention):
    """With a block's LoRAs of IntrinsiX: of the projections' weights, for each row its own, so before the norms of queries and keys."""

    def __init__(self, kind: str, block: RowBlock | None, strength: float):
        super().__init__(kind, None, strength)
        self.block = block

    def project(self, linear: nn.Module, x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.block is None:
            return super().project(linear, x, rows)
        width, projected = x.shape[-1], linear(x)
        parts = projected[..., : 3 * width].split(width, dim=-1)
        updates = self.block.input(rows.split(x), self.strength)
        query, key, value = (rows.join(update.add_to_(rows.split(part))) for update, part in zip(updates, parts, strict=True))
        return query, torch.cat([key, value, projected[..., 3 * width :]], dim=-1)

    def project_out(self, linear: nn.Module, x: Tensor, rows: Rows) -> Tensor:
        out = linear(x)
        if self.block is None or self.block.proj is None:
            return out
        [update] = self.block.proj(rows.split(x), self.strength)
        return rows.join(update.add_to_(rows.split(out)))


def _is_plain(linear: nn.Module) -> bool:
    """Whether a Linear is core's own and nobody has a say in its forward: then its weight may be used in parts."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    return type(linear) in _PLAIN_LINEARS and "forward" not in vars(linear) and not hooks


def _by_head(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "row token (head dim) -> row head token dim", head=heads)


def _rotated_key(norm: QKNorm, key: Tensor, update: Update | None, pe: Tensor, rows: Rows) -> Tensor:
    """rotate(norm(key) + update), [row, head, token, dim]; the rotation is the same for all rows."""
    if update is None:
        return apply_rope1(norm.key_norm(key).to(key.dtype), pe)
    weight, bias, stream = comfy.ops.cast_bias_weight(norm.key_norm, key, offloadable=True)
    eps = torch.finfo(key.dtype).eps if norm.key_norm.eps is None else norm.key_norm.eps
    rotated = norm_lora_rotary(rows.split(key), weight, update.hidden, update.up, pe[0, 0], update.scale, eps=eps)
    comfy.ops.uncast_bias_weight(norm.key_norm, weight, bias, stream)
    return rows.join(rotated)


def double_block(number: int, shared: Attention) -> Callable:
    def run(args: dict) -> dict:
        rows, block = _running(args, "double_blocks", number)
        img, txt, vec = args["img"], args["txt"], args["vec"]
        img_mod1, img_mod2 = block.img_mod(vec)
        txt_mod1, txt_mod2 = block.txt_mod(vec)
        image = apply_mod(block.img_norm1(img), 1 + img_mod1.scale, img_mod1.shift)
        query, others = shared.project(block.img_attn.qkv, image, rows)
        projected = Projected(image, query, *others.chunk(2, dim=-1))
        text = block.txt_attn.qkv(apply_mod(block.txt_norm1(txt), 1 + txt_mod1.scale, txt_mod1.shift))
        text = rearrange(text, "row token (part head dim) -> part row head token dim", part=3, head=block.num_heads)
        text = (*block.txt_attn.norm(*text), text[2])
        text_out, out = shared.attend(projected, block.img_attn.norm, block.num_heads, text, args, rows)
        # Let go before the widest tensors of the block are made.
        del image, query, others, projected, text
        img += shared.project_out(block.img_attn.proj, out, rows).mul_(img_mod1.gate)
        img += block.img_mlp(apply_mod(block.img_norm2(img), 1 + img_mod2.scale, img_mod2.shift)).mul_(img_mod2.gate)
        txt += block.txt_attn.proj(text_out).mul_(txt_mod1.gate)
        txt += block.txt_mlp(apply_mod(block.txt_norm2(txt), 1 + txt_mod2.scale, txt_mod2.shift)).mul_(txt_mod2.gate)
        return {"img": img, "txt": _finite(txt)}

    return run


def single_block(number: int, shared: Attention) -> Callable:
    def run(args: dict) -> dict:
        rows, block = _running(args, "single_blocks", number)
        x = args["img"]
        modulation, _ = block.modulation(args["vec"])
        modulated = apply_mod(block.pre_norm(x), 1 + modulation.scale, modulation.shift)
        query, others = shared.project(block.linear1, modulated, rows)
        key, value, mlp = others.split([block.hidden_size, block.hidden_size, block.mlp_hidden_dim], dim=-1)
        _, out = shared.attend(Projected(modulated, query, key, value), block.norm, block.num_heads, None, args, rows)
        # The attention's output takes the value's place beside the feed-forward part: the widest tensor of the block is made once.
        value.copy_(out)
        for tokens in mlp.flatten(0, 1).split(_TOKENS_AT_ONCE):
            tokens.copy_(block.mlp_act(tokens))
        del modulated, query, out
        both = others[..., block.hidden_size :]
        x += shared.project_out(block.linear2, both if _is_plain(block.linear2) else both.contiguous(), rows).mul_(modulation.gate)
        return {"img": _finite(x)}

    return run


def _running(args: dict, kind: str, number: int) -> tuple[Rows, DoubleStreamBlock | SingleStreamBlock]:
    """The rows of the forward that runs, and the block of the network that runs it (which may be a copy on another GPU)."""
    forward = running(args["transformer_options"])
    forward.ran.append((kind, number))
    if args["vec"].ndim != 2:
        raise ValueError("Reference latents at timestep zero cannot be combined with LumiX: choose another reference latents method.")
    return forward.rows, getattr(forward.network, kind)[number]


def _output_patches(options: dict) -> tuple:
    return tuple(options.get("patches", {}).get("attn1_output_patch", ()))


def _output_patched(out: Tensor, length: int | None, options: dict) -> tuple[Tensor | None, Tensor]:
    """What patches make of a block's attention [row, token, width]; split after `length` text tokens where they have their own stream."""
    extra = dict(options) if length is None else {**options, "img_slice": [length, out.shape[1]]}
    for patch in _output_patches(options):
        out = patch(out, extra)
    return (None, out) if length is None else (out[:, :length], out[:, length:])


def _joined(out: Tensor, rows: Rows) -> Tensor:
    return rearrange(rows.join(out), "row head token dim -> row token (head dim)")


def _finite(x: Tensor) -> Tensor:
    """As core keeps float16 from overflowing."""
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x
