"""All maps of a scene from one sampling of FLUX (LumiX): the adapter, the latents, the noise levels, the sampler."""

from collections.abc import Iterable

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..methods.ildm.schedules import parse_positions
from ..methods.lumix import schedule
from ..methods.lumix.design import ATTENTIONS, KINDS, MAP_NAMES, QUERY_BROADCAST
from ..methods.lumix.intrinsix import MATERIAL, MATERIAL_CHANNELS
from ..methods.maps import image_from_map, map_kind
from .native import vaes
from .native.backbones.flux import image_tokens
from .native.joint_sampling import lumix, lumix_prompts, lumix_sampling
from .native.lora_library.files import lora_names, lora_path
from .native.node import Node
from .native.schema import schema

CATEGORY = "intrinsic lab/text to maps"
AS_TRAINED, ALL = "as trained", "all"
PUBLISHED, BY_SIZE, FIXED = "LumiX", "by size (FLUX)", "fixed"
MAP_TOOLTIPS = {name: map_kind(kind).meaning for name, kind in KINDS.items()}
# Of IntrinsiX; outputs that came later.
MATERIAL_OUTPUT = io.Latent.Output(
    MATERIAL.upper(),
    display_name=MATERIAL,
    tooltip="Roughness (red) and metallic (green) of IntrinsiX, as a latent: for Decode Map Latents.",
)
BUNDLED_LORAS = {"nano/lumix": "nano_lumix.safetensors"}
BATCH_TOOLTIP = "All maps in one batch, map by map: for Split Map Latents, Decode Map Latents, or another sampling."
ATTENTION_TOOLTIP = (
    "How maps meet. query-broadcast: every map reads with the colour map's queries (LumiX). cross-intrinsic: every map reads all maps "
    "(IntrinsiX; five times the attention). separate: they meet only through noise and prompt."
)


def _blocks(text: str) -> tuple[int, ...] | None:
    return None if text.strip().lower() == ALL else parse_positions(text)


def _map_outputs(output: type[io.Image] | type[io.Latent], what: str) -> list:
    return [output.Output(name.upper(), display_name=name, tooltip=f"{text} {what}") for name, text in MAP_TOOLTIPS.items()]


def _by_name(found: dict, names: Iterable[str] = MAP_NAMES) -> list:
    """One output per name; maps the model does not make stop what hangs on them."""
    missing = {name: ExecutionBlocker(f"This model makes no {name}: its maps are {', '.join(found)}.") for name in names}
    return [found.get(name, message) for name, message in missing.items()]


