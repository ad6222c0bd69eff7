"""Seeds, batches, sizes, captions and styles."""

import re
from dataclasses import fields

import pytest
import torch
from intrinsic_lab.scenes import Style, render, render_scenes, sample_scenes, segmentation_colors
from intrinsic_lab.scenes.parameters import COLOR_WORDS, OBJECT_WORDS, PALETTE, ROOM_SURFACES, SURFACES, TEXTURE_WORDS

MAP_NAMES = ("image_bhwc", "albedo_bhwc", "shading_bhwc", "depth_bhw1", "normal_bhwc", "segmentation_bhw", "line_bhw1")

# Twelve looks: palette, textures, light.
STYLES = (
    Style(colors=("red", "orange", "yellow"), textures=(0,), light_color=(1.0, 0.8, 0.55)),
    Style(colors=("blue", "cyan"), textures=(3,), light_color=(0.6, 0.8, 1.0)),
    Style(colors=("black", "white"), textures=(1,)),
    Style(colors=("black", "white"), textures=(2,), light_azimuth_degrees=90.0),
    Style(colors=("pink", "purple"), textures=(3,), ambient=0.5),
    Style(colors=("green", "brown"), textures=(0, 3), ambient=0.05),
    Style(colors=("gray",), textures=(0,), light_azimuth_degrees=-90.0),
    Style(textures=(1,), light_azimuth_degrees=180.0, ambient=0.0),
    Style(textures=(2,), light_color=(0.2, 1.0, 0.3)),
    Style(light_color=(1.0, 0.2, 0.2), ambient=0.1),
    Style(light_azimuth_degrees=0.0, ambient=0.45),
    Style(colors=("yellow", "blue", "red", "white"), textures=(0, 1, 2), light_azimuth_degrees=-45.0),
)


def same(one, other, tolerance: float = 0.0) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in MAP_NAMES]
    return all((a.double() - b.double()).abs().max() <= tolerance for a, b in pairs)


def test_a_seed_gives_the_same_scene_every_time_and_another_seed_another():
    first, again = render_scenes([5, 6], 32, 32), render_scenes([5, 6], 32, 32)
    assert same(first, again) and first.captions == again.captions
    assert (first.image_bhwc[0] - first.image_bhwc[1]).abs().mean() > 0.02


def test_a_scene_does_not_depend_on_its_batch_or_place():
    batch = render_scenes([40, 41, 42, 43, 44], 48, 48)
    for row, seed in enumerate((40, 41, 42, 43, 44)):
        alone = render_scenes([seed], 48, 48)
        assert alone.captions[0] == batch.captions[row]
        # Vectorised and scalar tails of torch's sin and pow may differ in the last bit.
        assert all((getattr(alone, name)[0].double() - getattr(batch, name)[row].double()).abs().max() < 1e-5 for name in MAP_NAMES)


def test_a_scene_does_not_depend_on_how_many_are_rendered_together(monkeypatch):
    scenes = sample_scenes(range(60, 67))
    together = render(scenes, 40, 24)
    monkeypatch.setitem(render.__globals__, "CHUNK_PIXELS", 2 * 40 * 24)
    assert same(render(scenes, 40, 24), together, 1e-5)
    monkeypatch.setitem(render.__globals__, "CHUNK_PIXELS", 1)
    assert same(render(scenes, 40, 24), together, 1e-5)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 13), (13, 7), (1, 64), (200, 3), (129, 127)])
def test_any_size_gives_whole_maps_of_it(height, width):
    maps = render_scenes([1, 2, 3], height, width)
    for name in MAP_NAMES:
        values = getattr(maps, name)
        assert values.shape[:3] == (3, height, width)
        assert torch.isfinite(values).all()
    assert [getattr(maps, name).shape[3:] for name in MAP_NAMES] == [(3,), (3,), (3,), (1,), (3,), (), (1,)]


