"""What ComfyUI's loader takes of a file is known without it: held against the loader itself, for every architecture and odd spellings."""

import logging

import pytest
import torch
from intrinsic_lab.benchmarks.lora_models import ARCHITECTURES, network
from intrinsic_lab.methods.lora.header import Layout
from intrinsic_lab.methods.lora.loading import PREFIXES, left_out, loading

pytest.importorskip("comfy.lora")
PAIRS = [
    ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_A.style.weight", "lora_B.style.weight"), ("lora.down.weight", "lora.up.weight"), ("lora_A", "lora_B"), ("lora_down", "lora_up"),
]  # fmt: skip
SINGLE = (
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "set_weight",
    "alpha",
    "dora_scale",
    "lora_B.bias",
    "lora_magnitude_vector.weight",
    "on_input",
)


def layout_of(keys):
    return Layout({key: {} for key in keys}, 0, {})


def by_comfyui(state, keys, caplog):
    """Keys that the loader says it does not load."""
    import comfy.lora
    import comfy.lora_convert

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys)
    mark = "lora key not loaded: "
    return {record.getMessage().removeprefix(mark) for record in caplog.records if record.getMessage().startswith(mark)}


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_the_loader_leaves_out_what_is_said(model, caplog):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(network(model), {})
    names = set(keys)
    for spelling in list(names)[::7]:
        prefix = next(prefix for prefix in PREFIXES if spelling.startswith(prefix))
        # Known names behind the prefixes of others.
        names |= {other + spelling.removeprefix(prefix) for other in (*PREFIXES, "unknown.")}
    state = {}
    for number, name in enumerate(sorted(names)):
        for ending in (*PAIRS[number % len(PAIRS)], SINGLE[number % len(SINGLE)]):
            state[f"{name}.{ending}"] = torch.ones(1)
    # The last blocks of these mean another kind of file.
    left = by_comfyui(state, keys, caplog)
    assert 10 < len(left) < len(state)
    said = set(left_out(layout_of(state), ARCHITECTURES[model].family))
    # The file's family says nothing of text encoders, and ComfyUI's map here has none.
    assert {key for key in said ^ left if not key.startswith(("text_encoder", "lora_te", "lora_prior_te"))} == set()


def test_files_that_the_loader_translates_are_taken_whole(caplog):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(network("FLUX.1"), {})
    control = ("img_in.lora_A.weight", "img_in.lora_B.weight", "img_in.lora_B.bias", "single_blocks.0.norm.key_norm.scale")
    ones = {key: torch.ones(2, 2) for key in control}
    assert not by_comfyui(ones, keys, caplog) and left_out(layout_of(control), "flux1") == ()
    # XLabs' names are known in USO's files alone.
    xlabs = [f"double_blocks.0.processor.{part}_lora1.{side}.weight" for part in ("qkv", "proj") for side in ("down", "up")]
    assert by_comfyui({key: torch.ones(2, 2) for key in xlabs}, keys, caplog) == set(left_out(layout_of(xlabs), "flux1")) == set(xlabs)
    uso = [*xlabs, "single_blocks.37.processor.qkv_lora.up.weight", "double_blocks.18.processor.qkv_lora2.up.weight"]
    assert left_out(layout_of(uso), "flux1") == ()


def test_reasons_are_given_in_words():
    name = "lora_unet_double_blocks_0_img_attn_proj"
    assert loading(layout_of([f"{name}.lora_down.weight", f"{name}.lora_up.weight"]), "flux1") == ""
    said = loading(layout_of([f"base_model.model.x.lora_{side}.weight" for side in "AB"]), "flux1")
    assert said.startswith("ComfyUI cannot load this file, because its loader knows no module of flux1 by the name in base_model.model.x")
    said = loading(layout_of([f"{name}.weight", f"{name}.on_input"]), "flux1")
    assert said.startswith("ComfyUI cannot load this file") and "IA3 weights under" in said
    keys = [f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.lora_magnitude_vector"]
    said = loading(layout_of(keys), "flux1")
    assert said.startswith("ComfyUI leaves out 1 of its 3 tensors") and "DoRA" in said
    # Nothing is claimed of what is not known.
    assert loading(layout_of(keys), "unknown-abc") == ""
