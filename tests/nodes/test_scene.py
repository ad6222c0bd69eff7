"""Render Scene and Relight from Maps inside real ComfyUI."""

import pytest
import torch

pytest.importorskip("comfy_api.latest")
import comfy.model_management
from comfy_api.latest import _io
from intrinsic_lab.methods.lamps import Lamp, Lighting, Scene, lamps_text, parse_lamps, relative_depth, relit
from intrinsic_lab.methods.maps import srgb_from_linear
from intrinsic_lab.nodes.relight import PlaceLamp, Relight
from intrinsic_lab.nodes.scene import RenderScene
from intrinsic_lab.scenes import render_scenes

NAMES = ("image", "albedo", "shading", "normal", "depth", "segmentation", "line", "objects", "caption", "vertical_fov")
NAMES += ("roughness", "metallic", "specular")
POINT = {
    "x": 0.5,
    "y": 0.7,
    "z": -1.0,
    "reach": 1.5,
    "vertical_fov": 50.0,
    "depth_unit": "metric",
    "depth_near": 2.0,
    "depth_far": 6.0,
}
FLOOD = {"color": "#ffffff", "intensity": 0.8, "ambient": 0.2, "original_light": 0.0}


def render(seed=5, width=40, height=32, batch_size=2):
    return dict(zip(NAMES, RenderScene.execute(seed, width, height, batch_size).result, strict=True))


def relight(scene, light, settings=FLOOD, **maps):
    """Runs the node with inputs as core's executor hands them over: those that the schema declares, dynamic ones nested."""
    kind, options = light
    inputs = {"albedo": scene["albedo"], "normal": scene["normal"], "light": kind} | settings | maps
    inputs |= {f"light.{name}": value for name, value in options.items()}
    declared, _, v3_data = _io.get_finalized_class_inputs(Relight.INPUT_TYPES(), inputs)
    known = declared["required"] | declared["optional"]
    return Relight.execute(**_io.build_nested_inputs({name: value for name, value in inputs.items() if name in known}, v3_data)).result[:2]


def by_hand(frames, **options):
    return "by hand", {"lamps": lamps_text(frames), "relief": 0.5, "shadows": 0.5, "hardness": 0.5} | options


def directional(azimuth=0.0, elevation=0.0):
    return "directional", {"azimuth": azimuth, "elevation": elevation}


@pytest.mark.parametrize("node", [RenderScene, Relight])
def test_the_schema_has_a_tooltip_on_each_socket(node):
    declared = node.GET_SCHEMA()
    node.GET_NODE_INFO_V1()
    sockets = [nested for entry in declared.inputs for nested in entry.get_all()] + list(declared.outputs)
    assert all(socket.tooltip for socket in sockets)


def test_a_rendered_scene_carries_the_renderers_exact_maps_as_images():
    scene, exact = render(), render_scenes([5, 6], 32, 40)
    for name in ("image", "albedo", "shading", "normal"):
        assert torch.equal(scene[name], getattr(exact, f"{name}_bhwc")), name
    assert torch.equal(scene["depth"], exact.depth_bhw1.expand(-1, -1, -1, 3))
    assert torch.equal(scene["line"], exact.line_bhw1.expand(-1, -1, -1, 3))
    assert torch.equal(scene["objects"], (exact.segmentation_bhw > 5).float())
    assert scene["caption"] == "\n".join(exact.captions)
    assert scene["vertical_fov"] == pytest.approx(exact.scenes.vertical_fov_degrees[0].item())
    for name in NAMES[:7]:
        assert scene[name].shape == (2, 32, 40, 3), name
    torch.testing.assert_close(scene["image"], srgb_from_linear(scene["albedo"] * scene["shading"]), atol=1e-5, rtol=0)


