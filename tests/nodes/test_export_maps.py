"""Export Maps inside real ComfyUI: every file is read back by somebody else's reader and compared with the renderer's exact maps."""

import json
import struct
import sys
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip("comfy_api.latest")
import comfy.model_management
import folder_paths
import OpenEXR
from comfy_api.latest import _io
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.data.files import read_exr
from intrinsic_lab.methods.depth_mesh import depth_mesh
from intrinsic_lab.methods.maps import MAPS, MapBundle, linear_from_srgb, srgb_from_linear
from intrinsic_lab.nodes.export_maps import ExportMaps
from intrinsic_lab.scenes import render_scenes
from PIL import Image

HEIGHT, WIDTH, FOV = 32, 40, 50.0
DEFAULTS = {"filename_prefix": "out/thing", "vertical_fov": FOV, "depth_unit": "metric", "depth_near": 2.0, "depth_far": 6.0}
EXR = ("EXR", {"precision": "float (32-bit)", "normals": "OpenGL (Y up)"})


@pytest.fixture(scope="module")
def maps() -> MapBundle:
    scene = render_scenes([3, 4], HEIGHT, WIDTH, kind="tabletop")
    names = {"image": "image_bhwc"} | {name: kind.scene_field for name, kind in MAPS.items()}
    return MapBundle({name: getattr(scene, field) for name, field in names.items()})


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def export(target=EXR, mesh=("none", {}), **changes):
    """Runs the node with inputs as core's executor hands them over: those that the schema declares, dynamic ones nested."""
    inputs = DEFAULTS | changes
    for name, (kind, options) in (("target", target), ("mesh", mesh)):
        inputs |= {name: kind} | {f"{name}.{option}": value for option, value in options.items()}
    declared, _, v3_data = _io.get_finalized_class_inputs(ExportMaps.INPUT_TYPES(), inputs)
    known = declared["required"] | declared["optional"]
    return ExportMaps.execute(**_io.build_nested_inputs({name: value for name, value in inputs.items() if name in known}, v3_data))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_exr_a_picture_holds_every_map_exactly_under_the_names_of_blender_and_nuke(maps, output):
    done = export(maps=maps)
    assert done[1] == "out/thing_00001_.exr\nout/thing_00002_.exr"
    assert files_in(output) == [f"out/thing_0000{number}_.{ending}" for number in (1, 2) for ending in ("exr", "json")]
    assert isinstance(done[0], ExecutionBlocker)
    for row in range(2):
        path = output / f"out/thing_0000{row + 1}_.exr"
        layers = {name: tuple(f"{name.capitalize()}.{letter}" for letter in "RGB") for name in ("albedo", "shading", "specular")}
        layers |= {"normal": ("Normal.X", "Normal.Y", "Normal.Z"), "roughness": ("Roughness.V",), "metallic": ("Metallic.V",)}
        layers |= {"depth": ("Z",)}
        for name, channels in layers.items():
            assert numpy.array_equal(read_exr(path, channels), maps[name][row].numpy()), name
        assert numpy.allclose(read_exr(path), linear_from_srgb(maps["image"][row]).numpy(), atol=1e-6)
        file = OpenEXR.File(str(path), separate_channels=True)
        assert len(file.channels()) == 3 + 1 + 3 + 3 * 3 + 2
        for window in ("dataWindow", "displayWindow"):
            assert [corner.tolist() for corner in file.header()[window]] == [[0, 0], [WIDTH - 1, HEIGHT - 1]]
        assert file.header()["chromaticities"][:2] == pytest.approx((0.64, 0.33))
        assert file.header()["verticalFieldOfView"] == FOV
        said = json.loads(path.with_suffix(".json").read_text())
        told = {channel for layer in said["files"][0]["layers"] for channel in layer["channels"]}
        assert told == set(file.channels()) and said["size"] == [WIDTH, HEIGHT]


def test_half_floats_keep_depth_whole_and_numbers_and_axes_are_as_asked(maps, output):
    relative = {"depth_unit": "relative, 0 to 1", "depth": torch.linspace(0, 1, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH, 1)}
    (output / "out").mkdir()
    (output / "out/thing_00007_.exr").touch()
    one = MapBundle({name: maps[name][:1] for name in ("normal", "albedo")})
    assert export(("EXR", {"precision": "half (16-bit)", "normals": "DirectX (Y down)"}), maps=one, **relative)[1] == "out/thing_00008_.exr"
    path = output / "out/thing_00008_.exr"
    normal, albedo = read_exr(path, ("Normal.X", "Normal.Y", "Normal.Z")), read_exr(path, ("Albedo.R", "Albedo.G", "Albedo.B"))
    assert numpy.abs(normal - maps["normal"][0].numpy() * (1, -1, 1)).max() < 2**-11
    assert numpy.abs(albedo - maps["albedo"][0].numpy()).max() < 2**-11
    assert numpy.allclose(read_exr(path, ("Z",)), 2 + 4 * relative["depth"][0].numpy(), atol=1e-6)
    kinds = {name: channel.pixels.dtype for name, channel in OpenEXR.File(str(path), separate_channels=True).channels().items()}
    assert kinds.pop("Z") == numpy.float32 and set(kinds.values()) == {numpy.dtype(numpy.float16)}


