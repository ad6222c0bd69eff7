"""The models that LoRAs are made for, as ComfyUI builds them: every architecture with its published widths, few layers, no weights.

    key_map(name)     every spelling that ComfyUI's loader knows -> what it changes: (weight, first row, rows, halves swapped)

ComfyUI must be importable. Depths are cut: names repeat from layer to layer.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

SD = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "adm_in_channels": None,
}  # fmt: skip
SDXL = SD | {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_linear_in_transformer": True,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], "yak_mlp": False, "txt_norm": False,
}  # fmt: skip
FLUX2 = FLUX | {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None, "context_in_dim": 15360,
    "hidden_size": 6144, "mlp_ratio": 3.0, "num_heads": 48, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False,
    "ops_bias": False, "global_modulation": True, "mlp_silu_act": True, "default_ref_method": "index", "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}  # fmt: skip
CHROMA = {key: value for key, value in FLUX.items() if key not in ("guidance_embed", "yak_mlp", "txt_norm")} | {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "input_size": None, "adm_in_channels": 2048,
    "pos_embed_max_size": 192,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 36864, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [],
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN15 = HUNYUAN | {
    "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None, "context_in_dim": 3584, "hidden_size": 2048,
    "num_heads": 16, "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 1152,
    "meanflow_sum": True, "depth_single_blocks": 0,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 5120, "out_dim": 16, "num_heads": 40, "ffn_dim": 13824, "num_layers": 2,
    "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    "in_dim": 16,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 2, "qk_norm": True,
    "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}  # fmt: skip
Z_IMAGE = LUMINA | {
    "dim": 3840, "cap_feat_dim": 2560, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_alpha", "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 2,
    "model_max_length": 120, "input_size": 128, "pe_interpolation": 2, "micro_condition": True,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 4096, "block_config": "FA-CA-MLP", "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop", "block_x_format": "THWBD",
    "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 256, "num_blocks": 2, "num_heads": 32,
    "extra_per_block_abs_pos_emb": True, "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
COSMOS2 = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "concat_padding_mask": True, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
    "use_adaln_lora": True, "adaln_lora_dim": 256, "num_blocks": 2, "num_heads": 16, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
ACE = {
    "audio_model": "ace", "attention_head_dim": 128, "in_channels": 8, "inner_dim": 2560, "max_height": 16, "max_position": 32768,
    "max_width": 32768, "mlp_ratio": 2.5, "num_attention_heads": 20, "num_layers": 2, "out_channels": 8, "patch_size": [16, 1],
    "rope_theta": 1000000.0, "speaker_embedding_dim": 512, "text_embedding_dim": 768, "ssl_encoder_depths": [8, 8],
    "ssl_latent_dims": [1024, 768], "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 6693, "lyric_hidden_size": 1024,
}  # fmt: skip
ACE15 = {
    "audio_model": "ace1.5", "hidden_size": 2048, "intermediate_size": 6144, "num_heads": 16, "encoder_hidden_size": 2048,
    "encoder_num_heads": 16, "encoder_intermediate_size": 6144, "num_dit_layers": 2,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [4096, 4096],
    "max_resolution": [128, 128], "in_channels": 16, "llama_layers": [0, 1], "num_attention_heads": 20, "num_routed_experts": 4,
    "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 2048,
}  # fmt: skip
OMNIGEN2 = {
    "image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
    "hidden_size": 2520, "in_channels": 16, "multiple_of": 256, "norm_eps": 1e-05, "num_attention_heads": 21, "num_kv_heads": 7,
    "num_layers": 2, "num_refiner_layers": 2, "out_channels": None, "patch_size": 2, "text_feat_dim": 2048, "timestep_scale": 1000.0,
}  # fmt: skip
MOCHI = {
    "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 24, "hidden_size_x": 3072, "hidden_size_y": 1536,
    "mlp_ratio_x": 4.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
    "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True,
    "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 4096, "t5_token_length": 256,
    "rope_theta": 10000.0,
}  # fmt: skip
KANDINSKY = {
    "image_model": "kandinsky5", "model_dim": 1792, "axes_dims": (16, 24, 24), "time_dim": 512, "ff_dim": 7168, "visual_embed_dim": 132,
    "num_text_blocks": 2, "num_visual_blocks": 2,
}  # fmt: skip
KREA2 = {
    "image_model": "krea2", "features": 6144, "channels": 16, "patch": 2, "layers": 2, "heads": 48, "kvheads": 12, "txtlayers": 12,
    "txtdim": 2560,
}  # fmt: skip


class Architecture(NamedTuple):
    """family: as `methods/lora/families.py` calls it. model: the class in comfy.supported_models; config: its network's. depths: of the
    published model, by the canonical names of its stacks of blocks. device: where it can be built."""

    family: str
    model: str
    config: dict[str, Any]
    depths: Mapping[str, int] = MappingProxyType({})
    device: str = "meta"


ARCHITECTURES = {
    "SD 1.5": Architecture("sd1", "SD15", SD | {"context_dim": 768, "use_linear_in_transformer": False}),
    "SD 2.1": Architecture("sd2", "SD20", SD | {"context_dim": 1024, "use_linear_in_transformer": True}),
    "SDXL": Architecture("sdxl", "SDXL", SDXL),
    "Cascade": Architecture("cascade", "Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 2048}),
    "SD 3": Architecture("sd3", "SD3", SD3, {"transformer_blocks": 24}),
    "SD 3.5 medium": Architecture(
        "sd3.5-medium", "SD3", SD3 | {"qk_norm": "rms", "x_block_self_attn_layers": list(range(13))}, {"transformer_blocks": 24}
    ),
    "SD 3.5 large": Architecture("sd3.5-large", "SD3", SD3 | {"depth": 38, "qk_norm": "rms"}, {"transformer_blocks": 38}),
    "FLUX.1": Architecture("flux1", "Flux", FLUX, {"transformer_blocks": 19, "single_transformer_blocks": 38}),
    "FLUX.2 dev": Architecture("flux2", "Flux2", FLUX2, {"transformer_blocks": 8, "single_transformer_blocks": 48}),
    "FLUX.2 klein 4B": Architecture(
        "flux2-klein-4b",
        "Flux2",
        FLUX2 | {"hidden_size": 3072, "num_heads": 24, "context_in_dim": 7680},
        {"transformer_blocks": 5, "single_transformer_blocks": 20},
    ),
    "FLUX.2 klein 9B": Architecture(
        "flux2-klein-9b",
        "Flux2",
        FLUX2 | {"hidden_size": 4096, "num_heads": 32, "context_in_dim": 12288},
        {"transformer_blocks": 8, "single_transformer_blocks": 24},
    ),
    "Chroma": Architecture("chroma", "Chroma", CHROMA, {"transformer_blocks": 19, "single_transformer_blocks": 38}),
    "Qwen-Image": Architecture(
        "qwen-image", "QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2}, {"transformer_blocks": 60}
    ),
    "Z-Image": Architecture("z-image", "ZImage", Z_IMAGE, {"layers": 30}),
    "Lumina 2": Architecture("lumina2", "Lumina2", LUMINA, {"layers": 26}),
    "HiDream": Architecture("hidream", "HiDream", HIDREAM, {"double_stream_blocks": 16, "single_stream_blocks": 32}),
    "AuraFlow": Architecture(
        "auraflow",
        "AuraFlow",
        {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 2, "n_layers": 4},
        {"joint_transformer_blocks": 4, "single_transformer_blocks": 32},
    ),
    "PixArt": Architecture("pixart", "PixArtAlpha", PIXART, {"transformer_blocks": 28}),
    "HunyuanVideo": Architecture("hunyuan-video", "HunyuanVideo", HUNYUAN, {"transformer_blocks": 20, "single_transformer_blocks": 40}),
    "HunyuanVideo 1.5": Architecture("hunyuan-video-1.5", "HunyuanVideo15", HUNYUAN15, {"transformer_blocks": 54}),
    "Wan 1.3B": Architecture("wan-1.3b", "WAN21_T2V", WAN | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960}, {"blocks": 30}),
    "Wan 5B": Architecture(
        "wan-5b", "WAN22_T2V", WAN | {"dim": 3072, "num_heads": 24, "ffn_dim": 14336, "in_dim": 48, "out_dim": 48}, {"blocks": 30}
    ),
    "Wan 14B": Architecture("wan-14b", "WAN21_T2V", WAN, {"blocks": 40}),
    "Wan 14B, pictures": Architecture("wan-14b", "WAN21_I2V", WAN | {"model_type": "i2v", "in_dim": 36}, {"blocks": 40}),
    "LTX": Architecture(
        "ltx",
        "LTXV",
        {"image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64, "cross_attention_dim": 2048},
        {"transformer_blocks": 28},
    ),
    "LTX-2": Architecture(
        "ltx-2",
        "LTXAV",
        {"image_model": "ltxav", "num_layers": 2, "attention_head_dim": 128, "cross_attention_dim": 4096},
        {"transformer_blocks": 48},
    ),
    "Cosmos": Architecture("cosmos", "CosmosT2V", COSMOS),
    "Cosmos Predict 2": Architecture("cosmos-2", "CosmosT2IPredict2", COSMOS2, {"blocks": 28}),
    "Anima": Architecture("anima", "Anima", COSMOS2 | {"image_model": "anima"}, {"blocks": 28}),
    "Krea 2": Architecture("krea2", "Krea2", KREA2, {"transformer_blocks": 28}),
    "ACE-Step": Architecture("ace-step", "ACEStep", ACE, {"transformer_blocks": 24}),
    "ACE-Step 1.5": Architecture("ace-step-1.5", "ACEStep15", ACE15, {"layers": 24}, "cpu"),
    "OmniGen 2": Architecture("omnigen2", "Omnigen2", OMNIGEN2, {"layers": 32}),
    "Mochi": Architecture("mochi", "GenmoMochi", MOCHI, {"blocks": 48}),
    "HunyuanDiT": Architecture(
        "hunyuan-dit", "HunyuanDiT", {"image_model": "hydit", "depth": 4, "hidden_size": 1408, "mlp_ratio": 4.3637}, {"blocks": 40}
    ),
    "Kandinsky 5": Architecture("kandinsky5", "Kandinsky5", KANDINSKY),
    "Ernie": Architecture("ernie", "ErnieImage", {"image_model": "ernie"}),
}


class Target(NamedTuple):
    """What a spelling changes: `rows` rows of a weight from `start` on; swapped: its halves come in the other order."""

    key: str
    start: int
    rows: int
    swapped: bool


@cache
def network(name: str):
    """ComfyUI's model of an architecture, on no device."""
    import comfy.supported_models
    import torch

    architecture = ARCHITECTURES[name]
    found = getattr(comfy.supported_models, architecture.model)(architecture.config)
    found.set_inference_dtype(torch.float32, None)
    return found.get_model({}, "", device=architecture.device)


