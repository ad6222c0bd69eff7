"""Measures of whether a picture and its maps agree, on rendered scenes and against SciPy."""

import pytest
import torch
from intrinsic_lab.methods.ildm.consistency import (
    depth_normal_degrees,
    edge_agreement,
    edge_strength,
    frechet_distance,
    normals_from_depth,
)
from intrinsic_lab.methods.metrics import normal_angle_degrees
from intrinsic_lab.scenes import render_scenes


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(range(4), 64, 96)


def test_a_scenes_normals_are_those_of_its_depth(scenes):
    for row, fov in enumerate(scenes.scenes.vertical_fov_degrees.tolist()):
        normal = normals_from_depth(scenes.depth_bhw1[row : row + 1].double(), fov)
        # Not at edges, where a difference spans two surfaces.
        assert normal_angle_degrees(normal, scenes.normal_bhwc[row : row + 1, :-1, :-1].double()).median() < 0.01


def test_relative_depth_in_any_unit_agrees_with_its_own_normals_and_not_with_anothers(scenes):
    own = depth_normal_degrees(0.1 * scenes.depth_bhw1 - 3, scenes.normal_bhwc, 48.0)
    assert own.shape == (4,) and own.max() < 4
    assert (depth_normal_degrees(scenes.depth_bhw1, scenes.normal_bhwc.roll(1, 0), 48.0) > 3 * own).all()


def test_edges_are_where_a_picture_changes():
    picture = torch.zeros(1, 5, 6, 3)
    picture[:, :, 3:, 1] = 0.5
    picture[:, 2:, :, 0] = 0.25
    strength = edge_strength(picture)
    assert strength.shape == (1, 5, 6) and strength[0, 1, 2] == 0.5 and strength[0, 1, 5] == 0.25 and strength[0, 3, 4] == 0


def test_lines_agree_with_their_own_picture_also_when_fainter_or_a_pixel_off_and_not_with_anothers(scenes):
    edges, lines = edge_strength(scenes.image_bhwc), scenes.line_bhw1[..., 0]
    own = edge_agreement(lines, edges)
    assert own.min() > 0.4 and (edge_agreement(lines.roll(1, 0), edges) < own - 0.2).all()
    assert torch.allclose(edge_agreement(0.1 * lines, 3 * edges), own, atol=1e-5)
    assert edge_agreement(lines, lines.roll(1, 2)).min() > 0.6
    assert (edge_agreement(lines, lines) > 0.9999).all() and edge_agreement(torch.zeros_like(lines), edges).abs().max() == 0


def test_the_frechet_distance_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(60, 5, generator=draw) @ torch.randn(5, 5, generator=draw)
    other = torch.randn(40, 5, generator=draw) @ torch.randn(5, 5, generator=draw) + 0.5
    covariances = [torch.cov(features.double().T).numpy() for features in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = (one.double().mean(0) - other.double().mean(0)).square().sum() + (covariances[0] + covariances[1] - 2 * root).trace()
    assert frechet_distance(one, other) == pytest.approx(float(wanted), rel=1e-6)
    assert abs(frechet_distance(one, one)) < 1e-9
