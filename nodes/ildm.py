"""A picture and its intrinsic maps in one sampling: weight schedules, the patched MODEL, and the joint latent."""

import os
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..methods.ildm import schedules
from ..methods.ildm.heat_map import heat_map
from ..methods.ildm.joint_forward import INTRINSIC, PICTURE
from ..methods.ildm.schedules import BlockFilter, WeightSchedule, stage_blocks
from .native.backbones import LAYOUTS
from .native.joint_sampling import cross_domain
from .native.lora_library.files import lora_names, lora_path
from .native.node import Node
from .native.schema import schema

Schedule = io.Custom("WEIGHT_SCHEDULE")
CATEGORY = "intrinsic lab/joint generation"
NO_LORA = "none"
BUNDLED_LORAS = {"nano/ildm": "nano_ildm.safetensors"}
EVERYWHERE, STAGES, BLOCKS = "everywhere", "stages", "blocks"
PRODUCT, MAXIMUM = "product", "maximum"
# Networks that previews are drawn for: the published ones, and the bundled one.
# Options are only appended to: nano's place was after the first three.
PREVIEWS = dict(list(LAYOUTS.items())[:3]) | {"nano": stage_blocks((1, 1, 1, 1, 2, 2, 2))} | LAYOUTS
SCHEDULE_TOOLTIP = "How strongly the picture attends to its intrinsics, by block and noise level: for Cross-Domain Attention or Combine."
POSITIONS_TOOLTIP = (
    "Numbers and ranges from 0 on, such as '3-7, 9'. Stages count resolutions in order of execution (SD 1.5 and 2.1: 0-8, 4 is the middle; "
    "SDXL and nano: 0-6, 3 is the middle; transformers: nine parts of the network, 0-8). Blocks count self-attentions (SD: 16, SDXL: 70, "
    "PixArt: 28, FLUX.1: 57, nano: 10)."
)


def _preview_input() -> io.Combo.Input:
    return io.Combo.Input(
        "preview_model",
        options=list(PREVIEWS),
        default=next(iter(PREVIEWS)),
        tooltip="For which network the preview draws the schedule. It changes the preview only.",
        # For web/weight_schedule.js: the stage of every block.
        extra_dict={"layouts": {name: [block.stage for block in blocks] for name, blocks in PREVIEWS.items()}},
    )


def _where(kind: str, positions: str) -> BlockFilter | None:
    if kind == EVERYWHERE:
        return None
    numbers = schedules.parse_positions(positions)
    return schedules.at_stages(numbers) if kind == STAGES else schedules.at_blocks(numbers)


def _shown(cls, schedule: WeightSchedule, preview_model: str) -> io.NodeOutput:
    picture = ui.PreviewImage(heat_map(schedule, PREVIEWS[preview_model]), cls=cls)
    # Not "images": the front end would draw it a second time, below the one that web/weight_schedule.js keeps in the node.
    return io.NodeOutput(schedule, ui={"heat_map": picture.as_dict()["images"]})


