"""Format nodes inside real ComfyUI: what goes through their sockets."""

import json

import pytest
import torch

pytest.importorskip("comfy_api.latest")
from comfy_api.latest import _io
from intrinsic_lab.nodes import format_maps

NODES = {node.GET_SCHEMA().node_id: node for node in format_maps.NODES}
FLIPS = {"flip_x": False, "flip_y": False, "flip_z": False}


def nested(node, prompt_inputs):
    """Inputs as core's executor hands them to `execute`: those that the schema declares, dynamic ones nested."""
    declared, _, v3_data = _io.get_finalized_class_inputs(node.INPUT_TYPES(), prompt_inputs)
    known = declared["required"] | declared["optional"]
    return _io.build_nested_inputs({name: value for name, value in prompt_inputs.items() if name in known}, v3_data)


def depth_pictures():
    return torch.tensor([[2.0, 2.5, 3.5, 4.0], [3.0, 5.0, 8.0, 10.0]]).reshape(2, 2, 2, 1).expand(-1, -1, -1, 3)


def format_depth(range_kind, look="near dark, far bright", clamp=False, **options):
    inputs = {"depth": depth_pictures(), "range": range_kind, "look": look, "clamp": clamp}
    inputs |= {f"range.{name}": value for name, value in options.items()}
    return format_maps.FormatDepth.execute(**nested(format_maps.FormatDepth, inputs)).result


def test_every_node_declares_its_id_verb_and_a_tooltip_on_each_socket():
    assert set(NODES) == {
        "IntrinsicLabFormatNormals",
        "IntrinsicLabNormalsFromColor",
        "IntrinsicLabFormatDepth",
        "IntrinsicLabFormatColor",
        "IntrinsicLabColorMap",
        "IntrinsicLabAlbedoFromPicture",
    }
    for node in NODES.values():
        declared = node.GET_SCHEMA()
        assert declared.display_name.split()[0] in ("Format", "Read", "Apply")
        assert declared.description
        assert node.GET_NODE_INFO_V1()["category"].startswith("intrinsic lab/")
        sockets = [nested_input for entry in declared.inputs for nested_input in entry.get_all()] + list(declared.outputs)
        assert all(socket.tooltip for socket in sockets), node


def test_normals_go_to_directx_colors_and_back_through_the_nodes():
    normal = torch.nn.functional.normalize(torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    (colors,) = format_maps.FormatNormals.execute(normal, "DirectX (Y down)", **FLIPS, renormalize=True, output="colors, 0 to 1").result
    torch.testing.assert_close(colors, torch.stack([normal[..., 0] + 1, 1 - normal[..., 1], normal[..., 2] + 1], -1) / 2)
    with_alpha = torch.cat([colors, torch.ones(2, 5, 4, 1)], -1)
    (back,) = format_maps.NormalsFromColor.execute(with_alpha, "DirectX (Y down)", **FLIPS, renormalize=True).result
    torch.testing.assert_close(back, normal)


def test_normals_of_one_channel_are_refused():
    with pytest.raises(ValueError, match="normal came with 1 channel"):
        format_maps.FormatNormals.execute(torch.zeros(1, 2, 2, 1), "OpenGL (Y up)", **FLIPS, renormalize=True, output="data, -1 to 1")


def test_depth_per_picture_gives_each_its_own_range():
    picture, data, near, far, ranges = format_depth("per picture", low_percentile=0.0, high_percentile=100.0)
    assert picture.shape == data.shape == (2, 2, 2, 3)
    assert data[0, ..., 0].flatten().tolist() == [0, 0.25, 0.75, 1]
    assert (near, far) == (2, 10)
    assert json.loads(ranges) == [[2, 4], [3, 10]]


def test_depth_per_sequence_is_steady_and_near_bright_concerns_only_the_picture():
    picture, data, near, far, ranges = format_depth("per sequence", "near bright, far dark", low_percentile=0.0, high_percentile=100.0)
    torch.testing.assert_close(data, (depth_pictures() - 2) / 8)
    torch.testing.assert_close(picture, 1 - data)
    assert (near, far, json.loads(ranges)) == (2, 10, [[2, 10], [2, 10]])


def test_the_range_that_came_out_reproduces_the_data_as_a_fixed_range():
    _, wanted, near, far, _ = format_depth("per sequence", low_percentile=5.0, high_percentile=95.0)
    _, data, *_ = format_depth("fixed range", near=near, far=far)
    torch.testing.assert_close(data, wanted)


def test_clamp_cuts_the_picture_and_never_the_data():
    picture, data, *_ = format_depth("fixed range", clamp=True, near=3.0, far=5.0)
    assert (picture.min(), picture.max()) == (0, 1)
    assert (data.min(), data.max()) == (-0.5, 3.5)


def test_raw_depth_passes_bit_for_bit_and_mirrors_within_its_range():
    picture, data, near, far, _ = format_depth("raw")
    assert torch.equal(picture, depth_pictures())
    assert torch.equal(data, depth_pictures())
    mirrored, data, *_ = format_depth("raw", "near bright, far dark")
    assert torch.equal(mirrored, near + far - depth_pictures())
    assert torch.equal(data, depth_pictures())


def test_an_unknown_range_is_refused_although_core_lets_it_through():
    with pytest.raises(ValueError, match="there is no depth range None"):
        format_depth("per universe")


def test_broken_depth_is_refused():
    inputs = nested(format_maps.FormatDepth, {"range": "raw", "look": "near dark, far bright", "clamp": False})
    with pytest.raises(ValueError, match="12 of 12 values that are NaN or infinite"):
        format_maps.FormatDepth.execute(depth=torch.full((1, 2, 2, 3), float("nan")), **inputs)
    with pytest.raises(ValueError, match="depth is empty"):
        format_maps.FormatDepth.execute(depth=torch.zeros(0, 2, 2, 3), **inputs)


def test_albedo_goes_to_srgb_with_exposure():
    linear = torch.full((1, 2, 2, 3), 0.2140411)
    (image,) = format_maps.FormatColor.execute(linear / 2, "sRGB", 1.0, False).result
    torch.testing.assert_close(image, torch.full_like(image, 0.5))
    (image,) = format_maps.FormatColor.execute(linear, "linear", 3.0, False).result
    torch.testing.assert_close(image, linear * 8)


def test_a_color_map_node_colors_depth():
    (image,) = format_maps.ColorMap.execute(depth_pictures(), "grey", 2.0, 4.0).result
    assert image.shape == (2, 2, 2, 3)
    assert image[0, ..., 1].flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1])
    assert image[1].max() == 1