class ApplyTensorLoRA(Node):
    """FLUX MODEL + LumiX file -> MODEL that samples the maps together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabApplyTensorLoRA",
            display_name="Apply Tensor LoRA",
            category=CATEGORY,
            description=(
                "Makes a MODEL sample aligned maps of one scene together: albedo, irradiance, color, depth and normal by a file of LumiX, "
                "albedo, material and normal by IntrinsiX's (FLUX.1). Files belong to the model they were trained on: FLUX, SD 3, "
                "Qwen-Image, Z-Image or Lumina 2. Sample it with Sample Maps Together, or with any sampler on Make Map Latents."
            ),
            search_aliases=[
                "lumix",
                "intrinsix",
                "text to intrinsic",
                "intrinsic decomposition",
                "text to pbr",
                "flux maps",
                "flux material",
                "text to albedo depth normal",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="FLUX.1-dev, or the model the file was trained on, from any loader, also fp8 or with LoRAs. It is not changed.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(BUNDLED_LORAS),
                    tooltip="A LumiX file (lumix.safetensors, or one you trained) or IntrinsiX's in models/loras, or the bundled one for "
                    "the nano model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the file's update. 1 is what it was trained for; at 0 maps are joined by attention alone.",
                ),
                io.Combo.Input(
                    "attention",
                    options=[AS_TRAINED, *ATTENTIONS],
                    default=AS_TRAINED,
                    optional=True,
                    tooltip=ATTENTION_TOOLTIP,
                ),
                io.String.Input(
                    "double_blocks",
                    default=ALL,
                    optional=True,
                    tooltip="Which double-stream blocks change: 'all', or numbers and ranges such as '0-9, 12'. FLUX.1 has 19, from 0 on.",
                ),
                io.String.Input(
                    "single_blocks",
                    default=ALL,
                    optional=True,
                    tooltip="Which single-stream blocks change: 'all', or numbers and ranges such as '0-18'. FLUX.1 has 38, from 0 on.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", display_name="model", tooltip="For Sample Maps Together or Make Map Latents.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **others) -> tuple | None:
        """A replaced file is read anew; a missing one is reported by `execute`, a linked name changes with what made it."""
        if lora_name is None:
            return None
        try:
            state = lora_path(lora_name, BUNDLED_LORAS).stat()
        except FileNotFoundError:
            return None
        return lora_name, state.st_size, state.st_mtime_ns

    @classmethod
    def execute(
        cls, model, lora_name: str, strength: float, attention: str = AS_TRAINED, double_blocks: str = ALL, single_blocks: str = ALL
    ) -> io.NodeOutput:
        chosen = None if attention == AS_TRAINED else attention
        blocks = _blocks(double_blocks), _blocks(single_blocks)
        return io.NodeOutput(lumix.apply_adapter(model, lora_path(lora_name, BUNDLED_LORAS), strength, chosen, *blocks))


class JoinMaps(Node):
    """Shared attention between rows, without weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabJoinMaps",
            display_name="Join Maps in Attention",
            category=CATEGORY,
            description=(
                "Makes the rows of a batch meet in every self-attention, as LumiX or IntrinsiX does, without a LumiX file: for SD 1.x to "
                "SD 3.5, SDXL, FLUX, Qwen-Image, Z-Image and Lumina 2. With query-broadcast every row is laid out as the color row; Make "
                "Map Prompts makes them differ."
            ),
            search_aliases=["query broadcast", "cross-intrinsic attention", "shared attention", "aligned batch", "lumix", "intrinsix"],
            inputs=[
                io.Model.Input("model", tooltip="One of those named above from any loader. It is not changed."),
                io.Combo.Input("attention", options=list(ATTENTIONS), default=QUERY_BROADCAST, tooltip=ATTENTION_TOOLTIP),
                io.String.Input(
                    "maps",
                    default=", ".join(MAP_NAMES),
                    tooltip=f"What the rows of a picture are, in order: different ones of {', '.join(MAP_NAMES)}; color is the one whose "
                    "queries are shared.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", display_name="model", tooltip="For a sampler, with a latent from Make Map Latents.")],
        )

    @classmethod
    def execute(cls, model, attention: str, maps: str) -> io.NodeOutput:
        names = tuple(name.strip() for name in maps.split(",") if name.strip())
        return io.NodeOutput(lumix.join_maps(model, names, attention))


