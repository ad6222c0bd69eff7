"""Every name that ComfyUI's loader knows for a module is one name here; and the same LoRA is told and read alike in every spelling."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from intrinsic_lab.benchmarks.lora_formats_table import KNOWN_NAMES, STRUCTURES, judge, known_names, structures
from intrinsic_lab.benchmarks.lora_models import ARCHITECTURES, encoders, key_map
from intrinsic_lab.methods.lora.families import variant_of
from intrinsic_lab.methods.lora.names import canonical_name, fused_rows

pytest.importorskip("comfy.supported_models")


def rows_of(spelling, target, width):
    """[(canonical name, first row, last row + 1 of the weight that it changes)]."""
    for name, start, stop in fused_rows(canonical_name(spelling), target.rows, width):
        shift = 0
        if target.swapped:
            half = target.rows // 2
            shift = half if stop <= half else -half
        yield name, target.start + start + shift, target.start + stop + shift


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_all_names_that_comfyui_knows_for_a_module_are_one_and_its_alone(model):
    targets, shapes = key_map(model)
    assert len(targets) > 50
    names, places = defaultdict(set), defaultdict(set)
    for spelling, target in targets.items():
        for name, start, stop in rows_of(spelling, target, shapes[target.key][1]):
            names[target.key, start, stop].add(name)
            places[name].add((target.key, start, stop))
    assert not {place: found for place, found in names.items() if len(found) > 1}
    assert not {name: found for name, found in places.items() if len(found) > 1}
    # A fused projection is cut where its parts begin in another spelling.
    for key in {key for key, *_ in names}:
        ends = sorted((start, stop) for other, start, stop in names if other == key)
        assert all(before[1] <= after[0] for before, after in pairwise(ends)), key


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_lora_is_told_and_read_alike_in_every_spelling(model):
    found = judge(model)
    assert len(found) > 1 and set(found.values()) == {"right"}


def test_the_tables_of_structures_and_names_are_those_of_comfyuis_models():
    assert json.loads(STRUCTURES.read_text()) == structures()
    assert json.loads(KNOWN_NAMES.read_text()) == known_names()


def test_all_names_of_a_text_encoders_module_are_one_and_its_alone():
    import comfy.lora

    for model, make in encoders().items():
        names, keys = defaultdict(set), defaultdict(set)
        for spelling, key in comfy.lora.model_lora_keys_clip(make(), {}).items():
            names[key].add(canonical_name(spelling))
            keys[canonical_name(spelling)].add(key)
        assert len(keys) > 80 and max(map(len, names.values())) == max(map(len, keys.values())) == 1, model


@pytest.mark.parametrize(
    ("spelling", "same"),
    [
        # Converted by diffusers and trainers, not by ComfyUI's key maps.
        ("transformer.blocks.3.attn1.to_out.0", "lora_unet_blocks_3_self_attn_o"),
        ("transformer.blocks.3.attn2.add_k_proj", "lora_unet__blocks_3_cross_attn_k_img"),
        ("transformer.blocks.3.ffn.net.0.proj", "diffusion_model.blocks.3.ffn.0"),
        ("transformer.noise_refiner.1.attn.to_q", "lora_unet_noise_refiner_1_attention_to_q"),
        ("transformer.layers.3.attn.to_out.0", "diffusion_model.layers.3.attention.out"),
        ("transformer.layers.3.feed_forward.linear_2", "lora_unet_layers_3_feed_forward_w2"),
        ("transformer.layers.3.norm1.linear", "diffusion_model.layers.3.adaLN_modulation.1"),
        ("double_blocks.2.processor.qkv_lora1", "lora_unet_double_blocks_2_img_attn_qkv"),
        ("double_blocks.2.processor.proj_lora2", "transformer.transformer_blocks.2.attn.to_add_out"),
        ("single_blocks.2.processor.proj", "lora_unet_single_blocks_2_linear2"),
        ("transformer.double_blocks.2.img_attn_proj", "lora_unet_double_blocks_2_img_attn_proj"),
        ("lora_prior_te_text_model_encoder_layers_0_mlp_fc1", "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1"),
    ],
)
def test_names_that_other_programs_translate_are_one_as_well(spelling, same):
    assert canonical_name(spelling) == canonical_name(same)


@pytest.mark.parametrize(
    ("metadata", "variant"),
    [
        ({"ss_sd_model_name": "ponyDiffusionV6XL.safetensors"}, "pony"),
        ({"modelspec.title": "a style", "ss_sd_model_name": "noobaiXL_v10.safetensors"}, "noobai"),
        ({"modelspec.title": "flux1-kontext style"}, "kontext"),
        ({"ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16"}, "high noise"),
        ({"ss_sd_model_name": "sd_xl_base_1.0"}, ""),
    ],
)
def test_a_base_within_its_family_is_told_by_the_models_name(metadata, variant):
    assert variant_of(metadata) == variant
