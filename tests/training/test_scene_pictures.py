"""Training pairs of rendered scenes: every map of the table comes out of them, each from scenes in which it varies."""

import pytest
import torch
from intrinsic_lab.methods.maps import MAPS, OTHER_MAPS, map_kind, srgb_from_linear
from intrinsic_lab.scenes import render_scenes, segmentation_colors
from intrinsic_lab.training.pairs import SceneData
from intrinsic_lab.training.scene_pictures import scene_data, scene_picture


@pytest.mark.parametrize("name", [*MAPS, *OTHER_MAPS])
def test_a_source_gives_the_map_in_the_form_that_the_vae_sees(name):
    source = SceneData(2000, 3, 16).source(name)
    kind = map_kind(name)
    picture = source.read(name, [0, 2]).movedim(1, -1)
    assert picture.shape == (2, 16, 16, 3) and picture.min() >= 0 and picture.max() <= 1
    rendered = render_scenes([2000, 2002], 16, 16, kind=kind.scene_kind)
    if name != "image":  # of scenes that are not rooms it is what a camera sees
        torch.testing.assert_close(picture, scene_picture(rendered, name), rtol=0, atol=0)
    assert scene_data(rendered, name).shape == (2, 16, 16, kind.channels)
    assert source.identity(name) != SceneData(2000, 3, 16).source("normal").identity("normal") or name == "normal"


@pytest.mark.parametrize("name", [name for name, kind in MAPS.items() if kind.scene_kind != "room"])
def test_a_map_is_learnt_from_scenes_in_which_it_varies(name):
    rooms, source = render_scenes(range(2000, 2008), 16, 16), SceneData(2000, 40, 16).source(name)
    assert scene_data(rooms, name).std() == 0
    assert source.read(name, range(40)).std() > 0.01
    with pytest.raises(ValueError, match="held out for judging"):
        SceneData(10, 8, 16).source(name)


def test_the_maps_of_a_scene_make_its_picture():
    scenes = render_scenes(range(4), 24, 24, kind="world")
    albedo, shading, specular = (scene_data(scenes, name) for name in ("albedo", "shading", "specular"))
    picture = srgb_from_linear(albedo * shading + specular).clamp(0, 1)
    assert (picture - scene_data(scenes, "image")).abs().max() < 1e-5
    assert specular.min() >= 0 and specular.max() > 0.05


def test_surfaces_are_seen_as_their_colours():
    scenes = render_scenes([5], 16, 16)
    assert torch.equal(scene_data(scenes, "segmentation"), segmentation_colors(scenes.segmentation_bhw))
