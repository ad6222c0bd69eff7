"""Every LoRA spelling reads to the same layers, and everything else is refused with a reason."""

import json
import pickle

import pytest
import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict, parse_lora, read_lora
from intrinsic_lab.methods.lora.names import dotted_name
from intrinsic_lab.methods.lora.scales import peft_scales
from safetensors.torch import save_file

QUERY = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.0.conv1"
TIME = "mid_block.resnets.0.time_emb_proj"


def random_layer(rank=4, conv=False):
    down, up = torch.randn(rank, 6, *(3, 3) * conv), torch.randn(8, rank, *(1, 1) * conv)
    return LoraLayer(down, up)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return {QUERY: random_layer(), OUT: random_layer(), CONV: random_layer(conv=True), TIME: random_layer()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name].down, wanted[name].down) and torch.equal(found[name].up, wanted[name].up)
        assert found[name].scale == pytest.approx(wanted[name].scale)


def spell(layers, prefix, down, up, rename=lambda name: name):
    return {
        f"{prefix}{rename(name)}{suffix}": getattr(layer, side)
        for name, layer in layers.items()
        for side, suffix in (("down", down), ("up", up))
    }


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("unet.", ".lora_A.weight", ".lora_B.weight"),
        ("", ".lora_A.weight", ".lora_B.weight"),
        ("base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"),
        ("unet.base_model.model.", ".lora_A.normal.weight", ".lora_B.normal.weight"),
        ("unet.", ".lora.down.weight", ".lora.up.weight"),
        ("unet.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_peft_and_diffusers_spellings_read_to_module_names(layers, prefix, down, up):
    assert_same(parse_lora(spell(layers, prefix, down, up)).layers, layers)


def test_kohya_spelling_survives_a_round_trip_with_its_scale(layers):
    scaled = {name: LoraLayer(layer.down, layer.up, scale=0.5) for name, layer in layers.items()}
    state = kohya_state_dict(scaled)
    assert f"lora_unet_{QUERY.replace('.', '_')}.lora_down.weight" in state and len(state) == 12
    assert_same(parse_lora(state).layers, scaled)


def test_published_attention_processor_files_load_fully_from_a_bin(tmp_path):
    """32 attention layers x 4 projections x 2 matrices: the 256 keys of the released SD 1.x checkpoints."""
    blocks = [f"down_blocks.{block}.attentions.{index}" for block in range(3) for index in range(2)]
    blocks += ["mid_block.attentions.0", *(f"up_blocks.{block}.attentions.{index}" for block in (1, 2, 3) for index in range(3))]
    state = {}
    for block in blocks:
        for attention in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out"):
                key = f"{block}.transformer_blocks.0.{attention}.processor.{projection}_lora"
                state |= {f"{key}.down.weight": torch.randn(8, 16), f"{key}.up.weight": torch.randn(16, 8)}
    assert len(state) == 256
    torch.save(state, tmp_path / "pytorch_lora_weights.bin")
    lora = read_lora(tmp_path / "pytorch_lora_weights.bin")
    assert len(lora.layers) == 128 and lora.ignored == 0
    assert {layer.scale for layer in lora.layers.values()} == {1.0}
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0" in lora.layers
    wanted = state["mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight"]
    assert torch.equal(lora.layers["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"].up, wanted)


def test_every_module_name_of_a_real_unet_survives_kohyas_underscores():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        layers_per_block=1,
    )
    names = [name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    assert len(names) > 80
    names += [
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
        "middle_block.0.in_layers.2",
        "output_blocks.3.0.skip_connection",
        "time_embed.0",
    ]
    assert [dotted_name(f"lora_unet_{name.replace('.', '_')}") for name in names] == names


def test_header_and_text_encoder_tensors_are_reported(layers, tmp_path):
    state = spell(layers, "unet.", ".lora_A.weight", ".lora_B.weight") | {"text_encoder.q_proj.lora_A.weight": torch.randn(4, 4)}
    save_file(state, tmp_path / "normal.safetensors", metadata={"intrinsic_lab.map": "normal"})
    lora = read_lora(tmp_path / "normal.safetensors")
    assert_same(lora.layers, layers)
    assert lora.metadata["intrinsic_lab.map"] == "normal" and lora.ignored == 1


@pytest.mark.parametrize("component", ["unet", "transformer"])
def test_alpha_of_diffusers_header_sets_the_scale(layers, component):
    state = spell(layers, f"{component}.", ".lora_A.weight", ".lora_B.weight")
    config = {f"{component}.r": 4, f"{component}.lora_alpha": 2, f"{component}.alpha_pattern": {"conv1": 8}}
    scales = {name: layer.scale for name, layer in parse_lora(state, {"lora_adapter_metadata": json.dumps(config)}).layers.items()}
    assert scales == {QUERY: 0.5, OUT: 0.5, CONV: 2.0, TIME: 0.5}


class RunsCode:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path, capsys):
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"unet.a.lora_A.weight": RunsCode()}, protocol=2))
    torch.save({"unet.a.lora_A.weight": RunsCode()}, tmp_path / "zipped.bin")
    for name in ("plain.bin", "zipped.bin"):
        with pytest.raises(ValueError, match=f"{name} is a pickle that holds more than weights"):
            read_lora(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_truncated_file_is_named_as_such(layers, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    state = kohya_state_dict(layers)
    if suffix == "bin":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"cut.{suffix} .*(truncated|damaged)"):
        read_lora(path)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x04broken", b"PK\x03\x04broken"])
def test_a_file_that_is_no_weight_file_is_refused(tmp_path, content):
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        read_lora(tmp_path / "other.safetensors")


def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_read(layers, tmp_path):
    path = tmp_path / "normal.safetensors"
    state = kohya_state_dict(layers)
    for padding in range(0, 4096, 8):
        save_file(state, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert_same(read_lora(path).layers, layers)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_lora(path)


def broken(name, side, tensor):
    return lambda state: state | {f"unet.{name}.lora_{side}.weight": tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken(QUERY, "A", torch.full((4, 6), float("nan"))), "NaN or infinite"),
        (broken(QUERY, "B", torch.full((8, 4), float("inf"))), "NaN or infinite"),
        (broken(QUERY, "A", torch.randn(5, 6)), r"shapes \(5, 6\) and \(8, 4\)"),
        (broken(QUERY, "A", torch.ones(4, 6, dtype=torch.int32)), "floating point"),
        (lambda state: {key: value for key, value in state.items() if key != f"unet.{OUT}.lora_B.weight"}, "lacks its 'up' weight"),
        (lambda state: state | {f"unet.{QUERY}.lora_magnitude_vector": torch.ones(8)}, "DoRA"),
        (lambda state: state | {"unet.x.alpha": torch.tensor(4.0)}, "alpha values have no weights"),
        (lambda state: state | {"unet.conv_in.bias": torch.ones(8)}, "belong to no LoRA layer"),
        (lambda state: {"model.conv.weight": torch.ones(8)}, "no LoRA weights"),
        (lambda state: {"text_encoder.q_proj.lora_A.weight": torch.ones(8)}, "only text-encoder LoRA"),
        (lambda state: {"lora_unet_x.hada_w1_a": torch.ones(8)}, "LoHa"),
        (lambda state: {}, "no tensors"),
    ],
)
def test_broken_weights_are_refused_with_the_reason(layers, tmp_path, change, message):
    save_file(change(spell(layers, "unet.", ".lora_A.weight", ".lora_B.weight")), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"bad\.safetensors: .*{message}"):
        read_lora(tmp_path / "bad.safetensors")


def test_patterns_of_a_header_are_bounded_before_they_run():
    def scales(pattern):
        return peft_scales({"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {pattern: 2}})})

    assert scales("to_q")("mid_block.attn1.to_q", 4) == 0.5 and scales("to_q")("mid_block.attn1.to_k", 4) == 1
    assert scales(r"down_blocks\.\d+\.to_q")("unet.down_blocks.12.to_q", 2) == 1
    for hostile in ("(a+)+$", "(a|a)*b", "a" * 300, ".*.*.*.*.*x", "[", "to_q{1000000}"):
        with pytest.raises(ValueError, match="alpha_pattern"):
            scales(hostile)
    with pytest.raises(ValueError, match="lora_adapter_metadata"):
        peft_scales({"lora_adapter_metadata": '{"a":' * 100_000})
