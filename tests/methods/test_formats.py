import numpy
import pytest
import torch
from intrinsic_lab.methods import formats

OPENGL, DIRECTX, OPENCV = formats.NORMAL_CONVENTIONS


def unit_vectors(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, 3, generator=torch.Generator().manual_seed(3)), dim=-1)


def test_known_normals_have_the_known_colors():
    to_the_right, upwards, to_the_viewer = torch.eye(3).reshape(3, 1, 1, 3)
    assert formats.format_normals(to_the_right[None]).flatten().tolist() == [1.0, 0.5, 0.5]
    assert formats.format_normals(to_the_viewer[None]).flatten().tolist() == [0.5, 0.5, 1.0]
    assert formats.format_normals(upwards[None], OPENGL).flatten().tolist() == [0.5, 1.0, 0.5]
    assert formats.format_normals(upwards[None], DIRECTX).flatten().tolist() == [0.5, 0.0, 0.5]
    assert formats.format_normals(upwards[None], OPENCV).flatten().tolist() == [0.5, 0.0, 0.5]
    assert formats.format_normals(to_the_viewer[None], OPENCV).flatten().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("convention", formats.NORMAL_CONVENTIONS)
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True)])
def test_reading_colors_undoes_formatting(convention, flips):
    normal = unit_vectors(2, 5, 4)
    options = dict(zip(("flip_x", "flip_y", "flip_z"), flips, strict=True))
    colors = formats.format_normals(normal, convention, **options)
    torch.testing.assert_close(formats.normals_from_color(colors, convention, **options), normal)


def test_directx_with_flipped_y_is_opengl():
    normal = unit_vectors(1, 4, 4)
    assert torch.equal(formats.format_normals(normal, DIRECTX, flip_y=True), formats.format_normals(normal, OPENGL))


def test_normals_as_data_keep_their_length_only_without_renormalizing():
    normal = 3 * unit_vectors(1, 4, 4)
    assert torch.equal(formats.format_normals(normal, renormalize=False, as_color=False), normal)
    lengths = formats.format_normals(normal, as_color=False).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(1, 4, 4))


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="no normal convention 'Maya'"):
        formats.format_normals(unit_vectors(1, 2, 2), "Maya")


def sequence():
    """Two pictures whose depths reach from 2 to 4 and from 3 to 10."""
    return torch.tensor([[2.0, 2.5, 3.5, 4.0], [3.0, 5.0, 8.0, 10.0]]).reshape(2, 2, 2, 1)


def test_per_picture_fills_zero_to_one_in_each_picture():
    span = formats.range_per_picture()(sequence())
    assert (span.near.flatten().tolist(), span.far.flatten().tolist()) == ([2, 3], [4, 10])
    scaled = formats.normalize_depth(sequence(), span)
    assert scaled[0].flatten().tolist() == [0, 0.25, 0.75, 1]
    assert (scaled[1].min(), scaled[1].max()) == (0, 1)


def test_per_sequence_keeps_equal_depths_equal_over_the_pictures():
    span = formats.range_per_sequence()(sequence())
    scaled = formats.normalize_depth(sequence(), span)
    assert (span.near.flatten().tolist(), span.far.flatten().tolist()) == ([2, 2], [10, 10])
    assert scaled.flatten().tolist() == pytest.approx([0, 0.0625, 0.1875, 0.25, 0.125, 0.375, 0.75, 1])


def test_a_fixed_range_does_not_clamp_what_lies_outside():
    scaled = formats.normalize_depth(sequence(), formats.range_fixed(3, 5)(sequence()))
    assert scaled[0].flatten().tolist() == [-0.5, -0.25, 0.25, 0.5]
    assert scaled[1].flatten().tolist() == [0, 1, 2.5, 3.5]


def test_percentiles_equal_numpy():
    depth = torch.rand(2, 40, 50, 1, generator=torch.Generator().manual_seed(0)) ** 3
    span = formats.range_per_picture(2, 97.5)(depth)
    wanted = numpy.percentile(depth.double().numpy(), [2, 97.5], axis=(1, 2, 3))
    assert span.near.flatten().tolist() == pytest.approx(wanted[0].tolist(), rel=1e-6)
    assert span.far.flatten().tolist() == pytest.approx(wanted[1].tolist(), rel=1e-6)