class DropSchedule(Node):
    """I-LDM's Drop schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabDropSchedule",
            display_name="Make Drop Schedule",
            category=CATEGORY,
            description=(
                "Lets the picture see its intrinsics fully in some blocks once the noise has fallen to tau, and nowhere else (I-LDM's "
                "Drop): refines details and keeps the composition. The preview shows blocks from top to bottom and sampling from left to "
                "right."
            ),
            search_aliases=["i-ldm", "weight schedule", "drop schedule", "cross-domain"],
            has_intermediate_output=True,
            inputs=[
                io.Combo.Input(
                    "where",
                    options=[STAGES, BLOCKS],
                    default=STAGES,
                    tooltip="Whether `positions` counts resolution stages or single self-attention blocks.",
                ),
                io.String.Input("positions", default="3-7", tooltip=POSITIONS_TOOLTIP),
                io.Float.Input(
                    "tau", default=900.0, min=0.0, max=999.0, step=1.0, tooltip="Timestep, 0 to 999, from which on intrinsics are seen."
                ),
                _preview_input(),
            ],
            outputs=[Schedule.Output("SCHEDULE", display_name="schedule", tooltip=SCHEDULE_TOOLTIP)],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, where: str, positions: str, tau: float, preview_model: str) -> io.NodeOutput:
        return _shown(cls, schedules.drop_schedule(_where(where, positions), tau), preview_model)


class GaussianSchedule(Node):
    """I-LDM's Gaussian schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabGaussianSchedule",
            display_name="Make Gaussian Schedule",
            category=CATEGORY,
            description=(
                "Lets the picture see its intrinsics in every block around one noise level: alpha exp(-(t - tau)^2 / sigma^2) (I-LDM's "
                "Gaussian). It shapes the composition and leaves details to the base model. The defaults are the paper's."
            ),
            search_aliases=["i-ldm", "weight schedule", "gaussian schedule", "cross-domain"],
            has_intermediate_output=True,
            inputs=[
                io.Float.Input("alpha", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="The largest weight, reached at tau."),
                io.Float.Input("tau", default=800.0, min=0.0, max=999.0, step=1.0, tooltip="Timestep, 0 to 999, of the largest weight."),
                io.Float.Input(
                    "sigma",
                    default=100.0,
                    min=1.0,
                    max=2000.0,
                    step=1.0,
                    tooltip="Width in timesteps: at tau +- sigma the weight is alpha / e.",
                ),
                _preview_input(),
            ],
            outputs=[Schedule.Output("SCHEDULE", display_name="schedule", tooltip=SCHEDULE_TOOLTIP)],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, alpha: float, tau: float, sigma: float, preview_model: str) -> io.NodeOutput:
        return _shown(cls, schedules.gaussian_schedule(alpha, tau, sigma), preview_model)


