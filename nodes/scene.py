"""Scenes with known maps, and new light on maps."""

import re

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..methods import relight
from ..methods.maps import MAPS, MapBundle, image_from_map, linear_from_srgb, map_from_image, require_normals, unit_normals
from ..methods.maps.bundle import of_one_size
from ..scenes import KINDS, WORLD
from .native.map_sockets import Maps, image_of
from .native.schema import schema

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
DIRECTIONAL, POINT = "directional", "point"
METRIC, RELATIVE = "metric", "relative, 0 to 1"


class RenderScene(io.ComfyNode):
    """A procedural scene and its exact maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabRenderScene",
            display_name="Render Scene",
            category="intrinsic lab/scene",
            description="Renders a random room with a few objects, or a scene of another kind, together with its exact maps: something to "
            "try every other node on, and to judge them by.",
            search_aliases=["test image", "ground truth", "synthetic scene", "procedural", "exact depth", "exact normals"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="Which scene; the same seed always gives the same scene. Further pictures of a batch have the next seeds.",
                ),
                io.Int.Input("width", default=512, min=16, max=2048, step=8, tooltip="Width of the picture in pixels."),
                io.Int.Input("height", default=512, min=16, max=2048, step=8, tooltip="Height of the picture in pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many scenes: seed, seed + 1, ..."),
                io.Combo.Input(
                    "kind",
                    options=[*KINDS, WORLD],
                    default=KINDS[0],
                    optional=True,  # graphs saved before there were kinds have none
                    tooltip="What is shown: a plain room with solids, a furnished interior, a table with small things, one thing close by, "
                    "clutter, a street, park or yard, hills; world: each seed one of these.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture: sRGB of albedo x shading + specular, 0 to 1."),
                io.Image.Output(display_name="albedo", tooltip="Exact reflectance: LINEAR (not sRGB), 0 to 1."),
                io.Image.Output(display_name="shading", tooltip="Exact irradiance with shadows: LINEAR (not sRGB), 0 to 1."),
                io.Image.Output(
                    display_name="normal",
                    tooltip="Exact normals as data, -1 to 1: camera space, OpenGL (X right, Y up, Z towards the viewer).",
                ),
                io.Image.Output(
                    display_name="depth",
                    tooltip="Exact depth as data: metres along the optical axis, larger is farther. Format Depth makes it visible.",
                ),
                io.Image.Output(
                    display_name="segmentation", tooltip="A fixed colour for each surface: floor, ceiling or sky, walls, objects."
                ),
                io.Image.Output(display_name="line", tooltip="Line drawing: white on outlines and creases, else black."),
                io.Mask.Output(display_name="objects", tooltip="White where an object is, black on floor, walls and ceiling."),
                io.String.Output(display_name="caption", tooltip="What the scene shows; one line for each picture of the batch."),
                io.Float.Output(
                    display_name="vertical_fov",
                    tooltip="Vertical field of view of the first picture's camera, degrees; for Relight from Maps.",
                ),
                io.Image.Output(display_name="roughness", tooltip="Exact roughness, 0 (mirror) to 1 (dull); rooms are all dull."),
                io.Image.Output(display_name="metallic", tooltip="Exact metalness, 0 to 1; nothing in rooms is metal."),
                io.Image.Output(
                    display_name="specular",
                    tooltip="What highlights and reflections add to albedo x shading: LINEAR (not sRGB), 0 to 1; black in rooms.",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed, width, height, batch_size, kind=KINDS[0]) -> io.NodeOutput:
        from ..scenes import render_scenes, segmentation_colors
        from ..scenes.parameters import ROOM_SURFACES

        progress = comfy.utils.ProgressBar(batch_size)
        rendered = []
        for offset in range(batch_size):
            comfy.model_management.throw_exception_if_processing_interrupted()
            # A scene's pixels do not depend on its batch, so one by one costs nothing but allows an interrupt.
            rendered.append(render_scenes([(seed + offset) & LARGEST_SEED], height, width, kind=kind))
            progress.update(1)

        def batch(name: str) -> torch.Tensor:
            return torch.cat([getattr(maps, name) for maps in rendered])

        segmentation = batch("segmentation_bhw")
        return io.NodeOutput(
            batch("image_bhwc"),
            batch("albedo_bhwc"),
            batch("shading_bhwc"),
            batch("normal_bhwc"),
            image_from_map(batch("depth_bhw1")),
            segmentation_colors(segmentation),
            image_from_map(batch("line_bhw1")),
            (segmentation >= ROOM_SURFACES).float(),
            "\n".join(maps.captions[0] for maps in rendered),
            float(rendered[0].scenes.vertical_fov_degrees[0]),
            image_from_map(batch("roughness_bhw1")),
            image_from_map(batch("metallic_bhw1")),
            batch("specular_bhwc"),
        )


def _directional_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "azimuth",
            default=45.0,
            min=-180.0,
            max=180.0,
            step=1.0,
            tooltip="Degrees. Where the light comes from: 0 from the viewer, 90 from the right, -90 from the left, 180 from "
            "behind the scene.",
        ),
        io.Float.Input(
            "elevation",
            default=35.0,
            min=-90.0,
            max=90.0,
            step=1.0,
            tooltip="Degrees. 0 level with the camera, 90 straight from above, -90 from below.",
        ),
    ]


def _point_inputs() -> list[io.Input]:
    place = {"min": -1000.0, "max": 1000.0, "step": 0.05}
    length = {"min": 0.001, "max": 10000.0, "step": 0.05}
    return [
        io.Float.Input("x", default=1.0, tooltip="Metres to the right of the camera (negative: left).", **place),
        io.Float.Input("y", default=1.0, tooltip="Metres above the camera (negative: below).", **place),
        io.Float.Input(
            "z", default=-1.0, tooltip="Metres from the camera along the view: negative is in front of it, positive behind.", **place
        ),
        io.Float.Input(
            "reach",
            default=2.0,
            tooltip="Metres up to which the lamp has its full intensity; beyond, it falls with the square of the distance.",
            **length,
        ),
        io.Float.Input(
            "vertical_fov",
            default=45.0,
            min=1.0,
            max=170.0,
            step=0.5,
            tooltip="Vertical field of view of the camera, degrees. Phones about 55, portraits about 25; Render Scene gives its own.",
        ),
        io.Combo.Input(
            "depth_unit",
            options=[METRIC, RELATIVE],
            default=METRIC,
            tooltip="Metric: depth is in metres, as Render Scene gives it. Relative: depth is 0 to 1, as Extract Intrinsic Maps gives it; "
            "depth_near and depth_far say how far that is.",
        ),
        io.Float.Input("depth_near", default=2.0, tooltip="Metres at depth 0; only used for relative depth.", **length),
        io.Float.Input("depth_far", default=6.0, tooltip="Metres at depth 1; only used for relative depth.", **length),
    ]


class Relight(io.ComfyNode):
    """Albedo + normal (+ shading, depth) + a light -> picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabRelight",
            display_name="Relight from Maps",
            category="intrinsic lab/scene",
            description="Puts a new light on a picture by its albedo and normals: picture = sRGB(albedo x shading). The new "
            "light casts no shadows.",
            search_aliases=["relighting", "change light", "light direction", "shading", "lamp", "lambert"],
            inputs=[
                io.Image.Input(
                    "albedo", optional=True, tooltip="Albedo data: LINEAR (not sRGB), nominally 0 to 1. Needed, here or in `maps`."
                ),
                io.Image.Input(
                    "normal",
                    optional=True,
                    tooltip="Normal data, -1 to 1: camera space, OpenGL (X right, Y up, Z towards the viewer). Not a normal map picture. "
                    "Needed, here or in `maps`.",
                ),
                io.DynamicCombo.Input(
                    "light",
                    options=[io.DynamicCombo.Option(DIRECTIONAL, _directional_inputs()), io.DynamicCombo.Option(POINT, _point_inputs())],
                    tooltip="Directional: parallel light from far away, like the sun. Point: a lamp in the scene; needs depth.",
                ),
                io.Color.Input("color", default="#ffffff", tooltip="Colour of the light, sRGB, #rrggbb."),
                io.Float.Input(
                    "intensity",
                    default=0.8,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Linear irradiance of a surface that faces the light; 1 makes a white surface white.",
                ),
                io.Float.Input("ambient", default=0.2, min=0.0, max=100.0, step=0.05, tooltip="Linear white light from everywhere."),
                io.Float.Input(
                    "original_light",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the original shading stays; the new light adds to it. 0: only the new light. 1: a lamp "
                    "is added to the picture. "
                    "Needs `shading`.",
                ),
                io.Image.Input("shading", optional=True, tooltip="Original shading data: LINEAR (not sRGB). Used by original_light."),
                io.Image.Input(
                    "depth", optional=True, tooltip="Depth data, larger is farther; says where the surfaces are. Used by a point light."
                ),
                Maps.Input(
                    "maps",
                    optional=True,
                    tooltip="Whole maps, e.g. from Picture to Maps: albedo, normal, shading and depth are taken from them where their own "
                    "inputs are not connected; a connected input wins.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The relit picture, sRGB; never clamped."),
                io.Image.Output(display_name="shading", tooltip="The new shading data: LINEAR (not sRGB)."),
            ],
        )

    @classmethod
    def execute(
        cls,
        color,
        intensity,
        ambient,
        original_light,
        albedo=None,
        normal=None,
        light=None,
        shading=None,
        depth=None,
        maps: MapBundle | None = None,
    ) -> io.NodeOutput:
        sockets = {"albedo": albedo, "normal": normal, "shading": shading, "depth": depth}
        images = {name: image for name, socket in sockets.items() if (image := _given(name, socket, maps)) is not None}
        for name in ("albedo", "normal"):
            if name not in images:
                raise ValueError(f"there is no {name} to light: connect it, or maps that have it.")
        if original_light > 0 and "shading" not in images:
            raise ValueError(f"original_light is {original_light:g}, but no shading is connected: connect it, or set original_light to 0.")
        lit = of_one_size(
            {name: map_from_image(image, MAPS[name].channels, name, grey=not MAPS[name].vector) for name, image in images.items()}
        )
        require_normals(lit["normal"], "normal")
        red, green, blue = (intensity * channel for channel in _linear_color(color))
        shine, place = _light_and_places(light, (red, green, blue), lit.get("depth"))
        new_shading = ambient + shine(unit_normals(lit["normal"]), place)
        if original_light > 0:
            new_shading = new_shading + original_light * lit["shading"]
        return io.NodeOutput(relight.relight(lit["albedo"], new_shading), new_shading)


