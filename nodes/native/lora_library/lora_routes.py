"""The addresses that the pack adds to ComfyUI's server, for its own pages in the front end. What is got changes nothing.

    GET  /intrinsic_lab/lora_preview?name=      the picture beside a LoRA
    GET  /intrinsic_lab/similar_loras?name=&k=  `similar.similar_loras`
    GET  /intrinsic_lab/lora_facts?name=        `similar.lora_facts`
    GET  /intrinsic_lab/lora_index?collection=  `BackgroundIndex.state`
    POST /intrinsic_lab/lora_index              {"collection", "stop"}: begins that work, or ends it

Files and the index are read in threads: the server answers others meanwhile.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from .background_index import background_index
from .lora_collection import preview_jpeg
from .similar import lora_facts, similar_loras

ROOT = "/intrinsic_lab"
PREVIEW_ROUTE, SIMILAR_ROUTE, FACTS_ROUTE, INDEX_ROUTE = (
    f"{ROOT}/{name}" for name in ("lora_preview", "similar_loras", "lora_facts", "lora_index")
)
_SHORT_WHILE = {"Cache-Control": "max-age=60"}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes() -> None:
    """Serve them, where a server runs."""
    if getattr(PromptServer, "instance", None) is None:
        return
    routes = PromptServer.instance.routes
    if any(getattr(route, "path", None) == PREVIEW_ROUTE for route in routes):
        # Another copy of the pack serves them; twice the same address would stop the server.
        return
    for path, handler in ((PREVIEW_ROUTE, _preview), (SIMILAR_ROUTE, _similar), (FACTS_ROUTE, _facts), (INDEX_ROUTE, _index_state)):
        routes.get(path)(_of_this_site(handler))
    routes.post(INDEX_ROUTE)(_of_this_site(_index))


def comes_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that another site's page asks. headers: of the request.

    Sec-Fetch-Site is the browser's own word; over plain HTTP to another machine there is only Origin, on what is not a plain GET.
    """
    if site := headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    origin = headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower()


def _of_this_site(handler: _Handler) -> _Handler:
    @functools.wraps(handler)
    async def checked(request: web.Request) -> web.StreamResponse:
        if comes_from_elsewhere(request.headers):
            return web.json_response({"message": "Only ComfyUI's own page may ask this."}, status=403)
        try:
            return await handler(request)
        except FileNotFoundError as error:
            return web.json_response({"message": str(error)}, status=404)
        except ValueError as error:
            return web.json_response({"message": str(error)}, status=400)

    return checked


async def _preview(request: web.Request) -> web.StreamResponse:
    picture = await asyncio.to_thread(preview_jpeg, request.query.get("name", ""))
    if picture is None:
        return web.Response(status=404)
    return web.Response(body=picture, content_type="image/jpeg", headers=_SHORT_WHILE)


async def _similar(request: web.Request) -> web.StreamResponse:
    count = request.query.get("k", "12")
    if not count.isdecimal():
        raise ValueError(f"k is {count[:20]!r}, the number of LoRAs is wanted.")
    return web.json_response(await asyncio.to_thread(similar_loras, request.query.get("name", ""), int(count[:4])))


async def _facts(request: web.Request) -> web.StreamResponse:
    return web.json_response(await asyncio.to_thread(lora_facts, request.query.get("name", "")), headers=_SHORT_WHILE)


async def _index_state(request: web.Request) -> web.StreamResponse:
    return web.json_response(background_index(request.query.get("collection", "")).state())


async def _index(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if not isinstance(asked, dict):
        raise ValueError('An object is wanted: {"collection": "models/loras"}, with "stop": true to end the work.')
    index = background_index(str(asked.get("collection", "")))
    if asked.get("stop") is True:
        index.stop()
    else:
        index.start()
    return web.json_response(index.state())