@cache
def key_map(name: str) -> tuple[dict[str, Target], dict[str, tuple[int, ...]]]:
    """(spelling -> target, weight -> shape) of an architecture, of the weights with two dimensions or more."""
    import comfy.lora

    model = network(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return _targets(comfy.lora.model_lora_keys_unet(model, {}), shapes), shapes


def _targets(spelled: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Target]:
    targets = {}
    for spelling, found in spelled.items():
        key, window, function = (found, None, None) if isinstance(found, str) else (*found, None, None)[:3]
        if key in shapes and len(shapes[key]) > 1 and not _amiss(key, shapes[key], window):
            targets[spelling] = Target(key, *(window[1:] if window else (0, shapes[key][0])), function is not None)
    return targets


def _amiss(key: str, shape: tuple[int, ...], window: tuple[int, int, int] | None) -> bool:
    """Rows that the map has for another model of the class: Lumina 2's fewer keys and values, FLUX.2's wider MLP."""
    if window is None:
        return False
    _, start, rows = window
    qkv = key.endswith("attention.qkv.weight") and shape[0] != 3 * shape[1] and start > 0
    return qkv or (key.endswith("linear1.weight") and start == 3 * shape[1] and start + rows != shape[0])


def encoders() -> dict[str, Any]:
    """Name -> what builds the text encoder as ComfyUI does, on no device."""
    import torch
    from comfy.sd1_clip import SD1ClipModel
    from comfy.sdxl_clip import SDXLClipModel
    from comfy.text_encoders import anima, flux, hidream, hunyuan_video, hydit, qwen_image, sd3_clip, wan

    on = {"device": "meta", "dtype": torch.float32}
    t5, llama = {"dtype_t5": torch.float32}, {"dtype_llama": torch.float32}
    every = {"clip_l": True, "clip_g": True, "t5": True}
    return {
        "SD 1": lambda: SD1ClipModel(**on),
        "SDXL": lambda: SDXLClipModel(**on),
        "SD 3": lambda: sd3_clip.SD3ClipModel(**every, **t5, **on),
        "FLUX.1": lambda: flux.FluxClipModel(**t5, **on),
        "HunyuanVideo": lambda: hunyuan_video.HunyuanVideoClipModel(**llama, **on),
        "HiDream": lambda: hidream.HiDreamTEModel(llama=True, **every, **t5, **llama, **on),
        "HunyuanDiT": lambda: hydit.HyditModel(**on),
        "Qwen-Image": lambda: qwen_image.te(**llama)(**on),
        "Wan": lambda: wan.te(**t5)(**on),
        "Anima": lambda: anima.te(**llama)(**on),
    }