def test_percentiles_of_a_sequence_of_more_than_16_million_pixels():
    # Older versions of torch.quantile refuse so many.
    depth = torch.linspace(0, 1, 17 * 1024 * 1024).reshape(17, 1024, 1024, 1)
    span = formats.range_per_sequence(1, 99)(depth)
    assert (span.near[0].item(), span.far[0].item()) == pytest.approx((0.01, 0.99), abs=1e-4)


def test_a_flat_depth_becomes_zero_and_not_nan():
    flat = torch.full((1, 3, 3, 1), 5.0)
    for rule in (formats.range_per_picture(), formats.range_per_sequence()):
        assert torch.equal(formats.normalize_depth(flat, rule(flat)), torch.zeros_like(flat))


@pytest.mark.parametrize("bounds", [(5, 5), (6, 2)])
def test_impossible_ranges_are_refused(bounds):
    with pytest.raises(ValueError, match="near must be smaller than far"):
        formats.range_fixed(*bounds)
    for rule in (formats.range_per_picture, formats.range_per_sequence):
        with pytest.raises(ValueError, match="the percentiles came as"):
            rule(*bounds)


def test_near_bright_mirrors_within_the_range():
    assert formats.near_bright(torch.tensor([0.0, 0.25, 1.0, 1.5])).tolist() == [1.0, 0.75, 0.0, -0.5]
    assert formats.near_bright(torch.tensor([2.0, 7.0]), 2.0, 7.0).tolist() == [7.0, 2.0]


def test_exposure_counts_in_stops_of_linear_light():
    linear = torch.tensor([0.1, 0.2, 0.6]).expand(1, 1, 1, 3)
    assert formats.format_color(linear, srgb=False, exposure_stops=1).flatten().tolist() == pytest.approx([0.2, 0.4, 1.2])
    assert formats.format_color(linear, srgb=False, exposure_stops=1, clamp=True).flatten().tolist() == pytest.approx([0.2, 0.4, 1.0])
    # 1.055 x 0.4^(1 / 2.4) - 0.055
    assert formats.format_color(linear, exposure_stops=1)[..., 1].item() == pytest.approx(0.6651850, abs=1e-6)


# Published values of the 256-colour tables at 0, 64, 128, 192, 255.
PUBLISHED = {
    "turbo": [
        (0.1900, 0.0718, 0.2322),
        (0.1584, 0.7355, 0.9231),
        (0.6436, 0.9900, 0.2336),
        (0.9836, 0.4929, 0.1285),
        (0.4796, 0.0158, 0.0106),
    ],
    "viridis": [
        (0.2670, 0.0049, 0.3294),
        (0.2297, 0.3224, 0.5457),
        (0.1276, 0.5669, 0.5506),
        (0.3692, 0.7889, 0.3829),
        (0.9932, 0.9062, 0.1439),
    ],
    "magma": [
        (0.0015, 0.0005, 0.0139),
        (0.3167, 0.0717, 0.4854),
        (0.7164, 0.2150, 0.4753),
        (0.9867, 0.5356, 0.3822),
        (0.9871, 0.9914, 0.7495),
    ],
    "grey": [(i / 255,) * 3 for i in (0, 64, 128, 192, 255)],
}


@pytest.mark.parametrize("name", formats.COLOR_MAPS)
def test_color_maps_are_within_one_step_of_the_published_ones(name):
    values = torch.tensor([0, 64, 128, 192, 255]) / 255
    colors = formats.color_map(values.reshape(1, 1, 5, 1), name)
    torch.testing.assert_close(colors[0, 0], torch.tensor(PUBLISHED[name]), atol=1.2 / 255, rtol=0)


@pytest.mark.parametrize("name", ["viridis", "magma", "grey"])
def test_brightness_grows_evenly(name):
    colors = formats.color_map(torch.linspace(0, 1, 200).reshape(1, 1, 200, 1), name)
    luminance = (colors[0, 0] ** 2.2) @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (luminance.diff() > 0).all()


def test_a_color_map_ends_at_its_range_and_turns_round():
    values = torch.tensor([-9.0, 2.0, 3.0, 4.0, 99.0]).reshape(1, 1, 5, 1)
    colors = formats.color_map(values, "grey", 2, 4)
    assert colors[0, 0, :, 0].tolist() == [0, 0, 0.5, 1, 1]
    assert torch.equal(formats.color_map(values, "grey", 4, 2), 1 - colors)
    with pytest.raises(ValueError, match="they must differ"):
        formats.color_map(values, "grey", 2, 2)
    with pytest.raises(ValueError, match="no colour map 'jet'"):
        formats.color_map(values, "jet")
