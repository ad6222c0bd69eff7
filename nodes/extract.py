"""Applying intrinsic LoRAs to a MODEL, and extracting maps with it."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from einops import rearrange
from torch import Tensor

from ..methods.formats import picture_of
from ..methods.intrinsic_lora.extract import ExtractSettings, Generator, extract, plan_extraction, resize
from ..methods.intrinsic_lora.multi_step import AUGMENTED, SINGLE
from ..methods.intrinsic_lora.recipe import AUTO, Recipe, conventions, recipe_of
from ..methods.lora.layers import LoraFile
from ..methods.maps import MAPS, image_from_map, map_from_image
from .native.backbones import MULTI_STEP, SINGLE_STEP, known, require
from .native.batch_rows import row_lora
from .native.joint_sampling.multi_step import see_picture
from .native.joint_sampling.single_step import as_model_takes, interruptible, make_generator, require_parts, rows_per_forward
from .native.lora_library.files import lora_names, lora_path
from .native.node import Node
from .native.node_text import preview_text, show_on_node
from .native.schema import schema

NO_MERGED_MAP = "none"
DEFAULT_RESOLUTION = 512
# Saved graphs know outputs by their number: maps that came later follow the latent.
LATENT_OUTPUT = 4
PREVIEW_PICTURES = 4
PREVIEW_HEIGHT, PREVIEW_WIDTH = 320, 640
BUNDLED_LORAS = {f"nano/{name}": f"nano_{name}.safetensors" for name in MAPS} | {
    f"nano/{name} augmented": f"nano_{name}_augmented.safetensors" for name in MAPS
}
# Of the bundled FLUX.
BUNDLED_LORAS |= {f"nano_flux/{name}": f"nano_flux_{name}.safetensors" for name in MAPS}


class ApplyIntrinsicLoRA(Node):
    """Adds one map's LoRA, unmerged, to a clone of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabApplyLoRA",
            display_name="Apply Intrinsic LoRA",
            category="intrinsic lab/extract",
            description=(
                f"Lets a MODEL (Stable Diffusion, FLUX, SD 3, Qwen-Image, Z-Image, Lumina 2) carry the LoRA of one intrinsic map "
                f"({', '.join(MAPS)}) without merging it. "
                "Chain it once per map, then use Extract Intrinsic Maps: all maps come out of one forward pass. A multi-step LoRA "
                "goes to Extract Maps in Steps, or to any sampler."
            ),
            search_aliases=[
                "i-lora",
                "ilora",
                "intrinsic lora",
                "normal map lora",
                *(f"lora for {name}" for name in MAPS),
                "load intrinsic lora",
            ],
            # Says again what was taken when the model comes from the cache.
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Stable Diffusion 1.x, 2.x, SDXL or 3, FLUX.1, FLUX.2, Qwen-Image, Z-Image or Lumina 2, from any loader, "
                    "also fp8 or with merged LoRAs. It is not changed.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(BUNDLED_LORAS),
                    tooltip="A LoRA from models/loras (ours, kohya, diffusers, or the published .bin files), or a bundled one.",
                ),
                io.Combo.Input(
                    "map",
                    options=[AUTO, *MAPS],
                    default=AUTO,
                    tooltip="Which map the LoRA makes. 'auto' reads it from the file; the published files do not say: choose it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the LoRA's change. 1 is what it was trained for; 0 leaves the base model.",
                ),
                io.Combo.Input(
                    "convention",
                    options=[AUTO, *conventions()],
                    default=AUTO,
                    optional=True,
                    tooltip="In which convention the LoRA learnt its map; what is extracted is in this pack's. 'auto': what the "
                    "file says, and for the published files without a header what they are known to hold; the node tells what it took.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", display_name="model", tooltip="The model, carrying this map's LoRA beside those applied before.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, map: str, strength: float, model=None, convention: str = AUTO) -> str:
        if lora_name is None:
            # It comes over a link: then what is there changes with it.
            return "linked"
        try:
            stat = os.stat(lora_path(lora_name, BUNDLED_LORAS))
        except FileNotFoundError:
            # execute() reports it in words.
            return "missing"
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, model, lora_name: str, map: str, strength: float, convention: str = AUTO) -> io.NodeOutput:
        require(model, SINGLE_STEP)
        from ..methods.lora.lora_file import read_lora

        lora = read_lora(lora_path(lora_name, BUNDLED_LORAS))
        if lora.ignored:
            logging.warning(
                "%s: %d text-encoder tensors are left out, intrinsic maps use the diffusion model only.", lora_name, lora.ignored
            )
        # A file without a header can make its map in one step only where the MODEL has no channels for the picture.
        multi_step = known(model, MULTI_STEP)
        widened = lora.picture_in is not None or (multi_step is not None and multi_step.is_widened(model))
        recipe = recipe_of(lora, lora_name, map, convention, AUGMENTED if widened else SINGLE)
        carrying = _carrying(model, lora, recipe, strength, lora_name)
        logging.info("%s: %s", lora_name, recipe.in_words)
        show_on_node(recipe.in_words, cls.hidden.unique_id if cls.hidden else None)
        return io.NodeOutput(carrying, ui=preview_text(recipe.in_words))


