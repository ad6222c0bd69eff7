"""Maps from multi-step intrinsic LoRAs: sampled for a picture of any size, or decoded from what any sampler made."""

from functools import partial

import comfy.samplers
import comfy.utils
from comfy_api.latest import io, ui

from ..methods.intrinsic_lora.extract import ExtractSettings, extract, plan_extraction
from ..methods.intrinsic_lora.multi_step import SINGLE
from ..methods.intrinsic_lora.recipe import Recipe
from ..methods.maps import MAPS, image_from_map, map_from_image
from .extract import contact_sheet, map_outputs, processing_inputs, resolution_for
from .native import vaes
from .native.batch_rows import row_lora
from .native.joint_sampling.multi_step import SamplingSettings, make_sampling_generator
from .native.joint_sampling.single_step import interruptible, require_parts, rows_per_forward, unclamped
from .native.node import Node
from .native.schema import schema

CATEGORY = "intrinsic lab/extract"


def _carried_recipes(model, only_in_steps: bool = False) -> dict[str, Recipe]:
    """Of the maps that the MODEL carries, in the order of MAPS. Raises ValueError where there is none, or none in steps."""
    carried = row_lora.carried_maps(model)
    if not carried:
        raise ValueError("This MODEL carries no intrinsic LoRA: put Apply Intrinsic LoRA before this node, once per map.")
    if only_in_steps and (single := [name for name, entry in carried.items() if entry.recipe.method == SINGLE]):
        raise ValueError(
            f"The LoRAs for {', '.join(single)} make their map in one step: use Extract Intrinsic Maps, or choose the method in Apply "
            "Intrinsic LoRA if the file does not say it."
        )
    return {name: carried[name].recipe for name in MAPS if name in carried}


class ExtractMapsInSteps(Node):
    """All applied maps of a batch of pictures, in one sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabExtractMapsInSteps",
            display_name="Extract Maps in Steps",
            category=CATEGORY,
            description=(
                "Samples intrinsic maps of a picture with multi-step LoRAs: augmented ones (I-LoRA AUG), which see the picture beside the "
                "noise, and naive ones, which start from the picture. Sharper than the single step, and many times slower. The outputs are "
                "float data at the picture's exact size, as those of Extract Intrinsic Maps. The defaults are upstream's."
            ),
            search_aliases=["i-lora aug", "augmented", "multi-step", "normal map", "depth map", "instruct pix2pix", "ksampler"],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from Apply Intrinsic LoRA with multi-step LoRAs, once per wanted map."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to the model; it encodes each map's prompt."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("image", tooltip="Pictures of any size, one or many. Grey pictures work; alpha is ignored."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise; one for all pictures and maps, so that frames do not differ by it.",
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Steps of the sampler; the paper's is stable from 10 on."),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance away from the empty prompt, with the picture in both. 1: none, in half the time.",
                ),
                io.Float.Input(
                    "guidance_rescale",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the guided output is brought back to the unguided one's contrast (core's RescaleCFG). For models that "
                    "predict velocity, as augmented ones do; 0 leaves the MODEL's own guidance.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="dpmpp_2m",
                    tooltip="dpmpp_2m is DPM-Solver++ (2M), as upstream.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="simple",
                    tooltip="simple spaces the steps evenly from the last timestep down ('trailing'), as upstream.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Of naive multi-step LoRAs only: how much of the picture's latent becomes noise at the start. Augmented ones "
                    "start from noise alone.",
                ),
                *processing_inputs(),
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
        seed: int,
        steps: int,
        cfg: float,
        guidance_rescale: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        processing_resolution: int,
        tile_size: int,
        tile_overlap: int,
        mirrored_average: bool,
    ) -> io.NodeOutput:
        recipes = _carried_recipes(model, only_in_steps=True)
        require_parts(model, vae)
        image_bhw3 = map_from_image(image, 3, "image", grey=True)
        settings = ExtractSettings(resolution_for(recipes, processing_resolution), tile_size, tile_overlap, mirrored_average)
        plan = plan_extraction(image_bhw3, list(recipes), settings, int(vae.downscale_ratio), partial(rows_per_forward, model))
        progress = comfy.utils.ProgressBar(plan.forwards * steps)
        sampling = SamplingSettings(seed, steps, cfg, guidance_rescale, sampler_name, scheduler, denoise)
        generator = make_sampling_generator(model, clip, vae, recipes, sampling, interruptible(lambda: progress.update(1)))
        maps = extract(image_bhw3, list(recipes), generator, settings, plan).maps
        return io.NodeOutput(*map_outputs(maps, recipes), ui=ui.PreviewImage(contact_sheet(image_bhw3, maps), cls=cls))


class DecodeIntrinsicMap(Node):
    """A sampled latent -> its map as data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabDecodeMap",
            display_name="Decode Sampled Map (I-LoRA)",
            category=CATEGORY,
            description=(
                "What a sampler made with one intrinsic LoRA, as the map's data: unclamped, in this pack's convention, like the outputs of "
                "Extract Maps in Steps."
            ),
            search_aliases=["vae decode", "map from latent", "i-lora aug"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL that sampled it, from Apply Intrinsic LoRA: it knows the map and its convention."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Latent.Input("latent", tooltip="What the sampler made."),
            ],
            outputs=[io.Image.Output("MAP", display_name="map", tooltip="Float data, as Extract Maps in Steps describes each map.")],
        )

    @classmethod
    def execute(cls, model, vae, latent: dict) -> io.NodeOutput:
        recipes = _carried_recipes(model)
        if len(recipes) > 1:
            raise ValueError(f"This MODEL carries LoRAs for several maps ({', '.join(recipes)}), a sampler makes one: apply a single one.")
        [recipe] = recipes.values()
        picture = vaes.decode(unclamped(vae), latent["samples"])
        to_own = recipe.to_own
        return io.NodeOutput(image_from_map(MAPS[recipe.map].from_picture(to_own(picture) if to_own else picture)))


NODES = [ExtractMapsInSteps, DecodeIntrinsicMap]