def pixels(path: Path) -> numpy.ndarray:
    return numpy.asarray(Image.open(path)).astype(float) / 255


def test_unreal_gets_directx_normals_and_orm(maps, output):
    done = export(("Unreal", {"bits": "8"}), maps=maps)
    folder = output / "out/thing_00002_"
    names = ["BC", "N", "ORM", "D", "Shading", "Specular", "Picture"]
    assert files_in(folder) == sorted([*(f"T_thing_{name}.png" for name in names), "about.json"])
    assert [entry["filename"] for entry in done.ui["images"]] == [f"T_thing_{name}.png" for name in names] * 2
    truth = {name: maps[name][1].numpy() for name in maps.maps}
    assert numpy.abs(pixels(folder / "T_thing_N.png") * 2 - 1 - truth["normal"] * (1, -1, 1)).max() < 1.01 / 255
    orm = pixels(folder / "T_thing_ORM.png")
    assert (orm[..., 0] == 1).all()
    for channel, name in ((1, "roughness"), (2, "metallic")):
        assert numpy.ptp(truth[name]) > 0.3 and numpy.abs(orm[..., channel] - truth[name][..., 0]).max() < 0.51 / 255
    color = pixels(folder / "T_thing_BC.png")
    assert numpy.abs(color - srgb_from_linear(maps["albedo"][1]).numpy()).max() < 0.51 / 255
    said = {entry["file"]: entry for entry in json.loads((folder / "about.json").read_text())["files"]}
    assert said["T_thing_BC.png"]["color_space"] == "sRGB" and said["T_thing_ORM.png"]["color_space"] == "linear"
    # Depth has 16 bits: black and white are metres that the JSON file says.
    span, deep = said["T_thing_D.png"]["metres"], Image.open(folder / "T_thing_D.png")
    metres = span["black"] + (span["white"] - span["black"]) * numpy.asarray(deep).astype(float) / 65535
    assert numpy.abs(metres - truth["depth"][..., 0]).max() < 1e-4 * truth["depth"].max()


# Pillow cuts 16 bits of colour down to 8.
@pytest.mark.parametrize(("bits", "exact"), [("8", 0.51 / 255), ("16", 1.01 / 255)])
def test_unity_gets_a_mask_map_of_metallic_and_smoothness(maps, output, bits, exact):
    export(("Unity", {"bits": bits}), maps=maps)
    mask = pixels(output / "out/thing_00001_/thing_MaskMap.png")
    wanted = torch.cat([maps["metallic"][0], torch.ones(HEIGHT, WIDTH, 1), torch.zeros(HEIGHT, WIDTH, 1), 1 - maps["roughness"][0]], -1)
    assert mask.shape == (HEIGHT, WIDTH, 4) and numpy.abs(mask - wanted.numpy()).max() < exact
    normal = pixels(output / "out/thing_00001_/thing_Normal.png") * 2 - 1
    assert numpy.abs(normal - maps["normal"][0].numpy()).max() < 2 * exact


def test_sixteen_bits_and_one_missing_material_map(maps, output):
    from intrinsic_lab.data.files import read_pixels

    export(("glTF", {"bits": "16"}), normal=maps["normal"], roughness=maps["roughness"])
    folder = output / "out/thing_00001_"
    assert files_in(folder) == ["about.json", "thing_normal.png", "thing_occlusionRoughnessMetallic.png"]
    assert (read_pixels(folder / "thing_normal.png") * 2 - 1 - maps["normal"][0]).abs().max() < 1.01 / 65535
    orm = read_pixels(folder / "thing_occlusionRoughnessMetallic.png")
    wanted = torch.cat([torch.ones(HEIGHT, WIDTH, 1), maps["roughness"][0], torch.zeros(HEIGHT, WIDTH, 1)], -1)
    assert (orm - wanted).abs().max() < 0.51 / 65535
    [said] = [entry for entry in json.loads((folder / "about.json").read_text())["files"] if "Metallic" in entry["file"]]
    assert "metallic: 0 everywhere, there is no such map" in said["holds"]
    export(("Blender", {"bits": "8"}), roughness=maps["roughness"], albedo=maps["albedo"])
    assert files_in(output / "out/thing_00003_") == ["about.json", "thing_BaseColor.png", "thing_Roughness.png"]


def glb(path: Path) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, Image.Image, dict]:
    """Vertices, triangles, texture coordinates, texture and scene of a GLB file, by its specification."""
    data = path.read_bytes()
    magic, version, length, json_length, json_kind = struct.unpack("<4sIIII", data[:20])
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(data), 0x4E4F534A)
    scene, chunk = json.loads(data[20 : 20 + json_length]), data[28 + json_length :]

    def view(number: int) -> bytes:
        part = scene["bufferViews"][number]
        return chunk[part["byteOffset"] : part["byteOffset"] + part["byteLength"]]

    def accessor(number: int, kind: str, width: int) -> numpy.ndarray:
        return numpy.frombuffer(view(scene["accessors"][number]["bufferView"]), kind).reshape(-1, width)

    [primitive] = scene["meshes"][0]["primitives"]
    texture = Image.open(BytesIO(view(scene["images"][0]["bufferView"])))
    attributes = primitive["attributes"]
    faces = accessor(primitive["indices"], "<u4", 3)
    return accessor(attributes["POSITION"], "<f4", 3), faces, accessor(attributes["TEXCOORD_0"], "<f4", 2), texture, scene


