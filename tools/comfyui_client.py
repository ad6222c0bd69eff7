"""Talks to a running ComfyUI: uploads a picture, queues a graph, waits for it and fetches what it saved."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from .prompt import Prompt

# A server may think for a while; one that says nothing for longer than this will not.
_ANSWER = aiohttp.ClientTimeout(total=120)
# Times that a dropped connection is made anew, with pauses of one, two ... seconds, before the server counts as gone.
_RECONNECTS = 5


class PictureFailed(Exception):
    """ComfyUI refused or failed one picture; the message is its own reason."""


class Refused(PictureFailed):
    """ComfyUI refused it before it ran, or ran out of memory: another server may have what this one lacks."""


class ServerLost(Exception):
    """A server went away while it worked."""


class ServerFaulty(ServerLost):
    """What answers does not answer as ComfyUI does; nothing says that the picture is at fault."""


@dataclass
class Server:
    """A running ComfyUI.

    Every method raises ServerFaulty if the answer is none of ComfyUI's; ServerLost, TimeoutError or aiohttp.ClientError if there is none.
    """

    session: aiohttp.ClientSession
    url: str

    async def is_alive(self, attempts: int = 3) -> bool:
        """Whether the server answers, asked `attempts` times within a few seconds."""
        for attempt in range(attempts):
            await asyncio.sleep(attempt)
            try:
                async with self.session.get(f"{self.url}/system_stats", timeout=aiohttp.ClientTimeout(total=10)) as answer:
                    if "system" in await self._reply(answer):
                        return True
            except (ServerFaulty, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError):
                continue
        return False

    async def upload(self, content: bytes, suffix: str) -> str:
        """Sends a picture and returns the value that LoadImage wants for it. Raises Refused."""
        # Named by content: two runs never overwrite each other's picture, and ComfyUI's cache sees equal pictures.
        name = f"{hashlib.sha256(content).hexdigest()[:16]}{suffix.lower()}"
        form = aiohttp.FormData({"type": "input", "subfolder": "batch", "overwrite": "true"})
        form.add_field("image", content, filename=name)
        async with self.session.post(f"{self.url}/upload/image", data=form) as answer:
            if answer.status in (400, 413):
                raise Refused(f"upload refused with HTTP {answer.status}: {(await answer.text(errors='replace'))[:300]}")
            stored = await self._reply(answer)
        if not isinstance(stored.get("name"), str):
            raise ServerFaulty(f"{self.url} took a picture and did not say where it put it")
        return "/".join(part for part in (stored.get("subfolder"), stored["name"]) if part)

    async def run(self, prompt: Prompt, progress: Callable[[str], None]) -> dict[str, dict]:
        """Queues a graph, waits for it and returns its outputs: node id -> {kind: [...]}. Raises PictureFailed.

        Where the connection drops, it is made anew and the same run waited for.
        """
        client, prompt_id, broken = uuid.uuid4().hex, None, 0
        while True:
            try:
                async with self.session.ws_connect(f"{self.url}/ws?clientId={client}", heartbeat=60, max_msg_size=0) as events:
                    if prompt_id is None:
                        prompt_id = await self._queue(prompt, client)
                    elif not await self._knows(prompt_id):
                        raise ServerLost(f"{self.url} has forgotten what it was running: it was started anew")
                    broken = 0
                    await self._wait(events, prompt_id, prompt, progress)
                return await self._outputs(prompt_id)
            except (_Dropped, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, ConnectionError) as error:
                broken += 1
                if prompt_id is None or broken > _RECONNECTS:
                    raise ServerLost(f"{self.url} closed the connection ({error or type(error).__name__})") from error
                await asyncio.sleep(broken)
            except asyncio.CancelledError:
                if prompt_id:
                    await self._cancel(prompt_id)
                raise

    async def download(self, file: dict) -> bytes:
        """The content of one output file, as /history names it."""
        wanted = {key: str(file.get(key, "")) for key in ("filename", "subfolder", "type")}
        async with self.session.get(f"{self.url}/view", params=wanted) as answer:
            if answer.status != 200:
                raise ServerFaulty(f"{self.url} does not hand out {file['filename']}: HTTP {answer.status}")
            return await answer.read()

    async def _reply(self, answer: aiohttp.ClientResponse) -> dict:
        """The JSON object of an answer that should be one."""
        content = await answer.read()
        try:
            reply = json.loads(content) if answer.status == 200 else None
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            words = " ".join(content[:2000].decode("utf-8", "replace").split())[:100]
            raise ServerFaulty(f"{answer.url.path} of {self.url} answers HTTP {answer.status} ({answer.content_type}): {words}")
        return reply

    async def _get(self, path: str) -> dict:
        async with self.session.get(f"{self.url}/{path}", timeout=_ANSWER) as answer:
            return await self._reply(answer)

    async def _queue(self, prompt: Prompt, client: str) -> str:
        async with self.session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}, timeout=_ANSWER) as answer:
            if answer.status == 400:
                try:
                    raise Refused(_refusal(json.loads(await answer.read())))
                except (ValueError, AttributeError, TypeError) as error:
                    raise ServerFaulty(f"{self.url} refuses a graph without a reason") from error
            reply = await self._reply(answer)
        prompt_id = reply.get("prompt_id")
        if reply.get("node_errors"):
            if isinstance(prompt_id, str):
                # Some outputs could have run: half a result would look like a whole one.
                await self._cancel(prompt_id)
            raise Refused(_refusal(reply))
        if not isinstance(prompt_id, str):
            raise ServerFaulty(f"{self.url} took a graph and gave no prompt_id")
        return prompt_id

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
                if not await self._knows(prompt_id):
                    raise ServerLost(f"{self.url} has forgotten what it was running") from None
                continue
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                raise _Dropped("it was closed")
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            try:
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data") or {}
                if data.get("prompt_id") != prompt_id:
                    continue
                title = prompt.get(str(data.get("node")), {}).get("_meta", {}).get("title", "")
                said = f"{title} {data['value']}/{data['max']}".strip() if kind == "progress" else title
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ServerFaulty(f"{self.url} sends events that are none of ComfyUI's") from error
            if kind in ("executing", "progress") and said:
                progress(said)
            elif kind == "execution_error":
                raise _run_error(data)
            elif kind == "execution_interrupted":
                raise PictureFailed("interrupted on the server")
            elif kind == "execution_success":
                return

    async def _history(self, prompt_id: str) -> dict | None:
        return (await self._get(f"history/{prompt_id}")).get(prompt_id)

    async def _knows(self, prompt_id: str) -> bool:
        """Whether the server waits to run a prompt, runs it or has run it."""
        waiting = await self._get("queue")
        entries = [entry for kind in ("queue_running", "queue_pending") for entry in waiting.get(kind) or ()]
        # It may have moved from the one to the other in between.
        return any(prompt_id in entry for entry in entries if isinstance(entry, list)) or bool(await self._history(prompt_id))

    async def _outputs(self, prompt_id: str) -> dict[str, dict]:
        # The history can lag behind the event.
        for _ in range(50):
            if entry := await self._history(prompt_id):
                break
            await asyncio.sleep(0.1)
        else:
            raise ServerFaulty(f"{self.url} has finished, but has no history of it")
        try:
            for kind, data in (entry.get("status") or {}).get("messages", []):
                if kind == "execution_error":
                    raise _run_error(data)
                if kind == "execution_interrupted":
                    raise PictureFailed("interrupted on the server")
            return {str(node): dict(kinds) for node, kinds in entry.get("outputs", {}).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ServerFaulty(f"{self.url} tells a history that is none of ComfyUI's") from error

    async def _cancel(self, prompt_id: str) -> None:
        for path, what in (("queue", {"delete": [prompt_id]}), ("interrupt", {"prompt_id": prompt_id})):
            async with self.session.post(f"{self.url}/{path}", json=what, timeout=_ANSWER):
                pass


class _Dropped(Exception):
    """The websocket ended while it was listened to."""


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


def _run_error(data: dict) -> PictureFailed:
    said = f"node {data.get('node_id')} ({data.get('node_type')}): {str(data.get('exception_message')).strip()}"
    # A card with more memory may take it.
    return (Refused if str(data.get("exception_type")).endswith("OutOfMemoryError") else PictureFailed)(said)
