"""Path-traced scenes: plans, files and words everywhere; what Cycles renders, against geometry and optics, where `bpy` is installed.

`bpy` is no dependency and wants its own Python: without it the tests that render are skipped, and say so.
"""

import json
import sys
from math import cos, pi, radians

import numpy
import pytest
import torch
from intrinsic_lab.scenes import pictures, srgb_from_linear
from intrinsic_lab.scenes.path_traced import blend, folder
from intrinsic_lab.scenes.path_traced.__main__ import main
from intrinsic_lab.scenes.path_traced.passes import Maps
from intrinsic_lab.scenes.path_traced.plan import SHAPES, TEXTURES, Camera, Material, Part, Plan, Sky, placed
from intrinsic_lab.scenes.path_traced.worlds import KINDS, plan_scene
from intrinsic_lab.training.folder_data import FolderData, read_picture


def some_maps(size: int = 16) -> Maps:
    """Random maps whose picture is what its parts give."""
    rng = numpy.random.default_rng(0)

    def values(channels: int) -> numpy.ndarray:
        return rng.random((size, size, channels), numpy.float32)

    normal = values(3) - 0.5
    normal /= numpy.linalg.norm(normal, axis=-1, keepdims=True)
    albedo, shading, specular, metallic = values(3), values(3), 0.1 * values(3), values(1)
    return Maps(
        picture=albedo * (1 - metallic) * shading + specular,
        normal=normal,
        depth=1 + values(1),
        albedo=albedo,
        shading=shading,
        specular=specular,
        roughness=values(1),
        metallic=metallic,
        mask=values(1) > 0.5,
        exposure=2.0,
    )


def test_a_seed_is_one_plan_and_seeds_differ():
    assert plan_scene(17) == plan_scene(17)
    assert len({plan_scene(seed) for seed in range(40)}) == 40
    assert [plan_scene(seed).kind for seed in range(5)] == list(KINDS)
    # Python's generator is the same on every machine; this line would show if the drawing changed under a rendered set.
    assert plan_scene(7).caption == "a purple monkey head on a wooden floor, studio light"


@pytest.mark.parametrize("seed", range(0, 200, 7))
def test_plans_hold_only_what_blender_can_be_given(seed):
    plan = plan_scene(seed)
    assert plan.parts and plan.caption and radians(25) < plan.camera.fov < radians(85)
    for part in plan.parts:
        assert part.shape in SHAPES and part.material.texture in TEXTURES
        assert all(extent > 0 for extent in part.size) or part.shape == "grid"
        assert (part.shape == "lathe") == bool(part.profile)
        assert all(0 <= value <= 1 for color in part.material.colors for value in (*color, *part.material.roughness))


def test_what_is_placed_together_turns_together():
    parts = [Part("cube", (1, 1, 1), (1, 0, 0.5), plain(), (0.1, 0, 0)), Part("cube", (1, 1, 1), (0, 0, 0), plain())]
    turned = placed(parts, (10, 20, 30), pi / 2)
    assert turned[0].place == pytest.approx((10, 21, 30.5)) and turned[0].turn == pytest.approx((0.1, 0, pi / 2))
    assert turned[1].place == pytest.approx((10, 20, 30))


def test_written_samples_are_training_data_with_sixteen_bits(tmp_path):
    maps = some_maps()
    folder.write_sample(tmp_path, "a", maps, "a red ball", {"seed": 1}, {"kind": "studio"})
    for name in ("normal", "depth", "albedo", "shading"):
        source = FolderData(tmp_path, size=16).source(name)
        assert len(source) == 1
    for kind, look in folder.looks(maps).items():
        read = read_picture(tmp_path / kind / "a.png").movedim(0, -1)
        assert (read - torch.from_numpy(look)).abs().max() < 1 / 65535
    about = json.loads((tmp_path / "about" / "a.json").read_text())
    nearest, farthest = about["depth_metres"]
    depth = nearest + (farthest - nearest) * read_picture(tmp_path / "depth" / "a.png")[0].numpy()
    assert numpy.abs(depth - maps.depth[..., 0]).max() < 1e-4
    assert (tmp_path / "image" / "a.txt").read_text() == "a red ball\n"
    assert about["kind"] == "studio" and about["exposure"] == 2


