"""The one address that the pack adds to ComfyUI's server: the preview picture of a LoRA, for the map in the front end."""

import asyncio
import sys

from .lora_collection import preview_jpeg

PREVIEW_ROUTE = "/intrinsic_lab/lora_preview"


def add_routes() -> None:
    """Serve previews, where this process is a ComfyUI server (tests and other hosts of nodes are none)."""
    if "server" not in sys.modules:
        return
    from aiohttp import web
    from server import PromptServer

    if getattr(PromptServer, "instance", None) is None:
        return
    if any(getattr(route, "path", None) == PREVIEW_ROUTE for route in PromptServer.instance.routes):
        # Another copy of the pack serves it; twice the same address would stop the server.
        return

    @PromptServer.instance.routes.get(PREVIEW_ROUTE)
    async def lora_preview(request: web.Request) -> web.Response:
        picture = await asyncio.to_thread(preview_jpeg, request.query.get("name", ""))
        if picture is None:
            return web.Response(status=404)
        return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "max-age=60"})
