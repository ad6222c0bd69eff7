"""One real ComfyUI server with this pack, shared by all server tests, and a client that speaks its HTTP and websocket."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import websocket
from intrinsic_lab.tools.comfyui_server import RunningServer, comfyui_server
from intrinsic_lab.tools.comfyui_source import find_comfyui
from intrinsic_lab.tools.environment import link_pack
from intrinsic_lab.tools.front_end import front_end


@dataclass(frozen=True)
class Client:
    """Plain requests to a running ComfyUI; nothing here raises for a status, tests look at it."""

    url: str

    def get(self, path: str) -> tuple[int, dict | list | None]:
        """(HTTP status, decoded JSON or None)"""
        return self._send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: dict) -> tuple[int, dict | list | None]:
        """(HTTP status, decoded JSON or None)"""
        headers = {"Content-Type": "application/json"}
        return self._send(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    def get_text(self, path: str) -> tuple[int, str]:
        """(HTTP status, text)"""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def run(
        self, prompt: dict, seconds: float = 120, titled: bool = True, seen: Callable[[dict], None] = lambda event: None
    ) -> tuple[list[dict], dict]:
        """Queues a prompt, waits for its end; returns its websocket events and its entry in /history.

        titled: give nodes their titles first. seen: called with each event as it comes. Fails the test if the prompt is refused.
        """
        client_id = uuid.uuid4().hex
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        connection = websocket.create_connection(address, timeout=seconds)
        try:
            status, reply = self.post("/prompt", {"prompt": with_titles(prompt) if titled else prompt, "client_id": client_id})
            assert status == 200, reply
            events: list[dict] = []
            while not events or events[-1]["type"] not in ("execution_success", "execution_error", "execution_interrupted"):
                message = connection.recv()
                if isinstance(message, str) and (event := json.loads(message))["data"].get("prompt_id") == reply["prompt_id"]:
                    events.append(event)
                    seen(event)
        finally:
            connection.close()
        return events, self.history(reply["prompt_id"])

    def history(self, prompt_id: str) -> dict:
        """The entry of a finished prompt; it can lag behind the last event, and other branches may go on after an error."""
        for _ in range(600):
            entry = self.get(f"/history/{prompt_id}")[1].get(prompt_id)
            if entry:
                return entry
            time.sleep(0.1)
        pytest.fail(f"no history of {prompt_id}")

    @staticmethod
    def _send(request: urllib.request.Request) -> tuple[int, dict | list | None]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text.strip() else None


def with_titles(prompt: dict) -> dict:
    """The prompt with a title on every node, as the front end sends it; ComfyUI cannot replace a node without one."""
    return {node_id: {"_meta": {"title": node["class_type"]}, **node} for node_id, node in prompt.items()}


def front_end_arguments() -> list[str]:
    """Another front end than the installed one: the folder that INTRINSIC_LAB_FRONT_END names, as `make test FRONT_END=1.58.1` does."""
    folder = os.environ.get("INTRINSIC_LAB_FRONT_END")
    return ["--front-end-root", folder] if folder else []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """A ComfyUI with this pack in a base directory of its own: server.base / models, input, output."""
    base = link_pack(tmp_path_factory.mktemp("comfyui"))
    with comfyui_server(Path(sys.executable), find_comfyui(), base, ["--cpu", *front_end_arguments()], seconds_to_start=600) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Client:
    """Talks to the shared server."""
    return Client(server.url)


@pytest.fixture(scope="session")
def page(server: RunningServer):
    """The front end of the shared server, ready for graphs."""
    if os.environ.get("INTRINSIC_LAB_SKIP_BROWSER") == "1":
        pytest.skip("INTRINSIC_LAB_SKIP_BROWSER=1")
    with front_end(server.url) as ready:
        yield ready
