"""What the reader finds in a file is what ComfyUI's loader makes of it, for every kind of weights; and a hostile header costs nothing."""

import json
import re
import struct

import pytest
import torch
from intrinsic_lab.benchmarks.lora_models import network
from intrinsic_lab.benchmarks.lora_space_scale import peak_memory, write_large_layers
from intrinsic_lab.methods.lora.header import BadFile
from intrinsic_lab.methods.lora.modules import describe, unread
from intrinsic_lab.methods.lora.names import canonical_name, fused_rows
from intrinsic_lab.methods.lora.reading import read_deltas
from intrinsic_lab.methods.lora.weight_file import read_header
from intrinsic_lab.methods.lora_space.gram import exact_cosines
from intrinsic_lab.methods.lora_space.index import LoraIndex
from safetensors.torch import save_file

pytest.importorskip("comfy.lora")
PROJ, QKV, MLP, LINEAR1 = (
    f"diffusion_model.{name}"
    for name in ("double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.0", "single_blocks.0.linear1")
)
# FLUX.1 with a width of 8.
SHAPES = {PROJ: (8, 8), QKV: (24, 8), MLP: (32, 8), LINEAR1: (56, 8)}
NORM = "diffusion_model.double_blocks.0.img_attn.norm.query_norm"


def kohya(name):
    return "lora_unet_" + name.removeprefix("diffusion_model.").replace(".", "_")


def drawn(*shape):
    return torch.randn(*shape) / 2


def plain(name, down="lora_down.weight", up="lora_up.weight", rank=3):
    out, width = SHAPES[name if name in SHAPES else PROJ]
    return {f"{name}.{down}": drawn(rank, width), f"{name}.{up}": drawn(out, rank)}


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


def lokr(name, w2=True, w1=True, alpha=None):
    o2, i2 = SHAPES[name][0] // 4, SHAPES[name][1] // 2
    state = {f"{name}.lokr_w1": drawn(4, 2)} if w1 else {f"{name}.lokr_w1_a": drawn(4, 2), f"{name}.lokr_w1_b": drawn(2, 2)}
    state |= {f"{name}.lokr_w2": drawn(o2, i2)} if w2 else {f"{name}.lokr_w2_a": drawn(o2, 2), f"{name}.lokr_w2_b": drawn(2, i2)}
    return state | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


def loha(name, rank):
    out, width = SHAPES[name]
    ends = {"w1_a": (out, rank), "w1_b": (rank, width), "w2_a": (out, rank), "w2_b": (rank, width)}
    return {f"{name}.hada_{end}": drawn(*shape) for end, shape in ends.items()} | {f"{name}.alpha": torch.tensor(2.0)}


FILES = {
    "whole alpha": lambda: renamed(plain(PROJ) | {f"{PROJ}.alpha": torch.tensor(2)}, PROJ, kohya(PROJ)),
    "peft without alpha": lambda: plain(MLP, "lora_A.weight", "lora_B.weight"),
    "a bias": lambda: plain(QKV) | {f"{QKV}.diff_b": drawn(24)},
    "differences": lambda: {f"{MLP}.diff": drawn(32, 8), f"{MLP}.diff_b": drawn(32), f"{QKV}.diff": drawn(24, 8)}
    | {f"{NORM}.w_norm": drawn(8)},
    "norms": lambda: plain(PROJ)
    | {f"{NORM}.diff": drawn(8), f"{kohya(LINEAR1)}.w_norm": drawn(56, 8), f"{kohya(LINEAR1)}.b_norm": drawn(56)},
    "LoKr, whole": lambda: lokr(MLP) | lokr(QKV, alpha=1.0),
    "LoKr, cut within its blocks": lambda: lokr(LINEAR1, w2=False, alpha=1.0) | lokr(QKV, w1=False, w2=False, alpha=3.0),
    "LoHa": lambda: loha(LINEAR1, 2) | loha(QKV, 6),
    # ComfyUI loads the dotted name of the two, and diffusers' before it.
    "two spellings": lambda: renamed(plain(PROJ), PROJ, kohya(PROJ)) | plain(PROJ),
    "three spellings": lambda: plain(PROJ) | renamed(plain(PROJ), PROJ, "transformer.transformer_blocks.0.attn.to_out.0") | plain(MLP),
    "two kinds of weights": lambda: plain(MLP) | {f"{MLP}.diff": drawn(32, 8)},
    "BFL control": lambda: {
        "img_in.lora_A.weight": drawn(2, 8), "img_in.lora_B.weight": drawn(8, 2), "img_in.lora_B.bias": drawn(8),
        "single_blocks.0.norm.key_norm.scale": drawn(8), "double_blocks.0.img_mlp.0.lora_A.weight": drawn(2, 8),
        "double_blocks.0.img_mlp.0.lora_B.weight": drawn(32, 2), "double_blocks.0.img_mlp.0.lora_B.bias": drawn(32),
    },
    "USO": lambda: {
        f"{block}.processor.{part}.{side}.weight": drawn(*((2, 8) if side == "down" else (rows, 2)))
        for block, part, rows in (
            ("double_blocks.0", "qkv_lora1", 24), ("double_blocks.0", "proj_lora2", 8), ("double_blocks.18", "qkv_lora2", 24),
            ("single_blocks.0", "proj_lora", 8), ("single_blocks.37", "qkv_lora", 24),
        )
        for side in ("down", "up")
    },
}  # fmt: skip