class CombineSchedules(Node):
    """Constant, product, maximum, restriction and table of schedules."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabCombineSchedules",
            display_name="Combine Weight Schedules",
            category=CATEGORY,
            description=(
                "Combines schedules: the product or the maximum of two, times a factor, times a table over the timestep, kept to some "
                "blocks. With nothing connected it is the constant `factor`: 1 is how the network was trained, at 0 the "
                "picture does not see its intrinsics."
            ),
            search_aliases=["i-ldm", "weight schedule", "constant schedule", "multiply schedules", "cross-domain"],
            has_intermediate_output=True,
            inputs=[
                Schedule.Input("first", optional=True, tooltip="A schedule. Not connected: 1 everywhere."),
                Schedule.Input("second", optional=True, tooltip="Another schedule. Not connected: only `first` counts."),
                io.Combo.Input(
                    "operation", options=[PRODUCT, MAXIMUM], default=PRODUCT, tooltip="How the weights of `first` and `second` are joined."
                ),
                io.Float.Input("factor", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Every weight is multiplied by it."),
                io.Combo.Input(
                    "where",
                    options=[EVERYWHERE, STAGES, BLOCKS],
                    default=EVERYWHERE,
                    tooltip="Keep the weights to some resolution stages or self-attention blocks, 0 elsewhere.",
                ),
                io.String.Input("positions", default="3-7", tooltip=f"Used unless `where` is '{EVERYWHERE}'. {POSITIONS_TOOLTIP}"),
                io.String.Input(
                    "over_time",
                    default="",
                    tooltip="A table 'timestep: weight', such as '999: 0, 800: 1, 0: 0.2', linear between its points; weights are "
                    "multiplied by it. Empty: no table.",
                ),
                _preview_input(),
            ],
            outputs=[Schedule.Output("SCHEDULE", display_name="schedule", tooltip=SCHEDULE_TOOLTIP)],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, operation: str, factor: float, where: str, positions: str, over_time: str, preview_model: str, first=None, second=None
    ) -> io.NodeOutput:
        connected = [schedule for schedule in (first, second) if schedule is not None] or [schedules.constant_schedule(1.0)]
        joined = (schedules.maximum if operation == MAXIMUM else schedules.product)(*connected)
        factors = [schedules.constant_schedule(factor)]
        if over_time.strip():
            factors.append(schedules.table_schedule(schedules.parse_table(over_time)))
        combined = schedules.product(joined, *factors)
        inside = _where(where, positions)
        return _shown(cls, combined if inside is None else schedules.restricted(combined, inside), preview_model)


class CrossDomainAttention(Node):
    """The MODEL that samples pictures and intrinsics together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabCrossDomainAttention",
            display_name="Apply Cross-Domain Attention",
            category=CATEGORY,
            description=(
                "Makes a MODEL (SD 1.x to SD 3.5, SDXL, PixArt, FLUX, Qwen-Image, Z-Image, Lumina 2) that samples a picture and its "
                "intrinsic maps together (I-LDM): the maps by a LoRA, the two meeting in every self-attention as strongly as the schedule "
                "says. Sample it with any KSampler on a Joint Latent."
            ),
            search_aliases=["i-ldm", "ildm", "joint generation", "text to depth", "text to normals", "spatial consistency"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="One of those named above from any loader, also fp8 or with merged LoRAs. It is not changed."
                ),
                Schedule.Input("schedule", tooltip="How strongly the picture attends to its intrinsics. They always attend to it fully."),
                io.Combo.Input(
                    "lora_name",
                    options=[*lora_names(BUNDLED_LORAS), NO_LORA],
                    tooltip="The LoRA of the intrinsic maps, from models/loras or bundled. 'none' leaves them to the base model.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Factor on that LoRA. 1 is what it was trained for."
                ),
                io.Combo.Input(
                    "picture_lora_name",
                    options=[NO_LORA, *lora_names({})],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA for the picture only, such as the paper's hands. LoRAs of core's LoraLoader act on picture and maps "
                    "alike.",
                ),
                io.Float.Input(
                    "picture_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="Factor on the picture's own LoRA.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", display_name="model", tooltip="For a sampler, together with a latent from Joint Latent.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, picture_lora_name: str = NO_LORA, **others) -> tuple:
        return tuple(_file_state(name) for name in (lora_name, picture_lora_name))

    @classmethod
    def execute(
        cls,
        model,
        schedule: WeightSchedule,
        lora_name: str,
        strength: float,
        picture_lora_name: str = NO_LORA,
        picture_strength: float = 1.0,
    ) -> io.NodeOutput:
        from ..methods.lora.lora_file import read_lora

        wanted = {INTRINSIC: (lora_name, strength), PICTURE: (picture_lora_name, picture_strength)}
        adapters = {
            domain: cross_domain.bind_lora(model, read_lora(lora_path(name, BUNDLED_LORAS)), factor, source=name)
            for domain, (name, factor) in wanted.items()
            if name != NO_LORA
        }
        patched, blocks = cross_domain.exchange_domains(model, schedule, adapters)
        return io.NodeOutput(patched, ui=ui.PreviewImage(heat_map(schedule, blocks), cls=cls))


def _file_state(name: str | None) -> tuple | None:
    """Changes when a LoRA file is replaced; None without one, which `execute` reports in words."""
    try:
        # A name that comes over a link is not known yet.
        state = os.stat(lora_path(name, BUNDLED_LORAS)) if name not in (NO_LORA, None) else None
    except FileNotFoundError:
        return None
    return state and (name, state.st_size, state.st_mtime_ns)


class JointLatent(Node):
    """Latents in pairs that start from the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabJointLatent",
            display_name="Make Joint Latent (I-LDM)",
            category=CATEGORY,
            description=(
                "Doubles a latent batch for a MODEL from Apply Cross-Domain Attention: first all pictures, then the intrinsics of each, "
                "every pair with the same starting noise. Split Joint Latent takes them apart after sampling."
            ),
            search_aliases=["i-ldm", "pair latents", "double batch", "joint generation"],
            inputs=[
                io.Latent.Input("latent", tooltip="Pictures' latents: Empty Latent Image for text to picture, or encoded pictures."),
                io.Latent.Input(
                    "intrinsic_latent",
                    optional=True,
                    tooltip="The intrinsics' latents, from Encode Intrinsics, as many as pictures or one for all. Not connected: empty, "
                    "which suits a denoise of 1.",
                ),
            ],
            outputs=[io.Latent.Output("LATENT", display_name="joint_latent", tooltip="Pictures, then their intrinsics: twice the batch.")],
        )

    @classmethod
    def execute(cls, latent: dict, intrinsic_latent: dict | None = None) -> io.NodeOutput:
        picture = _latent_samples(latent, "latent")
        intrinsic = torch.zeros_like(picture) if intrinsic_latent is None else _latent_samples(intrinsic_latent, "intrinsic_latent")
        if intrinsic.shape[1] != picture.shape[1] and not picture.any():
            # Core's empty latents have the channels of SD, and samplers widen them to the model's, which the intrinsics have already.
            picture = picture.new_zeros(picture.shape[0], *intrinsic.shape[1:2], *picture.shape[2:])
        if intrinsic.shape[1:] != picture.shape[1:] or intrinsic.shape[0] not in (1, picture.shape[0]):
            raise ValueError(
                f"The intrinsic latent is {list(intrinsic.shape)} and the pictures' latent {list(picture.shape)}: give latents of one "
                "size, one intrinsic latent per picture or one for all."
            )
        pairs = picture.shape[0]
        numbers = list(latent.get("batch_index") or range(pairs))
        joint = {**latent, "samples": torch.cat([picture, intrinsic.expand_as(picture)]), "batch_index": numbers * 2}
        masks = [latent.get("noise_mask"), (intrinsic_latent or {}).get("noise_mask")]
        if any(mask is not None for mask in masks):
            joint["noise_mask"] = _joint_mask(masks, pairs, picture)
        return io.NodeOutput(joint)


def _joint_mask(masks: list[Tensor | None], pairs: int, like: Tensor) -> Tensor:
    """Noise masks [2 x pairs, 1, height, width] of both halves; a half without one is sampled everywhere."""
    given = [mask if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float() for mask in masks]
    size = next(mask.shape[-2:] for mask in given if mask is not None)
    halves = []
    for mask in given:
        half = torch.ones(1, 1, *size, device=like.device) if mask is None else mask
        if half.shape[-2:] != size:
            half = torch.nn.functional.interpolate(half, size, mode="bilinear")
        if half.shape[0] not in (1, pairs):
            raise ValueError(f"A noise mask has {half.shape[0]} rows for {pairs} pictures: give one mask, or one per picture.")
        halves.append(half.expand(pairs, -1, -1, -1))
    joined = torch.cat(halves)
    # Of a model for videos core would take rows of a mask for frames.
    return joined.unsqueeze(2) if like.ndim == 5 else joined


def _latent_samples(latent: dict, name: str) -> Tensor:
    samples = latent["samples"]
    # Of Qwen-Image a picture is a video of one frame.
    if not isinstance(samples, Tensor) or not (samples.ndim == 4 or (samples.ndim == 5 and samples.shape[2] == 1)):
        raise ValueError(
            f"{name} holds {getattr(samples, 'shape', type(samples).__name__)}: latents of pictures [batch, channel, height, width] are "
            "wanted."
        )
    return samples


class SplitDomains(Node):
    """A sampled joint latent into pictures and intrinsics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabSplitDomains",
            display_name="Split Joint Latent (I-LDM)",
            category=CATEGORY,
            description="Takes a sampled Joint Latent apart: the pictures for VAE Decode, the intrinsics for Decode Intrinsics.",
            search_aliases=["i-ldm", "unpair latents", "joint generation"],
            inputs=[io.Latent.Input("joint_latent", tooltip="What the sampler made of a Joint Latent.")],
            outputs=[
                io.Latent.Output("LATENT", display_name="latent", tooltip="The pictures, for VAE Decode."),
                io.Latent.Output("INTRINSIC_LATENT", display_name="intrinsic_latent", tooltip="Their intrinsics, for Decode Intrinsics."),
            ],
        )

    @classmethod
    def execute(cls, joint_latent: dict) -> io.NodeOutput:
        samples = _latent_samples(joint_latent, "joint_latent")
        numbers = joint_latent.get("batch_index")
        pairs, rest = divmod(samples.shape[0], 2)
        if rest or (numbers is not None and list(numbers[:pairs]) != list(numbers[pairs:])):
            raise ValueError(
                f"This latent has {samples.shape[0]} rows that are not pictures followed by their intrinsics: connect what a sampler made "
                "of a Joint Latent."
            )
        common = {name: value for name, value in joint_latent.items() if name not in ("samples", "batch_index", "noise_mask")}
        halves = []
        for half in (slice(None, pairs), slice(pairs, None)):
            parts: dict[str, Any] = {"samples": samples[half]}
            if numbers is not None:
                parts["batch_index"] = list(numbers[half])
            mask = joint_latent.get("noise_mask")
            if mask is not None:
                parts["noise_mask"] = mask[half] if mask.shape[0] == 2 * pairs else mask
            halves.append({**common, **parts})
        return io.NodeOutput(*halves)


NODES = [DropSchedule, GaussianSchedule, CombineSchedules, CrossDomainAttention, JointLatent, SplitDomains]
