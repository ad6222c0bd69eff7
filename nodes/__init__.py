"""The ComfyUI side of the pack: one module per stage of a workflow, each with a list `NODES`."""

from comfy_api.latest import ComfyExtension, io

from . import (
    bundle,
    compare,
    data_sets,
    export_maps,
    extract,
    extract_in_steps,
    format_maps,
    generators,
    ildm,
    intrinsic_vae,
    load,
    lora_space,
    lumix,
    picture,
    relight,
    scene,
    sequence,
    train,
)
from .native.lora_library.lora_routes import add_routes


class IntrinsicLabExtension(ComfyExtension):
    """Lists the pack's nodes, in the order in which a workflow meets them."""

    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
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
            train,
            scene,
            relight,
            export_maps,
            data_sets,
        )
        return [node for stage in stages for node in stage.NODES]
