"""Copies and relatives are told by what was done to make them, on LoRAs trained step by step here; nothing else is called one."""

from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.benchmarks.lora_kinship_table import cast, merged, resized, scaled, shelf, stored
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora_space import kinship as kinds
from intrinsic_lab.methods.lora_space.comparison import compare, compare_within
from intrinsic_lab.methods.lora_space.duplicates import find_duplicates
from intrinsic_lab.methods.lora_space.index import LoraIndex
from intrinsic_lab.methods.lora_space.kinship import kinship, nonnegative_fit
from intrinsic_lab.methods.lora_space.relatives import find_relatives
from safetensors.torch import save_file
from scipy.optimize import nnls

SHAPES = {"attn1_to_q": (96, 80), "attn2_to_k": (96, 768), "ff_net_2": (64, 160)}
PREFIX = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
# As the benchmark trains them on the nano model: (data, start) -> steps.
RUNS = {("normal", 0): (60, 61, 63, 70, 90, 120), ("normal", 1): (60, 120), ("depth", 0): (60, 120), ("shading", 0): (120,)}
DATA = {"normal": 11, "depth": 22, "shading": 33}


def train(data, start, saved):
    """steps -> state, of a LoRA of rank 4 that learns a map of full rank with Adam, its up from zero."""
    draw = torch.Generator().manual_seed(start)
    factors = {}
    for name, (out, width) in SHAPES.items():
        factors[name] = (torch.zeros(out, 4, requires_grad=True), (torch.randn(4, width, generator=draw) / width**0.5).requires_grad_())
    optimizer = torch.optim.Adam([one for pair in factors.values() for one in pair], 1e-3)
    task = torch.Generator().manual_seed(DATA[data])
    wanted = {name: torch.randn(out, width, generator=task) / width**0.5 for name, (out, width) in SHAPES.items()}
    found = {}
    for step in range(1, max(saved) + 1):
        loss = 0
        for name, (up, down) in factors.items():
            pictures = torch.randn(16, down.shape[1], generator=draw)
            loss = loss + ((pictures @ down.T @ up.T - pictures @ wanted[name].T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in saved:
            found[step] = stored({f"{PREFIX}{name}": (up.detach().clone(), down.detach().clone()) for name, (up, down) in factors.items()})
    return found


@pytest.fixture(scope="module")
def trained():
    return {f"{data}_{start}_{step}": state for (data, start), saved in RUNS.items() for step, state in train(data, start, saved).items()}


def write(folder, name, state, metadata=None):
    path = folder / f"{name}.safetensors"
    folder.mkdir(exist_ok=True)
    save_file(state, path, metadata)
    return path


def test_everything_on_a_shelf_is_told_by_what_was_done(trained, tmp_path):
    made = shelf(trained)
    for name, one in made.items():
        write(tmp_path / "loras", name, one.state)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([tmp_path / "loras"])
        groups = find_duplicates(index)
        relatives = find_relatives(index, copies={copy.entry.id for group in groups for copy in group.copies})
    wanted = {name: (one.kind, set(one.sources)) for name, one in made.items() if one.kind not in ("-", *kinds.COPIES)}
    assert {Path(one.entry.name).stem: (one.kind, {Path(source.name).stem for source, _ in one.sources}) for one in relatives} == wanted
    # What rank reduction took from a merge does not bias its shares.
    shares = {Path(one.entry.name).stem: [round(share, 3) for _, share in one.sources] for one in relatives}
    assert shares["merge .7 .3"] == [0.7, 0.3] and shares["merge of 3"] == [0.5, 0.3, 0.2] and shares["merge fp16"] == [1.2, 0.4]
    assert shares["merge rank 4"] == [0.6, 0.5] and shares["merge of 3 rank 4"] == [0.4, 0.4, 0.4] and shares["half rank 2"] == [0.5]
    assert shares["merge rank 2 bf16"] == pytest.approx([0.8, 0.4], abs=0.01)
    # Copies are of one group, whichever of those of equal precision is its original.
    (group,) = groups
    assert {Path(entry.name).stem for entry in (group.original, *(copy.entry for copy in group.copies))} == {
        "normal_0_60", *(name for name, one in made.items() if one.kind in kinds.COPIES)
    }  # fmt: skip


def test_pairs_are_told_by_what_separates_them(trained, tmp_path):
    first = trained["normal_0_60"]
    path = write(tmp_path, "first", first)

    def told(name, state, **options):
        return kinship(path, write(tmp_path, name, state, **options))

    assert told("bytes", first).kind == kinds.SAME_BYTES
    assert told("header", first, metadata={"a": "b"}).kind == kinds.SAME_CHANGE
    assert (more := told("more", scaled(first, 1.02))).kind == kinds.SCALED and "times 1.02" in more.text
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert told("rounded", cast(first, dtype)).kind == kinds.ROUNDED
        # Errors are as long as predicted; what fp8 rounds to nothing is shorter than the spacing there.
        found = compare([path, tmp_path / "rounded.safetensors"])
        ratio = found.distance(0, 1) / found.rounding.sum() ** 0.5
        assert 0.85 < ratio < 1.1
    # In one dtype, equal tensors round to equal ones: a difference below all rounding is a step, not a copy.
    half = cast(first, torch.float16)
    moved = {key: torch.nextafter(one, torch.randn_like(one)) if "lora_up" in key else one for key, one in half.items()}
    assert kinship(write(tmp_path, "half", half), write(tmp_path, "moved", moved)).kind == kinds.LATER
    late = told("late", trained["normal_0_61"], metadata={"ss_steps": "61"})
    assert late.kind == kinds.LATER and not late.turned and 0.01 < late.apart < 0.2 and "by the length" in late.text
    for stranger in ("minus", "other start", "other data"):
        state = {"minus": scaled(first, -1.0), "other start": trained["normal_1_60"], "other data": trained["depth_0_60"]}[stranger]
        assert told(stranger, state) is None
    few = {key: one for key, one in first.items() if "ff_net" not in key}
    part = told("part", few)
    assert part.kind == kinds.PART and not part.turned
    # Of lower rank, but not the best of it.
    poor = {name: one for name, one in resized(first, 3).items()}
    poor = {key: one[:, 1:] if "lora_up" in key else one[1:] if "lora_down" in key else torch.tensor(2.0) for key, one in poor.items()}
    found = told("poor", {key: one.contiguous() for key, one in poor.items()})
    assert found is None or found.kind == kinds.RELATED


def test_a_later_step_is_told_by_the_header_before_its_length(trained, tmp_path):
    early = write(tmp_path, "early", trained["normal_0_70"], {"ss_steps": "90"})
    late = write(tmp_path, "late", trained["normal_0_90"], {"ss_steps": "70"})
    found = kinship(early, late)
    assert found.turned and "early.safetensors is a later step" in found.text and "steps 70 and 90" in found.text


def test_every_tensor_counts(trained, tmp_path):
    first = trained["normal_0_60"]
    name = f"{PREFIX}attn1_to_q"
    dora = first | {f"{name}.dora_scale": torch.rand(96, 1) + 1}
    odd = first | {"position.table": torch.arange(6)}
    cases = {
        "magnitudes": (
            dora,
            dora | {f"{name}.dora_scale": dora[f"{name}.dora_scale"] * 1.1},
            f"differ in {name}.dora_scale, which is not read",
        ),
        "one lacks it": (first, odd, "only one lacks it 2.safetensors holds position.table"),
        "whole numbers": (odd, odd | {"position.table": torch.arange(6).flip(0)}, "differ in position.table"),
    }
    for case, (one, other, words) in cases.items():
        found = kinship(write(tmp_path, f"{case} 1", one), write(tmp_path, f"{case} 2", other, {"x": "y"}))
        assert found.kind == kinds.UNREAD and words in found.text, found.text
    # Rounded along with the rest, and under another name, they are the same.
    half = {key.replace(".dora_scale", ".lora_magnitude_vector"): one for key, one in cast(dora, torch.bfloat16).items()}
    same = {key: one.bfloat16() for key, one in dora.items()}
    assert kinship(write(tmp_path, "dora", dora), write(tmp_path, "dora half", same)).kind == kinds.ROUNDED
    assert kinship(write(tmp_path, "dora", dora), write(tmp_path, "renamed", half)).kind == kinds.UNREAD
    assert kinship(write(tmp_path, "odd", odd), write(tmp_path, "odd again", odd, {"x": "y"})).kind == kinds.SAME_CHANGE


def test_what_is_fused_is_reduced_as_one(tmp_path):
    torch.manual_seed(0)
    qkv = stored({"lora_unet_double_blocks_0_img_attn_qkv": (torch.randn(9216, 8), torch.randn(8, 3072) * torch.arange(8, 0, -1)[:, None])})
    whole = write(tmp_path, "whole", qkv)
    reduced = kinship(whole, write(tmp_path, "reduced", resized(qkv, 3)))
    # Seen by its own singular vectors, the reduced one is what they see of the whole; another shape is seen by nobody.
    seen = compare_within([tmp_path / "reduced.safetensors", whole])[0].inner
    assert seen[0, 1] == pytest.approx(seen[0, 0], rel=1e-6) and seen[1, 1] == pytest.approx(seen[0, 0], rel=1e-6)
    other = stored({"lora_unet_double_blocks_0_img_attn_qkv": (torch.randn(96, 8), torch.randn(8, 32))})
    assert compare_within([whole, write(tmp_path, "narrow", other)]) is None
    assert reduced.kind == kinds.REDUCED and "reduced.safetensors is whole.safetensors reduced" in reduced.text
    up, down = qkv["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"], qkv["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"]
    split = {f"transformer.transformer_blocks.0.attn.to_{side}.lora_A.weight": down.clone() for side in "qkv"}
    split |= {
        f"transformer.transformer_blocks.0.attn.to_{side}.lora_B.weight": one.clone() for side, one in zip("qkv", up.chunk(3), strict=True)
    }
    assert kinship(whole, write(tmp_path, "split", split)).kind == kinds.SAME_CHANGE


def test_other_kinds_of_weights_are_compared_whole(tmp_path):
    torch.manual_seed(0)
    loha = {f"{PREFIX}attn1_to_q.hada_w{n}_{side}": torch.randn(*((96, 2) if side == "a" else (2, 80))) for n in "12" for side in "ab"}
    kron = {f"{PREFIX}ff_net_2.lokr_w1": torch.randn(8, 10), f"{PREFIX}ff_net_2.lokr_w2": torch.randn(8, 16)}
    first = write(tmp_path, "first", loha | kron)
    assert kinship(first, write(tmp_path, "half", cast(loha | kron, torch.float16))).kind == kinds.ROUNDED
    first_w, second_w = (loha[f"{PREFIX}attn1_to_q.hada_w{n}_a"] @ loha[f"{PREFIX}attn1_to_q.hada_w{n}_b"] for n in "12")
    full = {f"{PREFIX}attn1_to_q.diff": first_w * second_w, f"{PREFIX}ff_net_2.diff": torch.kron(*kron.values())}
    assert kinship(first, write(tmp_path, "full", full)).kind == kinds.SAME_CHANGE


def test_the_comparison_is_that_of_dense_matrices(trained, tmp_path):
    names = ("normal_0_60", "normal_0_61", "depth_0_120")
    paths = [write(tmp_path, name, trained[name]) for name in names]
    found = compare(paths)
    dense = []
    for name in names:
        layers = {
            n: LoraLayer(trained[name][f"{PREFIX}{n}.lora_down.weight"], trained[name][f"{PREFIX}{n}.lora_up.weight"]) for n in SHAPES
        }
        dense.append(torch.cat([(one.up.double() @ one.down.double()).flatten() for one in layers.values()]))
    wanted = torch.stack(dense) @ torch.stack(dense).T
    numpy.testing.assert_allclose(found.inner, wanted.numpy(), rtol=1e-12)
    assert found.distance(0, 1) == pytest.approx(float((dense[1] - dense[0]).norm()), rel=1e-9)


def test_the_fit_is_scipys():
    draw = numpy.random.default_rng(0)
    for _ in range(50):
        matrix, wanted = draw.normal(size=(12, 6)), draw.normal(size=12)
        numpy.testing.assert_allclose(nonnegative_fit(matrix.T @ matrix, matrix.T @ wanted), nnls(matrix, wanted)[0], atol=1e-8)
    columns = numpy.repeat(draw.normal(size=(12, 1)), 2, 1)
    assert sum(nonnegative_fit(columns.T @ columns, columns.T @ columns[:, 0])) == pytest.approx(1)


def test_a_merge_is_no_merge_of_what_was_made_of_it(trained, tmp_path):
    one, other = trained["depth_0_120"], trained["normal_1_120"]
    files = {"a": one, "b": other, "ab": merged((one, 0.6), (other, 0.6)), "aab": merged((one, 0.9), (other, 0.3))}
    for name, state in files.items():
        write(tmp_path / "loras", name, state)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([tmp_path / "loras"])
        found = {one.entry.name: {(source.name, round(share, 3)) for source, share in one.sources} for one in find_relatives(index)}
    assert found == {
        "ab.safetensors": {("a.safetensors", 0.6), ("b.safetensors", 0.6)},
        "aab.safetensors": {("a.safetensors", 0.9), ("b.safetensors", 0.3)},
    }
