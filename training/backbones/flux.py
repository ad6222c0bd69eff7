"""FLUX.1: tokens, positions, text embeddings, one prediction of the flow, and LumiX's maps meeting in its attention."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from torch import Tensor, nn

from ...methods.lumix.attention import attend_maps
from ...methods.lumix.design import QUERY_BROADCAST, Design
from ...methods.lumix.tensor_lora.layer import Adapter, BlockAdapter, MapLayer, Update
from ..bases import Base, base_at
from ..pairs import OnEncoded
from .backbone import Backbone, FlowBase, MapFlow, TextEmbeddings
from .flow import flow_step

PATCH = 2
# Of distilled models, as in ComfyUI where no node sets it.
GUIDANCE = 3.5
# The length to which ComfyUI pads T5's prompts for FLUX.
SINGLE_STEP_TOKENS = 256
# Captions encoded at once.
_CAPTIONS = 64


def pack(latent_bchw: Tensor) -> Tensor:
    """Latents as FLUX's tokens: 2 x 2 patches, channels first."""
    return rearrange(latent_bchw, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The latents `[b, c, height, width]` of tokens."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // PATCH, w=width // PATCH, p=PATCH, q=PATCH)


def position_ids(height: int, width: int) -> Tensor:
    """FLUX's positions `[tokens, 3]` of a latent of `height` x `width`: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height // PATCH), torch.arange(width // PATCH), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()


def predict_velocity(transformer, latent_bchw: Tensor, time_b: Tensor, text: TextEmbeddings, guidance: float = GUIDANCE) -> Tensor:
    """The prediction of noise - latent at flow times 0..1, one per row (FLUX.1).

    guidance: for models that have an embedding for it (FLUX.1-dev), ignored by others.
    """
    height, width = latent_bchw.shape[-2:]
    device, context = latent_bchw.device, text.context
    tokens = transformer(
        hidden_states=pack(latent_bchw),
        encoder_hidden_states=context,
        pooled_projections=text.pooled,
        timestep=time_b,
        guidance=torch.full_like(time_b, guidance) if transformer.config.guidance_embeds else None,
        img_ids=position_ids(height, width).to(device),
        txt_ids=torch.zeros(context.shape[1], 3, device=device),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def encode_text(base: Base, prompt: str) -> TextEmbeddings:
    """As ComfyUI's CLIP for FLUX.1 encodes a prompt."""
    return encode_texts(base.path, [prompt], SINGLE_STEP_TOKENS)


def load_flux_base(path: Path, dtype: torch.dtype = torch.float32) -> FlowBase:
    """Read a FLUX.1 base, the transformer in `dtype`, the VAE in float32. Raises ValueError if a part is missing."""
    base = base_at(path)
    transformer, vae = base.module(FluxTransformer2DModel, "transformer", dtype), base.module(AutoencoderKL, "vae")
    for module in (transformer, vae):
        module.requires_grad_(False)
    return FlowBase(transformer, vae)


@torch.no_grad()
def encode_texts(
    path: Path,
    texts: Sequence[str],
    tokens: int = 512,
    device: torch.device | str = "cpu",
    on_encoded: OnEncoded | None = None,
) -> TextEmbeddings:
    """What the text encoders of a FLUX.1 base make of `texts`, float32 on the CPU; they are let go afterwards.

    tokens: length of T5's context, less where its tokenizer is made for less. on_encoded: see `pairs.OnEncoded`.
    """
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    base = base_at(path)
    words, pieces = base.tokenizer(CLIPTokenizer, "tokenizer"), base.tokenizer(T5TokenizerFast, "tokenizer_2")
    clip, t5 = base.module(CLIPTextModel, "text_encoder").to(device), base.module(T5EncoderModel, "text_encoder_2").to(device)
    length = min(tokens, pieces.model_max_length)
    limits = {clip: min(words.model_max_length, clip.config.max_position_embeddings), t5: length}
    context, pooled = [], []
    for start in range(0, len(texts), _CAPTIONS):
        part = list(texts[start : start + _CAPTIONS])
        ids = {
            encoder: tokenizer(part, padding="max_length", max_length=limits[encoder], truncation=True, return_tensors="pt").input_ids
            for encoder, tokenizer in ((clip, words), (t5, pieces))
        }
        pooled.append(clip.eval()(ids[clip].to(device)).pooler_output.float().cpu())
        # Without a mask, as the pipelines do: what follows the text is part of what the model knows.
        context.append(t5.eval()(ids[t5].to(device)).last_hidden_state.float().cpu())
        if on_encoded is not None:
            on_encoded("captions", start + len(part), len(texts))
    return TextEmbeddings(torch.cat(context), pooled=torch.cat(pooled))


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


def _add_projection(layer: MapLayer, maps: int) -> Callable:
    """A forward hook that adds the update computed from a projection's output to that output."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        grouped = rearrange(output, "(group map) token dim -> group map token dim", map=maps)
        (update,) = layer(grouped)
        # A copy: the gradient of the update needs the output as it was.
        return update.add_to_(grouped.clone()).flatten(0, 1)

    return hook


def _blocks(blocks: nn.ModuleList) -> list[BlockAdapter]:
    return [block for block in blocks if isinstance(block, BlockAdapter)]


def join_maps(transformer: FluxTransformer2DModel, adapter: Adapter) -> None:
    """Puts the adapter into `transformer`, which then takes groups of maps only: rows are `(group map)`."""
    design = adapter.config.design
    for block, own in zip(transformer.transformer_blocks, _blocks(adapter.double_blocks), strict=True):
        block.attn.set_processor(MapAttention(own.input, design))
        block.attn.to_out[0].register_forward_hook(_add_projection(own.proj, len(design.maps)))
    for block, own in zip(transformer.single_transformer_blocks, _blocks(adapter.single_blocks), strict=True):
        block.attn.set_processor(MapAttention(own.input, design))
        block.proj_out.register_forward_hook(_add_projection(own.proj, len(design.maps)))


def adapter_sizes(transformer: FluxTransformer2DModel) -> tuple[int, int, int]:
    """Width, double blocks and single blocks."""
    config = transformer.config
    return config.num_attention_heads * config.attention_head_dim, config.num_layers, config.num_single_layers


_BLOCKS = r"(?:single_)?transformer_blocks\.\d+"

FLUX = Backbone(
    name="flux",
    part="transformer",
    network=FluxTransformer2DModel,
    single_step=flow_step(
        "FLUX.1",
        FluxTransformer2DModel,
        predict_velocity,
        encode_text,
        (
            rf"{_BLOCKS}\.attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|single_transformer_blocks\.\d+\.proj_out",
            rf"{_BLOCKS}\.(?:proj_mlp|ff(?:_context)?\.net\.(?:0\.proj|2))",
            rf"{_BLOCKS}\.norm1?(?:_context)?\.linear|norm_out\.linear|x_embedder|context_embedder|proj_out",
        ),
    ),
    map_flow=MapFlow("FLUX.1", PATCH, load_flux_base, encode_texts, adapter_sizes, join_maps, predict_velocity),
)