def test_a_scene_of_another_kind_carries_its_materials_too():
    scene = dict(zip(NAMES, RenderScene.execute(3, 40, 32, 1, "tabletop").result, strict=True))
    exact = render_scenes([3], 32, 40, kind="tabletop")
    assert torch.equal(scene["image"], exact.image_bhwc) and scene["caption"] == exact.captions[0]
    assert torch.equal(scene["roughness"], exact.roughness_bhw1.expand(-1, -1, -1, 3)) and scene["roughness"].min() < 0.9
    assert torch.equal(scene["metallic"], exact.metallic_bhw1.expand(-1, -1, -1, 3))
    linear = scene["albedo"] * scene["shading"] + scene["specular"]
    torch.testing.assert_close(scene["image"], srgb_from_linear(linear), atol=1e-5, rtol=0)


def test_a_graph_saved_before_there_were_kinds_renders_a_room():
    declared = RenderScene.INPUT_TYPES()
    assert list(declared["optional"]) == ["kind"] and declared["optional"]["kind"][1]["default"] == "room"
    assert [output.display_name for output in RenderScene.GET_SCHEMA().outputs] == list(NAMES)


def test_segmentation_gives_each_surface_one_color():
    scene, exact = render(), render_scenes([5, 6], 32, 40)
    pairs = torch.cat([exact.segmentation_bhw[..., None].float(), scene["segmentation"]], -1).flatten(0, 2).unique(dim=0)
    assert len(pairs) == len(exact.segmentation_bhw.unique()) == len(pairs[:, 1:].unique(dim=0))


def test_the_largest_seed_goes_on_at_zero():
    largest = 0xFFFFFFFFFFFFFFFF
    assert torch.equal(render(largest, 16, 16, 2)["image"][1:], render(0, 16, 16, 1)["image"])


def test_rendering_stops_when_it_is_interrupted():
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        render()


def test_a_light_from_the_viewer_shades_by_the_normals_z():
    scene = render()
    image, shading = relight(scene, directional())
    torch.testing.assert_close(shading, (0.2 + 0.8 * scene["normal"][..., 2:].clamp(min=0)).expand(-1, -1, -1, 3))
    torch.testing.assert_close(image, srgb_from_linear(scene["albedo"] * shading))


def test_the_lights_color_is_srgb():
    scene = render()
    _, shading = relight(scene, directional(), {"color": "#ff8000", "intensity": 1.0, "ambient": 0.0, "original_light": 0.0})
    red, green, blue = shading.flatten(0, 2).amax(0).tolist()
    assert green / red == pytest.approx(((128 / 255 + 0.055) / 1.055) ** 2.4, rel=1e-4)
    assert blue == 0


def test_keeping_the_original_light_and_adding_none_gives_the_picture_back():
    scene = render()
    dark = {"color": "#ffffff", "intensity": 0.0, "ambient": 0.0, "original_light": 1.0}
    image, shading = relight(scene, directional(), dark, shading=scene["shading"])
    torch.testing.assert_close(image, scene["image"], atol=1e-5, rtol=0)
    assert torch.equal(shading, scene["shading"])


def test_a_lamp_lights_what_is_near_it_by_the_inverse_square():
    scene = render()
    bare = FLOOD | {"ambient": 0.0}
    _, shading = relight(scene, ("point", POINT), bare, depth=scene["depth"])
    # By hand, in float64, at one pixel.
    row, column = 20, 13
    depth = scene["depth"][0, row, column, 0].double()
    half = torch.deg2rad(torch.tensor(25.0, dtype=torch.float64)).tan()
    place = torch.stack([(2 * (column + 0.5) / 40 - 1) * half * 40 / 32 * depth, (1 - 2 * (row + 0.5) / 32) * half * depth, -depth])
    towards = torch.tensor([0.5, 0.7, -1.0], dtype=torch.float64) - place
    distance = towards.norm()
    cosine = (scene["normal"][0, row, column].double() @ (towards / distance)).clamp(min=0)
    assert cosine > 0.1 and distance > 1.5, "the pixel must tell something"
    assert shading[0, row, column].tolist() == pytest.approx([0.8 * cosine.item() * (1.5 / distance.item()) ** 2] * 3, rel=1e-4)


