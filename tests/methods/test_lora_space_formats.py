"""Every spelling and every kind of LoRA reads to the same changes of weights; what is none is refused with a reason."""

import json
import pickle
import re
import struct

import peft
import pytest
import torch
from intrinsic_lab.methods.lora import cache as cache_module
from intrinsic_lab.methods.lora.cache import ReadCache
from intrinsic_lab.methods.lora.delta import Full, Hadamard, Kronecker, LowRank, inner_product
from intrinsic_lab.methods.lora.families import base_family
from intrinsic_lab.methods.lora.formats.base import Sizes
from intrinsic_lab.methods.lora.header import BadFile
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.modules import describe
from intrinsic_lab.methods.lora.names import canonical_name, part_of
from intrinsic_lab.methods.lora.reading import batches_of, deltas_of, read_deltas
from intrinsic_lab.methods.lora.weight_file import Reader, read_header
from intrinsic_lab.tests.methods.lora_space_shelf import BLOCK, MODULES, dense, make_lora, peft_state_dict, save_lora
from safetensors.torch import save_file

TO_Q, OUT, FF = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.ff.net.2"


def read_dense(path, subnetwork="all"):
    """module -> the change [out, in], from what the reader gives."""
    found = {}
    for delta in read_deltas(path, subnetwork):
        factors = delta.factors()
        found[delta.module] = factors.scale * factors.up.double() @ factors.down.double()
    return found


def assert_same(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name].double(), rtol=tolerance, atol=tolerance)


def written(path, state, metadata=None):
    save_file({key: tensor.clone() for key, tensor in state.items()}, path, metadata)
    return path


def ldm(name):
    return name.replace("down_blocks.1.attentions.0", "input_blocks.4.1").replace("mid_block.resnets.0.conv1", "middle_block.0.in_layers.2")


def processor(name):
    return name.replace(".to_", ".processor.to_").removesuffix(".0")


