"""Camera moves and their exact motion."""

import pytest
import torch
from intrinsic_lab.scenes import render, render_scenes
from intrinsic_lab.scenes.moves import CLEARANCE, camera_move, motion, warp


@pytest.mark.parametrize(("kind", "seed"), [("room", 3), ("clutter", 9), ("outdoor", 2)])
def test_surfaces_keep_their_colour_and_their_place_along_the_motion(kind, seed):
    scenes = camera_move(seed, 4, kind)
    move = render(scenes, 96, 128)
    assert torch.equal(render(scenes[:1], 96, 128).image_bhwc, render_scenes([seed], 96, 128, kind=kind).image_bhwc)
    grid, visible = motion(move, 3, 1)
    assert 0.2 < visible.float().mean() < 0.97
    followed = (warp(move.albedo_bhwc[1:2], grid) - move.albedo_bhwc[3]).abs().mean(-1)
    standing = (move.albedo_bhwc[1] - move.albedo_bhwc[3]).abs().mean(-1)
    assert followed[visible].mean() < 0.02 and followed[visible].mean() < 0.5 * standing[visible].mean()
    # World normals say the same of the geometry; an id is its own neighbour inside a surface.
    normals = [normal @ axes for normal, axes in zip(move.normal_bhwc, move.scenes.camera_axes, strict=True)]
    assert (warp(normals[1][None], grid) - normals[3]).norm(dim=-1)[visible].median() < 1e-3
    ids = warp(move.segmentation_bhw[1:2, ..., None].float(), grid)[..., 0]
    assert (ids == move.segmentation_bhw[3])[visible].float().mean() > 0.9


def test_a_frame_is_where_it_is_and_what_is_hidden_or_outside_is_not_seen():
    move = render(camera_move(9, 3, "clutter", sideways=0.6, forward=0.0, turn_degrees=0), 64, 64)
    grid, visible = motion(move, 1, 1)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    torch.testing.assert_close(grid, (torch.stack([x, y], -1) * 2 + 1) / 64 - 1, atol=1e-4, rtol=0)
    assert visible.float().mean() > 0.98
    # The camera goes to the right: what enters there was not in view before.
    _, visible = motion(move, 2, 0)
    assert not visible[:, -1].any() and visible[:, :32].float().mean() > visible[:, 32:].float().mean()


def test_the_camera_keeps_away_from_things_and_walls():
    for kind, seed in (("room", 3), ("tabletop", 4), ("interior", 5)):
        move = camera_move(seed, 5, kind, forward=50.0)
        maps = render(move, 16, 16)
        assert maps.depth_bhw1.min() > 0.5 * CLEARANCE
        assert (move.camera_position[-1] - move.camera_position[0]).norm() < 50
    with pytest.raises(ValueError, match="0 frames was asked for"):
        camera_move(1, 0)
