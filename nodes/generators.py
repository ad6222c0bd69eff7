"""Maps out of generators that are no diffusion models: a VQGAN's reading of a picture, a GAN's picture with its maps."""

import math
import os

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..methods.intrinsic_lora.extract import ExtractSettings, extract, plan_extraction
from ..methods.maps import MAPS, image_from_map, map_from_image
from .extract import contact_sheet
from .native.interrupts import stopping_inside
from .native.joint_sampling.single_step import interruptible
from .native.loading.generators import (
    NO_LORA,
    LoadedGenerator,
    bundled_loras,
    generator_fingerprint,
    generator_paths,
    load_generator,
    pictures_per_forward,
)
from .native.lora_library.files import lora_names, lora_path
from .native.node import Node
from .native.schema import schema

CATEGORY = "intrinsic lab/generators"
Vqgan = io.Custom("INTRINSIC_VQGAN")
Gan = io.Custom("INTRINSIC_GAN")
DEFAULT_RESOLUTION = 256
# Of a decoder's forward, as core estimates it for its VAEs, in float32.
VQGAN_BYTES_PER_PIXEL = 2178 * 4
# Saved graphs hold a value for each of these and none for maps that came later.
REQUIRED_LORAS = 4


def _lora_inputs(kind: str) -> list:
    """One choice per map: the bundled LoRA first where there is one."""
    inputs = []
    for number, name in enumerate(MAPS):
        options = [NO_LORA, *lora_names(bundled_loras(kind, name))]
        tooltip = f"The LoRA from models/loras with which this generator makes '{name}', or a bundled one. 'none': no such map."
        default = next((option for option in options if option.endswith("(bundled)")), NO_LORA)
        optional = number >= REQUIRED_LORAS
        inputs.append(io.Combo.Input(f"{name}_lora", options=options, default=default, optional=optional, tooltip=tooltip))
    return inputs


def _chosen(loras: dict[str, str]) -> dict[str, str]:
    """The LoRA's name of each map, from the inputs of `_lora_inputs`."""
    return {name: loras.get(f"{name}_lora", NO_LORA) for name in MAPS}


def _fingerprint(kind: str, shown: str, lora_names: dict[str, str]) -> tuple:
    """A replaced file is loaded anew."""
    path = generator_paths(kind).get(shown)
    states: list[tuple[int, int] | None] = []
    for name, lora_name in lora_names.items():
        if lora_name != NO_LORA:
            try:
                state = os.stat(lora_path(lora_name, bundled_loras(kind, name)))
                states.append((state.st_mtime_ns, state.st_size))
            except FileNotFoundError:
                # execute() reports it in words.
                states.append(None)
    return (path and generator_fingerprint(path), *states)


