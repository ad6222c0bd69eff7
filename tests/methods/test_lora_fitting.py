"""LoRAs of published models, in every spelling that ComfyUI knows, fit their own model and no other, by the headers alone."""

import json

import pytest
import torch
from intrinsic_lab.benchmarks.lora_formats_table import write_shelf
from intrinsic_lab.benchmarks.lora_models import key_map
from intrinsic_lab.methods.lora.fitting import ELSEWHERE, MAPS_TOGETHER, PLAIN, change_in, rows_by_columns
from intrinsic_lab.methods.lora.header import BadFile, parse_layout
from intrinsic_lab.methods.lora.weight_file import read_header
from intrinsic_lab.tools.comfyui_source import ROOT
from safetensors.torch import save_file

pytest.importorskip("comfy.supported_models")
MODELS = ("SD 1.5", "SD 2.1", "SDXL", "FLUX.1", "PixArt")


def layout(shapes, dtype="BF16", size=2):
    """Of a model file that holds weights of these shapes, header only."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        stop = start + torch.Size(shape).numel() * size
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    return parse_layout(json.dumps(entries))


def shapes_of(model):
    return {f"model.{key}": shape for key, shape in key_map(model)[1].items()}


def test_loras_in_every_spelling_fit_their_own_model_and_no_other(tmp_path):
    rows = {name: rows_by_columns([layout(shapes_of(name))]) for name in MODELS}
    for name in MODELS:
        folder = tmp_path / name
        folder.mkdir()
        shelf = write_shelf(name, folder)
        assert len(shelf) > 1
        for form, path in shelf.items():
            change = change_in(read_header(path))
            assert (change.kind, change.map) == (PLAIN, "")
            assert [model for model in MODELS if change.fits(rows[model])] == [name], (name, form.label)


def test_a_fused_projections_lora_fits_a_model_that_keeps_them_apart(tmp_path):
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        apart = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    rows = rows_by_columns([layout({name: weight.shape for name, weight in apart.state_dict().items()})])
    changes = [change_in(read_header(path)) for path in write_shelf("FLUX.1", tmp_path).values()]
    linear1 = key_map("FLUX.1")[1]["diffusion_model.single_blocks.0.linear1.weight"]
    assert rows[linear1[1]] < linear1[0], "whole it would not fit"
    assert len(changes) > 1 and all(change.fits(rows) for change in changes)


def test_only_the_network_of_a_model_counts_and_packed_weights_are_not_known():
    network, beside = (
        {"model.diffusion_model.x.weight": (8, 4, 3, 3), "model.diffusion_model.x.bias": (8,)},
        {"first_stage_model.y": (90, 50)},
    )
    assert rows_by_columns([layout(network), layout(beside)]) == {4: 8, 36: 8}
    with pytest.raises(BadFile, match="packed"):
        rows_by_columns([layout(network, "U8", 1)])


def test_what_is_made_for_other_nodes_is_told(tmp_path):
    def kind(file):
        return change_in(read_header(file)).kind

    assert kind(ROOT / "assets/nano_lumix.safetensors") == MAPS_TOGETHER
    assert kind(ROOT / "assets/nano_ildm.safetensors") == kind(ROOT / "assets/nano_vqgan_normal.safetensors") == ELSEWHERE
    assert change_in(read_header(ROOT / "assets/nano_normal_augmented.safetensors")).map == "normal"
    pair = {"lora_down.weight": torch.ones(2, 64), "lora_up.weight": torch.ones(48, 2)}
    text = tmp_path / "text.safetensors"
    save_file({f"lora_te_text_model_encoder_layers_0_mlp_fc1.{end}": value for end, value in pair.items()}, text)
    assert kind(text) == ELSEWHERE
    intrinsix = tmp_path / "intrinsix.safetensors"
    parts = {f"transformer.transformer_blocks.0.attn.to_q.{row}.{end}": value.clone() for row in range(3) for end, value in pair.items()}
    save_file(parts, intrinsix)
    change = change_in(read_header(intrinsix))
    assert change.kind == MAPS_TOGETHER and change.fits({64: 64}) and not change.fits({64: 63})
