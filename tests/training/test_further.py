"""Bundled models that train further: what they begin from, words they learn, and the gate before they are replaced."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from intrinsic_lab.benchmarks import nano_gate
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.training.nano import further
from intrinsic_lab.training.nano.flux import extend_t5_tokenizer
from intrinsic_lab.training.nano.text import extend_tokenizer
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PROMPTS = ["a red checkered ball on a brown floor, white walls, light from left", "surface normal"]
NEW_WORDS = "hills of sand around water"
WORLDS = ("room", "world")


def changes(path: Path) -> dict[str, torch.Tensor]:
    return {
        name: layer.scale * layer.up.flatten(1).double() @ layer.down.flatten(1).double() for name, layer in read_lora(path).layers.items()
    }


def test_a_sitting_of_one_step_changes_the_bundled_weights_by_one_step_and_says_so(tmp_path):
    assets = further.open_candidate(ASSETS, tmp_path)
    sitting = further.Sitting(assets, tmp_path, scenes=2, maps=("normal",))
    # Less than a step takes: each run ends with its first.
    further.train_further(sitting, 1e-6, ("decoder", "adapters"))
    before, after = changes(ASSETS / "nano_normal.safetensors"), changes(assets / "nano_normal.safetensors")
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).norm() / before[name].norm()) for name in before]
    assert 0 < max(moved) < 0.05
    old, new = (load_file(folder / "nano" / "vae" / "diffusion_pytorch_model.safetensors") for folder in (ASSETS, assets))
    assert old.keys() == new.keys()
    assert {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])} == {"decoder", "post_quant_conv"}
    entries = json.loads((assets / further.HISTORY).read_text())
    assert [(entry["part"], entry["steps"], entry["samples"]) for entry in entries[-2:]] == [("decoder", 1, 3), ("adapter normal", 1, 8)]
    # The same sitting again goes on from its checkpoints.
    further.train_further(sitting, 1e-6, ("adapters",))
    entries = json.loads((assets / further.HISTORY).read_text())
    assert [entry["steps"] for entry in entries if entry["run"] == "adapter normal from scene 0"] == [2]


def test_new_words_leave_every_old_prompt_as_it_was(tmp_path):
    nano, flux = ASSETS / "nano", ASSETS / "nano_flux"
    clip = CLIPTextModel.from_pretrained(nano / "text_encoder", torch_dtype=torch.float32).eval()
    t5 = T5EncoderModel.from_pretrained(flux / "text_encoder_2", torch_dtype=torch.float32).eval()
    cases = (
        (clip, CLIPTokenizer, nano / "tokenizer", tmp_path / "clip", extend_tokenizer),
        (t5, T5TokenizerFast, flux / "tokenizer_2", tmp_path / "t5", extend_t5_tokenizer),
    )
    for encoder, kind, folder, target, extend in cases:
        old = kind.from_pretrained(folder)
        with torch.no_grad():
            tokens = old(PROMPTS, padding=True, return_tensors="pt").input_ids
            before = encoder(tokens).last_hidden_state
            extend(folder, target, encoder, WORLDS)
            new = kind.from_pretrained(target)
            assert torch.equal(new(PROMPTS, padding=True, return_tensors="pt").input_ids, tokens)
            assert torch.equal(encoder(tokens).last_hidden_state, before)
        ids = new(NEW_WORDS, add_special_tokens=False).input_ids
        assert len(ids) == len(NEW_WORDS.split()) < len(old(NEW_WORDS, add_special_tokens=False).input_ids)
        assert len(new) == encoder.get_input_embeddings().weight.shape[0] > len(old)


def test_a_row_is_worse_only_beyond_its_spread_and_always_where_it_is_not_a_number():
    old = {"map: normal": [10.0, 12.0, 14.0], "lines on edges": [0.5, 0.6, 0.7], "gone": [1.0]}
    new = {"map: normal": [9.0, 11.2, 12.8], "lines on edges": [0.4, 0.5, 0.6]}
    better, worse = nano_gate.compare(old, new)
    gains = torch.tensor([1.0, 0.8, 1.2], dtype=torch.float64)
    assert better.gain == pytest.approx(1.0) and better.spread == pytest.approx(2 * float(gains.std()) / math.sqrt(3))
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert nano_gate.Row("r", 1.0, 1.1, -0.1, 0.2).verdict == "same"
    assert nano_gate.Row("r", 1.0, math.nan, math.nan, math.nan).verdict == "worse"


def test_installing_replaces_what_differs_and_leaves_the_rest_alone(tmp_path):
    assets, candidate = tmp_path / "assets", tmp_path / "candidate"
    for folder, text in ((assets, "old"), (candidate, "new")):
        (folder / "nano").mkdir(parents=True)
        (folder / "nano" / "weights").write_text(text)
        (folder / "same").write_text("same")
    (assets / "own").write_text("own")
    kept = (assets / "same").stat().st_mtime_ns
    nano_gate.install(candidate, assets)
    assert {path.name: path.read_text() for path in assets.rglob("*") if path.is_file()} == {"weights": "new", "same": "same", "own": "own"}
    assert (assets / "same").stat().st_mtime_ns == kept and not candidate.exists()


def test_a_candidate_that_was_copied_half_is_copied_again(tmp_path):
    source = tmp_path / "assets"
    source.mkdir()
    (source / "weights").write_text("whole")
    half = tmp_path / ".candidate.partial"
    half.mkdir()
    (half / "weights").write_text("ha")
    candidate = further.open_candidate(source, tmp_path)
    assert (candidate / "weights").read_text() == "whole" and not half.exists()
    (candidate / "weights").write_text("trained")
    shutil.rmtree(source)
    assert (further.open_candidate(source, tmp_path) / "weights").read_text() == "trained"