def test_relative_depth_with_its_ends_equals_metric_depth():
    scene = render(batch_size=1)
    near, far = scene["depth"].min().item(), scene["depth"].max().item()
    _, wanted = relight(scene, ("point", POINT), depth=scene["depth"])
    relative = POINT | {"depth_unit": "relative, 0 to 1", "depth_near": near, "depth_far": far}
    _, shading = relight(scene, ("point", relative), depth=(scene["depth"] - near) / (far - near))
    torch.testing.assert_close(shading, wanted, atol=1e-5, rtol=1e-4)


def test_one_albedo_serves_a_batch_of_normals():
    scene = render()
    image, _ = relight(scene, directional(30.0), albedo=scene["albedo"][:1])
    assert image.shape == (2, 32, 40, 3)


@pytest.mark.parametrize(
    ("light", "changes", "message"),
    [
        (("point", POINT), {}, "connect depth"),
        (("disco", {}), {}, "there is no light None"),
        (directional(), {"color": "red"}, "#rrggbb is wanted"),
        (directional(), {"original_light": 0.5}, "no shading is connected"),
        (directional(), {"normal": torch.ones(2, 16, 16, 3)}, "the maps differ in size"),
        (directional(), {"normal": torch.ones(3, 32, 40, 3)}, "the maps differ in number"),
        (directional(), {"normal": torch.ones(2, 32, 40, 1)}, "normal came with 1 channel"),
        (directional(), {"albedo": torch.full((2, 32, 40, 3), float("inf"))}, "albedo holds 7680 of 7680 values that are NaN"),
    ],
)
def test_what_cannot_be_lit_is_refused_with_the_reason(light, changes, message):
    with pytest.raises(ValueError, match=message):
        relight(render(), light, **changes)


def test_lamps_by_hand_light_each_picture_of_a_batch_or_move_over_one():
    scene = render(batch_size=2)
    way = [[Lamp(x=0.1)], [Lamp(x=0.9, color="#ffd080")]]
    settings = FLOOD | {"ambient": 0.1, "original_light": 0.5}
    maps = {name: scene[name] for name in ("shading", "depth", "roughness", "metallic")}
    picture, shading = relight(scene, by_hand(way), settings, **maps)
    for row in range(2):
        one = [scene[name][row : row + 1] for name in ("albedo", "normal", "depth", "shading", "roughness", "metallic")]
        of_row = Scene(one[0], one[1], relative_depth(one[2][..., :1]), one[3], one[4][..., :1], one[5][..., :1])
        lighting = Lighting((settings["intensity"],) * 3, 0.1, 0.5, 0.5, 0.5, 0.5)
        wanted = relit(of_row, way[row], lighting)
        assert torch.allclose(picture[row : row + 1], wanted[0], atol=1e-5) and torch.allclose(shading[row : row + 1], wanted[1], atol=1e-5)
    still, _ = relight(
        {name: values[:1] for name, values in scene.items() if torch.is_tensor(values)}, by_hand(way), depth=scene["depth"][:1]
    )
    assert len(still) == 2 and not torch.equal(still[0], still[1])
    with pytest.raises(ValueError, match="2 pictures and lamps for 3 frames"):
        relight(scene, by_hand([*way, way[0]]))


def test_place_lamp_chains_and_moves():
    def placed(**changes):
        inputs = {"x": 0.0, "y": 0.5, "height": 1.0, "color": "#ffffff", "intensity": 1.0, "reach": 1.0, "frames": 1}
        return PlaceLamp.execute(**inputs | {"to_x": 1.0, "to_y": 0.5, "to_height": 2.0} | changes).result[0]

    still = placed()
    moving = placed(frames=3, lamps=still)
    assert [[lamp.x for lamp in frame] for frame in parse_lamps(moving)] == [[0, 0], [0, 0.5], [0, 1]]
    with pytest.raises(ValueError, match="2 frames, the others through 3"):
        placed(frames=2, lamps=moving)
