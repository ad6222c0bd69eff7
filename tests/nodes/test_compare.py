"""Compare Maps inside real ComfyUI."""

import math

import pytest
import torch

pytest.importorskip("comfy_api.latest")
import folder_paths
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes.compare import NOT_COMPARED, CompareMaps
from intrinsic_lab.scenes import render_scenes


@pytest.fixture(autouse=True)
def previews(tmp_path):
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_temp_directory(before)


def compare(prediction, reference, map_name, mask=None, sizes="error", error_top=0.0, color_map="grey"):
    return CompareMaps.execute(prediction, reference, map_name, sizes, error_top, color_map, mask)


def three(depth):
    return depth.expand(-1, -1, -1, 3)


def test_the_schema_has_a_tooltip_on_each_socket():
    declared = CompareMaps.GET_SCHEMA()
    assert declared.display_name == "Compare Maps"
    assert CompareMaps.GET_NODE_INFO_V1()["output_name"] == ["table", "error", "main_metric"]
    assert all(socket.tooltip for socket in [*declared.inputs, *declared.outputs])


@pytest.mark.parametrize("map_name", MAPS)
def test_the_main_metric_and_the_table_are_those_of_the_metrics(map_name):
    maps = render_scenes([0, 1], 32, 40)
    reference = getattr(maps, MAPS[map_name].scene_field)
    prediction = reference + 0.1 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    table, error, main = compare(three(prediction), three(reference), map_name).result
    wanted = MAPS[map_name].evaluation.score(prediction, reference)
    assert main == pytest.approx(wanted[MAPS[map_name].evaluation.main], rel=1e-6)
    assert error.shape == (2, 32, 40, 3)
    for value in wanted.values():
        assert f"{value:9.4f}" in table
    assert "2 picture(s) of 40 x 32, 100.0 % of the pixels" in table
    assert "note:" not in table


def test_the_error_picture_states_its_range_and_greys_what_was_not_compared(previews):
    reference = torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 2, 3).clone()
    prediction = reference.clone()
    prediction[0, 0, 1] = torch.tensor([math.sin(math.radians(30)), 0.0, math.cos(math.radians(30))])
    mask = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    result = compare(prediction, reference, "normal", mask, error_top=60.0)
    table, error, main = result.result
    assert error[0, ..., 0].flatten().tolist() == pytest.approx([0.0, 0.5, NOT_COMPARED, 0.0], abs=1e-4)
    assert "error picture: 0 to 60 degrees, grey" in table
    assert main == pytest.approx(10.0, abs=1e-4)
    # The node shows the table's lines as lines: its text is read as Markdown.
    [shown] = result.ui["text"]
    assert shown.split("  \n") == table.split("\n") and "\n" in table
    assert (previews / result.ui["images"][0]["filename"]).exists()


def test_nothing_is_clamped_before_it_is_measured():
    reference = torch.full((1, 12, 12, 3), 0.5)
    assert compare(reference + 3, reference, "albedo").result[2] == pytest.approx(3.0)


def test_sizes_that_differ_are_refused_or_the_prediction_is_resized():
    maps = render_scenes([3], 48, 64)
    half = torch.nn.functional.avg_pool2d(maps.normal_bhwc.movedim(-1, 1), 2).movedim(1, -1)
    with pytest.raises(ValueError, match="prediction and reference are 32 x 24 and 64 x 48: make them one size"):
        compare(half, maps.normal_bhwc, "normal")
    _, error, main = compare(half, maps.normal_bhwc, "normal", sizes="resize prediction").result
    assert error.shape == (1, 48, 64, 3)
    assert 0 < main < 10


def test_one_reference_serves_a_batch_and_other_numbers_are_refused():
    maps = render_scenes([0, 1, 2], 24, 24)
    _, error, _ = compare(maps.normal_bhwc, maps.normal_bhwc[1:2], "normal").result
    assert error.shape[0] == 3
    assert error[1].max() < 1e-3 < error[0].max()
    with pytest.raises(ValueError, match="3 predictions came with 2 references"):
        compare(maps.normal_bhwc, maps.normal_bhwc[:2], "normal")


def test_a_long_batch_lists_its_first_pictures_and_averages_all():
    reference = torch.tensor([0.0, 0.0, 1.0]).expand(20, 2, 2, 3)
    table, _, _ = compare(reference, reference, "normal").result
    assert "(the first 8 of 20 pictures are listed; the mean is over all)" in table


def test_colors_given_as_normals_are_refused_and_exchanged_depth_is_pointed_out():
    maps = render_scenes([0], 24, 24)
    with pytest.raises(ValueError, match=r"prediction is a picture .* put Read Normals from Colors before it"):
        compare((maps.normal_bhwc + 1) / 2, maps.normal_bhwc, "normal")
    with pytest.raises(ValueError, match="reference is a picture"):
        compare(maps.normal_bhwc, maps.image_bhwc, "normal")
    table = compare(three(1 - maps.depth_bhw1), three(maps.depth_bhw1), "depth").result[0]
    assert "note: the best scale is negative" in table


def test_nan_outside_the_mask_is_no_obstacle_and_inside_it_is_refused():
    maps = render_scenes([0], 24, 24)
    broken = maps.depth_bhw1.clone()
    broken[0, 5, 6] = float("nan")
    mask = torch.ones(1, 24, 24)
    with pytest.raises(ValueError, match="the prediction is NaN or infinite at 1 pixels"):
        compare(three(broken), three(maps.depth_bhw1), "depth", mask)
    mask[0, 5, 6] = 0
    _, error, main = compare(three(broken), three(maps.depth_bhw1), "depth", mask).result
    assert main == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(error).all()


def test_a_mask_of_another_size_is_refused():
    maps = render_scenes([0], 24, 24)
    with pytest.raises(ValueError, match="the mask came as"):
        compare(maps.normal_bhwc, maps.normal_bhwc, "normal", torch.ones(1, 8, 8))
