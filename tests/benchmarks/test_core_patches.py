"""The pack beside core's own patches: some of each kind here, all of them by `python -m intrinsic_lab.benchmarks.core_patches`."""

import logging
from types import SimpleNamespace

import comfy.model_patcher
import folder_paths
import pytest
import torch
from intrinsic_lab.benchmarks import core_model_patches, core_patches
from intrinsic_lab.benchmarks.core_patches import EQUAL, OWN, REFUSED

WANTED = {
    "APG": (EQUAL, OWN, OWN),
    "SelfAttentionGuidance": (EQUAL, REFUSED, core_patches.CORE_STOPS),
    "ContextWindowsManual": (EQUAL, REFUSED, REFUSED),
    "HyperTile": (OWN, OWN, core_patches.CORE_STOPS),
    "LoraLoaderBypassModelOnly": (OWN, OWN, OWN),
    "ModelMergeSimple": (OWN, OWN, OWN),
    "sampler_calc_cond_batch_function": (EQUAL, OWN, OWN),
    "model_function_wrapper, tiles": (OWN, OWN, OWN),
    "model_function_wrapper, tiles in one batch": (REFUSED, REFUSED, REFUSED),
    "model_function_wrapper, rows apart": (REFUSED, REFUSED, REFUSED),
    "optimized_attention_override": (OWN, OWN, OWN),
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    kept = dict(folder_paths.folder_names_and_paths)
    patches = core_model_patches.core_nodes() | core_model_patches.entries()
    logging.disable(logging.WARNING)
    try:
        with torch.inference_mode():
            return core_patches.judge_all(core_patches.methods(folder), {name: patches[name] for name in WANTED})
    finally:
        logging.disable(logging.NOTSET)
        folder_paths.folder_names_and_paths.update(kept)


@pytest.mark.parametrize("change", WANTED)
def test_every_method_is_core_under_this_change_or_refuses_it_in_words(change, cells):
    for (method, by_order), wanted in zip(cells[change].items(), WANTED[change], strict=True):
        for order, cell in by_order.items():
            assert cell.verdict == wanted, (method, order, cell)
            assert cell.verdict != REFUSED or (":" in cell.words and cell.words.endswith(".")), "it says what to do"


def test_the_table_has_every_entry_that_core_offers_to_packs():
    set_by = {name for name in vars(comfy.model_patcher.ModelPatcher) if name.startswith("set_model_")}
    asked = []
    recorder = SimpleNamespace(
        **{name: lambda *args, name=name: asked.append(name) for name in set_by}, model_options={"transformer_options": {}}
    )
    for put in core_model_patches.ENTRIES.values():
        put(recorder)
    # Both are what the others call.
    assert set_by - set(asked) <= {"set_model_patch"}


def test_a_difference_from_core_is_found_and_ends_the_command():
    method = SimpleNamespace(
        ours=lambda model: model * 1.001, core=lambda model: model, apply=lambda model: model, plain=torch.ones(3), parts=None
    )
    found = core_patches.judge(method, lambda model, parts: model * 2, torch.ones(3))
    assert {cell.verdict for cell in found.values()} == {core_patches.WRONG}
    assert "Wrong:" in core_patches.report({"doubled": {"m": found}})