class LoadVQGAN(Node):
    """A diffusers VQModel or a published VQGAN, and a LoRA per map -> INTRINSIC_VQGAN."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoadVQGAN",
            display_name="Load Intrinsic VQGAN",
            category=CATEGORY,
            description=(
                "Loads a VQGAN (a diffusers VQModel folder, or taming-transformers' .ckpt with its .yaml, of which only the weights are "
                "read) and the small LoRAs with which its own decoder makes intrinsic maps instead of the picture."
            ),
            search_aliases=["vqgan", "vq-vae", "vqmodel", "taming transformers", "i-lora", "intrinsic lora"],
            inputs=[
                io.Combo.Input(
                    "vqgan",
                    options=list(generator_paths("vqgan")),
                    tooltip="A folder whose config.json says VQModel, in models/diffusers or models/vae; or a .ckpt in models/vae with the "
                    ".yaml of the same name beside it.",
                ),
                *_lora_inputs("vqgan"),
            ],
            outputs=[Vqgan.Output("INTRINSIC_VQGAN", display_name="vqgan", tooltip="For Extract Intrinsic Maps (VQGAN).")],
        )

    @classmethod
    def fingerprint_inputs(cls, vqgan: str, **loras: str) -> tuple:
        return _fingerprint("vqgan", vqgan, _chosen(loras))

    @classmethod
    def execute(cls, vqgan: str, **loras: str) -> io.NodeOutput:
        return io.NodeOutput(load_generator("vqgan", vqgan, _chosen(loras)))


class ExtractMapsVQGAN(Node):
    """All maps that a VQGAN has a LoRA for, of a batch of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabExtractMapsVQGAN",
            display_name="Extract Intrinsic Maps (VQGAN)",
            category=CATEGORY,
            description=(
                f"Reads intrinsic maps ({', '.join(MAPS)}) out of a picture with a VQGAN: encoder and codebook once, then the decoder once "
                "per map with that map's LoRA. The outputs are float data at the picture's exact size, never clamped; the Format nodes "
                "turn them into pictures."
            ),
            search_aliases=["vqgan", "normal map", "depth map", "albedo", "shading", "i-lora"],
            has_intermediate_output=True,
            inputs=[
                Vqgan.Input("vqgan", tooltip="From Load Intrinsic VQGAN, with a LoRA for each wanted map."),
                io.Image.Input("image", tooltip="Pictures of any size, one or many. Grey pictures work; alpha is ignored."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the LoRAs' change. 1 is what they were trained for; 0 gives the VQGAN's own reconstruction.",
                ),
                io.Int.Input(
                    "processing_resolution",
                    default=-1,
                    min=-1,
                    max=8192,
                    step=1,
                    tooltip="Short side in pixels at which the VQGAN works. -1: as its LoRAs were trained, else 256. 0: the picture's own.",
                ),
                io.Boolean.Input(
                    "mirrored_average",
                    default=False,
                    tooltip="Also process the mirrored picture and average both: a little smoother and steadier, for twice the time.",
                ),
            ],
            outputs=[io.Image.Output(name, tooltip=kind.tooltip) for name, kind in MAPS.items()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, vqgan: LoadedGenerator, image, strength: float, processing_resolution: int, mirrored_average: bool) -> io.NodeOutput:
        from ..methods.intrinsic_lora.generators.vqgan import downscale, vqgan_generator

        image_bhw3 = map_from_image(image, 3, "image", grey=True)
        _require_maps(vqgan)
        if processing_resolution < 0:
            processing_resolution = vqgan.resolution or DEFAULT_RESOLUTION
        settings = ExtractSettings(processing_resolution, mirrored_average=mirrored_average)
        cell = downscale(vqgan.patcher.model.generator)

        def rows_that_fit(height: int, width: int) -> int:
            # The maps of a picture are decoded one after the other: only pictures take memory.
            pixels = height * width * cell**2
            return len(vqgan.loras) * pictures_per_forward(vqgan.patcher.load_device, pixels, VQGAN_BYTES_PER_PIXEL)

        plan = plan_extraction(image_bhw3, list(vqgan.loras), settings, cell, rows_that_fit)
        pixels = plan.pictures * plan.grid.tile_height * plan.grid.tile_width * (2 if mirrored_average else 1)
        module = vqgan.to_device(pixels * VQGAN_BYTES_PER_PIXEL)
        generator = vqgan_generator(module, vqgan.layers_of_map(), strength)
        progress = comfy.utils.ProgressBar(plan.forwards)
        with stopping_inside(module):
            maps = extract(image_bhw3, list(vqgan.loras), generator, settings, plan, interruptible(lambda: progress.update(1))).maps
        maps = {name: values.to(image.device) for name, values in maps.items()}
        preview = ui.PreviewImage(contact_sheet(image_bhw3, maps), cls=cls)
        return io.NodeOutput(*_outputs(vqgan, maps), ui=preview)


def _require_maps(generator: LoadedGenerator) -> None:
    if not generator.loras:
        raise ValueError("This generator was loaded without a LoRA, so it has no maps: choose at least one in the node that loads it.")


def _outputs(generator: LoadedGenerator, maps: dict) -> list:
    """An IMAGE for each map there is; the outputs of the others stop what is connected to them."""
    message = "No LoRA was chosen for '{}' (there are: {}): choose one in the node that loads the generator, or disconnect this output."
    has = ", ".join(generator.loras)
    return [image_from_map(maps[name]) if name in maps else ExecutionBlocker(message.format(name, has)) for name in MAPS]


