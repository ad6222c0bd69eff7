"""Whole maps: made, opened, shown, taken by every node that takes maps, and read from what ComfyUI's own models give."""

import pytest
import torch

pytest.importorskip("comfy_api.latest")
import folder_paths
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.methods.maps import MAPS, MapBundle, linear_from_srgb, srgb_from_linear
from intrinsic_lab.methods.maps.geometry import read_geometry
from intrinsic_lab.nodes.bundle import BundleMaps, MapsFromGeometry, OpenMaps, PicturesOfMaps
from intrinsic_lab.nodes.compare import CompareMaps
from intrinsic_lab.nodes.extract import contact_sheet
from intrinsic_lab.nodes.format_maps import AlbedoFromPicture, ColorMap, FormatColor, FormatDepth, FormatNormals, NormalsFromColor
from intrinsic_lab.nodes.relight import Relight
from intrinsic_lab.scenes import render_scenes

NONE_FLIPPED = {"flip_x": False, "flip_y": False, "flip_z": False}
AS_DATA = {"convention": "OpenGL (Y up)", **NONE_FLIPPED, "renormalize": True, "output": "data, -1 to 1"}
PER_PICTURE = {"range": "per picture", "low_percentile": 0.0, "high_percentile": 100.0}


@pytest.fixture(scope="module")
def scene():
    return render_scenes([3, 4], 32, 40)


@pytest.fixture(scope="module")
def single(scene):
    """The scene's maps as other nodes give them: IMAGEs."""
    names = ("normal", "depth", "albedo", "shading")
    values = (scene.normal_bhwc, scene.depth_bhw1.expand(-1, -1, -1, 3), scene.albedo_bhwc, scene.shading_bhwc)
    return dict(zip(names, values, strict=True))


@pytest.fixture(scope="module")
def maps(scene, single):
    return BundleMaps.execute(image=scene.image_bhwc, **single)[0]


def light(**inputs):
    settings = {"color": "#ffe0b0", "intensity": 0.8, "ambient": 0.2, "original_light": 0.5}
    return Relight.execute(**settings, light={"light": "directional", "azimuth": 30.0, "elevation": 20.0}, **inputs)[0]


def test_what_is_bundled_comes_out_again_and_what_is_not_there_says_so(scene, single, maps):
    opened = dict(zip(["image", *MAPS], OpenMaps.execute(maps).result, strict=True))
    assert torch.equal(opened.pop("image"), scene.image_bhwc)
    for name, image in single.items():
        assert torch.equal(opened.pop(name), image), name
    assert all(isinstance(other, ExecutionBlocker) and "they have: image, normal" in other.message for other in opened.values())
    added = BundleMaps.execute(maps=maps, albedo=single["shading"])[0]
    assert torch.equal(added["albedo"], single["shading"]) and torch.equal(added["normal"], single["normal"])
    assert torch.equal(maps["albedo"], single["albedo"]), "a bundle is never changed"


