"""Turns a plan into a Blender scene. Everything here needs `bpy`."""

from itertools import pairwise
from math import cos, pi, radians, sin
from typing import Any

import numpy

from .plan import Camera, Light, Material, Part, Plan, Sky, Vector

SMOOTH_ANGLE = radians(40)


def build(plan: Plan) -> None:
    """Replace what Blender holds by the plan's scene, its camera active."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.resolution_x = scene.render.resolution_y = 128
    scene.cycles.max_bounces, scene.cycles.diffuse_bounces, scene.cycles.glossy_bounces = 4, 3, 2
    materials: dict[Material, Any] = {}
    for part in plan.parts:
        if part.material not in materials:
            materials[part.material] = _material(part.material)
        _part(scene, part, materials[part.material])
    for light in plan.lights:
        _light(scene, light)
    _sky(scene, plan.sky)
    _camera(scene, plan.camera)
    bpy.context.view_layer.update()


def link(scene: Any, name: str, data: Any, place: Vector, turn: Any = (0, 0, 0)) -> Any:
    """A new object in the scene."""
    import bpy

    thing = bpy.data.objects.new(name, data)
    scene.collection.objects.link(thing)
    thing.location, thing.rotation_euler = place, turn
    return thing


def aimed(place: Vector, target: Vector, roll: float = 0.0) -> Any:
    """The rotation of something at `place` whose -z axis looks at `target`, y up; as Euler angles."""
    from mathutils import Matrix, Vector

    turn = (Vector(target) - Vector(place)).to_track_quat("-Z", "Y").to_matrix() @ Matrix.Rotation(roll, 3, "Z")
    return turn.to_euler()


def _mesh(shape: str, profile: tuple[tuple[float, float], ...]) -> Any:
    """A shape of unit bounding box around the origin."""
    import bmesh
    import bpy
    from mathutils import Matrix

    solid = bmesh.new()
    if shape == "cube":
        bmesh.ops.create_cube(solid, size=1)
    elif shape == "sphere":
        bmesh.ops.create_uvsphere(solid, u_segments=64, v_segments=32, radius=0.5)
    elif shape == "rock":
        bmesh.ops.create_icosphere(solid, subdivisions=4, radius=0.5)
    elif shape == "cylinder":
        bmesh.ops.create_cone(solid, cap_ends=True, segments=64, radius1=0.5, radius2=0.5, depth=1)
    elif shape == "cone":
        bmesh.ops.create_cone(solid, cap_ends=True, segments=64, radius1=0.5, radius2=0, depth=1)
    elif shape == "pyramid":
        bmesh.ops.create_cone(
            solid, cap_ends=True, segments=4, radius1=0.5**0.5, radius2=0, depth=1, matrix=Matrix.Rotation(radians(45), 4, "Z")
        )
    elif shape == "monkey":
        bmesh.ops.create_monkey(solid)
    elif shape == "grid":
        bmesh.ops.create_grid(solid, x_segments=128, y_segments=128, size=0.5)
    elif shape == "torus":
        ring = [solid.verts.new(place) for place in _circle(16, 0.15, 0.35)]
        _spin(solid, [solid.edges.new(pair) for pair in zip(ring, [*ring[1:], ring[0]], strict=True)])
    elif shape == "lathe":
        line = [solid.verts.new((radius, 0, height)) for radius, height in profile]
        edges = [solid.edges.new(pair) for pair in pairwise(line)]
        _spin(solid, edges)
        _close_bottom(solid)
    bmesh.ops.recalc_face_normals(solid, faces=solid.faces)
    mesh = bpy.data.meshes.new(shape)
    solid.to_mesh(mesh)
    solid.free()
    corners = numpy.empty(3 * len(mesh.vertices), numpy.float32)
    mesh.vertices.foreach_get("co", corners)
    low, high = corners.reshape(-1, 3).min(0), corners.reshape(-1, 3).max(0)
    scale = 1 / numpy.where(high > low, high - low, 1)
    mesh.transform(Matrix.Diagonal((*scale, 1)) @ Matrix.Translation(-(low + high) / 2))
    return mesh


def _circle(count: int, radius: float, away: float) -> list[Vector]:
    return [(away + radius * cos(2 * pi * n / count), 0, radius * sin(2 * pi * n / count)) for n in range(count)]


def _spin(solid: Any, edges: list[Any]) -> None:
    import bmesh

    geometry = [*solid.verts, *edges]
    bmesh.ops.spin(solid, geom=geometry, cent=(0, 0, 0), axis=(0, 0, 1), angle=radians(360), steps=64, use_merge=True)
    bmesh.ops.remove_doubles(solid, verts=solid.verts, dist=1e-6)


def _close_bottom(solid: Any) -> None:
    import bmesh

    lowest = min(vertex.co.z for vertex in solid.verts)
    rim = [edge for edge in solid.edges if edge.is_boundary and all(abs(vertex.co.z - lowest) < 1e-6 for vertex in edge.verts)]
    bmesh.ops.contextual_create(solid, geom=rim)


def _part(scene: Any, part: Part, material: Any) -> None:
    import bpy
    from mathutils import Matrix

    mesh = _mesh(part.shape, part.profile)
    # The size is in the mesh, not the object: textures and modifiers then work in metres.
    mesh.transform(Matrix.Diagonal((*part.size, 1)))
    mesh.materials.append(material)
    if part.smooth:
        mesh.shade_smooth()
        mesh.set_sharp_from_angle(angle=SMOOTH_ANGLE)
    thing = link(scene, part.shape, mesh, part.place, part.turn)
    if part.hole:
        _cut(scene, thing, part, *part.hole)
    if part.bevel:
        bevel = thing.modifiers.new("bevel", "BEVEL")
        bevel.width, bevel.segments, bevel.limit_method = part.bevel, 3, "ANGLE"
    if part.subdivide:
        subdivision = thing.modifiers.new("subdivide", "SUBSURF")
        subdivision.levels = subdivision.render_levels = part.subdivide
    if part.displace:
        displace = thing.modifiers.new("displace", "DISPLACE")
        clouds = bpy.data.textures.new("clouds", "CLOUDS")
        clouds.noise_scale = part.displace_size
        displace.texture, displace.strength, displace.texture_coords = clouds, part.displace, "GLOBAL"
    if part.repeat:
        array = thing.modifiers.new("repeat", "ARRAY")
        array.count, array.use_relative_offset, array.use_constant_offset = part.repeat[0], False, True
        array.constant_offset_displace = part.repeat[1]


def _cut(scene: Any, thing: Any, part: Part, centre: Vector, size: Vector) -> None:
    from mathutils import Matrix

    mesh = _mesh("cylinder" if part.hole_round else "cube", ())
    if part.hole_round:
        mesh.transform(Matrix.Rotation(radians(90), 4, "X"))
    mesh.transform(Matrix.Translation(centre) @ Matrix.Diagonal((*size, 1)))
    cutter = link(scene, "hole", mesh, part.place, part.turn)
    cutter.hide_render = True
    boolean = thing.modifiers.new("hole", "BOOLEAN")
    boolean.operation, boolean.object, boolean.solver = "DIFFERENCE", cutter, "EXACT"


def _material(plan: Material) -> Any:
    import bpy

    material = bpy.data.materials.new(plan.name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = nodes["Principled BSDF"]
    shader.inputs["Metallic"].default_value = plan.metallic
    if plan.texture == "none":
        shader.inputs["Base Color"].default_value = (*plan.colors[0], 1)
        shader.inputs["Roughness"].default_value = plan.roughness[0]
        return material
    share = _texture(material.node_tree, plan)
    mix, spread = nodes.new("ShaderNodeMixRGB"), nodes.new("ShaderNodeMapRange")
    for number, color in enumerate(plan.colors, start=1):
        mix.inputs[f"Color{number}"].default_value = (*color, 1)
    spread.inputs["To Min"].default_value, spread.inputs["To Max"].default_value = plan.roughness
    links.new(share, mix.inputs["Fac"])
    links.new(share, spread.inputs["Value"])
    links.new(mix.outputs["Color"], shader.inputs["Base Color"])
    links.new(spread.outputs["Result"], shader.inputs["Roughness"])
    if plan.bump:
        bump = nodes.new("ShaderNodeBump")
        bump.inputs["Distance"].default_value, bump.invert = plan.bump, True
        links.new(share, bump.inputs["Height"])
        links.new(bump.outputs["Normal"], shader.inputs["Normal"])
    return material


def _texture(tree: Any, plan: Material) -> Any:
    """The socket of the texture's share of the second colour, 0..1, over object coordinates in metres."""
    nodes, links = tree.nodes, tree.links
    place = nodes.new("ShaderNodeTexCoord").outputs["Object"]
    kind = {"brick": "Brick", "wave": "Wave", "noise": "Noise", "voronoi": "Voronoi", "checker": "Checker", "magic": "Magic"}[plan.texture]
    texture = nodes.new(f"ShaderNodeTex{kind}")
    texture.inputs["Scale"].default_value = plan.cells
    if plan.texture == "brick":
        # Courses run along the wall, whichever way it faces.
        split, joined, along = nodes.new("ShaderNodeSeparateXYZ"), nodes.new("ShaderNodeCombineXYZ"), nodes.new("ShaderNodeMath")
        links.new(place, split.inputs[0])
        links.new(split.outputs["X"], along.inputs[0])
        links.new(split.outputs["Y"], along.inputs[1])
        links.new(along.outputs[0], joined.inputs["X"])
        links.new(split.outputs["Z"], joined.inputs["Y"])
        place = joined.outputs[0]
    elif plan.texture == "checker":
        # Off the faces of cuboids, whose coordinate is constant: a cell's border there would flicker.
        moved = nodes.new("ShaderNodeVectorMath")
        moved.inputs[1].default_value = (0.0137,) * 3
        links.new(place, moved.inputs[0])
        place = moved.outputs[0]
    elif plan.texture == "wave":
        texture.inputs["Distortion"].default_value, texture.inputs["Detail"].default_value = 4.0, 2.0
    elif plan.texture == "noise":
        texture.inputs["Detail"].default_value = 4.0
    elif plan.texture == "magic":
        texture.turbulence_depth = 3
    links.new(place, texture.inputs["Vector"])
    return texture.outputs["Distance" if plan.texture == "voronoi" else "Fac"]