def test_a_larger_picture_shows_the_same_scene():
    small, large = render_scenes([9], 32, 32), render_scenes([9], 96, 96)
    centre = large.segmentation_bhw[:, 1::3, 1::3]  # the pixel in the middle of each 3 x 3 has the small picture's ray
    assert (centre == small.segmentation_bhw).double().mean() > 0.995
    assert (large.depth_bhw1[:, 1::3, 1::3] - small.depth_bhw1).abs().median() < 1e-5


def test_two_hundred_scenes_stay_within_their_documented_ranges():
    maps = render_scenes(range(1000, 1200), 48, 48)
    assert all(torch.isfinite(getattr(maps, name)).all() for name in MAP_NAMES)
    for name in ("image_bhwc", "albedo_bhwc", "shading_bhwc"):
        assert getattr(maps, name).min() >= 0 and getattr(maps, name).max() <= 1
    assert (maps.normal_bhwc.norm(dim=-1) - 1).abs().max() < 1e-5
    assert maps.depth_bhw1.min() > 0.2 and maps.depth_bhw1.max() < 25
    assert maps.segmentation_bhw.dtype == torch.int64
    counts = maps.scenes.present.sum(1)
    assert set(counts.tolist()) == {2, 3, 4, 5, 6}
    assert (maps.scenes.light_color + maps.scenes.ambient).max() <= 1


def test_segmentation_shows_only_objects_that_exist_and_has_a_colour_for_each_surface():
    maps = render_scenes(range(40), 64, 64)
    for row in range(40):
        shown = {surface - ROOM_SURFACES for surface in maps.segmentation_bhw[row].unique().tolist() if surface >= ROOM_SURFACES}
        assert shown <= set(maps.scenes.present[row].nonzero()[:, 0].tolist())
    assert set(maps.segmentation_bhw.unique().tolist()) >= {0, 2, 3, 4, *range(ROOM_SURFACES, SURFACES)}
    colors = segmentation_colors(torch.arange(SURFACES))
    assert colors.shape == (SURFACES, 3) and colors.min() >= 0 and colors.max() <= 1
    apart = torch.cdist(colors, colors) + torch.eye(SURFACES)
    assert apart.min() > 0.1


def test_captions_name_every_object_its_colour_and_texture_and_the_room():
    scenes = sample_scenes(range(80))
    for row, caption in enumerate(scenes.captions):
        objects, room = caption.split(" on a ", 1)
        named = re.split(r", a | and a ", objects.removeprefix("a "))
        existing = scenes.present[row].nonzero()[:, 0].tolist()
        assert len(named) == len(existing)
        described = [(ROOM_SURFACES + index, OBJECT_WORDS[index], words) for index, words in zip(existing, named, strict=True)]
        floor, walls, light = room.split(", ")
        described += [(0, "floor", floor), (2, "walls", walls)]
        for surface, noun, words in described:
            *adjectives, said = words.split(" ")
            assert said == noun
            assert adjectives[:-1] == [word for word in [TEXTURE_WORDS[scenes.texture[row, surface]]] if word]
            expected = torch.tensor(PALETTE[adjectives[-1]])
            if surface < ROOM_SURFACES:  # rooms are muted towards grey
                expected = 0.45 * expected + 0.55 * torch.tensor([0.45, 0.44, 0.42])
            ratio = scenes.color[row, surface, 0] / expected
            assert ratio.min() > 0.75 and ratio.max() < 1.2
        assert light.removeprefix("light from ") in ("front", "back", "left", "right", "above")


def test_the_caption_names_the_side_that_the_light_comes_from():
    for degrees, side in ((0, "front"), (90, "right"), (-90, "left"), (180, "back")):
        scenes = sample_scenes(range(30), Style(light_azimuth_degrees=degrees))
        assert {caption.rsplit("light from ")[1] for caption in scenes.captions} == {side, "above"}
    # Light from the right: in the world, x points to the right.
    scenes = sample_scenes(range(30), Style(light_azimuth_degrees=90))
    assert (scenes.light_position[~scenes.light_is_point][:, 0] > 0.2).all()


