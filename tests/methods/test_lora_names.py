"""Every name that ComfyUI's loader knows for a module is one name here; and the same LoRA is told and read alike in every spelling."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from intrinsic_lab.benchmarks.lora_formats_table import STRUCTURES, judge, structures
from intrinsic_lab.benchmarks.lora_models import ARCHITECTURES, key_map
from intrinsic_lab.methods.lora.names import canonical_name, fused_rows

pytest.importorskip("comfy.supported_models")


def rows_of(spelling, target, width):
    """[(canonical name, first row, last row + 1 of the weight that it changes)]."""
    for name, start, stop in fused_rows(canonical_name(spelling), target.rows, width):
        shift = 0
        if target.swapped:
            half = target.rows // 2
            shift = half if stop <= half else -half
        yield name, target.start + start + shift, target.start + stop + shift


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_all_names_that_comfyui_knows_for_a_module_are_one_and_its_alone(model):
    targets, shapes = key_map(model)
    assert len(targets) > 50
    names, places = defaultdict(set), defaultdict(set)
    for spelling, target in targets.items():
        for name, start, stop in rows_of(spelling, target, shapes[target.key][1]):
            names[target.key, start, stop].add(name)
            places[name].add((target.key, start, stop))
    assert not {place: found for place, found in names.items() if len(found) > 1}
    assert not {name: found for name, found in places.items() if len(found) > 1}
    # A fused projection is cut where its parts begin in another spelling.
    for key in {key for key, *_ in names}:
        ends = sorted((start, stop) for other, start, stop in names if other == key)
        assert all(before[1] <= after[0] for before, after in pairwise(ends)), key


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_lora_is_told_and_read_alike_in_every_spelling(model):
    found = judge(model)
    assert len(found) > 1 and set(found.values()) == {"right"}


def test_the_table_of_structures_is_that_of_comfyuis_models():
    assert json.loads(STRUCTURES.read_text()) == structures()