SPELLINGS = {
    "kohya": lambda layers: None,
    "peft": peft_state_dict,
    "peft, base model": lambda layers: peft_state_dict(layers, "base_model.model."),
    "ComfyUI": lambda layers: peft_state_dict({ldm(name): layer for name, layer in layers.items()}, "diffusion_model."),
    "kohya, LDM names": lambda layers: {
        f"lora_unet_{ldm(name).replace('.', '_')}.{end}": tensor
        for name, layer in layers.items()
        for end, tensor in (
            ("lora_down.weight", layer.down),
            ("lora_up.weight", layer.up),
            ("alpha", torch.tensor(layer.scale * layer.rank)),
        )
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_reads_to_the_same_changes(tmp_path, spelling):
    layers = make_lora(1)
    state = SPELLINGS[spelling](layers)
    path = tmp_path / "a.safetensors"
    save_lora(path, layers) if state is None else written(path, state)
    assert_same(read_dense(path), dense(layers))
    assert describe(read_header(path)).family == "sd1"


def test_old_attention_processors_read_to_the_same_changes(tmp_path):
    layers = {name: layer for name, layer in make_lora(1).items() if "attn" in name}
    state = {f"{processor(name)}_lora.down.weight": layer.down for name, layer in layers.items()}
    state |= {f"{processor(name)}_lora.up.weight": layer.up * layer.scale for name, layer in layers.items()}
    assert_same(read_dense(written(tmp_path / "a.safetensors", state)), dense(layers))


def test_names_of_the_original_unets_are_those_of_diffusers():
    comfy_utils = pytest.importorskip("comfy.utils")
    sdxl = {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
    }
    sd1 = {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_middle": 1}
    outputs = ([0, 0, 0, 2, 2, 2, 10, 10, 10], [1] * 9 + [0] * 3)
    for config, depth in zip((sdxl, sd1), outputs, strict=True):
        names = comfy_utils.unet_to_diffusers(config | {"transformer_depth_output": depth})
        weights = {key.removesuffix(".weight"): value.removesuffix(".weight") for key, value in names.items() if key.endswith(".weight")}
        adapted = {key: value for key, value in weights.items() if "norm" not in key and "class_embedding" not in key}
        assert len(adapted) > 150
        for diffusers, original in adapted.items():
            flat = original.replace(".", "_")
            assert canonical_name(f"lora_unet_{flat}") == canonical_name(f"diffusion_model.{original}") == diffusers.replace(".", "_")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_dtype_reads_to_its_own_values(tmp_path, dtype):
    layers = make_lora(1)
    rounded = {name: LoraLayer(layer.down.to(dtype).float(), layer.up.to(dtype).float(), layer.scale) for name, layer in layers.items()}
    path = save_lora(tmp_path / "a.safetensors", layers, dtype)
    assert_same(read_dense(path), dense(rounded), tolerance=1e-5)


def peft_model(config):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(24, 36, bias=False), "conv1": torch.nn.Conv2d(8, 12, 3, bias=False)})
    model = peft.get_peft_model(model, config(target_modules=["to_q", "conv1"], r=3, alpha=6, init_weights=False))
    wanted = {}
    for name in ("to_q", "conv1"):
        layer = model.base_model.model[name]
        wanted[name] = layer.get_delta_weight("default").detach().flatten(1)
        # peft always scales by alpha / rank; LyCORIS and ComfyUI only where a side of the product is factored.
        whole = all("default" in getattr(layer, side, {}) for side in ("lokr_w1", "lokr_w2"))
        wanted[name] = wanted[name] / (2 if whole else 1)
    state = {key.replace(".default", ""): value for key, value in model.state_dict().items() if "hada" in key or "lokr" in key}
    return state | {f"base_model.model.{name}.alpha": torch.tensor(6.0) for name in wanted}, wanted


@pytest.mark.parametrize(
    "config",
    [
        lambda **words: peft.LoHaConfig(**words),
        lambda **words: peft.LoHaConfig(use_effective_conv2d=True, **words),
        lambda **words: peft.LoKrConfig(decompose_factor=4, **words),
        lambda **words: peft.LoKrConfig(decompose_both=True, decompose_factor=4, **words),
        lambda **words: peft.LoKrConfig(use_effective_conv2d=True, decompose_factor=4, **words),
    ],
    ids=["LoHa", "LoHa Tucker", "LoKr", "LoKr both", "LoKr Tucker"],
)
def test_loha_and_lokr_equal_peft(tmp_path, config):
    state, wanted = peft_model(config)
    path = written(tmp_path / "a.safetensors", state)
    assert_same(read_dense(path), wanted, tolerance=1e-5)
    facts = describe(read_header(path))
    assert facts.format == ("loha" if any("hada" in key for key in state) else "lokr")
    assert facts.rank_max == 3


def test_a_tucker_core_is_folded_in(tmp_path):
    torch.manual_seed(0)
    up, mid, down = torch.randn(12, 4, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(4, 8, 1, 1)
    state = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
    path = written(tmp_path / "a.safetensors", {f"lora_unet_conv1.{key}": value for key, value in state.items()})
    picture, convolve = torch.randn(2, 8, 7, 7), torch.nn.functional.conv2d
    wanted = convolve(convolve(convolve(picture, down), mid), up)
    kernel = read_dense(path)["conv1"].float().reshape(12, 8, 3, 3)
    torch.testing.assert_close(convolve(picture, kernel), wanted, rtol=1e-4, atol=1e-4)


def test_a_dora_is_marked_approximate_and_reads_without_its_magnitudes(tmp_path):
    layers = make_lora(1)
    plain = save_lora(tmp_path / "plain.safetensors", layers)
    state = peft_state_dict(layers) | {f"unet.{name}.lora_magnitude_vector": torch.ones(64) for name in layers}
    path = written(tmp_path / "dora.safetensors", state)
    assert_same(read_dense(path), read_dense(plain))
    assert describe(read_header(path)).approximate and not describe(read_header(plain)).approximate


def flux(width=3072):
    """(fused file in BFL's spelling, split file in diffusers' spelling) of the same changes, one double and one single block."""
    torch.manual_seed(0)
    qkv, mixed, proj = ((torch.randn(2, width), torch.randn(rows, 2)) for rows in (3 * width, 7 * width, width))
    fused = {"double_blocks.3.img_attn.qkv": qkv, "single_blocks.5.linear1": mixed, "double_blocks.3.img_attn.proj": proj}
    split = {
        f"transformer_blocks.3.attn.{end}": (qkv[0], rows) for end, rows in zip(("to_q", "to_k", "to_v"), qkv[1].split(width), strict=True)
    }
    ends = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    rows = mixed[1].split([width, width, width, 4 * width])
    split |= {f"single_transformer_blocks.5.{end}": (mixed[0], part) for end, part in zip(ends, rows, strict=True)}
    return fused, split | {"transformer_blocks.3.attn.to_out.0": proj}


def test_flux_fused_projections_equal_the_split_ones(tmp_path):
    fused, split = flux()
    bfl, diffusers = {}, {}
    for name, (down, up) in fused.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        bfl |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    for name, (down, up) in split.items():
        diffusers |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    one, other = written(tmp_path / "bfl.safetensors", bfl), written(tmp_path / "diffusers.safetensors", diffusers)
    assert describe(read_header(one)).family == describe(read_header(other)).family == "flux1"
    for subnetwork in ("all", "attention", "feed_forward"):
        first, second = ({delta.module: delta for delta in read_deltas(path, subnetwork)} for path in (one, other))
        assert first.keys() == second.keys() and first
        for name in first:
            assert torch.equal(first[name].up, second[name].up) and torch.equal(first[name].down, second[name].down)
    assert "single_transformer_blocks_5_proj_mlp" in first and "transformer_blocks_3_attn_to_q" not in first


def test_text_encoders_are_named_alike_and_kept_apart():
    name = "text_model_encoder_layers_3_mlp_fc1"
    spellings = ["lora_te_", "lora_te1_", "text_encoder.", "text_encoders.clip_l.transformer.", "text_encoder.base_model.model."]
    assert {canonical_name(prefix + name) for prefix in spellings} == {f"te1_{name}"}
    dotted = "text_model.encoder.layers.3.mlp.fc1"
    assert canonical_name(f"lora_te2_{name}") == canonical_name(f"text_encoder_2.{dotted}") == f"te2_{name}"
    assert part_of(f"te1_{name}") == "text_encoder"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (TO_Q, "attention"),
        (OUT, "attention"),
        (FF, "feed_forward"),
        ("down_blocks.1.attentions.0.proj_in", "other"),
        ("mid_block.resnets.0.conv1", "other"),
        ("transformer_blocks.3.attn.add_q_proj", "attention"),
        ("transformer_blocks.3.ff_context.net.0.proj", "feed_forward"),
        ("single_transformer_blocks.5.proj_mlp", "feed_forward"),
        ("blocks.7.cross_attn.k", "attention"),
        ("blocks.7.ffn.0", "feed_forward"),
    ],
)
def test_modules_belong_to_their_part(name, part):
    assert part_of(canonical_name(name)) == part


