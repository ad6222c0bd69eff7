"""Talks to a running ComfyUI: uploads a picture, queues a graph, waits for it and fetches what it saved."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from .prompt import Prompt


class PictureFailed(Exception):
    """ComfyUI refused or failed one picture; the message is its own reason."""


class ServerLost(Exception):
    """A server went away while it worked."""


@dataclass
class Server:
    """A running ComfyUI. Every method raises ServerLost or aiohttp.ClientError if it does not answer any more."""

    session: aiohttp.ClientSession
    url: str

    async def is_alive(self, attempts: int = 3) -> bool:
        """Whether the server answers, asked `attempts` times within a few seconds."""
        for attempt in range(attempts):
            await asyncio.sleep(attempt)
            try:
                async with self.session.get(f"{self.url}/system_stats", timeout=aiohttp.ClientTimeout(total=10)) as answer:
                    if answer.status == 200:
                        return True
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError):
                continue
        return False

    async def upload(self, picture: Path) -> str:
        """Sends a picture and returns the value that LoadImage wants for it. Raises PictureFailed."""
        try:
            content = picture.read_bytes()
        except OSError as error:
            raise PictureFailed(f"cannot be read: {error}") from error
        # Named by content: two runs never overwrite each other's picture, and ComfyUI's cache sees equal pictures.
        name = f"{hashlib.sha256(content).hexdigest()[:16]}{picture.suffix.lower()}"
        form = aiohttp.FormData({"type": "input", "subfolder": "batch", "overwrite": "true"})
        form.add_field("image", content, filename=name)
        async with self.session.post(f"{self.url}/upload/image", data=form) as answer:
            if answer.status != 200:
                raise PictureFailed(f"upload refused with HTTP {answer.status}: {(await answer.text())[:300]}")
            stored = await answer.json()
        return "/".join(part for part in (stored.get("subfolder"), stored["name"]) if part)

    async def run(self, prompt: Prompt, progress: Callable[[str], None]) -> dict:
        """Queues a graph, waits for it and returns its outputs: node id -> {kind: [...]}. Raises PictureFailed."""
        client = uuid.uuid4().hex
        async with self.session.ws_connect(f"{self.url}/ws", params={"clientId": client}, heartbeat=60, max_msg_size=0) as events:
            prompt_id = await self._queue(prompt, client)
            try:
                await self._wait(events, prompt_id, prompt, progress)
            except asyncio.CancelledError:
                await self._cancel(prompt_id)
                raise
        return await self._outputs(prompt_id)

    async def download(self, file: dict) -> bytes:
        """The content of one output file, as /history names it. Raises PictureFailed."""
        wanted = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        async with self.session.get(f"{self.url}/view", params=wanted) as answer:
            if answer.status != 200:
                raise PictureFailed(f"the server does not hand out {file['filename']}: HTTP {answer.status}")
            return await answer.read()

    async def _queue(self, prompt: Prompt, client: str) -> str:
        async with self.session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            text = await answer.text()
            if answer.status not in (200, 400):
                raise PictureFailed(f"the graph was refused with HTTP {answer.status}: {text[:300]}")
        reply = json.loads(text)
        if reply.get("node_errors") or "prompt_id" not in reply:
            if "prompt_id" in reply:
                # Some outputs could have run: half a result would look like a whole one.
                await self._cancel(reply["prompt_id"])
            raise PictureFailed(_refusal(reply))
        return reply["prompt_id"]

    async def _wait(
        self, events: aiohttp.ClientWebSocketResponse[bool], prompt_id: str, prompt: Prompt, progress: Callable[[str], None]
    ) -> None:
        while True:
            try:
                message = await events.receive(timeout=15)
            except (TimeoutError, asyncio.TimeoutError):
                # Events can be lost; the history is what counts.
                if await self._history(prompt_id):
                    return
                continue
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                raise ServerLost(f"{self.url} closed the connection")
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            title = prompt.get(str(data.get("node")), {}).get("_meta", {}).get("title", "")
            if kind == "executing" and title:
                progress(title)
            elif kind == "progress":
                progress(f"{title} {data['value']}/{data['max']}".strip())
            elif kind == "execution_error":
                raise PictureFailed(_run_error(data))
            elif kind == "execution_interrupted":
                raise PictureFailed("interrupted on the server")
            elif kind == "execution_success":
                return

    async def _history(self, prompt_id: str) -> dict | None:
        async with self.session.get(f"{self.url}/history/{prompt_id}") as answer:
            return (await answer.json()).get(prompt_id) if answer.status == 200 else None

    async def _outputs(self, prompt_id: str) -> dict:
        # The history can lag behind the event.
        for _ in range(50):
            if entry := await self._history(prompt_id):
                break
            await asyncio.sleep(0.1)
        else:
            raise PictureFailed("the server has finished, but has no history of it")
        for kind, data in (entry.get("status") or {}).get("messages", []):
            if kind == "execution_error":
                raise PictureFailed(_run_error(data))
            if kind == "execution_interrupted":
                raise PictureFailed("interrupted on the server")
        return entry.get("outputs", {})

    async def _cancel(self, prompt_id: str) -> None:
        await self.session.post(f"{self.url}/queue", json={"delete": [prompt_id]})
        await self.session.post(f"{self.url}/interrupt", json={"prompt_id": prompt_id})


def _refusal(reply: dict) -> str:
    """ComfyUI's reason for an HTTP 400: each node's own words, else the general ones."""
    words = [
        f"node {node_id} ({problem.get('class_type')}): {'; '.join(_error_words(error) for error in problem.get('errors', []))}"
        for node_id, problem in (reply.get("node_errors") or {}).items()
    ]
    error = reply.get("error") or {}
    return " | ".join(words) or (_error_words(error) if isinstance(error, dict) else str(error))


def _error_words(error: dict) -> str:
    return ": ".join(part for part in (error.get("message"), error.get("details")) if part)


def _run_error(data: dict) -> str:
    return f"node {data.get('node_id')} ({data.get('node_type')}): {str(data.get('exception_message')).strip()}"