def test_a_sample_counts_only_when_it_is_whole(tmp_path, monkeypatch):
    written = []

    def stops(path, data):
        if len(written) == 5:
            raise OSError("no space left")
        written.append(path)
        pictures.write_file(path, data)

    monkeypatch.setattr(folder, "write_file", stops)
    with pytest.raises(OSError, match="no space"):
        folder.write_sample(tmp_path, "a", some_maps(), "", {"seed": 1}, {})
    assert not folder.is_written(tmp_path, "a", {"seed": 1})
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(written)  # no half file
    monkeypatch.undo()
    folder.write_sample(tmp_path, "a", some_maps(), "", {"seed": 1}, {})
    assert folder.is_written(tmp_path, "a", {"seed": 1})
    with pytest.raises(ValueError, match=r"asked for is \{'seed': 2\}"):
        folder.is_written(tmp_path, "a", {"seed": 2})


def test_sheet_shows_samples_and_says_which_is_missing(tmp_path, capsys):
    folder.write_sample(tmp_path / "data", "a", some_maps(), "", {}, {})
    arguments = ["sheet", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "sheet.png"), "--size", "16"]
    assert main(arguments) == 0
    sheet = read_picture(tmp_path / "sheet.png").movedim(0, -1).numpy()
    for column, look in enumerate(folder.looks(some_maps()).values()):
        left = 4 + column * 20
        assert numpy.abs(sheet[20:36, left : left + 16] - look).max() < 1 / 255
    assert main([*arguments, "--names", "b"]) == 1
    assert "b.png is not there" in capsys.readouterr().err