class LoadGAN(Node):
    """A style-based generator, ours or a published one, and a LoRA per map -> INTRINSIC_GAN."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabLoadGAN",
            display_name="Load Intrinsic GAN",
            category=CATEGORY,
            description=(
                "Loads a StyleGAN2 (rosinality's .pt, NVIDIA's PyTorch .pkl), a StyleGAN3 or a StyleGAN-XL (.pkl), of which only the "
                "weights are read and no code is run, or a generator of this pack's trainer, and the small LoRAs with which it makes "
                "intrinsic maps instead of the picture."
            ),
            search_aliases=["stylegan", "stylegan2", "stylegan3", "stylegan-xl", "style-based generator", "i-lora", "intrinsic lora"],
            inputs=[
                io.Combo.Input(
                    "gan",
                    options=list(generator_paths("gan")),
                    tooltip="A folder whose config.json says IntrinsicLabStyleGenerator or IntrinsicLabAliasFreeGenerator, in "
                    "models/diffusers or models/vae; or a StyleGAN2, StyleGAN3 or StyleGAN-XL file (.pt, .pkl) in models/vae.",
                ),
                *_lora_inputs("gan"),
            ],
            outputs=[Gan.Output("INTRINSIC_GAN", display_name="gan", tooltip="For Sample Picture and Maps (GAN).")],
        )

    @classmethod
    def fingerprint_inputs(cls, gan: str, **loras: str) -> tuple:
        return _fingerprint("gan", gan, _chosen(loras))

    @classmethod
    def execute(cls, gan: str, **loras: str) -> io.NodeOutput:
        return io.NodeOutput(load_generator("gan", gan, _chosen(loras)))


class SampleGAN(Node):
    """A seed -> pictures and their aligned maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabSampleGAN",
            display_name="Sample Picture and Maps (GAN)",
            category=CATEGORY,
            description=(
                "Makes new pictures with a style-based generator, and the maps that belong to them: picture and maps come from the same "
                "latent and the same noise, so they are aligned. The maps are float data, never clamped."
            ),
            search_aliases=["stylegan", "gan", "generate", "normal map", "depth map", "i-lora"],
            has_intermediate_output=True,
            inputs=[
                Gan.Input("gan", tooltip="From Load Intrinsic GAN. Without a LoRA it makes pictures alone."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same pictures and maps; the first picture is the same in every batch.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="How many pictures."),
                io.Float.Input(
                    "truncation",
                    default=0.8,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1: everything the generator knows. Lower: more typical and cleaner. 0: its mean picture. Above 1: wilder.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the LoRAs' change. 1 is what they were trained for; 0 gives the picture itself.",
                ),
                io.Int.Input(
                    "class_index",
                    default=-1,
                    min=-1,
                    max=2**15 - 1,
                    optional=True,
                    tooltip="Of a generator of classes (StyleGAN-XL of ImageNet: 0 to 999): which class to make. -1: one drawn by the seed "
                    "for each picture; generators without classes take nothing else.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The pictures, 0..1."),
                *(io.Image.Output(name, tooltip=kind.tooltip) for name, kind in MAPS.items()),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, gan: LoadedGenerator, seed: int, batch_size: int, truncation: float, strength: float, class_index: int = -1
    ) -> io.NodeOutput:
        from ..methods.intrinsic_lora.generators.sample import draw, map_pictures

        config = gan.patcher.model.generator.config
        draws = draw(config, seed, batch_size, class_index)
        pictures = min(batch_size, pictures_per_forward(gan.patcher.load_device, config.floats_per_picture, 4))
        generator = gan.to_device(pictures * config.floats_per_picture * 4)
        forwards = (1 + len(gan.loras)) * math.ceil(batch_size / pictures)
        progress = comfy.utils.ProgressBar(forwards)
        after_forward = interruptible(lambda: progress.update(1))
        made: dict[str | None, list[torch.Tensor]] = {name: [] for name in (None, *gan.loras)}
        with stopping_inside(generator):
            for part in draws.split(pictures):
                for name, values in map_pictures(generator, part, gan.layers_of_map(), truncation, strength):
                    made[name].append(values.to(comfy.model_management.intermediate_device()))
                    after_forward()
        image = torch.cat(made[None])
        maps = {name: torch.cat(made[name]) for name in gan.loras}
        return io.NodeOutput(image, *_outputs(gan, maps), ui=ui.PreviewImage(contact_sheet(image, maps), cls=cls))


NODES = [LoadVQGAN, ExtractMapsVQGAN, LoadGAN, SampleGAN]
