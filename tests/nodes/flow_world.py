"""Tiny random transformers of 2026 by diffusers' own classes, each with one call of its forward and the native one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.latent_formats
import comfy.text_encoders.z_image
import diffusers
import torch
from einops import rearrange
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes.native.backbones import BACKBONES, FAMILIES
from intrinsic_lab.nodes.native.backbones.backbone import LoadRequest
from intrinsic_lab.nodes.native.loading.latent_format import AnyLatent
from intrinsic_lab.tests.nodes.conftest import edit_json, randn, tiny_clip, tiny_vae, write_own_tokenizer
from intrinsic_lab.training.nano.flux import write_t5_tokenizer
from torch import Tensor

FIXED_SHIFT = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC_SHIFT = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9}


@dataclass(frozen=True)
class TinyFlow:
    """network: diffusers' class; config: its options. text: numbers of a token; channels: of latents. velocity: of latents, flow times,
    context, pooled, by diffusers. native: keyword arguments and shapes of core's forward that differ."""

    network: str
    config: dict
    text: int
    channels: int
    velocity: Callable[..., Tensor]
    schedule: dict
    multiplier: float = 1.0
    pooled: int = 0


def _tokens(latent: Tensor, patch: int = 2) -> Tensor:
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def _picture(tokens: Tensor, latent: Tensor, patch: int = 2) -> Tensor:
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=latent.shape[2] // patch, p=patch, q=patch)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def _sd3(network, latent, time, context, pooled):
    return network(latent, context, pooled, 1000 * time).sample


def _qwen(network, latent, time, context, pooled):
    height, width = latent.shape[2] // 2, latent.shape[3] // 2
    shapes = [[(1, height, width)]] * len(latent)
    return _picture(network(_tokens(latent), context, None, time, shapes).sample, latent)


def _z_image(network, latent, time, context, pooled):
    out = network(list(latent.unsqueeze(2)), 1 - time, list(context)).sample
    return -torch.stack(out).squeeze(2)


def _lumina(network, latent, time, context, pooled):
    return -network(latent, 1 - time, context, torch.ones(context.shape[:2], dtype=torch.int64)).sample


def _flux2(network, latent, time, context, pooled):
    rows, columns = _grid(*latent.shape[2:])
    zero = torch.zeros_like(rows)
    positions = torch.stack([zero, rows, columns, zero], -1).flatten(0, 1)
    # ComfyUI pads FLUX.2's text with zeros before it, to 512 tokens, in `extra_conds`; the network takes what comes.
    words = torch.zeros(context.shape[1], 4, dtype=torch.int64)
    words[:, 3] = torch.arange(context.shape[1])
    guidance = torch.full_like(time, 3.5)
    return _picture(network(_tokens(latent, 1), context, time, positions, words, guidance).sample, latent, 1)


_SD3 = dict(sample_size=16, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64, num_attention_heads=2)
_SD3 |= dict(joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=64, pos_embed_max_size=12)
_LUMINA = dict(in_channels=16, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=16)

TINY = {
    "sd3": TinyFlow("SD3Transformer2DModel", _SD3 | {"num_layers": 3}, 4096, 16, _sd3, FIXED_SHIFT, 1000.0, 64),
    "sd35": TinyFlow(
        "SD3Transformer2DModel",
        _SD3 | {"num_layers": 2, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        4096,
        16,
        _sd3,
        FIXED_SHIFT,
        1000.0,
        64,
    ),
    "qwen_image": TinyFlow(
        "QwenImageTransformer2DModel",
        dict(num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6)),
        32,
        16,
        _qwen,
        DYNAMIC_SHIFT,
    ),
    "z_image": TinyFlow(
        "ZImageTransformer2DModel",
        dict(dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 8, 8]),
        32,
        16,
        _z_image,
        FIXED_SHIFT,
    ),
    "lumina2": TinyFlow(
        "Lumina2Transformer2DModel",
        _LUMINA | {"axes_dim_rope": (4, 4, 4), "axes_lens": (300, 64, 64), "cap_feat_dim": 32},
        32,
        16,
        _lumina,
        FIXED_SHIFT,
    ),
    "flux2": TinyFlow(
        "Flux2Transformer2DModel",
        dict(num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32)
        | {"in_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
        32,
        32,
        _flux2,
        DYNAMIC_SHIFT,
    ),
}


