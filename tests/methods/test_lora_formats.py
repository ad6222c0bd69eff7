"""One file per kind of weights: each names its keys, refused kinds say why, and reading changes nothing outside."""

import ast
import json
import pkgutil
import re
import struct
from importlib import import_module
from pathlib import Path

import pytest
import torch
from intrinsic_lab.methods.lora import formats
from intrinsic_lab.methods.lora.formats import FORMATS, REFUSED, format_of, label_of, split_key
from intrinsic_lab.methods.lora.formats.base import Format, Refused
from intrinsic_lab.methods.lora.header import BadFile
from intrinsic_lab.methods.lora.lora_file import parse_lora
from intrinsic_lab.methods.lora.modules import describe, modules_of
from intrinsic_lab.methods.lora.spellings import split_component, split_prefix, split_text_encoder
from intrinsic_lab.methods.lora.weight_file import read_header

METHODS = Path(formats.__file__).parents[2]
# Keys of each kind as trainers write them.
READ = {
    "lora": [
        ("lora_unet_x.lora_down.weight", "lora_unet_x", "down"),
        ("unet.x.lora_A.weight", "unet.x", "down"),
        ("base_model.model.x.lora_B.default.weight", "base_model.model.x", "up"),
        ("unet.x.lora.up.weight", "unet.x", "up"),
        ("unet.x.processor.to_q_lora.down.weight", "unet.x.processor.to_q", "down"),
        ("unet.x.lora_linear_layer.up.weight", "unet.x", "up"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "double_blocks.0.processor.qkv_lora1", "down"),
        ("single_blocks.0.processor.qkv_lora.up.weight", "single_blocks.0.processor.qkv", "up"),
        ("lora_unet_x.lora_mid.weight", "lora_unet_x", "lora_mid"),
    ],
    "loha": [("lycoris_x.hada_w1_a", "lycoris_x", "hada_w1_a"), ("unet.x.hada_t2.default.weight", "unet.x", "hada_t2")],
    "lokr": [("lycoris_x.lokr_w2", "lycoris_x", "lokr_w2"), ("unet.x.lokr_w1_b.default", "unet.x", "lokr_w1_b")],
    "diff": [
        ("diffusion_model.x.diff", "diffusion_model.x", "diff"),
        ("diffusion_model.x.diff_b", "diffusion_model.x", "diff_b"),
        ("lora_unet_x.w_norm", "lora_unet_x", "w_norm"),
        ("lora_unet_x.b_norm", "lora_unet_x", "b_norm"),
        ("double_blocks.0.img_attn.proj.lora_B.bias", "double_blocks.0.img_attn.proj", "lora_bias"),
        ("transformer.x.lora_B.default.bias", "transformer.x", "lora_bias"),
    ],
    "glora": [("lora_unet_x.a1.weight", "lora_unet_x", "glora_a1"), ("lora_unet_x.b2.weight", "lora_unet_x", "glora_b2")],
    "oft": [("lora_unet_x.oft_blocks", "lora_unet_x", "oft_blocks")],
    "ia3": [("lora_unet_x.on_input", "lora_unet_x", "on_input"), ("base_model.model.x.ia3_l.default", "base_model.model.x", "ia3_l")],
}
REFUSED_KEYS = {
    "peft's OFT": "base_model.model.x.oft_R.weight",
    "peft's BOFT": "base_model.model.x.boft_R",
    "replacing": "diffusion_model.x.set_weight",
    "embedding LoRA": "base_model.model.x.lora_embedding_A.default",
    "Tensor LoRA": "double_blocks.0.processor.kv_tt_lora.G1",
}


def test_every_file_beside_the_table_is_in_it_and_names_its_keys():
    for module in pkgutil.iter_modules(formats.__path__):
        if module.name == "base":
            continue
        entries = [one for one in vars(import_module(f"{formats.__name__}.{module.name}")).values() if isinstance(one, Format | Refused)]
        assert entries and all(one in (*FORMATS, *REFUSED) for one in entries), module.name
        assert all(isinstance(one.pattern, re.Pattern) and one.pattern.pattern and one.label for one in entries)
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    assert all(set(one.marked_by) | one.labels.keys() <= one.pattern.groupindex.keys() for one in FORMATS)


