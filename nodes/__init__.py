"""The ComfyUI side of the pack: one module per stage of a workflow, each with a list `NODES`."""

from comfy_api.latest import ComfyExtension, io

from . import extract, format_maps, ildm, intrinsic_vae, judge, load, scene


class IntrinsicLabExtension(ComfyExtension):
    """Lists the pack's nodes, in the order in which a workflow meets them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for stage in (load, extract, ildm, intrinsic_vae, format_maps, judge, scene) for node in stage.NODES]