def _carrying(model, lora: LoraFile, recipe: Recipe, strength: float, source: str):
    """A clone of the MODEL that carries one more LoRA, ready for what its method needs of it."""
    for other in row_lora.carried_maps(model).values():
        if (other.recipe.method, other.recipe.noise) != (recipe.method, recipe.noise):
            raise ValueError(
                f"{source} works by the method '{recipe.method}', the LoRA for '{other.recipe.map}' on this MODEL by "
                f"'{other.recipe.method}' or under other noise: give each its own MODEL."
            )
    single_step = require(model, SINGLE_STEP)
    if recipe.method != AUGMENTED or recipe.noise is None:
        single_step.check(model)
        return row_lora.carry(model, recipe, single_step.bind_lora(model, lora.layers, strength, source))
    multi_step = require(model, MULTI_STEP)
    multi_step.check(model, lora.picture_in, source)
    adapter = single_step.bind_lora(model, lora.layers, strength, source)
    if lora.picture_in is not None:
        adapter.take_picture(model.get_model_object("diffusion_model"), multi_step.entry, lora.picture_in, strength)
    return row_lora.carry(see_picture(model, recipe.noise), recipe, adapter)


def processing_inputs() -> list[io.Input]:
    """How a picture is processed, for a node that makes `ExtractSettings` of it."""
    return [
        io.Int.Input(
            "processing_resolution",
            default=-1,
            min=-1,
            max=8192,
            step=1,
            tooltip="Short side in pixels at which the model works. -1: as the LoRA was trained, else 512. 0: the picture's size.",
        ),
        io.Int.Input(
            "tile_size",
            default=0,
            min=0,
            max=4096,
            step=8,
            tooltip="Side in pixels of overlapping tiles, for high processing resolutions. 0: the picture in one piece.",
        ),
        io.Int.Input(
            "tile_overlap",
            default=64,
            min=0,
            max=2048,
            step=8,
            tooltip="Least overlap of neighbouring tiles in pixels; they are blended across it.",
        ),
        io.Boolean.Input(
            "mirrored_average",
            default=False,
            tooltip="Also process the mirrored picture and average both: a little smoother and steadier, for twice the time.",
        ),
    ]


