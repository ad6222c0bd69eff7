"""Z-Image and Lumina 2, which are one network in ComfyUI (NextDiT): both of any width from a diffusers folder, and their LoRA layers."""

from collections.abc import Mapping

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.text_encoders.lumina2
import comfy.text_encoders.z_image
import comfy.utils
from comfy.ldm.lumina.model import JointAttention, NextDiT, NextDiTPixelSpace
from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....methods.ildm.schedules import transformer_blocks
from ..batch_rows.attention_calls import PICTURE, SINGLE, AttentionPlace, Tokens
from ..loading.folder_files import (
    MOST_LAYERS,
    ModelFolderError,
    read_config,
    read_weights,
    rename,
    require_finite,
    require_numbers,
    require_options,
)
from ..loading.patcher import build_patcher, configure, require_channels
from ..loading.sampling import read_flow_schedule
from ..loading.text_encoder import TextFamily, TextPart
from .backbone import INTRINSIC_LORA, Backbone, Family, LoadRequest
from .flow_step import flow_step
from .joint_attention import cross_domain, in_order, map_attention, no_text, tensor_lora

PART, LUMINA = "Z-Image transformer", "Lumina 2 transformer"
# What ComfyUI's NextDiT fixes of Z-Image, and of Lumina 2.
FIXED_OPTIONS = {
    "all_patch_size": ([2],),
    "all_f_patch_size": ([1],),
    "qk_norm": (True,),
    "siglip_feat_dim": (None,),
    "t_scale": (1000.0,),
}
LUMINA_OPTIONS = {"patch_size": (2,), "scaling_factor": (1.0,)}
TOKENS_MULTIPLE = 32
# Z-Image's embedding of time has one width inside, whatever the network's, and one outside.
TIME_WIDTH, TIME_OUTPUT = 1024, 256


