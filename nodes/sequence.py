"""Maps of a video's frames, without flicker."""

from functools import partial

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..methods.intrinsic_lora.extract import ExtractSettings, plan_extraction
from ..methods.intrinsic_lora.sequence import extract_sequence, sequence_parts
from ..methods.maps import MAPS, map_from_image
from .extract import PREVIEW_PICTURES, contact_sheet, map_outputs, merged_map_input, model_inputs, processing_inputs, single_step
from .native.joint_sampling.single_step import interruptible, rows_per_forward
from .native.node import Node
from .native.schema import schema

# Frames that are looked through at once for NaN before the work begins.
CHECKED_FRAMES = 16


class ExtractSequence(Node):
    """All applied maps of the frames of one sequence, a few frames at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabExtractSequence",
            display_name="Extract Maps of a Sequence",
            category="intrinsic lab/extract",
            description=(
                f"Reads intrinsic maps ({', '.join(MAPS)}) out of the frames of a video or a camera move, in their order and without "
                "flicker: depth gets one scale and shift for the whole sequence, and frames may look at an anchor frame. A few frames at a "
                "time, so that long videos need no more memory than their frames and maps take."
            ),
            search_aliases=[
                "video depth",
                "depth video",
                "video to maps",
                "video normals",
                "temporal consistency",
                "flicker",
                "animation",
                "frames",
                *MAPS,
            ],
            has_intermediate_output=True,
            inputs=[
                *model_inputs(),
                io.Image.Input("image", tooltip="The frames of one sequence in their order, such as Get Video Components gives them."),
                io.Boolean.Input(
                    "align_depth",
                    default=True,
                    tooltip="Give depth one scale and shift over the sequence: each frame is fitted to earlier ones where they agree. Off: "
                    "each frame as the model gives it, with a scale and shift of its own.",
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much each frame looks at its anchor frame in every self-attention of the model. 0: not at all, each frame "
                    "alone. 1: as much as at itself.",
                ),
                io.Int.Input(
                    "anchor_every",
                    default=12,
                    min=0,
                    max=100_000,
                    tooltip="A frame in so many is the anchor of those that follow it. 0: the first frame is the anchor of all. Only with "
                    "an anchor_weight.",
                ),
                io.Int.Input(
                    "frames_at_once",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Frames in one forward at most, fewer where memory is short: more is faster on large GPUs, fewer stop sooner "
                    "when cancelled. The result is the same.",
                ),
                *processing_inputs(),
                merged_map_input(),
            ],
            outputs=[io.Image.Output(name, tooltip=kind.tooltip) for name, kind in MAPS.items()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        image,
        align_depth: bool,
        anchor_weight: float,
        anchor_every: int,
        frames_at_once: int,
        processing_resolution: int,
        tile_size: int,
        tile_overlap: int,
        mirrored_average: bool,
        merged_map: str,
    ) -> io.NodeOutput:
        generator, recipes, resolution = single_step(model, clip, vae, processing_resolution, merged_map, anchor_weight)
        for first in range(0, max(1, len(image)), CHECKED_FRAMES):
            map_from_image(image[first : first + CHECKED_FRAMES], 3, f"image, from frame {first}", grey=True)
        settings = ExtractSettings(resolution, tile_size, tile_overlap, mirrored_average)
        anchored = anchor_weight > 0
        # An anchor goes through the model beside the frames that read it.
        together = image[: frames_at_once + anchored]
        plan = plan_extraction(together, list(recipes), settings, generator.downscale, partial(rows_per_forward, model))
        parts = sequence_parts(len(image), max(plan.pictures, 1 + anchored), anchor_every if anchored else None)
        progress = comfy.utils.ProgressBar(len(parts) * plan.forwards_of_group)
        maps = {name: torch.empty(*image.shape[:3], 3) for name in recipes}
        on_forward = interruptible(lambda: progress.update(1))
        for part, done in extract_sequence(image, list(recipes), generator, settings, plan, parts, align_depth, on_forward):
            for name, values in done.items():
                maps[name][part.start : part.stop] = values
        shown = torch.linspace(0, len(image) - 1, min(PREVIEW_PICTURES, len(image))).round().long()
        looks = {name: values[shown][..., : MAPS[name].channels] for name, values in maps.items()}
        sheet = contact_sheet(map_from_image(image[shown], 3, "image", grey=True), looks)
        return io.NodeOutput(*map_outputs(maps, recipes), ui=ui.PreviewImage(sheet, cls=cls))


NODES = [ExtractSequence]
