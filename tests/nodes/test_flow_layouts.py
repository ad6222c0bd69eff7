"""Published transformers at their true widths and fewer blocks, without memory: what their backbones say of core's own networks."""

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from intrinsic_lab.methods.ildm.schedules import transformer_blocks
from intrinsic_lab.nodes.native.backbones import BACKBONES
from intrinsic_lab.nodes.native.batch_rows.attention_calls import PICTURE

_FLUX = dict(out_channels=16, hidden_size=3072, num_heads=24, depth=2, depth_single_blocks=2, in_channels=16, patch_size=2, mlp_ratio=4.0)
_FLUX |= dict(axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, txt_ids_dims=[], context_in_dim=4096, vec_in_dim=768, guidance_embed=True)
_FLUX2 = dict(
    in_channels=128, out_channels=128, hidden_size=6144, num_heads=48, depth=1, depth_single_blocks=2, patch_size=1, mlp_ratio=3.0
)
_FLUX2 |= dict(axes_dim=[32] * 4, theta=2000, qkv_bias=False, ops_bias=False, global_modulation=True, mlp_silu_act=True, txt_ids_dims=[3])
_SD3 = dict(input_size=None, patch_size=2, in_channels=16, out_channels=16, num_blocks=2, adm_in_channels=2048, qk_norm="rms")
_LUMINA = dict(patch_size=2, in_channels=16, n_layers=2, n_refiner_layers=2, qk_norm=True, multiple_of=256)
# As core's detection finds them, but for the number of blocks. Name of the backbone, class, config, of what a text token and a latent are.
PUBLISHED = {
    "FLUX.1": ("flux", Flux, _FLUX, 4096, 16),
    "FLUX.2 dev": ("flux2", Flux, _FLUX2 | {"context_in_dim": 15360, "vec_in_dim": None, "guidance_embed": True}, 15360, 128),
    "SD 3.5 medium": ("sd3", OpenAISignatureMMDITWrapper, _SD3 | {"depth": 24, "x_block_self_attn_layers": [0]}, 4096, 16),
    "SD 3.5 large": ("sd3", OpenAISignatureMMDITWrapper, _SD3 | {"depth": 38}, 4096, 16),
    "Qwen-Image": ("qwen_image", QwenImageTransformer2DModel, dict(num_layers=2), 3584, 16),
    "Z-Image": (
        "z_image",
        NextDiT,
        _LUMINA
        | dict(dim=3840, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48], cap_feat_dim=2560, ffn_dim_multiplier=8 / 3)
        | dict(z_image_modulation=True, pad_tokens_multiple=32, rope_theta=256.0, time_scale=1000.0),
        2560,
        16,
    ),
    "Lumina 2": (
        "z_image",
        NextDiT,
        _LUMINA | dict(dim=2304, n_heads=24, n_kv_heads=8, axes_dims=[32, 32, 32], cap_feat_dim=2304, ffn_dim_multiplier=4.0),
        2304,
        16,
    ),
}
ATTENTIONS = {"FLUX.1": 4, "FLUX.2 dev": 3, "SD 3.5 medium": 3, "SD 3.5 large": 2, "Qwen-Image": 2, "Z-Image": 4, "Lumina 2": 4}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_transformers_are_known_with_their_attentions_in_order(name):
    kind, network_class, config, text, channels = PUBLISHED[name]
    if kind == "sd3":
        width = 64 * config["depth"]
        embedder = {"target": "torch.nn.Linear", "params": {"in_features": text, "out_features": width}}
        config = config | {"num_patches": 384**2, "pos_embed_max_size": 384, "context_embedder_config": embedder}
    network = network_class(**config, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    [backbone] = [backbone for backbone in BACKBONES if backbone.matches(network)]
    assert backbone.name == kind
    places = backbone.attentions(network)
    assert len(places) == ATTENTIONS[name] and [place.block for place in places] == list(transformer_blocks(len(places)))
    held = [network.get_submodule(place.module) for place in places]
    # Every one holds a projection as wide as its queries, keys and values, or three of them.
    assert all(any(part.split(".")[-1] in ("qkv", "linear1", "to_q") for part, _ in module.named_modules()) for module in held)
    assert all(hasattr(network.get_submodule(name), "in_features") for place in places for name in (place.entry, place.exit))
    assert [place.stream for place in places].count(PICTURE) == {"SD 3.5 medium": 1, "Z-Image": 2, "Lumina 2": 2}.get(name, 0)

    class Model:
        def get_model_object(self, part):
            return network if part == "diffusion_model" else type("Format", (), {"latent_channels": channels})

    single_step = backbone.single_step
    single_step.check(Model())
    assert single_step.context_width(Model()) == text and single_step.joint_text