def build(name: str, folder: Path, **changes):
    """A tiny random network in a diffusers folder, norms and biases moved off where they begin. Returns it. changes: of its config."""
    tiny = TINY[name]
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        network = getattr(diffusers, tiny.network)(**tiny.config | changes).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn(parameter.shape)
                elif not parameter.any():
                    parameter += 0.02 * torch.randn(parameter.shape)
    network.save_pretrained(folder / "transformer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(tiny.schedule))
    return network


def load(name: str, folder: Path):
    """The native MODEL of such a folder, float32."""
    config = json.loads((folder / "transformer/config.json").read_text())
    family = next(family for backbone in BACKBONES if (family := backbone.family_of(config)))
    backbone = next(backbone for backbone in BACKBONES if FAMILIES[family] in backbone.families)
    latent_format = AnyLatent(TINY[name].channels, 1.0, 0.0, 8)
    if name == "qwen_image":
        latent_format = comfy.latent_formats.Wan21()
    return backbone.load(LoadRequest(folder, FAMILIES[family], latent_format, torch.float32))


def native_velocity(name: str, model, latent: Tensor, time: Tensor, context: Tensor, pooled: Tensor | None) -> Tensor:
    """By core's network itself."""
    network, tiny = model.model.diffusion_model, TINY[name]
    if name == "qwen_image":
        return network(latent.unsqueeze(2), time, context).squeeze(2)
    if name in ("z_image", "lumina2"):
        return network(latent, time, context, num_tokens=context.shape[1])
    guidance = {"guidance": torch.full_like(time, 3.5)} if name == "flux2" else {}
    return network(latent, tiny.multiplier * time, context=context, y=pooled, **guidance)


def inputs(name: str, rows: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents, context and pooled text of some rows."""
    tiny = TINY[name]
    return (
        randn(rows, tiny.channels, 8, 12),
        randn(rows, 20, tiny.text, seed=1),
        randn(rows, tiny.pooled, seed=2) if tiny.pooled else None,
    )


def write_pipeline(name: str, folder: Path) -> Path:
    """The whole folder of a tiny model whose text encoders are read from folders: "sd3", "sd35", "z_image", "lumina2", "flux2" (klein)."""
    klein = {"guidance_embeds": False, "joint_attention_dim": 3 * KLEIN_TEXT} if name == "flux2" else {}
    build(name, folder, **klein)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"vae": flux2_vae() if klein else tiny_vae(16, **_PLAIN_VAE, scaling_factor=1.5305, shift_factor=0.0609)}
        parts |= _TEXTS.get(name, _sd3_text)(folder)
    for part, module in parts.items():
        module.save_pretrained(folder / part)
    if name in ("z_image", "flux2"):
        shutil.copytree(Path(comfy.text_encoders.z_image.__file__).parent / "qwen25_tokenizer", folder / "tokenizer")
        # As Qwen3's own, without instructions of a system.
        edit_json(folder / "tokenizer/tokenizer_config.json", chat_template=_CHAT)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Tiny"}))
    return folder


_PLAIN_VAE = {"use_quant_conv": False, "use_post_quant_conv": False}
KLEIN_TEXT = 16
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def flux2_vae():
    """Half as wide as published in latents, with statistics that were seen."""
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKLFlux2(**levels, block_out_channels=(32, 64, 64, 96), layers_per_block=1, latent_channels=8)
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def _qwen3(hidden: int, layers: int) -> Callable[[Path], dict]:
    def text(folder: Path) -> dict:
        from transformers import Qwen3Config, Qwen3Model

        sizes = dict(vocab_size=151936, hidden_size=hidden, intermediate_size=48, num_hidden_layers=layers, max_position_embeddings=512)
        return {"text_encoder": Qwen3Model(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=128)).eval()}

    return text


def write_pieces(path: Path) -> None:
    """A file of 400 sentence pieces, with Gemma's marks and bytes for what it does not know; nothing is put before the first word."""
    import sentencepiece

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([entry.prompt for entry in MAPS.values()] * 20),
            model_writer=file,
            vocab_size=400,
            model_type="bpe",
            **{f"{name}_id": number for number, name in enumerate(("pad", "eos", "bos", "unk"))},
            **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
            byte_fallback=True,
            add_dummy_prefix=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            minloglevel=2,
        )


def _gemma2_text(folder: Path) -> dict:
    """Of the few pieces of a vocabulary of its own."""
    from transformers import Gemma2Config, Gemma2Model

    (folder / "tokenizer").mkdir()
    write_pieces(folder / "tokenizer/tokenizer.model")
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}))
    sizes = dict(vocab_size=408, hidden_size=32, intermediate_size=48, num_hidden_layers=3, max_position_embeddings=512)
    return {"text_encoder": Gemma2Model(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=256)).eval()}


def _sd3_text(folder: Path) -> dict:
    """Two CLIPs of a vocabulary of their own, and a T5 as wide as ComfyUI's SD 3 wants it, of few words."""
    from transformers import T5Config, T5EncoderModel

    words = [write_own_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    write_t5_tokenizer(folder / "tokenizer_3")
    pieces = len(json.loads((folder / "tokenizer_3/tokenizer.json").read_text())["model"]["vocab"])
    first, second = (tiny_clip(act, 32, vocabulary=count, projection=32) for act, count in zip(("quick_gelu", "gelu"), words, strict=True))
    # What SD 3 pools of its first CLIP is not projected.
    torch.nn.init.eye_(first.text_projection.weight)
    t5 = T5Config(vocab_size=pieces, d_model=4096, d_kv=16, d_ff=48, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    return {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": T5EncoderModel(t5).eval()}


_TEXTS = {"z_image": _qwen3(32, 3), "flux2": _qwen3(KLEIN_TEXT, 28), "lumina2": _gemma2_text}