def test_a_key_belongs_to_one_format_alone():
    assert READ.keys() == {one.name for one in FORMATS}
    for name, keys in READ.items():
        for key, module, role in keys:
            assert split_key(key) == (module, role)
            assert [one.name for one in FORMATS if one.pattern.match(key)] == [name]
            assert not any(one.pattern.search(key) for one in REFUSED)
        assert (
            format_of([role for *_, role in keys if role != "lora_mid"] + [*next(f for f in FORMATS if f.name == name).marked_by]).name
            == name
        )
    assert split_key("unet.x.alpha") == ("unet.x", "alpha") and split_key("unet.x.weight") is None


@pytest.mark.parametrize("refused", REFUSED, ids=lambda one: one.label)
def test_a_refused_kind_has_a_reason_which_both_readers_give(tmp_path, refused):
    key = REFUSED_KEYS[refused.label]
    assert split_key(key) is None and label_of(key) == refused.label
    assert len(refused.reason.split()) > 5 and refused.reason.endswith(".")
    text = json.dumps({key: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(BadFile, match=re.escape(f"it holds {refused.label} weights ({key}), {refused.reason}")):
        modules_of(read_header(path).layout)
    with pytest.raises(ValueError, match=re.escape(f"holds {refused.label} weights ({key}), only plain LoRA")):
        parse_lora({key: torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("x.dora_scale", "DoRA"),
        ("x.lora_magnitude_vector.weight", "DoRA"),
        ("x.magnitude", "DoRA"),
        ("x.lora_mid.weight", "Tucker-decomposed LoRA"),
        ("x.hada_w1_a", "LoHa"),
        ("x.lokr_w1", "LoKr"),
        ("x.alpha", None),
        ("x.weight", None),
    ],
)
def test_weights_have_one_name_for_people(key, label):
    assert label_of(key) == label


def test_prefixes_are_taken_off_in_one_place():
    spelled = {"base_model.model.unet.a.b": ("a.b", False), "diffusion_model.a.b": ("a.b", False), "lora_unet__a_b": ("a_b", True)}
    assert {spelling: split_prefix(spelling) for spelling in spelled} == spelled
    assert split_text_encoder("text_encoder_2.base_model.model.a") == ("2", "a") and split_text_encoder("unet.text_encoder.a") is None
    assert split_text_encoder("lora_te1_a") == split_text_encoder("text_encoders.clip_l.transformer.a") == ("1", "a")
    assert split_component("transformer.base_model.model.a.b") == ("transformer", "a.b")
    # `loading` repeats what ComfyUI's loader does, `convert` writes its names, `fitting` reads models.
    homes = ("spellings.py", "loading.py", "convert.py", "fitting.py")
    prefixes = re.compile(r"base_model\.model\.|lora_unet_|lora_te|diffusion_model\.|text_encoders?[.\\]")
    for path in (*METHODS.glob("lora/**/*.py"), *METHODS.glob("lora_space/*.py"), *METHODS.glob("lumix/tensor_lora/*.py")):
        strings = [
            node.value
            for node in ast.walk(without_docstrings(ast.parse(path.read_text())))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert path.name in homes or not any(prefixes.search(text) for text in strings), path


def without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def test_reading_switches_nothing_that_the_whole_process_shares():
    # The command line is a process of its own.
    paths = [*METHODS.glob("lora/**/*.py"), *(path for path in METHODS.glob("lora_space/*.py") if path.name != "__main__.py")]
    assert len(paths) > 25
    for path in paths:
        tree = ast.parse(path.read_text())
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names}
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "gc" not in imported, path
        assert not {name for name in called | imported if re.match(r"set_(num|default|flush|grad|printoptions|float32|interop)", name)}, (
            path
        )


def test_a_format_is_known_by_what_it_says_of_itself(tmp_path):
    key = "lora_unet_mid_block_attentions_0_proj_in"
    entries, end = {}, 0
    for role, shape in (("lokr_w1", [2, 2]), ("lokr_w2_a", [4, 3]), ("lokr_w2_b", [3, 4]), ("dora_scale", [8, 1])):
        size = 4 * shape[0] * shape[1]
        entries[f"{key}.{role}"] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    facts = describe(read_header(path))
    assert (facts.format, facts.rank_max, facts.approximate, facts.modules) == ("lokr", 3, True, 1)