def _given(name: str, image: torch.Tensor | None, maps: MapBundle | None) -> torch.Tensor | None:
    """A map's own input, else that map of the whole maps; None where neither has it."""
    if image is not None or maps is None or name not in maps.maps:
        return image
    return image_of(maps, name)


def _light_and_places(
    choice: dict | None, color: tuple[float, float, float], depth: torch.Tensor | None
) -> tuple[relight.Light, torch.Tensor | None]:
    choice = choice or {}
    kind = choice.get("light")
    if kind == DIRECTIONAL:
        return relight.directional_light(relight.direction_from_angles(choice["azimuth"], choice["elevation"]), color), None
    if kind != POINT:
        raise ValueError(f"there is no light {kind!r}: choose {DIRECTIONAL} or {POINT}.")
    if depth is None:
        raise ValueError("a point light needs to know where the surfaces are: connect depth, or choose a directional light.")
    if choice["depth_unit"] == RELATIVE:
        depth = choice["depth_near"] + (choice["depth_far"] - choice["depth_near"]) * depth
    lamp = relight.point_light((choice["x"], choice["y"], choice["z"]), color, choice["reach"])
    return lamp, relight.camera_points(depth, choice["vertical_fov"])


def _linear_color(color: str) -> tuple[float, ...]:
    if not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise ValueError(f"the light's colour came as {color!r}: #rrggbb is wanted, e.g. #ffe0b0.")
    return tuple(linear_from_srgb(torch.tensor(tuple(bytes.fromhex(color[1:]))) / 255).tolist())


NODES = [RenderScene, Relight]