def model_inputs() -> list[io.Input]:
    """Of every node that extracts with a MODEL."""
    return [
        io.Model.Input(
            "model", tooltip="A MODEL from Apply Intrinsic LoRA (once per wanted map), or one with a merged LoRA (see merged_map)."
        ),
        io.Clip.Input("clip", tooltip="The CLIP that belongs to the model; it encodes each map's prompt."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
    ]


def merged_map_input() -> io.Input:
    """Which map a merged LoRA makes, for a node that extracts in one step."""
    return io.Combo.Input(
        "merged_map",
        display_name="map of a merged LoRA",
        options=[NO_MERGED_MAP, *MAPS],
        default=NO_MERGED_MAP,
        tooltip="If the LoRA of one map was merged by core's LoraLoader instead: which map that is. Otherwise 'none'. A merged "
        "file is unknown here, so its map is taken to be in this pack's convention.",
    )


class ExtractIntrinsicMaps(Node):
    """All applied maps of a batch of pictures, in one forward pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabExtractMaps",
            display_name="Extract Intrinsic Maps",
            category="intrinsic lab/extract",
            description=(
                f"Reads intrinsic maps ({', '.join(MAPS)}) out of a picture with a diffusion model that carries intrinsic LoRAs: "
                "one step, no noise, one forward pass for all maps. The outputs are float data at the picture's exact size, never clamped; "
                "the Format nodes turn them into pictures."
            ),
            search_aliases=[
                "normal map",
                "depth map",
                *MAPS,
                "roughness map",
                "metallic map",
                "roughness metallic",
                "delight",
                "intrinsic decomposition",
                "i-lora",
                "surface normals",
                "pbr",
            ],
            # Shows the preview again when the maps come from the cache.
            has_intermediate_output=True,
            inputs=[
                *model_inputs(),
                io.Image.Input("image", tooltip="Pictures of any size, one or many. Grey pictures work; alpha is ignored."),
                *processing_inputs(),
                merged_map_input(),
            ],
            outputs=_in_order(
                [io.Image.Output(name, tooltip=kind.tooltip) for name, kind in MAPS.items()],
                io.Latent.Output(
                    "latent", tooltip=f"The maps' latents: all pictures of the first map, then of the next ({', '.join(MAPS)})."
                ),
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, image, processing_resolution: int, tile_size: int, tile_overlap: int, mirrored_average: bool, merged_map: str
    ) -> io.NodeOutput:
        generator, recipes, resolution = single_step(model, clip, vae, processing_resolution, merged_map)
        image_bhw3 = map_from_image(image, 3, "image", grey=True)
        settings = ExtractSettings(resolution, tile_size, tile_overlap, mirrored_average)
        plan = plan_extraction(image_bhw3, list(recipes), settings, generator.downscale, partial(rows_per_forward, model))
        progress = comfy.utils.ProgressBar(plan.forwards)
        extraction = extract(image_bhw3, list(recipes), generator, settings, plan, interruptible(lambda: progress.update(1)))
        preview = ui.PreviewImage(contact_sheet(image_bhw3, extraction.maps), cls=cls)
        return io.NodeOutput(
            *_in_order(map_outputs(extraction.maps, recipes), {"samples": as_model_takes(model, extraction.latents)}), ui=preview
        )


def single_step(
    model, clip, vae, processing_resolution: int, merged_map: str, anchor_weight: float = 0.0
) -> tuple[Generator, dict[str, Recipe], int]:
    """The MODEL as a generator of its maps, their recipes, and the resolution to process at (`resolution_for`).

    Raises ValueError for parts that do not belong together, for a MODEL without maps, and for LoRAs that need many steps.
    """
    require(model, SINGLE_STEP).check(model)
    require_parts(model, vae)
    carried = row_lora.carried_maps(model)
    recipes = _recipes(carried, merged_map)
    if stepping := [name for name, recipe in recipes.items() if recipe.method != SINGLE]:
        raise ValueError(f"The LoRAs for {', '.join(stepping)} make their map in many steps: use Extract Maps in Steps.")
    generator = make_generator(model, clip, vae, recipes, bool(carried), anchor_weight)
    return generator, recipes, resolution_for(recipes, processing_resolution)


def resolution_for(recipes: Mapping[str, Recipe], chosen: int) -> int:
    """Below 0: that of the first LoRA that says what it was trained at."""
    if chosen >= 0:
        return chosen
    return next((recipe.resolution for recipe in recipes.values() if recipe.resolution is not None), DEFAULT_RESOLUTION)


def map_outputs(maps: Mapping[str, Tensor], recipes: Mapping[str, Recipe]) -> list:
    """An IMAGE for every map of MAPS; those that were not made block what hangs on them, in words."""
    return [image_from_map(maps[name]) if name in maps else ExecutionBlocker(_missing(name, recipes)) for name in MAPS]


def output_number(name: str) -> int:
    """Of a map, among the outputs of Extract Intrinsic Maps."""
    return _in_order(list(MAPS), None).index(name)


def _in_order(of_maps: list, of_latent: Any) -> list:
    return [*of_maps[:LATENT_OUTPUT], of_latent, *of_maps[LATENT_OUTPUT:]]


def _recipes(carried: dict[str, row_lora.CarriedMap], merged_map: str) -> dict[str, Recipe]:
    """Of the maps that the MODEL can make, in the order of MAPS."""
    if merged_map != NO_MERGED_MAP:
        if carried:
            raise ValueError(
                f"merged_map is '{merged_map}', but the MODEL also carries unmerged LoRAs ({', '.join(carried)}), which would add up: "
                "set merged_map to 'none', or connect the model without Apply Intrinsic LoRA."
            )
        return {merged_map: Recipe(merged_map, MAPS[merged_map].prompt)}
    if not carried:
        raise ValueError(
            "This MODEL carries no intrinsic LoRA: put Apply Intrinsic LoRA before this node, once per map, or set merged_map if core's "
            "LoraLoader merged one."
        )
    return {name: carried[name].recipe for name in MAPS if name in carried}


def _missing(name: str, recipes: Mapping[str, Recipe]) -> str:
    has = ", ".join(recipes)
    return f"The MODEL carries no LoRA for '{name}' (it has: {has}): add Apply Intrinsic LoRA for it, or disconnect this output."


def contact_sheet(image_bhw3: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """Picture and maps side by side, one row per picture (the first few), as colours 0..1: what the node previews."""
    looks = [image_bhw3[:PREVIEW_PICTURES], *(picture_of(name, values[:PREVIEW_PICTURES]) for name, values in maps.items())]
    height, width = image_bhw3.shape[1:3]
    factor = min(1.0, PREVIEW_HEIGHT / height, PREVIEW_WIDTH / width)
    small = [resize(look, max(1, round(height * factor)), max(1, round(width * factor))) for look in looks]
    return rearrange(torch.stack([look.to(small[0].device) for look in small]), "map b h w c -> 1 (b h) (map w) c").clamp(0, 1)


NODES = [ApplyIntrinsicLoRA, ExtractIntrinsicMaps]
