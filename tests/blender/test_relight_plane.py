"""blender/relight_plane.py: its geometry everywhere; what Blender renders of it, where `bpy` is installed (docs/path_traced.md)."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.data.layers import write_layers
from intrinsic_lab.methods.depth_mesh import depth_mesh
from intrinsic_lab.scenes import render_scenes

ROOT = Path(__file__).parents[2]
SIZE = 64


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("relight_plane", ROOT / "blender/relight_plane.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scene():
    return render_scenes([5], SIZE, SIZE + 16, kind="room")


def test_its_surface_is_the_mesh_that_the_node_makes(script, scene):
    fov = scene.scenes.vertical_fov_degrees.item()
    depth = scene.depth_bhw1[0, ..., 0]
    vertices, squares, places = script.surface(depth.numpy(), math.radians(fov), 0, 1)
    mesh = depth_mesh(depth, fov, edge=0)
    assert numpy.allclose(vertices, mesh.vertices_n3, atol=1e-5)
    assert numpy.allclose(places * (1, -1) + (0, 1), mesh.uvs_n2, atol=1e-6)
    assert numpy.array_equal(numpy.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]]), mesh.faces_m3)
    cut = depth_mesh(depth, fov, edge=0.1)
    assert 0 < len(cut.faces_m3) == 2 * len(script.surface(depth.numpy(), math.radians(fov), 0.1, 1)[1]) < len(mesh.faces_m3)


def test_blender_renders_it_as_lambert_has_it_from_the_camera_that_saw_it(script, scene, tmp_path):
    """A sun of strength pi on a matt surface: albedo x (normal . light); what others reflect onto it is left out."""
    bpy = pytest.importorskip("bpy", reason="bpy is not installed, see docs/path_traced.md")
    # The module keeps what Blender brings beside it; Blender itself finds it.
    sys.path += map(str, Path(bpy.utils.resource_path("LOCAL")).glob("python/lib/python*/site-packages"))
    pytest.importorskip("OpenImageIO")
    fov = scene.scenes.vertical_fov_degrees.item()
    maps = {"normal": scene.normal_bhwc[0], "depth": scene.depth_bhw1[0], "albedo": scene.albedo_bhwc[0]}
    path = tmp_path / "room.exr"
    write_layers(path, maps, "DirectX (Y down)", half=True, vertical_fov_degrees=fov)
    built = script.build(path, edge=0)
    sun = bpy.data.lights.new("Sun", "SUN")
    sun.energy, sun.use_shadow = math.pi, False
    lamp = next(thing for thing in built.objects if thing.type == "LIGHT")
    # A sun shines along its -z: from the viewer's upper right.
    lamp.data, lamp.rotation_euler = sun, (math.radians(60), 0, math.radians(30))
    towards = numpy.array(lamp.rotation_euler.to_matrix())[:, 2] @ numpy.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    built.cycles.samples, built.cycles.max_bounces, built.cycles.use_denoising = 16, 0, False
    built.render.threads_mode, built.render.threads = "FIXED", 1
    built.render.image_settings.file_format, built.render.filepath = "OPEN_EXR", str(tmp_path / "seen.exr")
    bpy.ops.render.render(write_still=True, scene=built.name)
    from intrinsic_lab.data.files import read_exr

    seen = torch.from_numpy(read_exr(tmp_path / "seen.exr"))
    cosine = (scene.normal_bhwc[0] @ torch.from_numpy(towards).float()).clamp(min=0)
    wanted = scene.albedo_bhwc[0] * cosine[..., None]
    difference = (seen - wanted).abs().mean(-1)
    assert wanted.std() > 0.05 and difference.median() < 0.01 and difference.mean() < 0.02