def test_a_subnetwork_reads_its_own_modules_only(tmp_path):
    path = save_lora(tmp_path / "a.safetensors", make_lora(1))
    assert len(list(read_deltas(path, "attention"))) == 4
    assert len(list(read_deltas(path, "feed_forward"))) == 2
    assert len(list(read_deltas(path))) == len(MODULES)
    with pytest.raises(ValueError, match="choose one of"):
        list(read_deltas(path, "everything"))


def test_only_the_bytes_of_the_subnetwork_are_read(tmp_path):
    layers = make_lora(1)
    path = save_lora(tmp_path / "a.safetensors", layers)
    with Reader(path) as reader:
        read = []
        wanted = sum(info.form.size for key, info in reader.header.layout.tensors.items() if "_ff_" in key)
        fill = reader._fill
        reader._fill = lambda view: (read.append(len(view)), fill(view))
        assert len(list(deltas_of(reader, "feed_forward"))) == 2
        assert 0 < sum(read) == wanted < reader.header.size / 3


def test_ranks_may_differ_from_module_to_module(tmp_path):
    layers = {name: make_lora(1, rank=rank)[name] for name, rank in zip(MODULES, (1, 2, 3, 4, 5, 6, 8), strict=True)}
    path = save_lora(tmp_path / "a.safetensors", layers)
    assert_same(read_dense(path), dense(layers))
    facts = describe(read_header(path))
    assert (facts.rank_min, facts.rank_max) == (1, 8)


K, V = (f"down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_{side}" for side in "kv")


