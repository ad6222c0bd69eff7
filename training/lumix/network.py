"""LumiX inside a diffusers FLUX.1: rows are the maps of a picture, which meet in attention and in the adapter; only the adapter learns."""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor, nn

from ...methods.lumix.attention import attend_maps
from ...methods.lumix.design import QUERY_BROADCAST, Design
from ...methods.lumix.tensor_lora.config import AdapterConfig
from ...methods.lumix.tensor_lora.layer import Adapter, BlockAdapter, MapLayer, Update
from ..flux import FluxText, predict_velocity


class MapAttention:
    """A diffusers attention processor for a FLUX block whose rows are `(group map)`.

    The layer's updates go to keys after their RMS norm, and to values; with `design.adapt_query` also to queries.
    """

    def __init__(self, layer: MapLayer, design: Design):
        self.layer, self.design = layer, design

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if attention_mask is not None or image_rotary_emb is None:
            raise ValueError("the attention of maps takes no mask and needs FLUX's positions: use it in a FLUX.1 transformer only.")
        x = self._by_group(hidden_states)
        text_tokens = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        updates = self.layer(x)
        rotary = _positions(image_rotary_emb, slice(text_tokens, None))
        query = _rotated(self._query(attn, x, updates), rotary)
        key = _rotated(_updated(_normed(attn.norm_k, attn.to_k(x)), updates[-2]), rotary)
        value = _updated(_heads(attn.to_v(x), attn.head_dim), updates[-1])
        text_query = None
        if encoder_hidden_states is not None:
            text = self._by_group(encoder_hidden_states)
            rotary = _positions(image_rotary_emb, slice(text_tokens))
            text_query = _rotated(_normed(attn.norm_added_q, attn.add_q_proj(text)), rotary)
            text_key = _rotated(_normed(attn.norm_added_k, attn.add_k_proj(text)), rotary)
            key = torch.cat([text_key, key], dim=-3)
            value = torch.cat([_heads(attn.add_v_proj(text), attn.head_dim), value], dim=-3)
            text_query = text_query.transpose(-2, -3)
        query, key, value = (part.transpose(-2, -3) for part in (query, key, value))
        if self.design.attention == QUERY_BROADCAST:
            query = query.squeeze(1)
        output = attend_maps(self.design.attention, query, key, value, text_query=text_query)
        output = rearrange(output, "group map head token dim -> (group map) token (head dim)")
        if not text_tokens:
            return output
        text_output, output = output[:, :text_tokens], output[:, text_tokens:]
        return attn.to_out[1](attn.to_out[0](output)), attn.to_add_out(text_output)

    def _by_group(self, rows: Tensor) -> Tensor:
        return rearrange(rows, "(group map) token dim -> group map token dim", map=len(self.design.maps))

    def _query(self, attn: Attention, x: Tensor, updates: tuple[Update, ...]) -> Tensor:
        """Of all maps; of the colour map alone where it is broadcast."""
        only = slice(None)
        if self.design.attention == QUERY_BROADCAST:
            only = slice(self.design.color_row, self.design.color_row + 1)
        query = _normed(attn.norm_q, attn.to_q(x[:, only]))
        if self.design.adapt_query:
            update = updates[0]
            query = _updated(query, Update(update.hidden[:, only], update.up[only], update.scale))
        return query


def _positions(rotary: tuple[Tensor, Tensor], tokens: slice) -> tuple[Tensor, Tensor]:
    cosines, sines = rotary
    return cosines[tokens], sines[tokens]


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim))


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return norm(_heads(x, norm.normalized_shape[0]))


def _updated(x: Tensor, update: Update) -> Tensor:
    return update.add_to_(x.flatten(-2)).view(x.shape)


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    rows = rearrange(x, "group map token head dim -> (group map) token head dim")
    return apply_rotary_emb(rows, rotary, sequence_dim=1).view(x.shape)


def _add_projection(layer: MapLayer, maps: int):
    """A forward hook that adds the update computed from a projection's output to that output."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        grouped = rearrange(output, "(group map) token dim -> group map token dim", map=maps)
        (update,) = layer(grouped)
        # A copy: the gradient of the update needs the output as it was.
        return update.add_to_(grouped.clone()).flatten(0, 1)

    return hook


def _blocks(blocks: nn.ModuleList) -> list[BlockAdapter]:
    return [block for block in blocks if isinstance(block, BlockAdapter)]


class MapDenoiser(nn.Module):
    """The maps of pictures in one forward of a frozen FLUX.1. Puts the adapter into `transformer`, which then takes groups of maps only."""

    def __init__(self, transformer: FluxTransformer2DModel, adapter: Adapter, guidance: float = 3.5):
        super().__init__()
        design = adapter.config.design
        self.transformer, self.adapter, self.guidance = transformer.requires_grad_(False), adapter, guidance
        self.maps = len(design.maps)
        for block, own in zip(transformer.transformer_blocks, _blocks(adapter.double_blocks), strict=True):
            block.attn.set_processor(MapAttention(own.input, design))
            block.attn.to_out[0].register_forward_hook(_add_projection(own.proj, self.maps))
        for block, own in zip(transformer.single_transformer_blocks, _blocks(adapter.single_blocks), strict=True):
            block.attn.set_processor(MapAttention(own.input, design))
            block.proj_out.register_forward_hook(_add_projection(own.proj, self.maps))

    def forward(self, latent_gmchw: Tensor, time_gm: Tensor, text: FluxText) -> Tensor:
        """Velocity noise - latent `[group, map, c, h, w]`. time_gm: flow times 0..1, a map its own; text: of n = group texts."""
        repeated = FluxText(*(part.repeat_interleave(self.maps, dim=0) for part in (text.context, text.pooled)))
        velocity = predict_velocity(self.transformer, latent_gmchw.flatten(0, 1), time_gm.flatten(), repeated, self.guidance)
        return velocity.unflatten(0, latent_gmchw.shape[:2])


def make_adapter(transformer: FluxTransformer2DModel, design: Design, rank: int, other_rank: int, seed: int) -> Adapter:
    """An adapter that fits `transformer` and changes nothing until it is trained."""
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    sizes = AdapterConfig(design, width, config.num_layers, config.num_single_layers, rank, other_rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapter(sizes)
