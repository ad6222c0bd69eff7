"""Scenes with known maps."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..methods.maps import image_from_map
from ..scenes import KINDS, WORLD
from .native.schema import schema

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


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


NODES = [RenderScene]
