"""A converted LoRA is loaded by ComfyUI to the same change, bit for bit, from whatever spelling; what cannot be is refused in words."""

import os
import pickle

import pytest
import torch
from intrinsic_lab.benchmarks.lora_formats_table import write_shelf
from intrinsic_lab.benchmarks.lora_models import network
from intrinsic_lab.methods.lora.convert import NOTE, convert, convert_file
from intrinsic_lab.methods.lora.lora_file import load_tensors, read_lora
from intrinsic_lab.methods.lora_space.__main__ import main
from safetensors.torch import load_file, save_file

pytest.importorskip("comfy.lora")


def patches(state, model):
    """What ComfyUI's loader makes of a file: target -> the tensors and numbers that it computes the change with."""
    import comfy.lora
    import comfy.lora_convert

    keys = comfy.lora.model_lora_keys_unet(network(model), {})
    found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys, log_missing=False)
    return {target: list(patch[1]) if isinstance(patch, tuple) else list(patch.weights) for target, patch in found.items()}


def assert_same(one, other):
    assert one.keys() == other.keys() and one
    for target, values in one.items():
        for first, second in zip(values, other[target], strict=True):
            same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
            assert same, target


@pytest.mark.parametrize(
    "model", ["SD 1.5", "SDXL", "Cascade", "SD 3", "FLUX.1", "Z-Image", "HunyuanVideo", "Wan 14B", "Krea 2", "AuraFlow"]
)
def test_every_spelling_is_loaded_to_the_same_change(model, tmp_path):
    shelf = write_shelf(model, tmp_path)
    for form, path in shelf.items():
        state, metadata = load_tensors(path)
        made = convert(state, metadata | {"ss_steps": "7", "lora_adapter_metadata": "{}"})
        assert_same(patches(state, model), patches(made.tensors, model))
        assert made.metadata["ss_steps"] == "7" and NOTE in made.metadata and "lora_adapter_metadata" not in made.metadata, form
        # Names that the loader does not know make no difference.
        down, up = (f".{side}" for side in form.endings)
        odd = {key.replace(down, ".lora_A.style.weight").replace(up, ".lora_B.style.weight"): tensor for key, tensor in state.items()}
        assert not patches(odd, model)
        again = convert(odd, metadata)
        assert "cannot load this file" in again.before and made.before == ""
        assert_same(patches(made.tensors, model), patches(again.tensors, model))


def test_other_kinds_of_weights_keep_their_tensors(tmp_path):
    torch.manual_seed(0)
    proj, mlp, qkv, norm = (
        f"lora_unet_double_blocks_0_{name}" for name in ("img_attn_proj", "img_mlp_0", "txt_attn_qkv", "img_attn_norm_key_norm")
    )
    ones = {
        f"{proj}.lokr_w1": (4, 2), f"{proj}.lokr_w2_a": (768, 3), f"{proj}.lokr_w2_b": (3, 1536),
        f"{mlp}.hada_w1_a": (12288, 2), f"{mlp}.hada_w1_b": (2, 3072), f"{mlp}.hada_w2_a": (12288, 2), f"{mlp}.hada_w2_b": (2, 3072),
        f"{qkv}.lora_down.weight": (2, 3072), f"{qkv}.lora_up.weight": (9216, 2), f"{qkv}.dora_scale": (9216, 1), f"{qkv}.diff_b": (9216,),
        f"{norm}.diff": (128,),
    }  # fmt: skip
    state = {key: torch.randn(shape) for key, shape in ones.items()} | {f"{qkv}.alpha": torch.tensor(3), f"{proj}.alpha": torch.tensor(1)}
    made = convert(state, {})
    assert all(key.startswith("diffusion_model.double_blocks.0.") for key in made.tensors)
    assert_same(patches(state, "FLUX.1"), patches(made.tensors, "FLUX.1"))
    half = convert(state, {}, "fp16").tensors
    assert {tensor.dtype for key, tensor in half.items() if not key.endswith(".alpha")} == {torch.float16}


