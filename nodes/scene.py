"""Scenes with known maps, and new light on maps."""

import re
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..methods import relight
from ..methods.maps import image_from_map, linear_from_srgb, map_from_image, unit_normals
from ..scenes import KINDS, WORLD
from .native.schema import schema

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
DIRECTIONAL, POINT = "directional", "point"
METRIC, RELATIVE = "metric", "relative, 0 to 1"


def _scene_outputs() -> list[io.Output]:
    return [
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
        io.Image.Output(display_name="segmentation", tooltip="A fixed colour for each surface: floor, ceiling or sky, walls, objects."),
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
    ]


def _scene_inputs(seed: str, frames: io.Int.Input) -> list[io.Input]:
    """seed: which scenes there are, in a sentence; frames: how many pictures."""
    return [
        io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True, tooltip=seed),
        io.Int.Input("width", default=512, min=16, max=2048, step=8, tooltip="Width of the picture in pixels."),
        io.Int.Input("height", default=512, min=16, max=2048, step=8, tooltip="Height of the picture in pixels."),
        frames,
        io.Combo.Input(
            "kind",
            options=[*KINDS, WORLD],
            default=KINDS[0],
            optional=True,  # graphs saved before there were kinds have none
            tooltip="What is shown: a plain room with solids, a furnished interior, a table with small things, one thing close by, "
            "clutter, a street, park or yard, hills; world: each seed one of these.",
        ),
    ]


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
            inputs=_scene_inputs(
                "Which scene; the same seed always gives the same scene. Further pictures of a batch have the next seeds.",
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many scenes: seed, seed + 1, ..."),
            ),
            outputs=_scene_outputs(),
        )

    @classmethod
    def execute(cls, seed, width, height, batch_size, kind=KINDS[0]) -> io.NodeOutput:
        from ..scenes import sample_scenes

        return _rendered([sample_scenes([(seed + offset) & LARGEST_SEED], kind=kind) for offset in range(batch_size)], width, height)


class RenderCameraMove(io.ComfyNode):
    """One procedural scene from a moving camera, and its exact maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        metres = {"min": -100.0, "max": 100.0, "step": 0.05}
        return schema(
            node_id="IntrinsicLabRenderCameraMove",
            display_name="Render Camera Move",
            category="intrinsic lab/scene",
            description="Renders one random scene from a camera that moves through it, frame by frame, together with the exact maps of "
            "each frame: something to try nodes for videos on. A move that would run into something is shortened.",
            search_aliases=["test video", "camera motion", "synthetic video", "dolly", "pan", "ground truth"],
            inputs=[
                *_scene_inputs(
                    "Which scene; the same seed always gives the same one.",
                    io.Int.Input("frames", default=24, min=1, max=10_000, tooltip="How many frames the move takes."),
                ),
                io.Float.Input(
                    "sideways", default=0.4, tooltip="Metres to the right over the whole move; negative: to the left.", **metres
                ),
                io.Float.Input("forward", default=0.4, tooltip="Metres ahead, level, over the whole move; negative: back.", **metres),
                io.Float.Input("upward", default=0.1, tooltip="Metres upwards over the whole move; negative: down.", **metres),
                io.Float.Input(
                    "turn",
                    default=6.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees to the right over the whole move; negative: to the left.",
                ),
            ],
            outputs=_scene_outputs(),
        )

    @classmethod
    def execute(cls, seed, width, height, frames, sideways, forward, upward, turn, kind=KINDS[0]) -> io.NodeOutput:
        from ..scenes.moves import camera_move

        move = camera_move(seed, frames, kind, sideways, forward, upward, turn)
        return _rendered([move[frame : frame + 1] for frame in range(frames)], width, height)


def _rendered(scenes: Sequence[Any], width: int, height: int) -> io.NodeOutput:
    """Pictures and maps of scenes, each alone."""
    from ..scenes import render, segmentation_colors
    from ..scenes.parameters import ROOM_SURFACES

    progress = comfy.utils.ProgressBar(len(scenes))
    rendered = []
    for scene in scenes:
        comfy.model_management.throw_exception_if_processing_interrupted()
        # A scene's pixels do not depend on its batch, so one by one costs nothing but allows an interrupt.
        rendered.append(render(scene, height, width))
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
                io.Image.Input("albedo", tooltip="Albedo data: LINEAR (not sRGB), nominally 0 to 1."),
                io.Image.Input(
                    "normal",
                    tooltip="Normal data, -1 to 1: camera space, OpenGL (X right, Y up, Z towards the viewer). Not a normal map picture.",
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
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The relit picture, sRGB; never clamped."),
                io.Image.Output(display_name="shading", tooltip="The new shading data: LINEAR (not sRGB)."),
            ],
        )

    @classmethod
    def execute(cls, albedo, normal, color, intensity, ambient, original_light, light=None, shading=None, depth=None) -> io.NodeOutput:
        if original_light > 0 and shading is None:
            raise ValueError(f"original_light is {original_light:g}, but no shading is connected: connect it, or set original_light to 0.")
        given = {
            "albedo": map_from_image(albedo, 3, "albedo", grey=True),
            "normal": map_from_image(normal, 3, "normal"),
            "shading": None if shading is None else map_from_image(shading, 3, "shading", grey=True),
            "depth": None if depth is None else map_from_image(depth, 1, "depth"),
        }
        maps = _of_one_size({name: values for name, values in given.items() if values is not None})
        red, green, blue = (intensity * channel for channel in _linear_color(color))
        shine, place = _light_and_places(light, (red, green, blue), maps.get("depth"))
        new_shading = ambient + shine(unit_normals(maps["normal"]), place)
        if original_light > 0:
            new_shading = new_shading + original_light * maps["shading"]
        return io.NodeOutput(relight.relight(maps["albedo"], new_shading), new_shading)


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


def _of_one_size(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Maps of one size; one picture serves a batch. ValueError for sizes or batches that do not fit."""
    sizes = {name: f"{values.shape[2]} x {values.shape[1]}" for name, values in maps.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the maps differ in size ({', '.join(f'{name} {size}' for name, size in sizes.items())}): resize them to one size."
        )
    batch = max(len(values) for values in maps.values())
    if any(len(values) not in (1, batch) for values in maps.values()):
        counts = ", ".join(f"{name} {len(values)}" for name, values in maps.items())
        raise ValueError(f"the maps differ in number ({counts}): give as many of each, or one for all.")
    return {name: values.expand(batch, -1, -1, -1) for name, values in maps.items()}


NODES = [RenderScene, RenderCameraMove, Relight]
