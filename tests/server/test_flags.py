"""ComfyUI under the flags that people start it with, and behind a proxy under a sub-path. All workflows: benchmarks.server_flags."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from intrinsic_lab.benchmarks.server_flags import FLAGS, furthest, largest_difference, pictures_of
from intrinsic_lab.tools.comfyui_server import comfyui_server
from intrinsic_lab.tools.comfyui_source import find_comfyui
from intrinsic_lab.tools.environment import link_pack
from intrinsic_lab.tools.example_workflows import example_workflow
from intrinsic_lab.tools.prompt import load_prompt

# Each flag once, in as few servers as go together.
TOGETHER = (
    ("--fp16-intermediates", "--use-split-cross-attention", "--cache-none"),
    ("--force-fp16", "--use-quad-cross-attention", "--force-channels-last"),
)
WORKFLOWS = ("extract_maps", "4 Picture and maps from text")


@pytest.mark.parametrize("flags", TOGETHER, ids=" ".join)
def test_workflows_under_flags_show_what_they_show_without(flags, server, tmp_path):
    assert sorted(sum(TOGETHER, ())) == sorted(FLAGS)
    prompts = {name: load_prompt(example_workflow(name).api_path) for name in WORKFLOWS}
    with comfyui_server(Path(sys.executable), find_comfyui(), link_pack(tmp_path), ["--cpu", *flags]) as flagged:
        for name, prompt in prompts.items():
            # A thread of its own: where the suite has a browser open, this one's event loop is running.
            with ThreadPoolExecutor(1) as own:
                wanted, found = (own.submit(asyncio.run, pictures_of(running.url, prompt)).result() for running in (server, flagged))
            assert wanted
            assert furthest(found, wanted) < largest_difference(flags), name


@contextmanager
def proxied(url, path):
    """The address of a proxy that hands everything under `path`, and nothing else, to a server."""
    loop, found = asyncio.new_event_loop(), {}

    async def hand_on(request):
        if not request.path.startswith(path):
            found.setdefault("outside", []).append(request.path)
            return web.Response(status=404)
        target = url + "/" + request.raw_path.removeprefix(path)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _sockets(request, target)
        headers = {name: value for name, value in request.headers.items() if name.lower() in ("content-type", "comfy-user", "accept")}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, data=await request.read(), headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), headers={"Content-Type": answer.headers["Content-Type"]})

    async def serve():
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{rest:.*}", hand_on)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found["port"] = site._server.sockets[0].getsockname()[1]
        return runner

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    try:
        yield f"http://127.0.0.1:{found['port']}{path}", found.setdefault("outside", [])
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _sockets(request, target):
    here = web.WebSocketResponse()
    await here.prepare(request)
    async with aiohttp.ClientSession() as session, session.ws_connect(target) as there:

        async def passed_on(source, send_text, send_bytes):
            async for message in source:
                await (send_text(message.data) if message.type == aiohttp.WSMsgType.TEXT else send_bytes(message.data))

        both = [asyncio.ensure_future(passed_on(a, b.send_str, b.send_bytes)) for a, b in ((here, there), (there, here))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
    return here


def test_behind_a_proxy_under_a_sub_path_every_module_of_the_pack_loads(server, page):
    own = sorted(path.name for path in (Path(__file__).parents[2] / "web").glob("*.js"))
    loaded, failed = set(), []
    with proxied(server.url, "/comfy/") as (address, outside), closing(page.context.browser.new_page()) as page:
        page.on("response", lambda answer: loaded.add(answer.url) if answer.ok else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.wait_for_function("() => !!window.LiteGraph?.registered_node_types?.['IntrinsicLabExtractMaps']", timeout=120_000)
        page.wait_for_function(
            "() => window.app?.extensions?.filter(each => each.name.startsWith('intrinsiclab')).length >= 1", timeout=60_000
        )
        names = page.evaluate("() => window.app.extensions.map(each => each.name)")
        outside = [path for path in outside if path.startswith(("/scripts/", "/extensions/", "/intrinsic_lab/"))]
    modules = {url.rsplit("/", 1)[-1].split("?")[0] for url in loaded if "/comfy/extensions/intrinsic" in url}
    assert modules >= set(own), (sorted(modules), names)
    assert outside == [], "an absolute import left the sub-path"
    assert not [error for error in failed if "intrinsic" in error.lower()]
