"""PixArt-alpha: loading it at any width, its LoRA layers, and the exchange of I-LDM in its self-attention modules, as object patches."""

from collections.abc import Callable, Mapping

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.text_encoders.pixart_t5
import comfy.utils
import torch
from comfy.ldm.modules import attention
from comfy.ldm.pixart.blocks import AttentionKVCompress
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from ....methods.ildm.joint_forward import exchange, running
from ....methods.ildm.schedules import Block, transformer_blocks
from ....methods.lora.layers import LoraLayer
from ..batch_rows.fused_layers import bind_layers
from ..batch_rows.row_lora import MapAdapter
from ..loading.folder_files import MOST_LAYERS, ModelFolderError, read_config, read_weights, rename, require_numbers, require_options
from ..loading.patcher import build_patcher, configure, require_channels
from ..loading.sampling import read_diffusion_schedule
from ..loading.text_encoder import TextFamily, TextPart
from .backbone import JOINT_LORA, Backbone, CrossDomain, Family, LoadRequest

PART = "PixArt transformer"
# What ComfyUI's PixArt fixes; first the value that diffusers takes when the config does not say.
FIXED_OPTIONS = {
    "norm_type": ("ada_norm_single",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "num_embeds_ada_norm": (1000, None),
    "num_vector_embeds": (None,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
}
TEXT_TOKENS = 120
# ComfyUI's PixArt scales positions to a base size of round(mean side / 64) * 64 latent pixels: below 33 that is zero, and divides by it.
SMALLEST_MEAN_SIDE = 33


def pixart_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a PixArtTransformer2DModel (or the older Transformer2DModel) of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("attention_head_dim", "num_attention_heads", "num_layers"), PART, MOST_LAYERS, least=0)
    require_numbers(config, ("patch_size", "in_channels", "out_channels", "sample_size", "caption_channels"), PART)
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    patch, channels, sample = config.get("patch_size") or 2, config["in_channels"], config.get("sample_size") or 128
    uses_size = config.get("use_additional_conditions")
    uses_size = sample == 128 if uses_size is None else uses_size
    if hidden % 4 or (uses_size and hidden % 3):
        raise ModelFolderError(
            f"The {PART} is {hidden} wide: its positions need a multiple of 4, and size conditions (use_additional_conditions) a "
            "multiple of 3 too."
        )
    if config.get("cross_attention_dim", hidden) not in (None, hidden):
        raise ModelFolderError(f"The {PART} has cross_attention_dim {config['cross_attention_dim']}, its own width {hidden} was expected.")
    out_channels = config.get("out_channels") or channels
    if out_channels not in (channels, 2 * channels):
        raise ModelFolderError(f"The {PART} gives {out_channels} channels for {channels}: as many, or twice as many, were expected.")
    return {
        "image_model": "pixart_alpha",
        "num_heads": config["num_attention_heads"],
        "hidden_size": hidden,
        "patch_size": patch,
        "depth": config.get("num_layers", 28),
        "in_channels": channels,
        "pred_sigma": out_channels == 2 * channels,
        "caption_channels": config.get("caption_channels") or 4096,
        "micro_condition": bool(uses_size),
        "pe_interpolation": config.get("interpolation_scale") or max(sample // 64, 1),
        "model_max_length": TEXT_TOKENS,
        "input_size": sample,
    }


class AnyWidthPixArt(comfy.supported_models.PixArtAlpha):
    """PixArt-alpha by the folder's own numbers and prediction."""

    prediction = comfy.model_base.ModelType.EPS

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.PixArt(self, model_type=self.prediction, device=device).eval()


def _refuse_small_latents(executor, x, *args, **kwargs):
    """APPLY_MODEL wrapper: says what ComfyUI's PixArt would only divide by zero on."""
    height, width = x.shape[-2:]
    if (height + width) // 2 < SMALLEST_MEAN_SIDE:
        raise ValueError(
            f"PixArt got a latent of {height} x {width}; in ComfyUI its height and width must be {SMALLEST_MEAN_SIDE} or more on "
            f"average ({8 * SMALLEST_MEAN_SIDE} pixels): use a larger picture, such as 512 x 512."
        )
    return executor(x, *args, **kwargs)


def load_pixart(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    part = request.folder / "transformer"
    native = pixart_config(read_config(part))
    require_channels(native["in_channels"], request.latent_format, PART)
    weights = rename(read_weights(part), comfy.utils.pixart_to_diffusers(native), PART, ignore=("pos_embed.pos_embed",))
    # Only dropped captions in training use it; diffusers does not save it.
    weights.setdefault("y_embedder.y_embedding", torch.zeros(TEXT_TOKENS, native["caption_channels"]))
    model_config = configure(AnyWidthPixArt(native), read_diffusion_schedule(request.folder / "scheduler"), request.latent_format)
    patcher = build_patcher(model_config, weights, PART, request.dtype, request.disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "intrinsic_lab_pixart_size", _refuse_small_latents)
    return patcher


def exchange_in(clone: ModelPatcher) -> tuple[Block, ...]:
    """Puts the exchange into every self-attention of `clone`; returns their blocks. Raises ValueError where another patch sits."""
    blocks = transformer_blocks(len(clone.get_model_object("diffusion_model").blocks))
    for block in blocks:
        name = f"diffusion_model.blocks.{block.index}.attn"
        if taken := [patched for patched in clone.object_patches if patched.startswith(name)]:
            raise ValueError(f"Another node already patches {taken[0]} of this MODEL, and the two cannot both do so: remove one of them.")
        clone.add_object_patch(f"{name}.forward", _forward(clone.get_model_object(name), block))
    return blocks


def _forward(attn: AttentionKVCompress, block: Block) -> Callable:
    """`AttentionKVCompress.forward` with the exchange in the place of its attention."""

    def own_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        by_head = [rearrange(x, "row token (head dim) -> row head token dim", head=attn.num_heads) for x in (query, key, value)]
        return attention.optimized_attention(*by_head, attn.num_heads, mask=None, skip_reshape=True)

    def forward(x: Tensor, mask: Tensor | None = None, HW: tuple[int, int] | None = None, block_id: int | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("PixArt's self-attention got a mask, which ComfyUI's PixArt never gives it: update ComfyUI or this pack.")
        query, key, value = rearrange(attn.qkv(x), "row token (part c) -> part row token c", part=3)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if attn.sr_ratio > 1:
            height, width = HW or (int(x.shape[1] ** 0.5),) * 2
            key, _ = attn.downsample_2d(key, height, width, attn.sr_ratio, sampling=attn.sampling)
            value, _ = attn.downsample_2d(value, height, width, attn.sr_ratio, sampling=attn.sampling)
        return attn.proj(exchange(running(), block, query, key, value, attn.num_heads, own_attention))

    return forward


def bind_lora(model: ModelPatcher, layers: Mapping[str, LoraLayer], strength: float, source: str) -> MapAdapter:
    """A LoRA file's layers bound to the MODEL's. Raises ValueError, naming `source`, where they do not fit."""
    targets = comfy.utils.pixart_to_diffusers(model.model.model_config.unet_config)
    for name in layers:
        target = targets.get(f"{name}.weight", name)
        if not isinstance(target, str) and "cross_attn" in target[0]:
            raise ValueError(
                f"{source} does not fit: it changes {name}, which PixArt computes for all rows together: only LoRA on other layers can be "
                "kept to some rows."
            )
    return bind_layers(model.get_model_object("diffusion_model"), layers, targets, strength, source)


PIXART = Backbone(
    name="pixart",
    title="PixArt",
    matches=lambda network: isinstance(network, PixArtMS),
    part="transformer",
    family_of=lambda config: "pixart" if config.get("_class_name") in ("PixArtTransformer2DModel", "Transformer2DModel") else None,
    families=(
        Family(
            "pixart",
            "PixArt-alpha",
            text=TextFamily(
                (TextPart("t5xxl", "text_encoder", "tokenizer", tokenizer_name="clip_t5xxl"),),
                comfy.text_encoders.pixart_t5.PixArtTokenizer,
                comfy.text_encoders.pixart_t5.pixart_te(),
            ),
            trainers=(JOINT_LORA,),
        ),
    ),
    load=load_pixart,
    latent_formats=(comfy.latent_formats.SD15, comfy.latent_formats.SDXL),
    layouts={"PixArt-alpha": transformer_blocks(28)},
    cross_domain=CrossDomain(exchange_in, bind_lora),
)
