"""From a picture to its maps in one node: the chain Load, Apply, Extract, Bundle, Show, which ComfyUI runs and caches node by node."""

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..methods.intrinsic_lora.recipe import AUTO
from ..methods.maps import MAPS
from .bundle import BundleMaps, PicturesOfMaps
from .extract import NO_MERGED_MAP, ApplyIntrinsicLoRA, ExtractIntrinsicMaps, output_number
from .load import LoadIntrinsicModel
from .native.batch_rows import row_lora
from .native.lora_library.files import BUNDLED_MARK
from .native.map_sockets import Maps
from .native.node import Node
from .native.node_text import preview_text, show_on_node
from .native.paths import BUNDLED_NAMES
from .native.schema import schema
from .scene import RenderScene

# The maps whose LoRAs are bundled.
SHOWN = ("normal", "depth", "albedo", "shading")
BUNDLED, NONE = "bundled", "none"
BUNDLED_MODEL = next(iter(BUNDLED_NAMES))
WARNING = "Bundled model: tiny, photos come out coarse. For photos: an SD 1.5 checkpoint and the published LoRAs (see this node's help)."


class PictureToMaps(Node):
    """Picture -> normal, depth, albedo, shading as pictures, and all as MAPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        linked = "Connect model, clip and vae together, and they are used in place of model_name."
        return schema(
            node_id="IntrinsicLabPictureToMaps",
            display_name="Picture to Maps",
            category="intrinsic lab",
            description="Normals, depth, albedo and shading of a picture, ready to look at, to save and to feed a ControlNet. Runs as "
            "it is with the bundled model; choose a checkpoint and LoRAs for photos. `maps` gives the same as data.",
            # The front end's search puts first what it finds in more of a node's aliases.
            search_aliases=[
                *("photo to maps", "image to maps", "normal map", "photo to normal map", "normal map from image"),
                *("depth map", "photo to depth map", "depth map from image", "base color", "base color from photo", "albedo", "shading"),
                *("delight", "delight photo", "material", "material from photo", "material maps", "pbr", "pbr maps", "photo to pbr"),
                *("intrinsic decomposition", "surface normals", "controlnet preprocessor", "i-lora", "start here"),
            ],
            is_output_node=True,
            enable_expand=True,
            inputs=[
                io.Image.Input(
                    "image",
                    raw_link=True,
                    tooltip="Pictures of any size, one or many. Grey pictures work; alpha is ignored.",
                ),
                io.Combo.Input(
                    "model_name",
                    options=[BUNDLED_MODEL, *folder_paths.get_filename_list("checkpoints")],
                    default=BUNDLED_MODEL,
                    tooltip="The bundled model, tiny and for a first look, or a Stable Diffusion 1.x, 2.x or SDXL checkpoint of "
                    "models/checkpoints, for which the LoRAs below were made.",
                ),
                *(
                    io.Combo.Input(
                        f"{name}_lora",
                        options=[BUNDLED, NONE, *_loras_for(name)],
                        default=BUNDLED,
                        tooltip=f"The LoRA that makes {name}: 'bundled' fits the bundled model, another model needs one from models/loras "
                        "that was trained on it (left out here: files whose name says another map). 'none': this map is not made.",
                    )
                    for name in SHOWN
                ),
                *_settings(),
                io.Model.Input("model", optional=True, tooltip=f"{linked} LoRAs that Apply Intrinsic LoRA put on it are used as they are."),
                io.Clip.Input("clip", optional=True, tooltip=linked),
                io.Vae.Input("vae", optional=True, tooltip=linked),
            ],
            outputs=[
                *PicturesOfMaps.define_schema().outputs[: len(SHOWN)],
                Maps.Output(
                    display_name="maps",
                    tooltip="The picture and all its maps as data, for Relight from Maps, Compare Maps, the Format nodes and Open Maps.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None, **given) -> list:
        """A replaced file is loaded anew."""
        return [_state_of_model(model_name), *map(_state_of_lora, _chosen(given).values())]

    @classmethod
    def execute(cls, image, model_name: str, model=None, clip=None, vae=None, **given) -> io.NodeOutput:
        linked = [part for part in (model, clip, vae) if part is not None]
        if len(linked) not in (0, 3):
            raise ValueError("model, clip and vae belong together: connect all three, or none of them to use model_name.")
        carried = list(row_lora.carried_maps(model)) if linked else []
        loras = _chosen(given, bundled=not carried)
        names = [name for name in MAPS if name in (*carried, *loras)]
        if not names:
            raise ValueError("every LoRA is 'none', so there is no map to make: choose at least one.")
        graph = GraphBuilder()
        model, clip, vae = linked or _loaded(graph, model_name, loras)
        for name, lora in loras.items():
            applied = {"lora_name": lora, "map": name, "strength": 1.0, "convention": AUTO}
            model = graph.node(ApplyIntrinsicLoRA.GET_SCHEMA().node_id, model=model, **applied).out(0)
        settings = {setting.id: given[setting.id] for setting in _settings()}
        parts = {"model": model, "clip": clip, "vae": vae, "image": image, "merged_map": NO_MERGED_MAP}
        extracted = graph.node(ExtractIntrinsicMaps.GET_SCHEMA().node_id, **parts, **settings)
        maps = {name: extracted.out(output_number(name)) for name in names}
        bundle = graph.node(BundleMaps.GET_SCHEMA().node_id, image=image, **maps).out(0)
        shown = graph.node(PicturesOfMaps.GET_SCHEMA().node_id, maps=bundle)
        pictures = [shown.out(number) for number in range(len(SHOWN))]
        # By its run's number the front end finds again what the nodes inside have shown (web/node_results.js).
        told: dict[str, Any] = {"run": [uuid.uuid4().hex]}
        if not (linked or model_name != BUNDLED_MODEL or _is_rendered(cls.hidden.prompt, image)):
            logging.info(WARNING)
            show_on_node(WARNING, cls.hidden.unique_id)
            told |= preview_text(WARNING).as_dict()
        return io.NodeOutput(*pictures, bundle, expand=graph.finalize(), ui=told)


def _settings() -> list[io.Input]:
    """How Extract Intrinsic Maps processes a picture."""
    offered = {given.id: given for given in ExtractIntrinsicMaps.define_schema().inputs}
    settings = [offered[name] for name in ("processing_resolution", "tile_size", "tile_overlap", "mirrored_average")]
    for setting in settings:
        setting.advanced = True
    return settings


def _loras_for(map_name: str) -> list[str]:
    """The files of models/loras, without those whose name says another map and not this one."""

    def says(lora: str) -> list[str]:
        file = PurePath(lora.replace("\\", "/")).stem.lower()
        return [name for name in MAPS if name in file]

    return [lora for lora in folder_paths.get_filename_list("loras") if map_name in (told := says(lora)) or not told]


def _chosen(given: Mapping[str, Any], bundled: bool = True) -> dict[str, str]:
    """By map, the LoRA to apply, as Apply Intrinsic LoRA names it. bundled: whether 'bundled' stands for one."""
    chosen = {name: given[f"{name}_lora"] for name in SHOWN}
    own = {name: f"nano/{name}{BUNDLED_MARK}" if lora == BUNDLED else lora for name, lora in chosen.items()}
    return {name: own[name] for name, lora in chosen.items() if lora != NONE and (bundled or lora != BUNDLED)}


def _loaded(graph: GraphBuilder, model_name: str, loras: Mapping[str, str]) -> list:
    """Outputs of a loader: MODEL, CLIP, VAE."""
    if model_name == BUNDLED_MODEL:
        loader = graph.node(LoadIntrinsicModel.GET_SCHEMA().node_id, model=model_name, weight_dtype="default")
    else:
        if misfits := [f"{name}_lora" for name, lora in loras.items() if lora.endswith(BUNDLED_MARK)]:
            raise ValueError(
                f"{', '.join(misfits)} came as '{BUNDLED}', which fits the bundled model, not {model_name}: choose LoRAs trained on it "
                "(for SD 1.5 the published ones, see this node's help), or 'none'."
            )
        # What it does not know makes core load a replaced file anew: its own loader does not look.
        loader = graph.node("CheckpointLoaderSimple", ckpt_name=model_name, file_state=_state_of_model(model_name))
    return [loader.out(number) for number in range(3)]


def _state_of_model(model_name: str | None) -> str:
    if model_name is None:
        # It comes over a link: then what is there changes with it.
        return "linked"
    if model_name == BUNDLED_MODEL:
        return str(LoadIntrinsicModel.fingerprint_inputs(model_name))
    path = folder_paths.get_full_path("checkpoints", model_name)
    if path is None:
        # The loader reports it in words.
        return "missing"
    state = os.stat(path)
    return f"{state.st_mtime_ns} {state.st_size}"


def _state_of_lora(lora: str) -> str:
    return ApplyIntrinsicLoRA.fingerprint_inputs(lora, AUTO, 1.0)


def _is_rendered(prompt: Mapping[str, Any], image: list) -> bool:
    """Whether the picture comes straight from Render Scene, in whose world the bundled model is at home."""
    return prompt.get(image[0], {}).get("class_type") == RenderScene.GET_SCHEMA().node_id


NODES = [PictureToMaps]