def z_image_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a ZImageTransformer2DModel of any width."""
    require_options(config, FIXED_OPTIONS, PART)
    require_numbers(config, ("n_layers", "n_refiner_layers"), PART, MOST_LAYERS, least=0)
    require_numbers(config, ("in_channels", "dim", "n_heads", "n_kv_heads", "cap_feat_dim", "axes_dims"), PART)
    require_finite(config, ("norm_eps", "rope_theta"), PART)
    width = config["dim"]
    if config["n_heads"] != config["n_kv_heads"]:
        raise ModelFolderError(f"The {PART} has {config['n_heads']} heads and {config['n_kv_heads']} for keys: as many were expected.")
    return _shared(config, width) | {
        "n_layers": config["n_layers"],
        "n_refiner_layers": config["n_refiner_layers"],
        "n_heads": config["n_heads"],
        "n_kv_heads": config["n_kv_heads"],
        "axes_dims": _axes(list(config["axes_dims"]), width, config["n_heads"], PART),
        "rope_theta": config.get("rope_theta", 256.0),
        **_feed_forward(int(width / 3 * 8), width),
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": TOKENS_MULTIPLE,
    }


def lumina_config(config: dict) -> dict:
    """ComfyUI's `unet_config` for the config.json of a Lumina2Transformer2DModel of any width."""
    require_options(config, LUMINA_OPTIONS, LUMINA)
    require_numbers(config, ("num_layers", "num_refiner_layers"), LUMINA, MOST_LAYERS, least=0)
    sizes = (
        "in_channels",
        "out_channels",
        "hidden_size",
        "num_attention_heads",
        "num_kv_heads",
        "multiple_of",
        "cap_feat_dim",
        "axes_dim_rope",
    )
    require_numbers(config, sizes, LUMINA)
    require_finite(config, ("norm_eps", "ffn_dim_multiplier"), LUMINA)
    width, multiple = config["hidden_size"], config["multiple_of"]
    inner = int((config.get("ffn_dim_multiplier") or 1.0) * 4 * width)
    return _shared(config, width) | {
        "n_layers": config["num_layers"],
        "n_refiner_layers": config["num_refiner_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_kv_heads"],
        "axes_dims": _axes(list(config["axes_dim_rope"]), width, config["num_attention_heads"], LUMINA),
        "rope_theta": 10000.0,
        **_feed_forward(-(-inner // multiple) * multiple, width),
    }


def _shared(config: dict, width: int) -> dict:
    """What both configs call the same, or ComfyUI's NextDiT wants of both."""
    return {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": config["in_channels"],
        "dim": width,
        "cap_feat_dim": config["cap_feat_dim"],
        "qk_norm": True,
        "norm_eps": config.get("norm_eps", 1e-5),
    }


def _axes(axes: list[int], width: int, heads: int, part: str) -> list[int]:
    if sum(axes) * heads != width or any(axis % 2 for axis in axes):
        raise ModelFolderError(
            f"The {part} has axes {axes} and {heads} heads in a width of {width}: even numbers that sum to a head were expected."
        )
    return axes


def _feed_forward(inner: int, width: int) -> dict:
    """Settings by which ComfyUI's feed-forward part, which takes a ratio, becomes `inner` wide."""
    return {"ffn_dim_multiplier": (inner + 0.5) / width, "multiple_of": 1}


# A block of Lumina 2 in diffusers -> of NextDiT.
_LUMINA_BLOCK = {
    "attn.norm_q.weight": "attention.q_norm.weight",
    "attn.norm_k.weight": "attention.k_norm.weight",
    "attn.to_out.0.weight": "attention.out.weight",
    "feed_forward.linear_1.weight": "feed_forward.w1.weight",
    "feed_forward.linear_2.weight": "feed_forward.w2.weight",
    "feed_forward.linear_3.weight": "feed_forward.w3.weight",
    "norm2.weight": "attention_norm2.weight",
    "ffn_norm1.weight": "ffn_norm1.weight",
    "ffn_norm2.weight": "ffn_norm2.weight",
}
_LUMINA_ENDS = {
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
    "x_embedder": "x_embedder",
}


def lumina_key_map(native: Mapping) -> dict:
    """Where the weights of a Lumina 2 in diffusers go."""
    head = native["dim"] // native["n_heads"]
    of_queries, of_keys = native["n_heads"] * head, native["n_kv_heads"] * head
    names: dict = {f"{name}.{end}": f"{target}.{end}" for name, target in _LUMINA_ENDS.items() for end in ("weight", "bias")}
    names["time_caption_embed.caption_embedder.0.weight"] = "cap_embedder.0.weight"
    counts = {"layers": native["n_layers"], "noise_refiner": native["n_refiner_layers"], "context_refiner": native["n_refiner_layers"]}
    for block in (f"{part}.{number}" for part, count in counts.items() for number in range(count)):
        names |= {f"{block}.{name}": f"{block}.{target}" for name, target in _LUMINA_BLOCK.items()}
        qkv = f"{block}.attention.qkv.weight"
        names[f"{block}.attn.to_q.weight"] = (qkv, (0, 0, of_queries))
        names[f"{block}.attn.to_k.weight"] = (qkv, (0, of_queries, of_keys))
        names[f"{block}.attn.to_v.weight"] = (qkv, (0, of_queries + of_keys, of_keys))
        if block.startswith("context_refiner"):
            names[f"{block}.norm1.weight"] = f"{block}.attention_norm1.weight"
        else:
            names[f"{block}.norm1.norm.weight"] = f"{block}.attention_norm1.weight"
            names |= {f"{block}.norm1.linear.{end}": f"{block}.adaLN_modulation.1.{end}" for end in ("weight", "bias")}
    return names


class AnyWidthNextDiT(comfy.supported_models.Lumina2):
    """Z-Image or Lumina 2 by the folder's own numbers and schedule."""

    prediction = ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        model = comfy.model_base.Lumina2(self, model_type=self.prediction, device=device)
        width = self.unet_config["dim"]
        for module in model.diffusion_model.modules():
            if isinstance(module, JointAttention):
                # ComfyUI leaves it to the number format.
                module.q_norm.eps = module.k_norm.eps = self.unet_config["norm_eps"]
        if self.unet_config.get("z_image_modulation") and width < TIME_WIDTH:
            network = model.diffusion_model
            first = network.t_embedder.mlp[0]
            like = {"dtype": first.weight.dtype, "device": first.weight.device, "operations": _OfClass(type(first))}
            network.t_embedder = TimestepEmbedder(TIME_WIDTH, output_size=min(width, TIME_OUTPUT), **like)
        return model


class _OfClass:
    """ComfyUI's `operations` as far as an embedding of time needs them."""

    def __init__(self, linear: type):
        self.Linear = linear


def load_z_image(request: LoadRequest) -> ModelPatcher:
    """MODEL from the `transformer` and `scheduler` of a diffusers folder. Raises ModelFolderError for what ComfyUI cannot hold."""
    folder = request.folder / "transformer"
    config = read_config(folder)
    part, native = (LUMINA, lumina_config(config)) if is_lumina(config) else (PART, z_image_config(config))
    require_channels(native["in_channels"], request.latent_format, part)
    weights = rename(read_weights(folder), key_map(native), part)
    model_config = configure(AnyWidthNextDiT(native), read_flow_schedule(request.folder / "scheduler"), request.latent_format)
    return build_patcher(model_config, weights, part, request.dtype, request.disable_dynamic)


def is_lumina(config: Mapping) -> bool:
    """Of a diffusers config."""
    return config.get("_class_name") == "Lumina2Transformer2DModel"


def family_of(config: Mapping) -> str | None:
    """The family of a diffusers config."""
    if is_lumina(config):
        return "lumina2"
    return "z_image" if config.get("_class_name") == "ZImageTransformer2DModel" else None


def key_map(native: Mapping) -> dict:
    """Where diffusers' weights go."""
    return comfy.utils.z_image_to_diffusers(native) if native.get("z_image_modulation") else lumina_key_map(native)


def attentions(network: NextDiT) -> tuple[AttentionPlace, ...]:
    """Of the picture alone in its refiner, then of text and picture in one row of tokens."""
    refiner = [(PICTURE, f"noise_refiner.{number}.attention", "qkv", "out", no_text) for number in range(len(network.noise_refiner))]

    def tokens(args: tuple, kwargs: Mapping, latent: Tensor) -> Tokens:
        # The picture's come last, behind text and what belongs to pictures of reference.
        return Tokens(args[0].shape[1] - image_tokens(network, latent), args[2].movedim(1, 2))

    return in_order(refiner + [(SINGLE, f"layers.{number}.attention", "qkv", "out", tokens) for number in range(len(network.layers))])


def image_tokens(network: NextDiT, latent: Tensor) -> int:
    """How many tokens a latent `bchw` becomes, with those that fill up to a multiple."""
    height, width = latent.shape[-2:]
    tokens = -(-height // network.patch_size) * -(-width // network.patch_size)
    return tokens + -tokens % (network.pad_tokens_multiple or 1)


SINGLE_STEP = flow_step(key_map, lambda network: network.in_channels, lambda network: network.cap_embedder[1].in_features)

Z_IMAGE = Backbone(
    name="z_image",
    title="Z-Image and Lumina 2",
    matches=lambda network: isinstance(network, NextDiT) and not isinstance(network, NextDiTPixelSpace),
    part="transformer",
    family_of=family_of,
    families=(
        Family(
            "z_image",
            "Z-Image",
            text=TextFamily(
                (TextPart("qwen3_4b", "text_encoder", "tokenizer"),),
                comfy.text_encoders.z_image.ZImageTokenizer,
                comfy.text_encoders.z_image.te(),
                fewest_layers=3,
            ),
            trainers=(INTRINSIC_LORA,),
        ),
        Family(
            "lumina2",
            "Lumina 2",
            text=TextFamily(
                (TextPart("gemma2_2b", "text_encoder", "tokenizer", pieces="tokenizer.model"),),
                comfy.text_encoders.lumina2.LuminaTokenizer,
                comfy.text_encoders.lumina2.te(),
                fewest_layers=2,
            ),
            trainers=(INTRINSIC_LORA,),
        ),
    ),
    load=load_z_image,
    latent_formats=(comfy.latent_formats.Flux,),
    layouts={"Z-Image": transformer_blocks(32), "Lumina 2": transformer_blocks(28)},
    single_step=SINGLE_STEP,
    cross_domain=cross_domain(attentions, SINGLE_STEP.bind_lora),
    map_attention=map_attention(attentions),
    attach_tensor_lora=tensor_lora(attentions),
    attentions=attentions,
)