def test_text_encoders_go_with_their_network(tmp_path):
    import comfy.lora
    from comfy.sdxl_clip import SDXLClipModel

    keys = comfy.lora.model_lora_keys_clip(SDXLClipModel(device="meta", dtype=torch.float32), {})
    state = {}
    for encoder in ("text_encoder", "text_encoder_2"):
        name = f"{encoder}.text_model.encoder.layers.7.mlp.fc1"
        state |= {f"{name}.lora_A.other.weight": torch.randn(2, 8), f"{name}.lora_B.other.weight": torch.randn(8, 2)}
    state |= {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.randn(2, 2048)}
    state |= {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": torch.randn(640, 2)}
    made = convert(state, {})
    assert {key.split("_text_model")[0] for key in made.tensors if "_te" in key} == {"lora_te1", "lora_te2"}
    found = comfy.lora.load_lora(made.tensors, keys, log_missing=False)
    assert len(found) == 2
    for target, adapter in found.items():
        name = "text_encoder_2" if target.startswith("clip_g") else "text_encoder"
        assert torch.equal(adapter.weights[0], state[f"{name}.text_model.encoder.layers.7.mlp.fc1.lora_B.other.weight"])


def test_diffusers_loads_the_result():
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin, StableDiffusionLoraLoaderMixin

    down, up = torch.randn(2, 3072), torch.randn(3072, 2)
    odd = {f"lora_transformer_single_transformer_blocks_3_attn_to_q.lora_{side}.weight": one for side, one in (("down", down), ("up", up))}
    found = FluxLoraLoaderMixin.lora_state_dict(convert(odd, {}).tensors)
    assert torch.equal(found["transformer.single_transformer_blocks.3.attn.to_q.lora_B.weight"], up)
    down, up = torch.randn(2, 768), torch.randn(320, 2)
    name = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    odd = {f"{name}.lora_A.x.weight": down, f"{name}.lora_B.x.weight": up}
    found, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(convert(odd, {}).tensors)
    assert torch.equal(next(tensor for key, tensor in found.items() if "to_k" in key and ("lora_B" in key or ".up." in key)), up)


NAME = "lora_unet_double_blocks_0_img_attn_proj"
PLAIN = {f"{NAME}.lora_down.weight": torch.ones(2, 3072), f"{NAME}.lora_up.weight": torch.full((3072, 2), 1e6)}
REFUSED = {
    "IA3": ({f"{NAME}.weight": torch.ones(1, 3072), f"{NAME}.on_input": torch.tensor(True)}, "IA3 weights"),
    "magnitudes": (PLAIN | {f"{NAME}.lora_magnitude_vector": torch.ones(3072)}, "magnitudes"),
    "unread": (PLAIN | {"something.else": torch.ones(3)}, r"belong to no LoRA module \(something.else\)"),
    "another model": (
        PLAIN | {"strange_block_1.lora_A.weight": torch.ones(2, 5), "strange_block_1.lora_B.weight": torch.ones(5, 2)},
        "not known",
    ),
    "too large": (PLAIN, "choose another precision"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_written_is_refused_in_words(kind):
    state, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words):
        convert(state, {}, "fp16" if kind == "too large" else "as it is")


def test_files_are_written_whole_and_never_over_others(tmp_path, capsys):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(PLAIN, source, {"ss_tag_frequency": '{"x": {"oil paint": 3}}'})
    command = ["convert", str(source), "--out", str(target)]
    assert main(command) == 0 and main(command) == 0
    written = target.read_bytes()
    assert read_lora(target).metadata["ss_tag_frequency"] == '{"x": {"oil paint": 3}}'
    assert main([*command, "--precision", "bf16"]) == 1
    assert "is there already" in capsys.readouterr().err and target.read_bytes() == written
    assert main([*command, "--precision", "bf16", "--overwrite"]) == 0
    assert {tensor.dtype for tensor in load_file(target).values()} == {torch.bfloat16}
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]
    # Pickles of weights are read as weights alone.
    torch.save(PLAIN, tmp_path / "c.pt")
    made = convert_file(tmp_path / "c.pt", tmp_path / "d.safetensors")
    assert made.tensors.keys() == load_file(tmp_path / "d.safetensors").keys()
    (tmp_path / "e.pt").write_bytes(pickle.dumps(os.path.join))
    with pytest.raises(ValueError, match="pickle that holds more than weights"):
        convert_file(tmp_path / "e.pt", tmp_path / "f.safetensors")