def _light(scene: Any, light: Light) -> None:
    import bpy

    data = bpy.data.lights.new(light.kind, "POINT" if light.kind == "point" else "AREA")
    data.energy, data.color = light.power, light.color
    if light.kind == "point":
        data.shadow_soft_size = light.size
    else:
        data.size = light.size
        data.cycles.is_portal = light.kind == "portal"
    lamp = link(scene, light.kind, data, light.place, aimed(light.place, light.target))
    lamp.visible_camera = False


def _sky(scene: Any, sky: Sky) -> None:
    import bpy

    world = bpy.data.worlds.new("sky")
    scene.world = world
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs["Strength"].default_value = sky.strength
    background.inputs["Color"].default_value = (*sky.color, 1)
    if sky.elevation is not None:
        texture = world.node_tree.nodes.new("ShaderNodeTexSky")
        # Blender 5 renamed the model.
        known = texture.bl_rna.properties["sky_type"].enum_items.keys()
        texture.sky_type = "NISHITA" if "NISHITA" in known else "MULTIPLE_SCATTERING"
        texture.sun_intensity, texture.sun_elevation, texture.sun_rotation = sky.sun, sky.elevation, sky.azimuth
        world.node_tree.links.new(texture.outputs["Color"], background.inputs["Color"])


def _camera(scene: Any, camera: Camera) -> None:
    import bpy

    data = bpy.data.cameras.new("camera")
    data.angle, data.clip_start, data.clip_end = camera.fov, 0.01, 1000
    scene.camera = link(scene, "camera", data, camera.place, aimed(camera.place, camera.target, camera.roll))