class MapLatents(Node):
    """Rows for all maps, with the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabMapLatents",
            display_name="Make Map Latents (LumiX)",
            category=CATEGORY,
            description=(
                "One latent for all maps of a scene, every map with the same starting noise. Connect maps you have, and they are kept "
                "clean while the others are made: color gives intrinsic decomposition, depth and normal give a picture of that geometry."
            ),
            search_aliases=["lumix", "empty latent", "image to maps", "disentangled timesteps", "conditioned generation"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply Tensor LoRA or Join Maps in Attention: it says which maps there are."),
                io.Int.Input("width", default=512, min=64, max=8192, step=16, tooltip="Pixels; not used where a map is given."),
                io.Int.Input("height", default=512, min=64, max=8192, step=16, tooltip="Pixels; not used where a map is given."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many scenes; not used where a map is given."),
                *(
                    io.Latent.Input(
                        name, optional=True, tooltip=f"{text} Not connected: it is made. Connected (VAE Encode of the map's picture): kept."
                    )
                    for name, text in MAP_TOOLTIPS.items()
                ),
            ],
            outputs=[io.Latent.Output("LATENT", display_name="maps", tooltip=BATCH_TOOLTIP)],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, batch_size: int, **given: dict | None) -> io.NodeOutput:
        connected = {name: latent for name, latent in given.items() if latent is not None}
        return io.NodeOutput(lumix_sampling.map_latents(model, width, height, batch_size, connected))


class MapSigmas(Node):
    """FLUX's noise levels with LumiX's time shift."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabMapSigmas",
            display_name="Make Map Sigmas (LumiX)",
            category=CATEGORY,
            description="Noise levels for a FLUX that makes maps: LumiX was published with another time shift than ComfyUI gives FLUX.",
            search_aliases=["lumix", "scheduler", "time shift", "flux sigmas"],
            inputs=[
                io.Latent.Input("latent", tooltip="From Make Map Latents: its size counts."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps of the sampler. LumiX was published with 50."),
                io.Combo.Input(
                    "shift",
                    options=[PUBLISHED, BY_SIZE, FIXED],
                    default=PUBLISHED,
                    tooltip=f"{PUBLISHED}: the published shift, about 0.46 at every size. {BY_SIZE}: 0.5 at 256 x 256 to 1.15 at 1024 x "
                    f"1024. {FIXED}: the number below.",
                ),
                io.Float.Input(
                    "mu",
                    display_name="fixed shift (mu)",
                    default=1.15,
                    min=-2.0,
                    max=5.0,
                    step=0.01,
                    tooltip=f"The time shift where `shift` is '{FIXED}': 0 is none.",
                ),
            ],
            outputs=[io.Sigmas.Output("SIGMAS", display_name="sigmas", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, latent: dict, steps: int, shift: str, mu: float) -> io.NodeOutput:
        tokens = image_tokens(latent)
        found = {PUBLISHED: schedule.published_shift(tokens), BY_SIZE: schedule.shift_by_tokens(tokens), FIXED: mu}
        return io.NodeOutput(schedule.shifted_sigmas(steps, found[shift]))


class MapPrompts(Node):
    """A prompt for each map -> one conditioning for all."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabMapPrompts",
            display_name="Make Map Prompts",
            category=CATEGORY,
            description=(
                "Tells every map something of its own: 'a depth map of ...', 'a normal map of ...'. For Join Maps in Attention, where only "
                "prompts tell the maps apart; LumiX files need no such thing, all their maps share one prompt."
            ),
            search_aliases=["prompt per row", "batch prompts", "join maps", "query broadcast"],
            inputs=[
                io.Latent.Input("latent", tooltip="From Make Map Latents: it says which maps and how many scenes there are."),
                io.Conditioning.Input("prompt", tooltip="For every map that has none of its own below."),
                *(io.Conditioning.Input(name, optional=True, tooltip=f"{text} Its own prompt.") for name, text in MAP_TOOLTIPS.items()),
            ],
            outputs=[io.Conditioning.Output("CONDITIONING", display_name="prompts", tooltip="For a sampler, as positive or negative.")],
        )

    @classmethod
    def execute(cls, latent: dict, prompt: list, **own: list | None) -> io.NodeOutput:
        connected = {name: conditioning for name, conditioning in own.items() if conditioning is not None}
        return io.NodeOutput(lumix_prompts.prompts_of_maps(latent, prompt, connected))


class SplitMaps(Node):
    """A sampled batch -> one latent per map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabSplitMaps",
            display_name="Split Map Latents (LumiX)",
            category=CATEGORY,
            description="Takes sampled maps apart: a latent for each map, for VAE Decode or to be given to another sampling.",
            search_aliases=["lumix", "unbatch maps"],
            inputs=[io.Latent.Input("maps", tooltip="What a sampler made of Make Map Latents.")],
            outputs=[*_map_outputs(io.Latent, "As a latent."), MATERIAL_OUTPUT],
        )

    @classmethod
    def execute(cls, maps: dict) -> io.NodeOutput:
        return io.NodeOutput(*_by_name(lumix_sampling.split_maps(maps), (*MAP_NAMES, MATERIAL)))


class DecodeMaps(Node):
    """A sampled batch -> every map as data."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabDecodeMaps",
            display_name="Decode Map Latents (LumiX)",
            category=CATEGORY,
            description=(
                "Sampled maps as data, like those of Extract Intrinsic Maps: normals -1 to 1, depth larger is farther, albedo and "
                "irradiance linear. They are never clamped; the Format nodes make pictures for other programs of them."
            ),
            search_aliases=["lumix", "vae decode", "maps to images"],
            inputs=[
                io.Latent.Input("maps", tooltip="What a sampler made of Make Map Latents."),
                io.Vae.Input("vae", tooltip="The VAE of the model that sampled them."),
            ],
            outputs=[
                *_map_outputs(io.Image, "As float data; color is the picture, 0 to 1."),
                *(io.Image.Output(name.upper(), display_name=name, tooltip=map_kind(name).tooltip) for name in MATERIAL_CHANNELS),
            ],
        )

    @classmethod
    def execute(cls, maps: dict, vae) -> io.NodeOutput:
        latents = lumix_sampling.split_maps(maps)
        pictures = {name: vaes.decode_pictures(vae, latent["samples"]) for name, latent in latents.items()}
        maps_of = {name: map_kind(KINDS[name]).from_picture(picture) for name, picture in pictures.items() if name != MATERIAL}
        if MATERIAL in pictures:
            maps_of |= {name: pictures[MATERIAL][..., [channel]] for name, channel in MATERIAL_CHANNELS.items()}
        images = {name: image_from_map(values) for name, values in maps_of.items()}
        return io.NodeOutput(*_by_name(images, (*MAP_NAMES, *MATERIAL_CHANNELS)))


class JointSampler(Node):
    """Prompt (and given maps) -> all maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabJointSampler",
            display_name="Sample Maps Together",
            category=CATEGORY,
            description=(
                "Samples all maps of a scene in one go, with previews of all of them side by side. Nothing but a MODEL from Apply Tensor "
                "LoRA and a prompt is needed; a latent from Make Map Latents brings maps you have. The defaults are LumiX's."
            ),
            search_aliases=["lumix", "ksampler", "text to intrinsic", "image to maps", "joint sampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply Tensor LoRA or Join Maps in Attention."),
                io.Conditioning.Input("positive", tooltip="What the scene shows; the same prompt counts for every map."),
                io.Conditioning.Input("negative", tooltip="What it does not show; without effect at cfg 1."),
                io.Latent.Input(
                    "latent", optional=True, tooltip="From Make Map Latents. Not connected: one scene of width x height, from the prompt."
                ),
                io.Int.Input("width", default=512, min=64, max=8192, step=16, tooltip="Pixels; not used with a latent."),
                io.Int.Input("height", default=512, min=64, max=8192, step=16, tooltip="Pixels; not used with a latent."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="More steps are slower and finer. LumiX was published with 50."),
                io.Float.Input(
                    "guidance",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="FLUX's guidance embedding. 3.5 from text; 1 where a map is given.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance away from the negative prompt. 3 from text; 1 where a map is given, which is twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="euler is what LumiX was published with. Stochastic samplers share their noise between maps.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise, one for all maps."
                ),
            ],
            outputs=[
                *_map_outputs(io.Latent, "As a latent."),
                io.Latent.Output("LATENT", display_name="maps", tooltip=BATCH_TOOLTIP),
                MATERIAL_OUTPUT,
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, width, height, steps, guidance, cfg, sampler_name, seed, latent: dict | None = None
    ) -> io.NodeOutput:
        if latent is None:
            latent = lumix_sampling.map_latents(model, width, height, 1, {})
        maps = lumix_sampling.sample_jointly(model, positive, negative, latent, steps, guidance, cfg, sampler_name, seed)
        found = lumix_sampling.split_maps(maps)
        return io.NodeOutput(*_by_name(found), maps, *_by_name(found, [MATERIAL]))


NODES = [ApplyTensorLoRA, JoinMaps, MapLatents, MapSigmas, MapPrompts, JointSampler, SplitMaps, DecodeMaps]