def changes(path):
    """canonical name -> change [rows, columns], of the pieces that the reader gives."""
    found = {}
    for delta in read_deltas(path):
        found[delta.module] = found.get(delta.module, 0) + delta.dense(0, delta.shape[0])
    return found


def by_comfyui(state, base=None):
    """weight or bias -> the change that ComfyUI adds to `base`, zeros where it says nothing."""
    import comfy.lora
    import comfy.lora_convert

    keys = comfy.lora.model_lora_keys_unet(network("FLUX.1"), {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), keys, log_missing=False)
    found = {}
    for where, patch in patches.items():
        key = where if isinstance(where, str) else where[0]
        if isinstance(patch, tuple):
            if patch[0] == "set":
                continue
            shape = patch[1][0].shape
        else:
            first, second = patch.weights[:2]
            shape = (first.shape[0], second.shape[1]) if patch.name in ("lora", "loha") else SHAPES.get(key.removesuffix(".weight"))
        weight = torch.zeros(shape) if base is None else base[key].clone()
        found[key] = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), key) - weight
    return found


@pytest.mark.parametrize("kind", FILES)
def test_changes_are_those_that_comfyui_makes(tmp_path, kind):
    torch.manual_seed(0)
    state = FILES[kind]()
    if kind == "USO":
        # ComfyUI takes a file for one by its last blocks.
        state |= {
            "single_blocks.37.processor.qkv_lora.up.weight": drawn(24, 2),
            "double_blocks.18.processor.qkv_lora2.up.weight": drawn(24, 2),
        }
    path = tmp_path / "a.safetensors"
    metadata = {"lora_adapter_metadata": '{"transformer.r": 3, "transformer.lora_alpha": 9, "transformer.use_rslora": true}'}
    save_file(state, path, metadata if kind == "peft without alpha" else {"lora_adapter_metadata": "{broken"})
    wanted = {}
    for key, change in by_comfyui(state).items():
        name, bias = key.removesuffix(".weight"), key.endswith(".bias")
        name = canonical_name(name.removesuffix(".bias")) + ("_bias" if bias else "")
        change = change.reshape(len(change), -1)
        # The part of linear1 that USO trains.
        name = name + "_qkv" if kind == "USO" and name.endswith("linear1") else name
        wanted |= {piece: change[start:stop] for piece, start, stop in fused_rows(name, *change.shape)}
    # Of the network, two blocks of each kind are built.
    found = {name: change for name, change in changes(path).items() if not re.search("_(?:18|37)_", name)}
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        torch.testing.assert_close(found[name], change, rtol=1e-4, atol=1e-4)
    facts = describe(read_header(path))
    assert facts.approximate == (kind == "BFL control") and len(unread(read_header(path).layout)) == facts.approximate


@pytest.mark.parametrize("old", [False, True])
def test_of_glora_the_part_without_the_base_is_exact_and_the_other_is_compared_by_its_factor(tmp_path, old):
    torch.manual_seed(0)
    ends = {"a1": (3, 8), "a2": (8, 3), "b1": (3, 8), "b2": (32, 3)} if old else {"a1": (8, 3), "a2": (3, 8), "b1": (32, 3), "b2": (3, 8)}
    state = {f"{MLP}.{end}.weight": drawn(*shape) for end, shape in ends.items()} | {f"{MLP}.alpha": torch.tensor(2.0)}
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    base = {f"{MLP}.weight": drawn(32, 8)}
    whole, found = by_comfyui(state, base)[f"{MLP}.weight"], changes(path)
    name = canonical_name(MLP)
    rebuilt = found[name] + base[f"{MLP}.weight"] @ found[f"{name}_of_base"] / 2
    torch.testing.assert_close(whole, rebuilt, rtol=1e-4, atol=1e-4)
    assert describe(read_header(path)).approximate


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_an_oft_is_its_rotation_less_one(tmp_path, alpha):
    torch.manual_seed(0)
    state = {f"{MLP}.oft_blocks": drawn(8, 4, 4), f"{MLP}.alpha": torch.tensor(alpha)}
    save_file(state, path := tmp_path / "a.safetensors")
    base = {f"{MLP}.weight": drawn(32, 8)}
    blocks = changes(path)[canonical_name(MLP) + "_of_base"].reshape(8, 4, 4)
    torch.testing.assert_close(
        by_comfyui(state, base)[f"{MLP}.weight"], torch.block_diag(*blocks) @ base[f"{MLP}.weight"], rtol=1e-4, atol=1e-4
    )