def test_without_blender_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bpy", None)
    assert main(["render", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert 'pip install -e ".[blender]"' in said and "Python 3.11" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, arguments, said",
    [
        (None, [], "does not exist"),
        (b"%PDF-1.7", [], "is no Blender file"),
        (b"", [], "is no Blender file"),
        (b"BLENDER-v405", ["--frames", "9-2"], "give one, as 7, or the first and last, as 1-100"),
        (b"BLENDER-v405", ["--frames", "all"], "give one, as 7"),
    ],
)
def test_what_is_no_blend_file_or_no_frames_is_said_in_words(content, arguments, said, tmp_path, capsys):
    path = tmp_path / "kitchen.blend"
    if content is not None:
        path.write_bytes(content)
    assert main(["from-blend", str(path), "--out", str(tmp_path / "out"), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_frames_are_one_or_from_first_to_last():
    assert list(blend.frames_of("7")) == [7] and list(blend.frames_of("3-5")) == [3, 4, 5]


# What Cycles renders.


@pytest.fixture
def bpy():
    """Blender, or a skipped test."""
    for module in ("OpenEXR", "bpy"):
        found = pytest.importorskip(module, reason="what renders needs bpy and OpenEXR: docs/path_traced.md says how to run it")
    return found


def plain(color=(0.6, 0.3, 0.1), roughness: float = 1.0, metallic: float = 0.0) -> Material:
    return Material("plain", (color, color), (roughness, roughness), metallic=metallic)


GREY_SKY = Sky(1.0, color=(1.0, 1.0, 1.0))
LOOKING_DOWN = Camera((1.0, -6.0, 2.5), (0.2, 0.1, 0.8), radians(40), roll=0.1)
BALL = Part("sphere", (2, 2, 2), (0, 0, 1), plain((0.1, 0.4, 0.7)), smooth=True, subdivide=1)
FLOOR = Part("cube", (40, 40, 1), (0, 0, -0.5), plain())


def traced(parts, sky=GREY_SKY, camera=LOOKING_DOWN, samples=4, size=48, change=None) -> Maps:
    """The maps of a scene; `change` may alter Blender's objects before they are rendered."""
    from intrinsic_lab.scenes.path_traced import build, passes

    # Denoising is judged by eye; noise shrinks as it should.
    build.build(Plan(0, "test", "", tuple(parts), (), sky, camera))
    if change:
        change()
    passes.use_cycles(size)
    assert passes.expose_materials() == []
    return passes.path_trace(samples, denoise=False)


def analytic(size: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """(depth, camera-space normal, True on the ball) of BALL on FLOOR, by solving for the rays in float64."""
    place, target = numpy.array(LOOKING_DOWN.place), numpy.array(LOOKING_DOWN.target)
    back = (place - target) / numpy.linalg.norm(place - target)
    right = numpy.cross([0, 0, 1], back)
    right /= numpy.linalg.norm(right)
    up = numpy.cross(back, right)
    c, s = numpy.cos(LOOKING_DOWN.roll), numpy.sin(LOOKING_DOWN.roll)
    axes = numpy.stack([c * right + s * up, c * up - s * right, back])
    v, u = numpy.meshgrid(1 - (numpy.arange(size) + 0.5) * 2 / size, (numpy.arange(size) + 0.5) * 2 / size - 1, indexing="ij")
    tangent = numpy.tan(LOOKING_DOWN.fov / 2)
    rays = numpy.stack([u * tangent, v * tangent, -numpy.ones_like(u)], -1) @ axes
    floor = numpy.where(rays[..., 2] < 0, -place[2] / rays[..., 2], numpy.inf)
    origin = place - numpy.array([0, 0, 1])
    a, b, rest = (rays**2).sum(-1), rays @ origin, origin @ origin - 1
    inside = b**2 - a * rest
    ball = numpy.where(inside > 0, (-b - numpy.sqrt(inside.clip(0))) / a, numpy.inf)
    depth, on_ball = numpy.minimum(ball, floor), ball < floor
    with numpy.errstate(invalid="ignore"):
        outward = numpy.where(on_ball[..., None], origin + rays * ball[..., None], [0, 0, 1])
    return depth, outward @ axes.T, on_ball


def test_depth_and_normals_are_those_of_geometry(bpy):
    maps = traced([BALL, FLOOR])
    depth, normal, on_ball = analytic(48)
    # The outline's pixels may fall on either side: the mesh has facets, and the ray is up to 0.005 pixels off the middle.
    edge = numpy.zeros_like(on_ball)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= on_ball != numpy.roll(on_ball, step, axis)
    # The floor ends 20 m away.
    edge |= depth > 15
    error = numpy.abs(maps.depth[..., 0] / depth - 1)[~edge]
    degrees = numpy.degrees(numpy.arccos((maps.normal * normal).sum(-1).clip(-1, 1)))[~edge]
    assert on_ball.sum() > 300
    assert numpy.median(error) < 1e-4 and error.max() < 2e-3  # distance instead of depth would be 0.13 off in the corners
    assert numpy.median(degrees) < 0.1 and degrees.max() < 0.5
    assert numpy.abs(numpy.linalg.norm(maps.normal, axis=-1) - 1).max() < 1e-5


def test_irradiance_under_the_sun_is_lambert_s(bpy):
    elevation, strength = radians(35), 3.0

    def sunny():
        lamp = bpy.data.objects.new("sun", bpy.data.lights.new("sun", "SUN"))
        bpy.context.scene.collection.objects.link(lamp)
        lamp.data.energy, lamp.data.angle = strength, 0.0
        lamp.rotation_euler = (pi / 2 - elevation, 0, 0.4)

    maps = traced([FLOOR], sky=Sky(0.0), change=sunny)
    expected = strength * cos(pi / 2 - elevation) / pi * maps.exposure
    assert numpy.abs(maps.shading[maps.mask[..., 0]] / expected - 1).max() < 2e-3


def test_a_convex_body_under_a_white_sky_is_lit_alike_and_its_picture_is_its_albedo(bpy):
    def no_gloss():
        for material in bpy.data.materials:
            material.node_tree.nodes["Principled BSDF"].inputs["Specular IOR Level"].default_value = 0

    maps = traced([BALL], samples=64, change=no_gloss)
    inside = maps.mask[..., 0]
    error = numpy.abs(maps.shading[inside] / maps.exposure - 1)
    assert numpy.median(error) < 1e-5 and error.max() < 2 / 64  # a facet at the outline may stop one path of 64
    assert numpy.abs(maps.albedo[inside] - [0.1, 0.4, 0.7]).max() < 1e-5
    assert not inside.all()
    covered = numpy.abs(maps.picture - maps.albedo * maps.shading).max(-1)[inside]
    assert numpy.median(covered) < 1e-3  # where no outline is in the pixel, the picture is its albedo
    assert (maps.normal[~inside] == [0, 0, 1]).all() and (maps.shading[~inside] == 1).all()
    assert numpy.isclose(maps.depth[~inside], maps.depth[inside].max()).all()


def test_matte_pictures_are_albedo_times_shading_where_light_goes_round_corners(bpy):
    def no_gloss():
        for material in bpy.data.materials:
            material.node_tree.nodes["Principled BSDF"].inputs["Specular IOR Level"].default_value = 0

    maps = traced([BALL, FLOOR], samples=128, change=no_gloss)
    error = numpy.abs(maps.picture - maps.albedo * maps.shading)
    # The floor before the horizon, where neither the ball nor the sky has a part in the pixel.
    flat = (numpy.abs(maps.albedo - [0.6, 0.3, 0.1]).max(-1) < 1e-4) & (maps.depth[..., 0] < 15)
    under = maps.shading[flat].min() / maps.shading[flat].max()
    assert under < 0.5  # there is a shadow to get wrong
    assert numpy.median(error[flat]) < 0.001 and error[flat].max() < 0.03
    assert numpy.abs(maps.specular - (maps.picture - maps.albedo * maps.shading)).max() < 1e-6


def test_metal_keeps_its_color_and_its_light_and_all_it_shows_is_specular(bpy):
    gold = plain((0.9, 0.6, 0.2), roughness=0.25, metallic=1.0)
    ball = Part("sphere", (2, 2, 2), (0, 0, 1), gold, smooth=True)
    maps = traced([ball, FLOOR], samples=32)
    metal = maps.metallic[..., 0] > 0.999
    assert metal.sum() > 300
    assert numpy.abs(maps.albedo[metal] - [0.9, 0.6, 0.2]).max() < 1e-4
    assert numpy.abs(maps.roughness[metal] - 0.25).max() < 1e-4
    assert maps.shading[metal].mean() > 0.2
    assert numpy.abs(maps.specular[metal] - maps.picture[metal]).max() < 2e-3


def test_cut_outs_are_seen_through_and_mixtures_are_mixed(bpy):
    def shaders():
        sheet, mixed = (material.node_tree for material in (bpy.data.materials["sheet"], bpy.data.materials["mixed"]))
        sheet.nodes["Principled BSDF"].inputs["Alpha"].default_value = 0.0
        first, second, mix = (mixed.nodes.new(f"Shader{kind}") for kind in ("NodeBsdfDiffuse", "NodeBsdfGlossy", "NodeMixShader"))
        first.inputs["Color"].default_value = (0.2, 0.2, 0.2, 1)
        second.inputs["Color"].default_value, second.inputs["Roughness"].default_value = (0.6, 0.6, 0.6, 1), 0.5
        mix.inputs["Fac"].default_value = 0.25
        mixed.links.new(first.outputs[0], mix.inputs[1])
        mixed.links.new(second.outputs[0], mix.inputs[2])
        mixed.links.new(mix.outputs[0], mixed.get_output_node("CYCLES").inputs["Surface"])

    from dataclasses import replace

    camera = Camera((0, 0, 5), (0, 0.001, 0), radians(20))
    sheet = Part("cube", (4, 4, 0.1), (0, 0, 2), replace(plain((0.9, 0, 0)), name="sheet"))
    ground = Part("cube", (8, 8, 1), (0, 0, -0.5), replace(plain((0.5, 0.5, 0.5)), name="mixed"))
    maps = traced([sheet, ground], camera=camera, samples=8, change=shaders)
    assert numpy.abs(maps.depth - 5).max() < 0.01
    assert numpy.abs(maps.albedo - (0.75 * 0.2 + 0.25 * 0.6)).max() < 1e-4
    assert numpy.abs(maps.roughness - (0.75 + 0.25 * 0.5)).max() < 1e-4
    assert numpy.abs(maps.metallic - 0.25).max() < 1e-4
    assert maps.shading.min() > 0.5


def test_render_goes_on_where_it_was_stopped(bpy, tmp_path, capsys):
    arguments = ["render", "--out", str(tmp_path), "--size", "16", "--samples", "1", "--seed0", "1"]
    assert main([*arguments, "--count", "1"]) == 0
    first = (tmp_path / "image" / "scene_00001.png").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*arguments, "--count", "2"]) == 0
    assert "2 of 2" in capsys.readouterr().out
    assert (tmp_path / "image" / "scene_00001.png").stat().st_mtime_ns == first
    assert len(FolderData(tmp_path, size=16).source("shading")) == 2
    assert main([*arguments[:-4], "--samples", "2", "--seed0", "1", "--count", "1"]) == 1
    assert "give another folder" in capsys.readouterr().err


def test_a_scene_rendered_twice_is_the_same_to_the_bit(bpy, tmp_path):
    for copy in ("first", "second"):
        arguments = ["render", "--out", str(tmp_path / copy), "--size", "24", "--samples", "3", "--seed0", "12", "--count", "1"]
        assert main(arguments) == 0
    for path in (tmp_path / "first").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
    assert len(list((tmp_path / "second").rglob("*.png"))) == len(folder.KINDS)


def test_a_person_s_file_becomes_a_training_folder_unchanged_and_its_scripts_do_not_run(bpy, tmp_path, capsys):
    from intrinsic_lab.scenes.path_traced.build import build, link

    path, trace = tmp_path / "my kitchen.blend", tmp_path / "a script ran"
    build(Plan(0, "test", "", (BALL, FLOOR), (), GREY_SKY, LOOKING_DOWN))
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 300, 200
    link(scene, "side / view", bpy.data.cameras.new("side"), (6, 0, 1), (pi / 2, 0, pi / 2))
    ball = scene.objects["sphere"]
    for frame, x in ((1, 0.0), (2, 1.0)):
        ball.location.x = x
        ball.keyframe_insert("location", frame=frame)
    group = bpy.data.materials["plain"].node_tree
    shared = bpy.data.node_groups.new("shared", "ShaderNodeTree")
    shared.interface.new_socket("Shader", in_out="OUTPUT", socket_type="NodeSocketShader")
    inner = shared.nodes.new("ShaderNodeBsdfDiffuse")
    shared.links.new(inner.outputs[0], shared.nodes.new("NodeGroupOutput").inputs[0])
    inner.inputs["Color"].default_value = (0.25, 0.5, 0.75, 1)
    node = group.nodes.new("ShaderNodeGroup")
    node.node_tree = shared
    group.links.new(node.outputs[0], group.get_output_node("CYCLES").inputs["Surface"])
    bare = bpy.data.objects["cube"].data
    bare.materials.clear()
    script = bpy.data.texts.new("startup.py")
    script.write(f"open({str(trace)!r}, 'w')")
    script.use_module = True
    driver = ball.driver_add("location", 1).driver
    driver.expression = f"open({str(trace)!r}, 'w').write('x')"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    bpy.ops.wm.open_mainfile(filepath=str(path), use_scripts=True)
    assert trace.exists()  # they do run where they may
    trace.unlink()
    before = path.read_bytes()

    out = tmp_path / "out"
    arguments = ["from-blend", str(path), "--out", str(out), "--size", "40", "--samples", "4"]
    assert main([*arguments, "--frames", "1-2", "--cameras"]) == 0
    assert not trace.exists() and path.read_bytes() == before
    names = sorted(found.stem for found in (out / "about").iterdir())
    assert names == [f"my kitchen_{frame:04d}_{camera}" for frame in (1, 2) for camera in ("camera", "side-view")]
    assert "material 'plain' has a shader of kind GROUP" in capsys.readouterr().err
    albedo = read_picture(out / "albedo" / "my kitchen_0001_camera.png")
    assert albedo.shape == (3, 40, 60)  # the file's own aspect
    on_ball = srgb_from_linear(torch.tensor([0.25, 0.5, 0.75]))
    assert (albedo[:, 18, 28] - on_ball).abs().max() < 0.01
    moved = [read_picture(out / "depth" / f"my kitchen_000{frame}_camera.png") for frame in (1, 2)]
    assert (moved[0] - moved[1]).abs().max() > 0.1
    assert len(FolderData(out, size=40).source("normal")) == 4


def test_a_file_without_a_camera_and_a_panorama_are_said_in_words(bpy, tmp_path, capsys):
    from intrinsic_lab.scenes.path_traced.build import build

    path = tmp_path / "empty.blend"
    build(Plan(0, "test", "", (BALL,), (), GREY_SKY, LOOKING_DOWN))
    bpy.context.scene.camera.data.type = "PANO"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    assert main(["from-blend", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "camera 'camera' is a panorama" in capsys.readouterr().err
    bpy.data.objects.remove(bpy.context.scene.camera)
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    assert main(["from-blend", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "has no camera" in capsys.readouterr().err
    path.write_bytes(b"BLENDER-v405" + bytes(100))
    assert main(["from-blend", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