def test_the_mesh_lies_where_the_camera_saw_it_with_the_picture_on_it(maps, output):
    edge = 0.1
    done = export(("Unreal", {"bits": "8"}), ("from depth", {"edge": edge, "step": 1}), maps=maps)
    assert "out/thing_00002_/thing.glb" in done[1].splitlines()
    vertices, faces, uvs, texture, _ = glb(output / "out/thing_00001_/thing.glb")
    assert numpy.array_equal(numpy.asarray(texture), (maps["image"][0].clamp(0, 1) * 255).round().numpy().astype(numpy.uint8))
    column, row = (uvs.astype(float) * (WIDTH, HEIGHT) - 0.5).round().astype(int).T
    assert numpy.abs(uvs - numpy.stack([(column + 0.5) / WIDTH, (row + 0.5) / HEIGHT], -1)).max() < 1e-6
    depth = maps["depth"][0, ..., 0].double().numpy()
    metres, half = depth[row, column], numpy.tan(numpy.radians(FOV) / 2)
    right = ((column + 0.5) / WIDTH * 2 - 1) * half * WIDTH / HEIGHT * metres
    up = (1 - (row + 0.5) / HEIGHT * 2) * half * metres
    assert numpy.abs(vertices - numpy.stack([right, up, -metres], -1)).max() < 1e-5
    # Its triangles face the camera and none bridges an edge; those that are left out do.
    corners = vertices[faces].astype(float)
    facing = numpy.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((facing * corners.mean(1)).sum(-1) < 0).all()
    near, far = metres[faces].min(-1), metres[faces].max(-1)
    squares = numpy.stack([depth[:-1, :-1], depth[1:, :-1], depth[:-1, 1:], depth[1:, 1:]])
    kept = (squares.max(0) / squares.min(0) <= 1 + edge).sum()
    assert (far / near).max() <= 1 + edge and len(faces) == 2 * kept < 2 * squares[0].size
    # Core takes it: the file itself is what its viewer is given.
    from comfy_extras.nodes_load_3d import Preview3D

    assert done[0].get_bytes() == (output / "out/thing_00001_/thing.glb").read_bytes()
    shown = Preview3D.execute(done[0]).ui.as_dict()["result"][0]
    assert (output / shown).read_bytes() == done[0].get_bytes()


def test_a_coarser_mesh_takes_every_nth_pixel_and_unknown_depth_is_a_hole(maps):
    depth = maps["depth"][0, ..., 0]
    full, coarse = depth_mesh(depth, FOV, edge=0), depth_mesh(depth, FOV, edge=0, step=3)
    assert len(full.faces_m3) == 2 * (HEIGHT - 1) * (WIDTH - 1) and len(coarse.faces_m3) == 2 * 10 * 13
    grid = full.vertices_n3.reshape(HEIGHT, WIDTH, 3)
    assert torch.equal(coarse.vertices_n3, grid[::3, ::3].reshape(-1, 3))
    holed = depth.clone()
    holed[10, 20] = float("inf")
    assert len(depth_mesh(holed, FOV, edge=0).faces_m3) == len(full.faces_m3) - 2 * 4
    with pytest.raises(ValueError, match="no triangle is left"):
        depth_mesh(torch.rand(8, 8) + 0.1, FOV, edge=1e-6)
    with pytest.raises(ValueError, match="no triangles at every 40th pixel"):
        depth_mesh(depth, FOV, step=40)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(maps, output, monkeypatch):
    for wrong, said in (
        ({}, "no map to bundle"),
        ({"albedo": maps["albedo"], "mesh": ("from depth", {"edge": 0.1, "step": 1})}, "a mesh needs depth"),
        ({"depth": maps["depth"], "mesh": ("from depth", {"edge": 0.1, "step": 1}), "target": ("Unity", {"bits": "8"})}, "no picture"),
        ({"normal": maps["image"]}, "normal is a picture"),
        ({"albedo": maps["albedo"] / 0}, "albedo holds .* NaN or infinite"),
        ({"maps": maps, "filename_prefix": "../thing"}, "outside the output folder"),
        ({"maps": maps, "filename_prefix": "/etc/thing"}, "outside the output folder"),
    ):
        with pytest.raises(Exception, match=said):
            export(**wrong)
    assert not [name for name in files_in(output) if name.endswith((".exr", ".glb", ".json", ".partial"))]
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        export(maps=maps)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ValueError, match="Writing EXR needs openexr, which is not installed"):
        export(maps=maps)
    assert not list(output.rglob("*.exr"))
