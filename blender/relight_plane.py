"""Loads an EXR file of Export Maps into Blender as a surface to relight, as its camera saw it.

    blender --python relight_plane.py -- picture_00001_.exr

Or open this file in Blender's text editor, write the EXR's path into FILE, and press Run Script. In a scene of its own (the others stay
as they are) it makes a mesh that is displaced by the depth, a material of albedo, normals, roughness and metallic, the camera, and a lamp:
move it, add others. The EXR needs depth, in metres. Blender brings all that this needs (4.2 or newer).
"""

import argparse
import math
import sys
from pathlib import Path

import numpy

FILE = ""
AXES = {"OpenGL": (1, 1, 1), "DirectX": (1, -1, 1), "OpenCV": (1, -1, -1)}
CHANNELS = {
    "picture": "R G B",
    "depth": "Z",
    "normal": "Normal.X Normal.Y Normal.Z",
    "albedo": "Albedo.R Albedo.G Albedo.B",
    "roughness": "Roughness.V",
    "metallic": "Metallic.V",
}


def read_maps(path):
    """Maps by name, each `[h, w, channels]`, normals in OpenGL's axes; the vertical field of view in radians. ValueError without depth."""
    import OpenImageIO

    file = OpenImageIO.ImageInput.open(str(path))
    if file is None:
        raise ValueError(f"{path} cannot be read: {OpenImageIO.geterror()}.")
    spec, pixels = file.spec(), file.read_image(OpenImageIO.FLOAT)
    file.close()
    place = {name: number for number, name in enumerate(spec.channelnames)}
    wanted = {name: channels.split() for name, channels in CHANNELS.items()}
    maps = {name: pixels[..., [place[channel] for channel in channels]] for name, channels in wanted.items() if set(channels) <= set(place)}
    if "depth" not in maps:
        raise ValueError(f"{path} has no depth (Z): it has {', '.join(place)}. Export depth too.")
    if "normal" in maps:
        maps["normal"] = maps["normal"] * AXES[spec.getattribute("normalConvention").split()[0]]
    return maps, math.radians(spec.getattribute("verticalFieldOfView"))


def surface(depth, fov, edge, step):
    """Vertices `[n, 3]` in camera space (x right, y up, z to the viewer), squares `[m, 4]`, UVs `[n, 2]` from the bottom left.

    depth: `[h, w]`. A vertex at every `step`-th pixel; no square where depths differ by more than `edge` of the nearer one (0: all).
    """
    height, width = depth.shape
    row, column = (grid.ravel() for grid in numpy.mgrid[0:height:step, 0:width:step])
    across, up = (column + 0.5) / width, 1 - (row + 0.5) / height
    metres, half = depth[row, column], math.tan(fov / 2)
    vertices = numpy.stack([(2 * across - 1) * half * width / height * metres, (2 * up - 1) * half * metres, -metres], -1)
    number = numpy.arange(len(row)).reshape(len(range(0, height, step)), -1)
    squares = numpy.stack([number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]], -1).reshape(-1, 4)
    corners = metres[squares]
    whole = numpy.isfinite(corners).all(1) & (corners > 0).all(1)
    if edge > 0:
        # A coarser mesh has steeper squares.
        whole &= corners.max(1) <= (1 + edge) ** step * corners.min(1)
    return vertices, squares[whole], numpy.stack([across, up], -1)


def build(path, edge=0.05, step=1):
    """The scene of an EXR file, shown in Blender's window; returns it."""
    import bpy

    maps, fov = read_maps(path)
    scene = bpy.data.scenes.new(f"Relight {Path(path).stem}")
    mesh = bpy.data.meshes.new("Surface")
    vertices, squares, places = surface(maps["depth"][..., 0], fov, edge, step)
    mesh.from_pydata(numpy.nan_to_num(vertices, posinf=0).tolist(), [], squares.tolist())
    mesh.uv_layers.new().data.foreach_set("uv", places[squares.ravel()].astype(numpy.float32).ravel())
    mesh.polygons.foreach_set("use_smooth", [True] * len(squares))
    mesh.materials.append(_material(maps))
    # Camera space lies on its back in Blender, where z is up.
    upright = (math.pi / 2, 0, 0)
    _link(scene, "Surface", mesh).rotation_euler = upright
    camera = bpy.data.cameras.new("Camera")
    camera.sensor_fit, camera.lens = "VERTICAL", camera.sensor_height / 2 / math.tan(fov / 2)
    scene.camera = _link(scene, "Camera", camera)
    scene.camera.rotation_euler = upright
    near = float(numpy.percentile(maps["depth"], 10))
    lamp = bpy.data.lights.new("Lamp", "AREA")
    lamp.energy, lamp.size = 40 * near**2, near / 4
    thing = _link(scene, "Lamp", lamp)
    # Before the surfaces, above to the right, facing ahead.
    thing.location, thing.rotation_euler = (near / 2, 0, near / 2), (math.radians(65), 0, math.radians(25))
    height, width = maps["depth"].shape[:2]
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = width, height, 100
    scene.render.engine, scene.view_settings.view_transform = "CYCLES", "Standard"
    if bpy.context.window:
        bpy.context.window.scene = scene
    return scene


def _link(scene, name, data):
    import bpy

    thing = bpy.data.objects.new(name, data)
    scene.collection.objects.link(thing)
    return thing


def _material(maps):
    """Albedo (else the picture), normals, roughness and metallic as a Principled BSDF; what is missing is matt and no metal."""
    import bpy

    material = bpy.data.materials.new("Maps")
    material.use_nodes = True
    tree = material.node_tree
    shader = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Roughness"].default_value = 1.0
    color = maps.get("albedo", maps.get("picture"))
    for name, values in (("Base Color", color), ("Roughness", maps.get("roughness")), ("Metallic", maps.get("metallic"))):
        if values is not None:
            tree.links.new(_texture(tree, name, values), shader.inputs[name])
    if "normal" in maps:
        turn = tree.nodes.new("ShaderNodeNormalMap")
        turn.space = "OBJECT"
        tree.links.new(_texture(tree, "Normal", (maps["normal"] + 1) / 2), turn.inputs["Color"])
        tree.links.new(turn.outputs["Normal"], shader.inputs["Normal"])
    return material


def _texture(tree, name, values):
    """An image node's color output for `[h, w, 1 or 3]` linear floats, which are kept in the .blend file."""
    import bpy

    height, width = values.shape[:2]
    image = bpy.data.images.new(name, width, height, float_buffer=True, is_data=True)
    pixels = numpy.ones((height, width, 4), numpy.float32)
    # Blender's rows begin at the bottom.
    pixels[..., :3] = values[::-1]
    image.pixels.foreach_set(pixels.ravel())
    image.pack()
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image, node.extension = image, "EXTEND"
    return node.outputs["Color"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="relight_plane.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=FILE, help="the EXR file that Export Maps wrote")
    parser.add_argument("--edge", type=float, default=0.05, help="the mesh is cut where depths differ by more than this share; 0: nowhere")
    parser.add_argument("--step", type=int, default=1, help="a vertex at every so many pixels")
    given = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else [])
    if not given.file:
        raise ValueError("there is no EXR file to load: name it after -- on the command line, or as FILE in this script.")
    build(given.file, given.edge, given.step)
