import re

import pytest
import torch
from intrinsic_lab.methods import maps
from intrinsic_lab.methods.ildm.intrinsic_vae import INTRINSICS
from intrinsic_lab.methods.lumix.design import KINDS
from intrinsic_lab.methods.maps import MAPS, OTHER_MAPS, map_kind


def some_data(kind, size=9):
    """Values that a map of this kind may have."""
    values = torch.rand(2, size, size, kind.channels, generator=torch.Generator().manual_seed(0))
    if kind.vector:
        return torch.nn.functional.normalize(values * 2 - 1, dim=-1)
    return maps.relative_depth(values) if kind.relative else values


def test_the_table_and_its_description_say_the_same():
    rows = re.findall(r"^(\w+) +(\d) +\S", maps.__doc__, re.M)
    assert rows == [(name, str(kind.channels)) for name, kind in MAPS.items()]


def test_maps_keep_their_numbers():
    """Saved graphs know a map's output by its number: new ones go to the end."""
    assert list(MAPS)[:7] == ["normal", "depth", "albedo", "shading", "roughness", "metallic", "specular"]


@pytest.mark.parametrize("name", [*MAPS, *OTHER_MAPS])
def test_an_entry_is_whole(name):
    kind = map_kind(name)
    assert kind.name == name and kind.meaning.endswith(".") and kind.tooltip.endswith(".")
    assert bool(kind.prompt) == (name in MAPS)
    data = some_data(kind)
    picture = kind.to_picture(data)
    assert picture.shape == (2, 9, 9, 3) and picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(kind.from_picture(picture), data, atol=1e-5, rtol=0)
    planes = picture.movedim(-1, 1) * 2 - 1
    assert kind.picture_loss(planes, planes).item() == pytest.approx(0, abs=1e-6)
    for read in kind.files.readings.values():
        assert read(picture).shape == (2, 9, 9, 3)
    torch.testing.assert_close(kind.files.readings[kind.files.own](picture), picture, atol=1e-6, rtol=0)
    assert torch.equal(kind.files.choices[kind.files.own].to_own(picture), picture)


def test_other_methods_name_entries_of_the_table():
    assert all(map_kind(name) is kind for name, kind in INTRINSICS.items())
    assert [map_kind(name).name for name in KINDS.values()] == ["albedo", "shading", "image", "depth", "normal"]
    with pytest.raises(ValueError, match="no map called 'taste'"):
        map_kind("taste")


def test_a_mirror_exchanges_sides_and_turns_directions_round():
    normal = torch.tensor([[[[0.6, 0.0, 0.8], [0.0, 0.6, 0.8]]]])
    mirrored = map_kind("normal").from_picture(map_kind("normal").mirrored(map_kind("normal").to_picture(normal)))
    torch.testing.assert_close(mirrored, torch.tensor([[[[0.0, 0.6, 0.8], [-0.6, 0.0, 0.8]]]]))
    picture = torch.rand(1, 2, 3, 3)
    assert torch.equal(map_kind("depth").mirrored(picture), picture.flip(2))


def test_srgb_is_the_standard_curve_and_its_inverse_returns_what_came():
    # Values of IEC 61966-2-1: the ends, the linear part, middle grey.
    assert maps.srgb_from_linear(torch.tensor([0.0, 0.002, 0.2140411, 1.0])).tolist() == pytest.approx([0, 0.02584, 0.5, 1], abs=1e-6)
    values = torch.linspace(-2, 3, 501, dtype=torch.float64)
    torch.testing.assert_close(maps.linear_from_srgb(maps.srgb_from_linear(values)), values, atol=1e-6, rtol=0)


def test_normals_survive_the_way_through_a_picture():
    normal = torch.nn.functional.normalize(torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(maps.normal_from_picture(maps.normal_picture(normal)), normal)


def test_a_zero_vector_faces_the_viewer():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    torch.testing.assert_close(maps.unit_normals(vectors), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, 0.8]]))


def test_relative_depth_fills_each_picture_and_a_flat_one_is_zero():
    depth = torch.stack([torch.tensor([[2.0, 4.0], [6.0, 10.0]]), torch.full((2, 2), 3.0)])[..., None]
    assert maps.relative_depth(depth).flatten().tolist() == [0, 0.25, 0.5, 1, 0, 0, 0, 0]


def test_one_channel_survives_the_way_through_an_image_bit_for_bit():
    depth = 10 * torch.rand(2, 33, 31, 1, generator=torch.Generator().manual_seed(0))
    image = maps.image_from_map(depth)
    assert image.shape == (2, 33, 31, 3)
    assert torch.equal(maps.map_from_image(image, 1, "depth"), depth)


def test_alpha_is_dropped_and_grey_becomes_color_only_where_it_may():
    image = torch.tensor([1.0, 2.0, 6.0, 0.5]).expand(1, 2, 2, 4)
    assert maps.map_from_image(image, 3, "albedo")[0, 0, 0].tolist() == [1, 2, 6]
    assert maps.map_from_image(image, 1, "depth")[0, 0, 0].tolist() == [3]
    assert maps.map_from_image(image[..., :1], 3, "shading", grey=True)[0, 0, 0].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="normal came with 1 channel, 3 or 4 are wanted"):
        maps.map_from_image(image[..., :1], 3, "normal")


def test_data_is_never_clamped():
    image = torch.tensor([-3.0, 0.5, 7.0]).expand(1, 1, 1, 3)
    assert maps.map_from_image(image, 3, "albedo").flatten().tolist() == [-3.0, 0.5, 7.0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 4, 3), r"depth came with shape \[4, 4, 3\]"),
        (torch.zeros(0, 4, 4, 3), "depth is empty"),
        (torch.zeros(1, 4, 4, 2), "depth came with 2 channels, 1 or 3 or 4 are wanted"),
        (torch.full((1, 2, 2, 3), float("nan")), "depth holds 12 of 12 values that are NaN or infinite"),
    ],
)
def test_what_is_no_map_is_refused_with_the_reason(image, message):
    with pytest.raises(ValueError, match=message):
        maps.map_from_image(image, 1, "depth")
