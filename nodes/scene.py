"""Scenes with known maps."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..methods.maps import image_from_map
from ..scenes import KINDS, WORLD
from .native.node import Node
from .native.schema import schema

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


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
            display_name="kind of scene",
            options=[*KINDS, WORLD],
            default=KINDS[0],
            optional=True,  # graphs saved before there were kinds have none
            tooltip="What is shown: a plain room with solids, a furnished interior, a table with small things, one thing close by, "
            "clutter, a street, park or yard, hills; world: each seed one of these.",
        ),
    ]


class RenderScene(Node):
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


class RenderCameraMove(Node):
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


NODES = [RenderScene, RenderCameraMove]
