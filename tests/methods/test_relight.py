import numpy
import pytest
import torch
from einops import einsum
from intrinsic_lab.methods import relight
from intrinsic_lab.scenes import render_scenes

FACING = torch.tensor([0.0, 0.0, 1.0]).expand(1, 1, 1, 3)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "direction"),
    [(0, 0, (0, 0, 1)), (90, 0, (1, 0, 0)), (-90, 0, (-1, 0, 0)), (30, 90, (0, 1, 0)), (180, 0, (0, 0, -1))],
)
def test_angles_point_where_they_say(azimuth, elevation, direction):
    assert relight.direction_from_angles(azimuth, elevation) == pytest.approx(direction, abs=1e-9)


def test_a_surface_gets_the_cosine_of_the_light_and_nothing_from_behind():
    for azimuth, wanted in ((0, 1.0), (60, 0.5), (90, 0.0), (150, 0.0)):
        light = relight.directional_light(relight.direction_from_angles(azimuth, 0), (1.0, 0.5, 2.0))
        assert light(FACING, None).flatten().tolist() == pytest.approx([wanted, wanted / 2, wanted * 2], abs=1e-6)


def test_a_lamp_falls_off_with_the_square_of_the_distance_beyond_its_reach():
    place = torch.tensor([0.0, 0.0, -4.0]).expand(1, 1, 1, 3)
    for lamp_z, wanted in ((-3.5, 1.0), (-2.0, 1.0), (0.0, 0.25), (-5.0, 0.0)):
        lamp = relight.point_light((0.0, 0.0, lamp_z), (1.0, 1.0, 1.0), reach=2.0)
        assert lamp(FACING, place).flatten().tolist() == pytest.approx([wanted] * 3)


def test_a_lamp_without_places_is_refused():
    with pytest.raises(ValueError, match="connect a depth map"):
        relight.point_light((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(FACING, None)


def test_camera_points_of_a_known_camera():
    # Field of view 90 degrees: the tangent of its half is 1, so a pixel's centre lies at its own fraction of the depth.
    points = relight.camera_points(torch.full((1, 2, 4, 1), 3.0), 90.0)
    assert points[0, 0, 0].tolist() == pytest.approx([-0.75 * 2 * 3, 0.5 * 3, -3])
    assert points[0, 1, 3].tolist() == pytest.approx([0.75 * 2 * 3, -0.5 * 3, -3])
    with pytest.raises(ValueError, match="between 0 and 180"):
        relight.camera_points(torch.ones(1, 2, 2, 1), 180.0)


def own_light_without_shadows(maps):
    """The scene's own light, brought into camera space: shading without shadows."""
    scenes = maps.scenes
    axes, count = scenes.camera_axes, len(scenes)
    towards = einsum(axes, scenes.light_position, "b camera world, b world -> b camera")
    place = einsum(axes, scenes.light_position - scenes.camera_position, "b camera world, b world -> b camera")
    points = relight.camera_points(maps.depth_bhw1, scenes.vertical_fov_degrees)
    sun = relight.directional_light(towards, scenes.light_color)(maps.normal_bhwc, None)
    lamp = relight.point_light(place, scenes.light_color, scenes.light_reach)(maps.normal_bhwc, points)
    # The scenes' ambient light is dimmer from below, in world space.
    world_up = einsum(maps.normal_bhwc, axes[..., 1], "b h w camera, b camera -> b h w")[..., None]
    ambient = scenes.ambient.reshape(count, 1, 1, 3) * (0.8 + 0.2 * world_up)
    return ambient + torch.where(scenes.light_is_point.reshape(count, 1, 1, 1), lamp, sun)


def test_relighting_a_scene_with_its_own_light_gives_its_picture_where_no_shadow_falls():
    maps = render_scenes(range(12), height=64, width=80)
    assert 0 < maps.scenes.light_is_point.sum() < 12, "both kinds of light are wanted"
    shading = own_light_without_shadows(maps)
    picture = relight.relight(maps.albedo_bhwc, shading)
    # A shadow only takes light away.
    assert (shading - maps.shading_bhwc).min() > -1e-4
    lit = (shading - maps.shading_bhwc).amax(-1) < 1e-4
    assert lit.float().mean() > 0.5
    for i in range(12):
        assert lit[i].float().mean() > 0.2
    assert (picture - maps.image_bhwc)[lit].abs().max() < 5e-4
    shadowed = ~lit
    assert shadowed.any(), "the scenes do have shadows"
    assert ((picture - maps.image_bhwc).amax(-1)[shadowed] > 0).all()


def test_the_picture_is_srgb_of_the_product():
    albedo, shading = torch.rand(2, 1, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    linear = (albedo.double() * shading.double()).numpy()
    wanted = numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    numpy.testing.assert_allclose(relight.relight(albedo, shading).numpy(), wanted, atol=1e-6)