def test_ia3_and_butterflies_compare_among_themselves(tmp_path):
    torch.manual_seed(0)
    factors, blocks, paths = drawn(1, 8), drawn(2, 8, 4, 4), []
    for number, noise in enumerate((0.0, 0.3, 3.0)):
        vector, butterfly = factors + noise * drawn(1, 8), blocks + noise * drawn(2, 8, 4, 4)
        state = {"lora_unet_x_0_k.weight": vector, "lora_unet_x_0_k.on_input": torch.tensor(True), "lora_unet_x_0_q.oft_blocks": butterfly}
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(state, paths[-1])
    facts = describe(read_header(paths[0]))
    assert (facts.format, facts.approximate, facts.modules) == ("ia3+oft", True, 2)
    near, far = exact_cosines(paths[:1], paths[1:])[0]
    assert near > 0.7 > far


def hostile(path, entries):
    """A file whose tensors (name -> shape, fp16) are a hole on the disk."""
    header, end = {}, 0
    for name, shape in entries.items():
        size = 2
        for number in shape:
            size *= number
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


X = "lora_unet_double_blocks_0_img_attn_proj"
HOSTILE = {
    "LoKr": {f"{X}.lokr_w1": (400, 1), f"{X}.lokr_w2_a": (1300, 1), f"{X}.lokr_w2_b": (1, 500_000)},
    "LoKr, both sides": {f"{X}.lokr_w1_a": (20_000, 1), f"{X}.lokr_w1_b": (1, 20_000), f"{X}.lokr_w2": (1, 1)},
    "LoHa": {f"{X}.hada_w{n}_{side}": (90_000, 1) if side == "a" else (1, 90_000) for n in "12" for side in "ab"},
    "LoHa's core": {f"{X}.hada_w{n}_{side}": (1, 9000) for n in "12" for side in "ab"} | {f"{X}.hada_t{n}": (1, 1, 3, 3) for n in "12"},
    "LoRA's core": {f"{X}.lora_down.weight": (1, 90_000), f"{X}.lora_up.weight": (8, 1), f"{X}.lora_mid.weight": (1, 1, 40, 40)},
    "one tensor": {f"{X}.diff": (1 << 15, 1 << 14)},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_that_asks_for_gigabytes_is_refused_before_they_are_taken(tmp_path, kind):
    path = hostile(tmp_path / "a.safetensors", HOSTILE[kind])
    with pytest.raises(BadFile, match=r"multiplied out|no model has such|of memory"):
        describe(read_header(path))
        list(read_deltas(path))


def test_a_shelf_of_small_files_with_large_layers_needs_little_memory(tmp_path):
    # The first two had a process killed at 17 GB.
    write_large_layers(tmp_path)
    found = peak_memory(tmp_path)
    assert found["MB to compare"] < 1500


BROKEN = {
    "rank 0": {f"{X}.lora_down.weight": torch.ones(0, 8), f"{X}.lora_up.weight": torch.ones(8, 0)},
    "vectors": {f"{X}.lora_down.weight": torch.ones(8), f"{X}.lora_up.weight": torch.ones(8)},
    "five dimensions": {f"{X}.hada_w{n}_{side}": torch.ones(2, 2, 2, 2, 2) for n in "12" for side in "ab"},
    "factors that do not meet": {f"{X}.lokr_w1": torch.ones(2, 2), f"{X}.lokr_w2_a": torch.ones(3, 4), f"{X}.lokr_w2_b": torch.ones(5, 6)},
    "alphas": {f"{X}.lora_down.weight": torch.ones(2, 8), f"{X}.lora_up.weight": torch.ones(8, 2), f"{X}.alpha": torch.ones(3)},
    "an IA3 without factors": {f"{X}.on_input": torch.tensor(True)},
    "a matrix of blocks": {f"{X}.oft_blocks": torch.ones(4, 8)},
    "GLoRA that does not fit": {f"{X}.{end}.weight": torch.ones(2, 3) for end in ("a1", "a2", "b1", "b2")},
    "numbers that are none": {f"{X}.diff": torch.full((4, 4), float("nan"))},
    "nothing": {f"{X}.diff": torch.zeros(4, 4)},
}


def test_what_a_file_holds_never_stops_a_run(tmp_path):
    for number, state in enumerate(BROKEN.values()):
        save_file(state, tmp_path / f"{number}.safetensors", {"ss_tag_frequency": "[[1]]", "modelspec.architecture": "{}"})
    save_file(plain(PROJ), tmp_path / "good.safetensors", {"ss_tag_frequency": '{"a": {"b": 1e999}}'})
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([tmp_path])
        assert [entry.name for entry in index.entries()] == ["good.safetensors"]
        assert len(index.problems()) == len(BROKEN) and not [one for one in index.problems() if "not be understood" in one.reason]
