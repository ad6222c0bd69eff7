"""Tiles cover a picture, and joining them loses and adds nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from intrinsic_lab.methods.intrinsic_lora.extract import (
    ExtractSettings,
    Generator,
    extract,
    pad_to_cells,
    plan_extraction,
    processed_size,
)
from intrinsic_lab.methods.intrinsic_lora.tiles import fit_scale_and_shift, join_tiles, tile_grid
from intrinsic_lab.methods.maps import MAPS

SIZES = [(8, 8), (64, 200), (200, 64), (512, 8), (136, 264)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (64, 32), (48, 8), (0, 0)])
def test_tiles_lie_on_the_grid_cover_everything_and_overlap_enough(height, width, tile, overlap):
    grid = tile_grid(height, width, tile, overlap, multiple=8)
    covered = torch.zeros(1, height, width, 1)
    for rectangle in grid.tiles:
        assert rectangle.top % 8 == 0 and rectangle.left % 8 == 0
        rectangle.of(covered).add_(1)
    assert covered.min() >= 1 and len(grid.tiles) == len(grid)
    for starts, side in ((grid.tops, grid.tile_height), (grid.lefts, grid.tile_width)):
        assert all(here + side - after >= overlap for here, after in pairwise(starts))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_what_all_tiles_agree_on_comes_back_bit_for_bit(height, width, overlap):
    torch.manual_seed(0)
    picture = torch.randn(2, 3, height, width, 4)
    grid = tile_grid(height, width, 64, overlap)
    whole = join_tiles(lambda tile: picture[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width, :], grid)
    assert torch.equal(whole, picture)


def test_disagreeing_tiles_fade_into_each_other_without_a_step():
    grid = tile_grid(64, 112, 64, 16)
    joined = join_tiles(lambda tile: torch.full((1, tile.height, tile.width, 1), float(tile.left > 0)), grid)
    line = joined[0, 0, :, 0]
    assert line[0] == 0 and line[-1] == 1
    assert 0 < line.diff().max() <= 1 / 16 + 1e-6 and line.diff().min() >= 0


@pytest.mark.parametrize(("height", "width"), [(128, 6920), (6920, 128), (32, 904)])
def test_a_long_thin_picture_is_seen_in_tiles_along_its_long_side_and_an_ordinary_one_whole(height, width):
    grid = tile_grid(height, width, 0, 64)
    assert len(grid) > 1 and {grid.tile_height, grid.tile_width} == {min(height, width), max(2 * min(height, width), 512)}
    assert all(len(tile_grid(128, side, 0, 64)) == 1 for side in (128, 256, 512))
    plan = plan_extraction(torch.rand(1, 37, 2000, 3), ["normal"], ExtractSettings(128), 8)
    assert plan.grid.tile_width == 512 and plan.forwards == len(plan.grid) > 10


def test_settings_and_grids_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="cannot overlap by 64"):
        tile_grid(128, 128, 64, 64)
    with pytest.raises(ValueError, match="pad it first"):
        tile_grid(100, 128, 64, 16)
    with pytest.raises(ValueError, match="at most half a tile"):
        ExtractSettings(tile_size=64, tile_overlap=40)
    with pytest.raises(ValueError, match="tile_size is -8"):
        ExtractSettings(tile_size=-8)


def test_scale_and_shift_of_an_affine_copy_are_found_and_flat_or_inverted_values_only_shift():
    values = torch.rand(3, 100, dtype=torch.float64)
    scale, shift = fit_scale_and_shift(values, values * 2.5 - 1)
    assert torch.allclose(scale, torch.full_like(scale, 2.5)) and torch.allclose(shift, torch.full_like(shift, -1.0))
    scale, shift = fit_scale_and_shift(torch.ones(1, 9), torch.full((1, 9), 3.0))
    assert scale.item() == 1 and shift.item() == 2
    assert fit_scale_and_shift(values, -values)[0].eq(1).all()


def pointwise(scale=8):
    """A generator whose latent cell is the pixel itself (pixels are packed into channels) and whose map is the picture."""

    def encode(picture):
        return torch.nn.functional.pixel_unshuffle(picture.movedim(-1, 1), scale)

    def decode(latent):
        return torch.nn.functional.pixel_shuffle(latent, scale).movedim(1, -1)

    return Generator(encode, lambda latent, _: latent, decode, downscale=scale)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (64, 200), (130, 71)])
@pytest.mark.parametrize("tile_size", [0, 64])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_pointwise_model_gives_the_picture_back_at_its_exact_size(height, width, tile_size, mirrored):
    torch.manual_seed(0)
    picture = torch.rand(2, height, width, 3)
    settings = ExtractSettings(processing_resolution=0, tile_size=tile_size, tile_overlap=16, mirrored_average=mirrored)
    forwards = []
    extraction = extract(picture, ["albedo", "shading"], pointwise(), settings, on_forward=lambda: forwards.append(1))
    assert len(forwards) == plan_extraction(picture, ["albedo", "shading"], settings, 8).forwards
    for name in ("albedo", "shading"):
        # Not bit for bit: the transfer curve's power rounds by memory layout.
        torch.testing.assert_close(extraction.maps[name], MAPS[name].from_picture(picture), atol=1e-6, rtol=0)
    latent_size = tuple(side // 8 for side in pad_to_cells(picture, 8).shape[1:3])
    assert extraction.latents.shape == (4, 192, *latent_size)
    assert torch.equal(extraction.latents[:2], pointwise().encode(pad_to_cells(picture, 8)))


def test_tiled_depth_whose_tiles_each_have_their_own_scale_comes_out_as_one_depth(monkeypatch):
    """A model that, like a real one, normalises depth per picture it sees: tiles disagree by an affine map each."""
    height, width = 128, 256
    ramp = (torch.linspace(0, 1, width)[None, :] * 0.7 + torch.linspace(0, 0.3, height)[:, None])[None, :, :, None]
    packed = pointwise()

    def decode(latent):
        picture = packed.decode(latent)
        low, high = picture.amin((1, 2, 3), keepdim=True), picture.amax((1, 2, 3), keepdim=True)
        return (picture - low) / (high - low)

    generator = Generator(packed.encode, packed.predict, decode, downscale=8)
    settings = ExtractSettings(processing_resolution=0, tile_size=64, tile_overlap=16)
    monkeypatch.setitem(MAPS, "thickness", replace(MAPS["depth"], name="thickness"))
    forwards, names = [], ["albedo", "depth", "thickness"]
    maps = extract(ramp.expand(1, -1, -1, 3), names, generator, settings, on_forward=lambda: forwards.append(1)).maps
    planned = plan_extraction(ramp.expand(1, -1, -1, 3), names, settings, 8).forwards
    assert len(forwards) == planned == len(tile_grid(height, width, 64, 16)) + 1
    for name in ("depth", "thickness"):
        assert (maps[name] - ramp).abs().max() < 0.02


@pytest.mark.parametrize(
    ("fitting", "mirrored", "pictures", "predictions"),
    [
        (4, False, 2, [(4, [0, 0, 1, 1])] * 2 + [(2, [0, 1])]),
        (5, False, 2, [(4, [0, 0, 1, 1])] * 2 + [(2, [0, 1])]),
        (1, False, 1, [(1, [0]), (1, [1])] * 5),
        (3, True, 1, [(3, [0, 0, 1]), (1, [1])] * 5),
        (99, False, 5, [(10, [0] * 5 + [1] * 5)]),
    ],
)
def test_pictures_and_maps_that_do_not_fit_follow_each_other_and_give_what_one_batch_gives(fitting, mirrored, pictures, predictions):
    torch.manual_seed(0)
    picture, names, settings = torch.rand(5, 32, 40, 3), ["albedo", "shading"], ExtractSettings(0, mirrored_average=mirrored)
    seen, forwards, packed = [], [], pointwise()

    def predict(latent, map_of_row):
        seen.append((len(latent), map_of_row))
        return latent

    plan = plan_extraction(picture, names, settings, 8, lambda height, width: fitting if (height, width) == (4, 5) else 0)
    split = extract(picture, names, Generator(packed.encode, predict, packed.decode), settings, plan, lambda: forwards.append(1))
    whole = extract(picture, names, packed, settings)
    assert seen == predictions and plan.pictures == pictures and len(forwards) == plan.forwards
    assert torch.equal(whole.latents, split.latents)
    torch.testing.assert_close(whole.maps, split.maps, atol=1e-6, rtol=0)


def test_the_mirrored_pass_turns_the_normals_x_axis_back():
    """Normals of a mirrored scene, computed from the picture itself: their x is the horizontal slope, which mirroring negates."""
    torch.manual_seed(0)
    picture = torch.rand(1, 16, 16, 3)
    packed = pointwise()

    def decode(latent):
        slope = packed.decode(latent)[..., :1]
        slope = (slope.roll(1, 2) - slope.roll(-1, 2)) / 2
        return torch.cat([0.5 + slope, torch.full_like(slope, 0.5), torch.full_like(slope, 0.9)], -1)

    generator = Generator(packed.encode, packed.predict, decode, downscale=8)
    plain, both = (
        extract(picture, ["normal"], generator, ExtractSettings(0, mirrored_average=mirrored)).maps["normal"] for mirrored in (False, True)
    )
    assert plain[..., 0].abs().max() > 0.1
    assert torch.allclose(both, plain, atol=1e-6)


def test_processing_resolution_is_the_short_side_and_absurd_sizes_are_refused():
    assert processed_size(300, 600, 512) == (512, 1024)
    assert processed_size(300, 600, 0) == (300, 600)
    assert processed_size(8193, 8193, 512) == (512, 512)
    with pytest.raises(ValueError, match="lower processing_resolution"):
        processed_size(30, 1920, 8192)
    # A line of pixels is not blown up to a band of 512: 64 squares of it are the most.
    height, width = processed_size(1, 900, 512)
    assert height * width == pytest.approx(64 * 512**2, rel=0.01) and width / height == pytest.approx(900, rel=0.01)
