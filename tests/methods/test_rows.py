"""Rows of a batch against their definition, spelt out row by row."""

from itertools import product

import pytest
import torch
from intrinsic_lab.methods.rows import Rows, labelled_slices, windows_per_row

MAPS = ("albedo", "color", "depth")
SIZES = list(product((1, 2), (1, 3)))


def spelt_out(rows, windows=1):
    """(condition, member, picture, window) of every row of a batch."""
    return list(product(range(rows.conds), rows.members, range(rows.pictures), range(windows)))


@pytest.mark.parametrize(("conds", "pictures"), SIZES)
@pytest.mark.parametrize("windows", [1, 4])
def test_a_group_is_the_members_of_one_picture_under_one_condition(conds, pictures, windows):
    rows = Rows(MAPS, conds, pictures)
    order = spelt_out(rows, windows)
    x = torch.randn(len(order), 2, 3)
    split = rows.split(x)
    groups = list(product(range(conds), range(pictures), range(windows)))
    assert split.shape == (len(groups), 3, 2, 3)
    for (cond, picture, window), group in zip(groups, split, strict=True):
        for member, found in zip(MAPS, group, strict=True):
            assert torch.equal(found, x[order.index((cond, member, picture, window))])
    assert torch.equal(rows.join(split), x)
    for member in MAPS:
        assert torch.equal(rows.of(member, x), split[:, MAPS.index(member)])


@pytest.mark.parametrize(("conds", "pictures"), SIZES)
def test_labels_and_slices_name_the_same_rows(conds, pictures):
    rows = Rows(MAPS, conds, pictures)
    order = [member for _, member, *_ in spelt_out(rows)]
    assert len(rows) == len(order)
    assert rows.member_of_row(MAPS) == tuple(order)
    assert rows.member_of_row(("color",)) == tuple(member if member == "color" else None for member in order)
    for member in MAPS:
        numbers = [row for part in rows.slices(member) for row in range(len(rows))[part]]
        assert numbers == [row for row, own in enumerate(order) if own == member]
    covered = [(label, row) for label, part in labelled_slices(rows.member_of_row(MAPS)) for row in range(len(rows))[part]]
    assert covered == [(member, row) for row, member in enumerate(order)]


def test_neighbours_of_one_label_are_one_slice_and_rows_without_a_label_are_left_out():
    assert labelled_slices(["a", "a", None, "b", None, None, "a"]) == [("a", slice(0, 2)), ("b", slice(3, 4)), ("a", slice(6, 7))]
    assert labelled_slices([None, None]) == []


@pytest.mark.parametrize("found", [0, 3, 6, 13])
def test_rows_that_cannot_be_windows_of_the_batch_are_refused(found):
    with pytest.raises(ValueError, match=rf"Layer x ran on {found} rows, a multiple of 12 was expected: remove patches"):
        windows_per_row("Layer x", found, 12)
    with pytest.raises(ValueError, match="A block ran on 7 rows, a multiple of 6 was expected"):
        Rows(MAPS, 2, 1).split(torch.zeros(7))