@pytest.mark.parametrize("style", STYLES)
def test_a_style_limits_palette_textures_and_light(style):
    free, limited = sample_scenes(range(24)), sample_scenes(range(24), style)
    words = style.colors or COLOR_WORDS
    used = {word for caption in limited.captions for word in re.findall(r"[a-z]+", caption) if word in COLOR_WORDS}
    assert used == set(words)
    allowed = set(style.textures) if style.textures is not None else {0, 1, 2, 3}
    walls_floor_objects = [0, 2, 3, 4, 5, *range(ROOM_SURFACES, SURFACES)]
    assert set(limited.texture[:, walls_floor_objects].unique().tolist()) == allowed
    if style.ambient is not None:
        assert torch.allclose(limited.ambient, torch.tensor(float(style.ambient)))
    else:
        assert torch.equal(limited.ambient, free.ambient)
    tint = limited.light_color / (1 - limited.ambient)
    if style.light_color is not None:
        assert torch.allclose(tint, torch.tensor(style.light_color).expand_as(tint), atol=1e-6)
    else:
        assert torch.allclose(tint, free.light_color / (1 - free.ambient), atol=1e-6)
    # A style is a look: the same objects stand in the same places.
    for field in ("camera_position", "present", "centre", "half_size", "yaw", "vertical_fov_degrees"):
        assert torch.equal(getattr(free, field), getattr(limited, field))
    maps = render(limited, 24, 24)
    assert torch.isfinite(maps.image_bhwc).all() and maps.shading_bhwc.max() <= 1


def test_rooms_are_muted_only_where_the_palette_is_free():
    saturation = lambda color: (color.amax(-1) - color.amin(-1)) / color.amax(-1)  # noqa: E731
    chosen = sample_scenes(range(20), Style(colors=("red",)))
    assert saturation(chosen.color[:, 0, 0]).min() > 0.8
    free = sample_scenes(range(20))
    assert saturation(free.color[:, :ROOM_SURFACES, 0]).max() < 0.62


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"colors": ("red", "mauve")}, "'mauve'.*colours are red, orange"),
        ({"textures": (0, 4)}, "4.*textures 0..3"),
        ({"textures": (-1,)}, "-1.*textures 0..3"),
        ({"colors": ()}, "colors are empty"),
        ({"textures": ()}, "textures are empty"),
        ({"ambient": 0.6}, "ambient came as 0.6: 0 to 0.5"),
        ({"ambient": float("nan")}, "ambient came as nan"),
        ({"light_azimuth_degrees": 270}, "light_azimuth_degrees came as 270: -180 to 180"),
        ({"light_color": (1.0, 1.0)}, "has 2 numbers: three"),
        ({"light_color": (1.0, 1.0, 1.5)}, "light_color came as 1.5: 0 to 1"),
    ],
)
def test_a_style_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Style(**wrong)


def test_no_seeds_and_no_pixels_are_refused():
    with pytest.raises(ValueError, match="no seeds came"):
        render_scenes([], 8, 8)
    with pytest.raises(ValueError, match="4 x 0 was asked for: both sides must be at least 1"):
        render_scenes([1], 0, 4)


def test_rows_of_scenes_are_scenes():
    scenes = sample_scenes([3, 4, 5])
    tail = scenes[1:]
    assert len(tail) == 2 and tail.seeds == (4, 5) and tail.captions == scenes.captions[1:]
    assert all(len(getattr(tail, field.name)) == 2 for field in fields(tail))
    assert same(render(tail, 16, 16), render_scenes([4, 5], 16, 16), 1e-5)


def test_a_ray_exactly_parallel_to_a_wall_leaves_no_hole():
    # One pixel of this scene looks exactly along a wall: a component of its direction is 0.
    maps = render_scenes([1674], 128, 128)
    for values in (maps.image_bhwc, maps.shading_bhwc, maps.depth_bhw1, maps.normal_bhwc):
        assert values.isfinite().all()
