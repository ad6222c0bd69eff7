"""The ComfyUI side of the pack: one module per stage of a workflow, each with a list `NODES`."""

import inspect
import logging
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from . import (
    bundle,
    compare,
    convert_lora,
    data_sets,
    export_maps,
    extract,
    extract_in_steps,
    format_maps,
    generators,
    ildm,
    intrinsic_vae,
    load,
    lora_map,
    lora_space,
    lumix,
    picture,
    relight,
    scene,
    sequence,
    train,
)


def earlier_copy() -> Path | None:
    """The folder of another copy of the pack (a clone and the zip beside it), whose nodes ComfyUI has already."""
    taken = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(load.LoadIntrinsicModel.GET_SCHEMA().node_id)
    if taken is None or taken.__module__ == load.LoadIntrinsicModel.__module__:
        return None
    return Path(inspect.getfile(taken)).resolve().parents[1]


class IntrinsicLabExtension(ComfyExtension):
    """Lists the pack's nodes, in the order in which a workflow meets them."""

    async def on_load(self) -> None:
        # Tests and other hosts of nodes are no server.
        if "server" in sys.modules:
            from .native.lora_library.lora_routes import add_routes

            add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if (earlier := earlier_copy()) is not None:
            here = Path(__file__).resolve().parents[1]
            logging.warning("Intrinsic Lab is installed twice: %s is used, %s is left alone. Delete one of them.", earlier, here)
            return []
        stages = (
            picture,
            load,
            extract,
            sequence,
            extract_in_steps,
            generators,
            ildm,
            intrinsic_vae,
            lumix,
            bundle,
            format_maps,
            compare,
            lora_space,
            convert_lora,
            lora_map,
            train,
            scene,
            relight,
            export_maps,
            data_sets,
        )
        return [node for stage in stages for node in stage.NODES]