@pytest.mark.parametrize(
    ("shapes", "metadata", "family"),
    [
        ({K: (640, 768)}, {}, "sd1"),
        ({K: (640, 1024)}, {}, "sd2"),
        ({K: (640, 2048), V: (640, 2048)}, {}, "sdxl"),
        ({K: (640, 2048)}, {"ss_base_model_version": "sd_v1.5"}, "sdxl"),  # shapes overrule
        ({K: (64, 96)}, {}, "unet-96"),
        ({"down_blocks_0_attentions_0_proj_in": (320, 320)}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({"down_blocks_2_attentions_0_transformer_blocks_3_attn1_to_q": (1280, 1280)}, {}, "sdxl"),
        ({"double_blocks_0_img_attn_qkv": (9216, 3072)}, {}, "flux1"),
        ({"single_transformer_blocks_0_attn_to_q": (3072, 3072)}, {"ss_base_model_version": "sdxl_base_v1-0"}, "flux1"),
        ({"single_transformer_blocks_7_proj_out": (3072, 15360)}, {}, "flux1"),
        ({"double_blocks_0_img_mlp_0": (18432, 3072), "single_blocks_0_linear1": (27648, 3072)}, {}, "flux2-klein-4b"),
        ({"double_blocks_19_img_attn_qkv": (9216, 3072)}, {}, "hunyuan-video"),
        ({"transformer_blocks_0_attn_add_k_proj": (1536, 1536)}, {}, "sd3"),
        ({"blocks_0_self_attn_q": (5120, 5120)}, {}, "wan-14b"),
        ({"blocks_0_self_attn_q": (5120, 5120)}, {"ss_base_model_version": "sd_v1"}, "wan-14b"),
        # Equal blocks: as many as there are decide, then metadata.
        ({"transformer_blocks_0_attn_to_q": (3072, 3072)}, {}, "flux1"),
        ({"transformer_blocks_59_attn_to_q": (3072, 3072)}, {}, "qwen-image"),
        ({"transformer_blocks_0_attn_to_q": (3072, 3072)}, {"modelspec.architecture": "qwen-image/lora"}, "qwen-image"),
        ({"blocks_0_self_attn_q": (5120, 5120)}, {"modelspec.architecture": "qwen-image/lora"}, "wan-14b"),
        ({"te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768)}, {}, "sd1"),
        ({"te1_a": (768, 768), "te2_a": (1280, 1280)}, {}, "sdxl"),
    ],
)
def test_the_base_family_comes_from_shapes_first(shapes, metadata, family):
    assert base_family({name: Sizes(4, *shape) for name, shape in shapes.items()}, metadata) == family


def test_unknown_structures_are_told_apart_whatever_was_trained():
    def family(*names, width=777):
        return base_family({name: Sizes(4, width, width) for name in names}, {})

    assert family("strange_0_a", "strange_1_b") == family("strange_0_c") != family("strange_0_a", width=778)
    assert family("strange_0_a").startswith("unknown-") and family("other_0_a") != family("strange_0_a")
    # Of a width that no model has: stored as one or apart.
    fused = base_family({"double_blocks_0_img_attn_qkv": Sizes(4, 3 * 777, 777)}, {})
    assert fused == family(*(f"transformer_blocks_0_attn_to_{side}" for side in "qkv"))
    # Cosmos Predict 2 in diffusers: LTX's names and, but for the text's width, its shapes.
    sides = [(f"transformer_blocks_0_attn{block}_{end}", 2048) for block in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out_0")]
    beside = {"transformer_blocks_0_ff_net_0_proj": Sizes(4, 8192, 2048), "transformer_blocks_0_ff_net_2": Sizes(4, 2048, 8192)}
    for text, name in ((1024, "unknown-"), (2048, "ltx")):
        sizes = {name: Sizes(4, out, text if re.search("attn2_to_[kv]", name) else 2048) for name, out in sides} | beside
        assert base_family(sizes, {}).startswith(name)


def test_inner_products_and_cuts_equal_dense_ones():
    torch.manual_seed(0)
    sizes = [(6, 4, 6, 6), (6, 4, 6, 6), (4, 8, 9, 3), (3, 4, 12, 6), (12, 2, 3, 12), (2, 24, 18, 1)]
    deltas = [Kronecker("a", torch.randn(o1, i1), torch.randn(o2, i2), 0.3 + o1) for o1, i1, o2, i2 in sizes]
    deltas += [LowRank("a", torch.randn(3, 24), torch.randn(36, 3), 0.7), Full("a", torch.randn(36, 24), 0.5)]
    deltas += [Hadamard("a", *(LowRank("", torch.randn(rank, 24), torch.randn(36, rank)) for rank in (2, 3)), 0.9)]
    dense = [torch.kron(one.left, one.right) * one.scale if isinstance(one, Kronecker) else one.dense(0, 36) for one in deltas]
    # Between the blocks of a product and within them.
    for start, stop in ((0, 36), (5, 17), (12, 24), (7, 8), (1, 36)):
        cut = [one.rows("b", start, stop) for one in deltas]
        left = torch.randn(5, stop - start)
        for one, whole in zip(cut, dense, strict=True):
            torch.testing.assert_close(one.dense(0, stop - start), whole[start:stop], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one.times_left(left), left @ whole[start:stop], rtol=1e-4, atol=1e-3)
            for two, other in zip(cut, dense, strict=True):
                wanted = float((whole[start:stop].double() * other[start:stop].double()).sum())
                assert inner_product(one, two) == pytest.approx(wanted, rel=1e-3, abs=1e-2)


def header_bytes(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def halves(down, up, **extra):
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up} | extra


BAD_FILES = {
    "empty": (b"", "empty"),
    "short": (b"abc", "too short"),
    "after the metadata": (struct.pack("<Q", 23) + b'{"__metadata__": {} "a"', "not that of a safetensors"),
    "metadata of lists": (header_bytes({"__metadata__": [1]} | {"a": {"data_offsets": [0, 0]}}), "not that of a safetensors"),
    "2 GB header": (struct.pack("<Q", 2 << 30) + b"{}", "claims 2147483648 bytes"),
    "text": (b"<!DOCTYPE html><html>access denied</html>", "claims"),
    "not JSON": (struct.pack("<Q", 8) + b"{nothing", "not that of a safetensors"),
    "a list": (header_bytes([1, 2]), "not that of a safetensors"),
    "deep JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, "not that of a safetensors"),
    "truncated": (header_bytes(halves(tensor_entry([4, 8], 0, 128), tensor_entry([8, 4], 128, 256)), bytes(200)), "truncated"),
    "no tensors": (header_bytes({"__metadata__": {"a": "b"}}), "no tensors"),
    "rank 0": (header_bytes(halves(tensor_entry([0, 8], 0, 0), tensor_entry([8, 0], 0, 0))), "rank 0"),
    "wrong bytes": (header_bytes(halves(tensor_entry([4, 8], 0, 100), tensor_entry([8, 4], 100, 256)), bytes(256)), "100 bytes for shape"),
    "integers": (header_bytes(halves(tensor_entry([4, 8], 0, 32, "I8"), tensor_entry([8, 4], 32, 64, "I8")), bytes(64)), "stored as I8"),
    "dtype of lists": (
        header_bytes(halves(tensor_entry([4, 8], 0, 128, ["F32"]), tensor_entry([8, 4], 128, 256)), bytes(256)),
        "stored as ..F32",
    ),
    "three offsets": (
        header_bytes(halves(tensor_entry([4, 8], 0, 128) | {"data_offsets": [0, 128, 7]}, tensor_entry([8, 4], 128, 256)), bytes(256)),
        "does not lie inside",
    ),
    "no shape": (header_bytes(halves({"dtype": "F32", "data_offsets": [0, 0]}, tensor_entry([8, 4], 0, 0))), "no shape"),
    "half": (header_bytes({"a.lora_down.weight": tensor_entry([4, 8], 0, 128)}, bytes(128)), "lacks up"),
    "checkpoint": (header_bytes({"model.to_q.weight": tensor_entry([4, 8], 0, 128)}, bytes(128)), "no LoRA weights"),
    "OFT": (header_bytes({"a.oft_blocks": tensor_entry([4, 8], 0, 128)}, bytes(128)), "square ones"),
    "peft's OFT": (header_bytes({"a.oft_R.weight": tensor_entry([4, 8], 0, 128)}, bytes(128)), "peft's OFT"),
    "ranks differ": (header_bytes(halves(tensor_entry([4, 8], 0, 128), tensor_entry([8, 3], 128, 224)), bytes(224)), "wanted .rank, in."),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_with_its_reason(tmp_path, kind):
    data, reason = BAD_FILES[kind]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    for read in (read_deltas, read_batches):
        with pytest.raises(BadFile, match=reason):
            describe(read_header(path))
            list(read(path))


def read_batches(path):
    with Reader(path, ReadCache()) as reader:
        yield from batches_of(reader)


TENSORS = halves(tensor_entry([4, 8], 0, 128), tensor_entry([8, 4], 128, 256))
METADATA = {"ss_base_model_version": 'a "quoted" } , {"__metadata__": 1}'}


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (json.dumps({"__metadata__": METADATA} | TENSORS), METADATA),
        (json.dumps({"__metadata__": METADATA} | TENSORS, separators=(",", ":")), METADATA),
        (json.dumps(TENSORS | {"__metadata__": METADATA}), METADATA),
        ("\n { " + json.dumps({"__metadata__": None} | TENSORS)[1:] + "  \n", {}),
        (json.dumps(TENSORS) + "   ", {}),
    ],
    ids=["first", "compact", "last", "none, padded", "without"],
)
def test_headers_read_alike_wherever_their_metadata_stands(tmp_path, text, metadata):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(256))
    header = read_header(path)
    found = {name: tensor_entry(list(info.form.shape), *info[:2]) for name, info in header.layout.tensors.items()}
    assert (found, header.metadata, header.size - header.data_start) == (TENSORS, metadata, 256)


def test_what_files_share_is_their_layout_alone(tmp_path):
    spaces, paths = {"a": "sdxl_base_v1-0", "b": "", "c": "longer than the others, so that the padding differs"}, []
    for name, version in spaces.items():
        layers = make_lora(ord(name))
        metadata = {"modelspec.title": version, "ss_tag_frequency": json.dumps({"1": {name: 1}})}
        paths.append(save_lora(tmp_path / f"{name}.safetensors", layers, metadata=metadata))
        assert_same(read_dense(paths[-1]), dense(layers))
    cache = ReadCache()
    # What came once only is not kept.
    assert cached_header(paths[0], cache).layout is not cached_header(paths[1], cache).layout
    headers = [cached_header(path, cache) for path in paths]
    assert headers[0].layout is headers[1].layout is headers[2].layout
    assert [describe(header).tags for header in headers] == [("a",), ("b",), ("c",)]
    # Another run shares nothing with this one.
    assert read_header(paths[0]).layout is not headers[0].layout


def cached_header(path, cache):
    with Reader(path, cache) as reader:
        return reader.header


def test_a_header_of_unusual_length_is_not_kept(tmp_path, monkeypatch):
    path, cache = save_lora(tmp_path / "a.safetensors", make_lora(1)), ReadCache()
    assert len({id(layout) for layout in [cached_header(path, cache).layout for _ in range(4)]}) == 2
    monkeypatch.setattr(cache_module, "_LAYOUT_CHARACTERS", 500)
    assert cached_header(path, cache).layout is not cached_header(path, cache).layout


def test_a_pickle_under_a_false_name_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    for protocol in (2, 4):
        (tmp_path / "bad.safetensors").write_bytes(pickle.dumps(Evil(), protocol))
        with pytest.raises(BadFile, match="pickle"):
            read_header(tmp_path / "bad.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / "bad.safetensors")
    with pytest.raises(BadFile, match="pickle"):
        read_header(tmp_path / "bad.safetensors")
    assert not (tmp_path / "ran").exists()


def test_training_tags_come_from_the_header(tmp_path):
    counts = {"10_ink": {"ink": 9, "1girl": 3}, "5_more": {"ink": 1, "hat": 5}}
    path = save_lora(tmp_path / "a.safetensors", make_lora(1), metadata={"ss_tag_frequency": json.dumps(counts)})
    assert describe(read_header(path)).tags == ("ink", "hat", "1girl")
    path = save_lora(tmp_path / "b.safetensors", make_lora(1), metadata={"ss_tag_frequency": "{broken"})
    assert describe(read_header(path)).tags == ()