def test_every_node_that_takes_a_map_takes_whole_maps_alike(single, maps, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    both = [
        [FormatNormals.execute(given, **AS_DATA) for given in (single["normal"], maps)],
        [FormatDepth.execute(given, "near bright, far dark", True, PER_PICTURE) for given in (single["depth"], maps)],
        [FormatColor.execute(given, "sRGB", 0.0, False, "shading") for given in (single["shading"], maps)],
        [ColorMap.execute(given, "turbo", 0.0, 5.0) for given in (single["depth"], maps)],
        [CompareMaps.execute(given, single["albedo"] + 0.1, "albedo", "error", 0.0, "grey") for given in (single["albedo"], maps)],
        [CompareMaps.execute(single["depth"] ** 2, given, "depth", "error", 0.0, "grey") for given in (single["depth"], maps)],
    ]
    for alone, whole in both:
        for one, other in zip(alone.result, whole.result, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert torch.equal(light(maps=maps), light(**single))
    # What is connected wins.
    assert torch.equal(light(maps=maps, albedo=single["shading"]), light(**single | {"albedo": single["shading"]}))


def test_pictures_of_maps_are_what_the_format_nodes_make(single, maps):
    shown = dict(zip(MAPS, PicturesOfMaps.execute(maps).result, strict=True))
    assert torch.equal(shown["normal"], FormatNormals.execute(single["normal"], **AS_DATA | {"output": "colors, 0 to 1"})[0])
    assert torch.equal(shown["depth"], FormatDepth.execute(single["depth"], "near bright, far dark", True, PER_PICTURE)[0])
    for name in ("albedo", "shading"):
        assert torch.equal(shown[name], FormatColor.execute(single[name], "sRGB", 0.0, True)[0]), name
    assert isinstance(shown["metallic"], ExecutionBlocker)


def test_the_preview_of_extracting_nodes_shows_what_is_saved(scene, single, maps):
    sheet = contact_sheet(scene.image_bhwc, {name: maps[name] for name in single})
    shown = PicturesOfMaps.execute(maps)
    wanted = [torch.cat([picture[row] for picture in (scene.image_bhwc, *shown.result[:4])], dim=1) for row in range(2)]
    assert torch.equal(sheet[0], torch.cat(wanted).clamp(0, 1))


def test_pictures_of_other_nodes_are_read_in_their_convention(single):
    normal, depth, albedo = (single[name] for name in ("normal", "depth", "albedo"))
    directx = FormatNormals.execute(normal, **AS_DATA | {"output": "colors, 0 to 1", "convention": "DirectX (Y down)"})[0]
    near_bright = FormatDepth.execute(depth, "near bright, far dark", False, PER_PICTURE)[0]
    as_what = {"normals_as": "directx", "depth_as": "near_bright", "colors_as": "srgb"}
    maps = BundleMaps.execute(normal=directx, depth=near_bright, albedo=srgb_from_linear(albedo), **as_what)[0]
    nearest, farthest = (reach(depth[..., :1], (1, 2, 3), keepdim=True) for reach in (torch.amin, torch.amax))
    torch.testing.assert_close(maps["depth"], (depth[..., :1] - nearest) / (farthest - nearest))
    torch.testing.assert_close(maps["normal"], normal)
    torch.testing.assert_close(maps["albedo"], albedo)
    with pytest.raises(ValueError, match="normal is a picture"):
        BundleMaps.execute(normal=directx)


def test_a_picture_where_normals_are_wanted_is_refused_in_words(scene, single):
    """A photo, a normal map's colours; and not data with shortened, unknown or few directions."""
    for picture in (scene.image_bhwc, (single["normal"] + 1) / 2):
        with pytest.raises(ValueError, match=r"normal is a picture .* Read Normals from Colors"):
            light(**single | {"normal": picture})
        with pytest.raises(ValueError, match="normal is a picture"):
            FormatNormals.execute(picture, **AS_DATA)
    unknown = single["normal"].clone()
    unknown[:, :9] = 0
    facing = torch.tensor([0.0, 0.0, 1.0]).expand_as(unknown)
    for data in (single["normal"] * 0.7, unknown, facing, facing.masked_fill(unknown == 0, 0)):
        assert FormatNormals.execute(data, **AS_DATA)[0].shape == data.shape
    with pytest.raises(ValueError, match="there is no normal to light"):
        light(albedo=single["albedo"])


def test_maps_that_do_not_belong_together_are_refused():
    for wrong, said in (
        ({}, "no map to bundle"),
        ({"height": torch.zeros(1, 2, 2, 1)}, "cannot hold 'height'"),
        ({"depth": torch.zeros(1, 2, 2, 3)}, "depth came with shape"),
        ({"depth": torch.zeros(1, 2, 2, 1), "albedo": torch.zeros(1, 4, 2, 3)}, "differ in size"),
        ({"depth": torch.zeros(3, 2, 2, 1), "albedo": torch.zeros(2, 2, 2, 3)}, "differ in number"),
    ):
        with pytest.raises(ValueError, match=said):
            MapBundle(wrong)
    with pytest.raises(ValueError, match="these maps have no roughness"):
        FormatColor.execute(MapBundle({"depth": torch.zeros(1, 2, 2, 1)}), "sRGB", 0.0, False, "roughness")


def test_an_albedo_picture_is_read_as_srgb(scene):
    picture = srgb_from_linear(scene.albedo_bhwc)
    torch.testing.assert_close(AlbedoFromPicture.execute(picture)[0], scene.albedo_bhwc)
    assert torch.equal(AlbedoFromPicture.execute(picture[..., :1])[0][..., 2], linear_from_srgb(picture[..., 0]))


def packet_of(scene):
    """The scene as core's MoGe node gives it: comfy_extras/nodes_moge.py, the comment at its top (focal length in heights)."""
    fov = torch.as_tensor(scene.scenes.vertical_fov_degrees).float()
    camera = torch.zeros(2, 3, 3)
    camera[:, 0, 2] = camera[:, 1, 2] = 0.5
    camera[:, 1, 1] = 0.5 / (fov.deg2rad() / 2).tan()
    depth, normal = scene.depth_bhw1[..., 0].clone(), scene.normal_bhwc * torch.tensor([1.0, -1.0, -1.0])
    mask = torch.ones(2, 32, 40, dtype=torch.bool)
    mask[:, :4] = False
    depth[:, :4], normal[:, :4] = float("inf"), 0.0
    return {"depth": depth, "normal": normal, "mask": mask, "intrinsics": camera, "image": scene.image_bhwc}, fov


def test_moges_geometry_becomes_our_maps_as_core_itself_renders_it(scene, single):
    packet, fov = packet_of(scene)
    maps, known, vertical_fov = MapsFromGeometry.execute(packet, 45.0).result
    assert torch.equal(maps["image"], scene.image_bhwc) and torch.equal(known, packet["mask"].float())
    torch.testing.assert_close(maps["normal"][:, 4:], scene.normal_bhwc[:, 4:])
    assert torch.equal(maps["depth"][:, 4:], scene.depth_bhw1[:, 4:])
    assert torch.equal(maps["depth"][:, 0, 0, 0], scene.depth_bhw1[:, 4:].amax((1, 2, 3)))
    assert vertical_fov == pytest.approx(fov[0].item(), abs=1e-3)
    from comfy_extras.nodes_moge import MoGeRender

    picture = MoGeRender.execute(packet, "normal_opengl")[0]
    torch.testing.assert_close(
        NormalsFromColor.execute(picture, "OpenGL (Y up)", **NONE_FLIPPED, renormalize=True)[0][:, 4:], maps["normal"][:, 4:]
    )
    assert light(maps=maps, albedo=single["albedo"], shading=single["shading"]).isfinite().all()


def test_depth_anything_gets_its_normals_from_its_depth(scene):
    """comfy_extras/nodes_depth_anything_3.py: one view has no intrinsics; several have them in pixels, behind a dimension for the scene."""
    packet, fov = packet_of(scene)
    view = {"depth": scene.depth_bhw1[..., 0], "image": scene.image_bhwc, "mode": "mono", "sky": torch.zeros(2, 32, 40)}
    camera = packet["intrinsics"][None] * torch.tensor([40.0, 32.0, 1.0])[:, None]
    several = read_geometry(view | {"intrinsics": camera, "mode": "multiview"})
    assert several.vertical_fov_degrees == pytest.approx(fov.tolist(), abs=1e-3)
    cosine = (several.maps["normal"] * scene.normal_bhwc).sum(-1)
    assert cosine.flatten(1).median(1).values.min() > 0.99
    assert MapsFromGeometry.execute(view, 50.0)[2] == 50.0
    with pytest.raises(ValueError, match="knows no depth at all"):
        read_geometry(view | {"sky": torch.ones(2, 32, 40)})
    with pytest.raises(ValueError, match="holds no depth"):
        read_geometry({"points": torch.zeros(1, 2, 2, 3)})
