"""The collection of style LoRAs, the bundled shelf cut from it, and how their table is scored."""

from itertools import product
from pathlib import Path

import pytest
import torch
from intrinsic_lab.benchmarks import lora_space_synthetic
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.methods.lora_space.agreement import (
    Collection,
    adjusted_rand_index,
    average_precision,
    normalized_mutual_information,
    retrieval,
)
from intrinsic_lab.methods.lora_space.baseline import RawSpace
from intrinsic_lab.training.intrinsic_lora import load_base
from intrinsic_lab.training.nano import shelf, styles
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(layer: LoraLayer) -> torch.Tensor:
    return layer.scale * layer.up.double() @ layer.down.double()


def test_captions_say_what_is_there_and_nothing_of_the_look():
    full = "a checkered red ball, a box and a marbled gray cylinder on a striped blue floor, white walls, light from left"
    assert styles.content_caption(full) == "a ball, a box and a cylinder"


def test_no_two_loras_learn_from_the_same_scene():
    firsts = [lora.first_scene for lora in styles.collection(list(styles.STYLES), range(20), (2, 4, 8, 16))]
    assert len(firsts) == len(styles.STYLES) * 80
    assert len({first + place for first, place in product(firsts, range(styles.PICTURES))}) == len(firsts) * styles.PICTURES


def test_a_trained_style_is_a_lora_of_attention_and_feed_forward_that_changes_what_is_painted(tmp_path):
    base = load_base(ROOT / "assets" / "nano")
    lora = styles.StyleLora("ember", 0, 2)
    [early, path] = styles.train_style(base, lora, tmp_path, [2, 1], learning_rate=1e-2)
    layers = read_lora(path).layers
    assert {name.split("transformer_blocks.0.")[1].split(".to_")[0].split(".net")[0] for name in layers} == {"attn1", "attn2", "ff"}
    assert all(layer.rank == 2 for layer in layers.values()) and any(change(layer).abs().max() > 0 for layer in layers.values())
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.title"] == "ember_0_r2"
    # What is there is left, and a run that goes on ends as one in one go does: two steps after one are two steps.
    assert (early.parents[1].name, path.parents[1].name) == ("1", "2") and early.read_bytes() != path.read_bytes()
    before = path.stat().st_mtime_ns
    assert styles.train_style(base, lora, tmp_path, [2], learning_rate=1e-2) == [path] and path.stat().st_mtime_ns == before
    [again] = styles.train_style(base, lora, tmp_path / "again", [2], learning_rate=1e-2)
    one, other = load_file(again), load_file(path)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    # The merged copy computes what the trained adapter did, and the base stays as it was.
    task = styles.StyleTask(base, lora, styles.LatentCaptions(randn(1, 16, 8, 8), torch.zeros(1, 77, dtype=torch.int64), torch.zeros(77)))
    adapted = task.module.unet
    for name, layer in layers.items():
        module = adapted.get_submodule(name)
        module.lora_A["default"].weight.data, module.lora_B["default"].weight.data = layer.down.float(), layer.up.float()
    inputs = (randn(1, 16, 8, 8), 500, randn(1, 77, 64))
    with torch.no_grad():
        wanted, merged, plain = (unet(*inputs).sample for unet in (adapted, styles.with_lora(base, path), base.network))
    assert (merged - wanted).abs().max() < 1e-5 < (plain - wanted).abs().max()


def test_cutting_a_layer_keeps_its_largest_singular_values():
    layer = LoraLayer(randn(5, 30), randn(20, 5, seed=1), 0.7)
    u, values, vt = torch.linalg.svd(change(layer))
    for rank in (1, 3):
        assert (change(shelf.cut(layer, rank)) - u[:, :rank] * values[:rank] @ vt[:rank]).abs().max() < 1e-5


def test_a_mean_of_files_is_the_mean_of_their_changes(tmp_path):
    files, changes = [tmp_path / f"{rank}.safetensors" for rank in (2, 3)], []
    for rank, file in zip((2, 3), files, strict=True):
        layer = LoraLayer(randn(rank, 12, seed=rank), randn(9, rank, seed=rank + 9))
        shelf.write(file, shelf.plain_state({"mid_block.attentions.0.proj_in": layer}, torch.float32))
        changes.append(change(layer))
    [layer] = shelf.mean(files).values()
    assert torch.allclose(change(layer), sum(changes) / 2, atol=1e-6)


def test_the_hidden_copies_do_what_their_originals_do(tmp_path):
    layers = {"mid_block.attentions.0.transformer_blocks.0.ff.net.2": LoraLayer(randn(1, 12), randn(9, 1, seed=2))}
    [original] = layers.values()
    states = {
        1.0: shelf.peft_state(layers, torch.float32),
        0.5: shelf.plain_state({name: shelf.padded(layer, 0.5) for name, layer in layers.items()}, torch.float32),
    }
    for strength, state in states.items():
        shelf.write(tmp_path / "copy.safetensors", state)
        [copy] = read_lora(tmp_path / "copy.safetensors").layers.values()
        assert torch.allclose(change(copy), strength * change(original), atol=1e-6)
    assert copy.rank == 2


def test_scores_equal_their_definitions():
    assert average_precision(torch.tensor([True, False, True, False]).numpy()) == pytest.approx((1 + 2 / 3) / 2)
    assert normalized_mutual_information([0, 0, 1, 1], [5, 5, 3, 3]) == pytest.approx(1)
    assert normalized_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-12)
    # Hubert and Arabie's formula by hand: 1 agreeing pair, 2 and 3 pairs a side, 6 in all: (1 - 1) / (2.5 - 1); then (0 - 2/3) / (2 - 2/3).
    assert adjusted_rand_index([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx(0)
    assert adjusted_rand_index([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert adjusted_rand_index([0, 0, 1, 2], [4, 4, 2, 9]) == pytest.approx(1)


def test_a_made_up_shelf_s_raw_vectors_are_those_of_the_papers_form(tmp_path):
    made = lora_space_synthetic.Shelf("shared", 8, 0)
    loras = [made.lora(number) for number in range(8)]
    assert len({lora[0][0].shape[1] for lora in loras}) > 1
    found, wanted = lora_space_synthetic.raw_vectors(loras), RawSpace.fit(lora_space_synthetic.write_shelf(loras, tmp_path)).vectors
    assert abs(found @ found.T - wanted @ wanted.T).max() < 1e-4


def test_retrieval_counts_the_own_style_among_the_others_only():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]]).numpy()
    found = retrieval(vectors @ vectors.T, Collection([], torch.tensor([0, 0, 1, 1]).numpy(), torch.tensor([4, 8, 4, 8]).numpy()))
    # 0 and 1 find each other first (AP 1); 2 finds 3 first (AP 1); 3 finds 2 last (AP 1/3).
    assert found == pytest.approx({"top1": 0.75, "top1_other_rank": 0.75, "map": (1 + 1 + 1 + 1 / 3) / 4})
